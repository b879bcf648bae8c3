"""The SQLite schema, by migrations: `PRAGMA user_version` counts the scripts that ran.

STRICT tables, so that an overflowing sum is an error and never a REAL. Quantities of every unit
are integer columns of their own (`audio_ms`, `input_tokens`, ...).
"""

from __future__ import annotations

from typing import Final

UNIT_COLUMNS: Final = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "input_audio_tokens",
    "cached_input_audio_tokens",
    "input_image_tokens",
    "cached_input_image_tokens",
    "output_audio_tokens",
    "requests",
    "audio_ms",
    "input_audio_ms",
    "output_audio_ms",
    "connected_ms",
    "characters",
    "utf8_bytes",
    "double_width_characters",
    "markup_characters",
    "prompt_characters",
    "completion_characters",
    "completion_chunks",
)

_UNITS_SQL = ",\n  ".join(f"{unit} INTEGER" for unit in UNIT_COLUMNS)

_NEVER_CHANGED = """
CREATE TRIGGER entries_are_never_changed BEFORE UPDATE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: post an adjustment instead'); END;
"""

MIGRATIONS: Final = (
    f"""
CREATE TABLE ledger (
  id TEXT NOT NULL, generation INTEGER NOT NULL, created_at_unix_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE calls (
  call_id TEXT PRIMARY KEY,
  livekit_project TEXT,
  project TEXT NOT NULL,
  agent TEXT,
  tenant TEXT,
  tags TEXT NOT NULL,
  environment TEXT NOT NULL,
  state TEXT NOT NULL,
  reason TEXT,
  opened_at_unix_ms INTEGER NOT NULL,
  ended_at_unix_ms INTEGER,
  settled_at_unix_ms INTEGER,
  amended INTEGER NOT NULL,
  coverage TEXT NOT NULL,
  meter_count INTEGER NOT NULL,
  limit_nano_usd INTEGER,
  warn_at_percent INTEGER NOT NULL,
  on_budget TEXT NOT NULL,
  ending TEXT NOT NULL,
  ending_budget TEXT,
  ending_deadline_unix_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX calls_by_opening ON calls (opened_at_unix_ms);
CREATE INDEX calls_unsettled ON calls (state) WHERE state <> 'settled';

CREATE TABLE meters (
  meter_id TEXT PRIMARY KEY,
  call_id TEXT NOT NULL,
  project TEXT NOT NULL,
  job_id TEXT,
  room_sid TEXT,
  agent TEXT,
  tenant TEXT,
  opened TEXT NOT NULL,
  state TEXT NOT NULL,
  durable_seq INTEGER NOT NULL,
  records_lost INTEGER NOT NULL,
  checkpoint TEXT NOT NULL,
  coverage TEXT NOT NULL,
  last_heard_at_unix_ms INTEGER NOT NULL,
  charged_nano_usd INTEGER NOT NULL,
  posted_nano_usd INTEGER NOT NULL,
  unpriced_leg_count INTEGER NOT NULL,
  epoch INTEGER NOT NULL,
  renewal INTEGER NOT NULL,
  held_nano_usd INTEGER NOT NULL CHECK (held_nano_usd >= 0),
  held_windows TEXT NOT NULL,
  unreported_max_nano_usd INTEGER NOT NULL,
  lease_until_unix_ms INTEGER,
  final INTEGER NOT NULL,
  exhausted INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX meters_by_call ON meters (call_id);
CREATE INDEX meters_by_job ON meters (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX meters_by_room ON meters (room_sid) WHERE room_sid IS NOT NULL;
CREATE INDEX meters_open ON meters (last_heard_at_unix_ms) WHERE state = 'open';
CREATE INDEX meters_by_lease ON meters (lease_until_unix_ms) WHERE lease_until_unix_ms IS NOT NULL;

-- Names and identities are personal data: here and in participants, nowhere else.
CREATE TABLE rooms (
  sid TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  livekit_project TEXT NOT NULL,
  call_id TEXT NOT NULL,
  seen_at_unix_ms INTEGER NOT NULL,
  created_at_unix_ms INTEGER,
  heard INTEGER NOT NULL,
  gone_at_unix_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX rooms_by_call ON rooms (call_id);
CREATE INDEX rooms_live ON rooms (livekit_project, name) WHERE gone_at_unix_ms IS NULL;

CREATE TABLE participants (
  sid TEXT PRIMARY KEY,
  room_sid TEXT NOT NULL,
  identity TEXT NOT NULL,
  kind TEXT NOT NULL,
  job_id TEXT,
  joined_at_unix_ms INTEGER,
  left_at_unix_ms INTEGER,
  disconnect_reason TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX participants_by_room ON participants (room_sid);

CREATE TABLE legs (
  key INTEGER PRIMARY KEY,
  meter_id TEXT NOT NULL,
  number INTEGER NOT NULL,
  call_id TEXT NOT NULL,
  modality TEXT NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  attributes TEXT NOT NULL,
  started_at_unix_ms INTEGER NOT NULL,
  stopped_at_unix_ms INTEGER,
  last_at_unix_ms INTEGER NOT NULL,
  time_to_first_ms INTEGER,
  duration_ms INTEGER,
  speech_id TEXT,
  served_model TEXT,
  served_tier TEXT,
  priced_as TEXT,
  usage TEXT NOT NULL,
  margins TEXT NOT NULL,
  basis TEXT NOT NULL,
  outcome TEXT,
  price_id TEXT,
  pricing_source TEXT,
  rated_nano_usd INTEGER,
  uncertainty_nano_usd INTEGER,
  posted_nano_usd INTEGER NOT NULL,
  posted_usage TEXT NOT NULL,
  posted_basis TEXT,
  part_count INTEGER NOT NULL,
  unpriced_posted INTEGER NOT NULL,
  UNIQUE (meter_id, number)
) STRICT;
CREATE INDEX legs_by_call ON legs (call_id);
CREATE INDEX legs_by_start ON legs (started_at_unix_ms);
CREATE INDEX legs_open ON legs (last_at_unix_ms) WHERE outcome IS NULL;

CREATE TABLE entries (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  leg_key INTEGER NOT NULL,
  part INTEGER NOT NULL,
  call_id TEXT NOT NULL,
  amount_nano_usd INTEGER,
  price_id TEXT,
  basis TEXT NOT NULL,
  uncertainty_nano_usd INTEGER,
  accrued_at_unix_ms INTEGER NOT NULL,
  posted_at_unix_ms INTEGER NOT NULL,
  {_UNITS_SQL},
  UNIQUE (leg_key, part),
  CHECK ((amount_nano_usd IS NULL) = (price_id IS NULL))
) STRICT;
CREATE INDEX entries_by_call ON entries (call_id);
{_NEVER_CHANGED}
CREATE TRIGGER entries_are_never_deleted BEFORE DELETE ON entries
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: post an adjustment instead'); END;

-- Sums of entries by quarter hour of UTC; outcome '' while a leg is open.
CREATE TABLE rollups (
  quarter_unix_ms INTEGER NOT NULL,
  project TEXT NOT NULL,
  agent TEXT NOT NULL,
  tenant TEXT NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  modality TEXT NOT NULL,
  outcome TEXT NOT NULL,
  amount_nano_usd INTEGER NOT NULL,
  leg_count INTEGER NOT NULL,
  unpriced_leg_count INTEGER NOT NULL,
  PRIMARY KEY (quarter_unix_ms, project, agent, tenant, provider, model, modality, outcome)
) STRICT, WITHOUT ROWID;

CREATE TABLE prices (
  price_id TEXT PRIMARY KEY, pricing_source TEXT NOT NULL, document BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE windows (
  scope TEXT NOT NULL,
  start_unix_ms INTEGER NOT NULL,
  limit_nano_usd INTEGER NOT NULL,
  enforcing INTEGER NOT NULL,
  warn_at_percent INTEGER NOT NULL,
  spent_nano_usd INTEGER NOT NULL,
  held_nano_usd INTEGER NOT NULL CHECK (held_nano_usd >= 0),
  overshoot_nano_usd INTEGER NOT NULL,
  cut_nano_usd INTEGER NOT NULL,
  warned INTEGER NOT NULL,
  PRIMARY KEY (scope, start_unix_ms)
) STRICT, WITHOUT ROWID;

CREATE INDEX windows_held ON windows (start_unix_ms) WHERE held_nano_usd > 0 AND start_unix_ms > 0;

CREATE TABLE webhooks (
  event_id TEXT PRIMARY KEY, received_at_unix_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE gaps (
  meter_id TEXT NOT NULL, call_id TEXT NOT NULL, at_unix_ms INTEGER NOT NULL,
  reason TEXT NOT NULL, modality TEXT
) STRICT;
CREATE INDEX gaps_by_call ON gaps (call_id);
CREATE INDEX gaps_by_meter ON gaps (meter_id);
CREATE TABLE control_totals (
  meter_id TEXT NOT NULL, call_id TEXT NOT NULL, at_unix_ms INTEGER NOT NULL,
  modality TEXT NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL, unit TEXT NOT NULL,
  metered INTEGER NOT NULL, livekit INTEGER NOT NULL, causes TEXT NOT NULL
) STRICT;
CREATE INDEX control_totals_by_call ON control_totals (call_id);
CREATE TABLE quarantine (
  meter_id TEXT NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL, record TEXT NOT NULL,
  PRIMARY KEY (meter_id, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
  call_id TEXT NOT NULL, at_unix_ms INTEGER NOT NULL, step TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_call ON audit (call_id);
CREATE TABLE counters (
  name TEXT PRIMARY KEY, value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
""",
    # What is billed, and what adjustments added. Before there were markups, the cost was billed.
    f"""
ALTER TABLE legs ADD COLUMN markup_ppm INTEGER NOT NULL DEFAULT 0;
ALTER TABLE legs ADD COLUMN billed_nano_usd INTEGER;
ALTER TABLE legs ADD COLUMN posted_billed_nano_usd INTEGER NOT NULL DEFAULT 0;
UPDATE legs SET billed_nano_usd = rated_nano_usd, posted_billed_nano_usd = posted_nano_usd;
ALTER TABLE entries ADD COLUMN billed_nano_usd INTEGER;
DROP TRIGGER entries_are_never_changed;
UPDATE entries SET billed_nano_usd = amount_nano_usd;
{_NEVER_CHANGED}
ALTER TABLE rollups ADD COLUMN billed_nano_usd INTEGER NOT NULL DEFAULT 0;
UPDATE rollups SET billed_nano_usd = amount_nano_usd;
ALTER TABLE meters ADD COLUMN adjusted_nano_usd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE windows ADD COLUMN adjusted_nano_usd INTEGER NOT NULL DEFAULT 0;
""",
    # How the usage is known, apart from how its amount is: a price may have to convert it.
    """
ALTER TABLE legs ADD COLUMN recorded_basis TEXT NOT NULL DEFAULT 'estimated';
UPDATE legs SET recorded_basis = basis;
""",
    # What LiveKit bills: connections are legs, on a meter of the ledger's own. Nobody who was in a
    # room before is billed after the fact: their number stays NULL.
    """
ALTER TABLE participants ADD COLUMN number INTEGER;
ALTER TABLE participants ADD COLUMN left_told INTEGER NOT NULL DEFAULT 1;
CREATE UNIQUE INDEX participants_by_number ON participants (number) WHERE number IS NOT NULL;
ALTER TABLE meters ADD COLUMN of_rooms INTEGER NOT NULL DEFAULT 0;
""",
    # When a listing last showed somebody: it is the same whichever leg stands for the connection.
    """
ALTER TABLE participants ADD COLUMN heard_at_unix_ms INTEGER;
UPDATE participants SET heard_at_unix_ms = left_at_unix_ms WHERE number IS NOT NULL;
""",
)
