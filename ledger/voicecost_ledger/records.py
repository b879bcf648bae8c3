"""Accounting records: what a meter says of its legs, with cumulative counters (RFC 2866's idea).

A *leg* is one provider request or connection. Every record about it carries the leg's totals so
far, so a record that is repeated or lost in the middle changes nothing. A meter numbers its
records 1, 2, 3 ... (`seq`) across all of its legs; `(meter_id, seq)` identifies a record for ever.

    MeterOpen   first record of every meter: whose call this is
    LegStart    written before the request goes out, with what is known of it
    LegInterim  totals so far
    LegStop     final totals and outcome; sent again with a higher seq, it corrects the first
    Gap         something was used that could not be metered; makes the call `partial`
    ControlTotal  one quantity as LiveKit's `session.usage` has it, and why ours is another
    MeterClose  last record: nothing more will be metered
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec


class Modality(StrEnum):
    """What kind of service a leg used."""

    STT = "stt"
    LLM = "llm"
    TTS = "tts"
    REALTIME = "realtime"  # speech to speech; its input transcription is a leg of `stt`
    DECISION = "decision"  # LiveKit's DecisionModel
    AVATAR = "avatar"
    TURN_DETECTION = "turn_detection"
    INTERRUPTION_DETECTION = "interruption_detection"
    TELEPHONY = "telephony"  # a phone leg at its carrier
    PARTICIPANT = "participant"  # a connection to a room, as its LiveKit server bills it
    EGRESS = "egress"  # a recording or a stream out of a room
    OTHER = "other"  # whatever `record_usage` tells that is none of these


class Basis(StrEnum):
    """How a leg's quantities are known, best first; a leg has the weakest of its billed units."""

    REPORTED = "reported"
    OBSERVED = "observed"
    ESTIMATED = "estimated"


class Outcome(StrEnum):
    """What became of a leg. Everything but SERVED is waste."""

    SERVED = "served"
    INTERRUPTED = "interrupted"
    DISCARDED = "discarded"
    FAILED = "failed"
    PROBE = "probe"
    CUT = "cut"
    LOST = "lost"


class ControlCause(StrEnum):
    """Why a meter's quantity differs from that of LiveKit's `session.usage`."""

    STT_TAIL = "stt_tail"  # audio after the session stopped to listen to its own STT
    INTERRUPTED = "interrupted"
    FAILED_ATTEMPT = "failed_attempt"
    DISCARDED = "discarded"  # a preemptive generation that was thrown away
    PROBE = "probe"
    OUTSIDE_SESSION = "outside_session"  # requested through no component of the session
    NOT_IN_USAGE = "not_in_usage"  # LiveKit or the plugin does not count this, and we know why
    ATTACHED_LATE = "attached_late"  # used before the process's first VoiceCost()
    UNEXPLAINED = "unexplained"  # a fault of one of us, and counted as such


class Coverage(StrEnum):
    """How much of a call its meters could see."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    METRICS_ONLY = "metrics-only"


class OnBudget(StrEnum):
    """What happens to the call when a budget is used up."""

    NOTIFY = "notify"
    WRAP_UP = "wrap_up"
    END = "end"


class Environment(StrEnum):
    """Where a meter runs: a LiveKit job, `console`, a test run, or a process without a job."""

    JOB = "job"
    CONSOLE = "console"
    TEST = "test"
    PROCESS = "process"


# Billed units first; the raw counts of an LLM request are never priced, they let a better
# estimate be made later.
UNITS: Final = frozenset(
    {
        "input_tokens",  # all prompt tokens, cached ones included (as OpenAI counts)
        "cached_input_tokens",  # the part of input_tokens read from the provider's cache
        "cache_write_tokens",  # the part of input_tokens written to the provider's cache
        "output_tokens",  # all completion tokens, reasoning included
        "reasoning_tokens",  # the part of output_tokens that nobody is shown
        "input_audio_tokens",  # the part of input_tokens that is audio
        "cached_input_audio_tokens",  # the part of input_audio_tokens that was cached
        "input_image_tokens",  # the part of input_tokens that is pictures, of a video too
        "cached_input_image_tokens",  # the part of input_image_tokens that was cached
        "output_audio_tokens",  # the part of output_tokens that is audio
        "requests",  # where a provider bills, or we count, by request
        "audio_ms",  # STT: audio sent, of one channel, silence included; TTS: audio received
        "input_audio_ms",  # realtime: audio sent
        "output_audio_ms",  # realtime: audio received
        "connected_ms",  # wall clock for which the provider's connection was open
        "characters",  # Unicode code points sent
        "utf8_bytes",  # the same text in UTF-8 bytes
        "double_width_characters",  # of these, the Chinese ones (hanzi, kanji, hanja)
        "markup_characters",  # of these, those inside SSML tags
        "prompt_characters",  # raw: characters of the rendered LLM request
        "completion_characters",  # raw: characters of the LLM answer received so far
        "completion_chunks",  # raw: chunks of the LLM answer received so far
    }
)

ADOPTED: Final = "adopted"
"""Close reason of a meter whose process died: written by whoever adopted its spool."""

# Clamped at ingest: 2**40 ms is 35 years, 2**40 tokens a trillion (facts: sums stay in int64).
MAX_QUANTITY: Final = 2**40


Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]
Usage = Annotated[dict[str, int], msgspec.Meta(max_length=64)]
Tags = Annotated[dict[Text, Text], msgspec.Meta(max_length=64)]


class LegAttributes(msgspec.Struct, frozen=True, array_like=True):
    """What a leg is, known when it starts. Strings are the provider plugin's own."""

    modality: Modality
    provider: Text  # as the plugin reports it: "api.openai.com", "Deepgram"
    model: Text  # "gpt-4o-mini", "nova-3", "aura-2-andromeda-en"; "" when the plugin knows none
    label: Text = ""  # class of the plugin, "livekit.plugins.deepgram.stt.STT"
    host: Text = ""  # base-URL host the request goes to
    language: Text = ""  # BCP 47 or the provider's word ("multi"); "" when not stated
    voice: Text = ""
    channel_count: int = 1
    streaming: bool = True
    service_tier: Text = ""
    # Options that are on and may be billed apart: "keyterms", "redaction", "diarization".
    addons: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)] = ()


class MeterOpen(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """First record of a meter: which call it belongs to and who pays.

    `livekit_url`, `room_name`, `room_sid` and `job_id` are None outside a LiveKit job.
    `budget_nano_usd` None means the plugin set no budget for the call.
    """

    meter_id: Id
    seq: int
    at_unix_ms: int
    project: Text = "default"
    agent: Text | None = None
    tenant: Text | None = None
    tags: Tags = {}
    environment: Environment = Environment.PROCESS
    livekit_url: Text | None = None
    room_name: Text | None = None
    room_sid: Text | None = None
    job_id: Text | None = None
    budget_nano_usd: int | None = None
    warn_at_percent: int = 80
    on_budget: OnBudget = OnBudget.WRAP_UP
    unattributed: bool = False  # the job's own meter: legs that belong to no AgentSession
    versions: Tags = {}  # {"livekit-agents": "1.8.9", "voicecost": "0.1.0"}
    hosted: bool = False  # the agent is deployed to LiveKit Cloud, which bills its minutes apart


class LegStart(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """A request is about to be sent. `usage` holds what it costs at the least (its prompt)."""

    meter_id: Id
    seq: int
    at_unix_ms: int
    leg: int  # 1, 2, 3 ... within the meter
    attributes: LegAttributes
    usage: Usage
    basis: Basis = Basis.ESTIMATED
    speech_id: Text | None = None  # LiveKit's SpeechHandle id, where there is one
    margins: Usage = {}  # by how much each unit may be off if no other record comes


class LegInterim(msgspec.Struct, frozen=True, array_like=True, tag="interim"):
    """The leg's totals so far; a later one replaces it.

    `margins` are of an estimate, as in `LegStop`, and of what is counted too: there they tell what
    may have been used since, if this was the last thing that its process could say.
    """

    meter_id: Id
    seq: int
    at_unix_ms: int
    leg: int
    usage: Usage
    basis: Basis
    margins: Usage = {}  # by how much each unit may be off if no other record comes


class LegStop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """The leg's final totals; another one with a higher seq corrects it (estimate to reported)."""

    meter_id: Id
    seq: int
    at_unix_ms: int
    leg: int
    usage: Usage
    basis: Basis
    outcome: Outcome
    margins: Usage = {}  # of an estimate: by how much each unit may be off, 19 times of 20
    served_model: Text = ""  # what the provider says served it, where that was not asked for
    # By a clock that never steps; None: none came, or nobody measured.
    time_to_first_ms: int | None = None  # from the start to the first token or byte
    duration_ms: int | None = None  # from the start to the stop
    served_tier: Text = ""  # the service tier that served it, where that was not asked for


class Gap(msgspec.Struct, frozen=True, array_like=True, tag="gap"):
    """Usage that could not be metered, never silence. `reason` is one of a few fixed words."""

    meter_id: Id
    seq: int
    at_unix_ms: int
    reason: Text  # "attached_late", "turn_without_llm", "audio_without_tts", "metering_fault", ...
    modality: Modality | None = None


class ControlTotal(msgspec.Struct, frozen=True, array_like=True, tag="control"):
    """One quantity of a run of the session (`start()` to close) beside LiveKit's own account.

    `metered` minus `livekit` is the sum of `causes`: a word of `ControlCause` to its part of the
    difference. Nothing is booked from it.
    """

    meter_id: Id
    seq: int
    at_unix_ms: int
    modality: Modality
    provider: Text
    model: Text
    unit: Text
    metered: int
    livekit: int
    causes: Usage = {}


class MeterClose(msgspec.Struct, frozen=True, array_like=True, tag="close"):
    """Last record of a meter: settles it and releases what it holds of a budget."""

    meter_id: Id
    seq: int
    at_unix_ms: int
    coverage: Coverage
    reason: Text = ""  # AgentSession's close reason, "shutdown", or ADOPTED


Record = MeterOpen | LegStart | LegInterim | LegStop | Gap | ControlTotal | MeterClose

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """One record as MessagePack."""
    return _encoder.encode(record)


def decode_record(data: bytes | memoryview) -> Record:
    """The record in `data`; raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return _decoder.decode(data)
