"""The client's side of the protocol, without I/O: what to send, and when.

    recorded, receive, connected, disconnected, tick ... -> messages to send, in this order

It keeps every record that is not durable yet, of each leg only the newest interim, and sends
contiguous ranges per meter. Losses, repeats and reordering change nothing in the end: records are
cumulative, acknowledgements too, and what is not acknowledged is sent again. No clock, no random,
no I/O in here: `now_ms` is any clock that never goes back.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from voicecost_ledger.grants import ANSWER_TIMEOUT_MS
from voicecost_ledger.protocol import (
    METERS_MAX,
    PROTOCOL_VERSION,
    Ack,
    ClientMessage,
    Command,
    Grant,
    Hello,
    MeterHeld,
    Records,
    Reject,
    Renew,
    ServerMessage,
    Welcome,
    WrappedUp,
)
from voicecost_ledger.records import (
    LegInterim,
    LegStop,
    MeterClose,
    MeterOpen,
    Record,
    encode_record,
)

LINGER_MS: Final = 50
INTERIM_LINGER_MS: Final = 500  # two a second, away from the end of a grant
RENEW_INTERVAL_MS: Final = 10_000
RESEND_MS: Final = 5_000  # records without an acknowledgement; doubles up to RESEND_MAX_MS
RESEND_MAX_MS: Final = 60_000
UNAVAILABLE_PAUSE_MS: Final = 1_000
UNACKED_BYTES_MAX: Final = 256 * 1024
BATCH_BYTES_MAX: Final = 64 * 1024


class _Meter:
    """What is known of one meter, and what was sent of it on this connection."""

    def __init__(self, meter_id: str) -> None:
        self.meter_id = meter_id
        self.last_seq = 0
        self.acked = 0
        self.pending: dict[int, tuple[Record, int]] = {}  # seq -> record, bytes; in order
        self.interims: dict[int, int] = {}  # leg -> seq of its interim in `pending`
        self.opened: MeterOpen | None = None
        self.opened_bytes = 0
        self.live = False  # opened here and not closed: asks for credit
        # records on this connection
        self.unsent: deque[int] = deque()
        self.sent_through = 0
        self.in_flight: deque[tuple[int, int]] = deque()  # through_seq, bytes
        self.due_ms: int | None = None  # when `unsent` goes out
        self.progress_ms = 0  # last send or acknowledgement
        self.resend_ms = RESEND_MS
        # credit
        self.total_nano_usd = 0
        self.renew_at_nano_usd: int | None = None  # half of the present grant
        self.epoch = -1
        self.renewal = 0
        self.renewed_ms = 0
        self.renew_due = False
        self.renewal_answered = True
        self.exhausted = False
        self.wrapped_up = False
        self.wrapped_up_sent = False

    @property
    def done(self) -> bool:
        return not self.live and not self.pending

    def near_end(self) -> bool:
        return self.renew_at_nano_usd is not None and self.total_nano_usd >= self.renew_at_nano_usd

    def rewind(self, now_ms: int) -> int:
        """Forget what was sent; returns how many bytes are no longer in flight."""
        freed = sum(size for _, size in self.in_flight)
        self.in_flight.clear()
        self.unsent = deque(self.pending)
        self.sent_through = self.acked
        self.due_ms = now_ms if self.unsent else None
        return freed


class Uplink:
    """One process's conversation with the authority. Not thread-safe; see the module.

    Attributes:
        ledger_id: The ledger last spoken to.
        generation: Its generation, new at each restore; a lower one is refused (split brain).
        refusal: Why this connection is of no use (close it, try again later); None while it is.
        rejected: How often each code of `Reject` came.
    """

    def __init__(
        self,
        process_id: str,
        *,
        unacked_bytes_max: int = UNACKED_BYTES_MAX,
        batch_bytes_max: int = BATCH_BYTES_MAX,
    ) -> None:
        """Start without a connection.

        Args:
            process_id: Random id of this process.
            unacked_bytes_max: Flow control: what may be on its way at once, over all meters.
            batch_bytes_max: Size of one `Records` message's content.
        """
        self.ledger_id: str | None = None
        self.generation = 0
        self.refusal: str | None = None
        self.rejected: Counter[str] = Counter()
        self._process_id = process_id
        self._unacked_bytes_max = unacked_bytes_max
        self._batch_bytes_max = batch_bytes_max
        self._meters: dict[str, _Meter] = {}
        self._acked: dict[str, int] = {}
        self._connected = False
        self._welcomed = False
        self._hello_due = False
        self._hello_sent_ms: int | None = None  # None: answered
        self._paused_until_ms = 0
        self._in_flight_bytes = 0

    # -- what the process does --------------------------------------------------------------------

    def recorded(
        self, record: Record, now_ms: int, *, adopted: bool = False
    ) -> list[ClientMessage]:
        """A record is in the spool. Of one meter they come in the order of `seq`.

        Args:
            record: The record; one that is known already changes nothing.
            now_ms: Now.
            adopted: It is a dead process's: its meter asks for no credit.
        """
        meter = self._meters.get(record.meter_id)
        if meter is None:
            meter = self._meters[record.meter_id] = _Meter(record.meter_id)
            meter.sent_through = meter.acked = 0
            self._hello_due = True
        if record.seq <= meter.last_seq:
            return self._output(now_ms)
        meter.last_seq = record.seq
        if isinstance(record, (LegInterim, LegStop)):
            superseded = meter.interims.pop(record.leg, None)
            if superseded is not None:
                meter.pending.pop(superseded, None)
        size = len(encode_record(record))
        meter.pending[record.seq] = (record, size)
        meter.unsent.append(record.seq)
        linger_ms = LINGER_MS
        if isinstance(record, LegInterim):
            meter.interims[record.leg] = record.seq
            if meter.renew_at_nano_usd is not None and not meter.near_end():
                linger_ms = INTERIM_LINGER_MS
        elif isinstance(record, MeterOpen):
            meter.live = meter.renew_due = not adopted
            meter.opened, meter.opened_bytes = record, size
            linger_ms = 0
        elif isinstance(record, MeterClose):
            meter.live = False
            linger_ms = 0
        due_ms = now_ms + linger_ms
        meter.due_ms = due_ms if meter.due_ms is None else min(meter.due_ms, due_ms)
        return self._output(now_ms)

    def spent(self, meter_id: str, total_nano_usd: int) -> None:
        """The meter's own rated total so far; at half of its grant it is renewed."""
        meter = self._meters.get(meter_id)
        if meter is None or total_nano_usd <= meter.total_nano_usd:
            return
        before = meter.near_end()
        meter.total_nano_usd = total_nano_usd
        if meter.near_end() and not before:
            meter.renew_due = meter.live

    def renew(
        self, meter_id: str, total_nano_usd: int, now_ms: int, *, exhausted: bool = False
    ) -> list[ClientMessage]:
        """The meter needs more credit: report everything and ask for it, now.

        Args:
            meter_id: Which one.
            total_nano_usd: Its own rated total.
            now_ms: Now.
            exhausted: It has stopped for want of credit; until a grant it asks so.
        """
        self.spent(meter_id, total_nano_usd)
        meter = self._meters.get(meter_id)
        if meter is not None and meter.live:
            meter.renew_due = True
            meter.exhausted = meter.exhausted or exhausted
        return self.flush(now_ms)

    def exhausted(self, meter_id: str, total_nano_usd: int, now_ms: int) -> list[ClientMessage]:
        """The meter has stopped for want of credit."""
        return self.renew(meter_id, total_nano_usd, now_ms, exhausted=True)

    def wrapped_up(self, meter_id: str, now_ms: int) -> list[ClientMessage]:
        """The wrap-up sentence is over: the room may go. Said again after a reconnect."""
        meter = self._meters.get(meter_id)
        if meter is not None:
            meter.wrapped_up = True
        return self.flush(now_ms)

    def flush(self, now_ms: int) -> list[ClientMessage]:
        """Send what is lingering."""
        for meter in self._meters.values():
            if meter.unsent:
                meter.due_ms = now_ms
        return self._output(now_ms)

    # -- the connection ---------------------------------------------------------------------------

    def connected(self, now_ms: int) -> list[ClientMessage]:
        """A new connection stands: say hello. Nothing else goes out before the welcome."""
        self.disconnected(now_ms)
        self._connected = True
        self.refusal = None
        self._hello_due = True
        return self._output(now_ms)

    def disconnected(self, now_ms: int) -> None:
        """The connection is gone; what was in flight counts as lost."""
        self._connected = self._welcomed = False
        self._hello_sent_ms = None
        self._paused_until_ms = 0
        self._in_flight_bytes = 0
        for meter in self._meters.values():
            meter.rewind(now_ms)
            meter.resend_ms = RESEND_MS
            meter.renewal_answered = True
            meter.renew_due = meter.live
            meter.wrapped_up_sent = False

    def receive(self, message: ServerMessage, now_ms: int) -> list[ClientMessage]:
        """Take a message of the authority."""
        if not self._connected:
            return []
        match message:
            case Welcome():
                self._welcome(message, now_ms)
            case Ack():
                for meter_id, seq in message.committed.items():
                    self._durable(meter_id, seq, now_ms)
            case Grant():
                self._granted(message)
            case Reject():
                self._rejected(message, now_ms)
            case Command():
                pass  # for the meter, not for the uplink
        return self._output(now_ms)

    def tick(self, now_ms: int) -> list[ClientMessage]:
        """Time has passed; call it at the latest at `next_tick_ms`."""
        if self._connected:
            for meter in self._meters.values():
                if meter.in_flight and now_ms >= meter.progress_ms + meter.resend_ms:
                    self._in_flight_bytes -= meter.rewind(now_ms)
                    meter.progress_ms = now_ms
                    meter.resend_ms = min(meter.resend_ms * 2, RESEND_MAX_MS)
        return self._output(now_ms)

    def next_tick_ms(self) -> int | None:
        """When `tick` has something to do next; None: not before something else happens."""
        if not self._connected or self.refusal is not None:
            return None
        times: list[int] = []
        if self._hello_sent_ms is not None:
            times.append(self._hello_sent_ms + ANSWER_TIMEOUT_MS)
        if self._welcomed:
            room = self._in_flight_bytes < self._unacked_bytes_max
            for meter in self._meters.values():
                if meter.due_ms is not None and room:
                    times.append(max(meter.due_ms, self._paused_until_ms))
                if meter.in_flight:
                    times.append(meter.progress_ms + meter.resend_ms)
                if meter.live:
                    times.append(self._renew_at_ms(meter))
        return min(times, default=None)

    # -- what became durable ----------------------------------------------------------------------

    @property
    def welcomed(self) -> bool:
        """Whether the authority answers on this connection."""
        return self._welcomed

    @property
    def settled(self) -> bool:
        """Whether every record is durable at the authority."""
        return not any(meter.pending for meter in self._meters.values())

    def is_settled(self, meter_id: str) -> bool:
        """Whether every record of this meter is durable at the authority."""
        meter = self._meters.get(meter_id)
        return meter is None or not meter.pending

    def report_at_nano_usd(self, meter_id: str) -> int | None:
        """The total at which `spent` would renew this meter's grant; None: at none."""
        meter = self._meters.get(meter_id)
        return None if meter is None or meter.near_end() else meter.renew_at_nano_usd

    def take_acked(self) -> dict[str, int]:
        """Durable seq of each meter for which it rose since this was last asked."""
        acked, self._acked = self._acked, {}
        return acked

    # ---------------------------------------------------------------------------------------------

    def _welcome(self, welcome: Welcome, now_ms: int) -> None:
        same = welcome.ledger_id == self.ledger_id
        if same and welcome.generation < self.generation:
            self.refusal = (
                f"ledger {welcome.ledger_id} answers with generation {welcome.generation}, but "
                f"{self.generation} was seen: an older copy of it is running; stop one of the two"
            )
            return
        if welcome.version != PROTOCOL_VERSION:
            self.refusal = (
                f"the sidecar speaks protocol {welcome.version}, this plugin {PROTOCOL_VERSION}: "
                "install the same version of voicecost on both sides"
            )
            return
        restored = self.ledger_id is not None and not (
            same and welcome.generation == self.generation
        )
        self.ledger_id, self.generation = welcome.ledger_id, welcome.generation
        first = not self._welcomed or restored
        self._welcomed = True
        self._hello_sent_ms = None
        for meter_id, seq in welcome.durable_seqs.items():
            meter = self._meters.get(meter_id)
            if meter is not None and restored and seq < meter.acked:
                meter.acked = seq  # what lies between was deleted here and lost there
            self._durable(meter_id, seq, now_ms)
        if first:
            for meter in self._meters.values():
                self._in_flight_bytes -= meter.rewind(now_ms)
                meter.renew_due = meter.live
                if restored:
                    meter.epoch = -1

    def _durable(self, meter_id: str, seq: int, now_ms: int) -> None:
        meter = self._meters.get(meter_id)
        if meter is None:
            return
        if seq and seq >= meter.acked:
            self._acked[meter_id] = seq
        if seq > meter.acked:
            meter.acked = seq
            meter.last_seq = max(meter.last_seq, seq)
            meter.sent_through = max(meter.sent_through, seq)
            meter.progress_ms = now_ms
            meter.resend_ms = RESEND_MS
            while meter.in_flight and meter.in_flight[0][0] <= seq:
                self._in_flight_bytes -= meter.in_flight.popleft()[1]
            for pending in list(meter.pending):
                if pending > seq:
                    break
                record, _ = meter.pending.pop(pending)
                if isinstance(record, LegInterim):
                    meter.interims.pop(record.leg, None)
            while meter.unsent and meter.unsent[0] <= seq:
                meter.unsent.popleft()
            if not meter.unsent:
                meter.due_ms = None
        if meter.done:
            self._in_flight_bytes -= sum(size for _, size in meter.in_flight)
            del self._meters[meter_id]

    def _granted(self, grant: Grant) -> None:
        meter = self._meters.get(grant.meter_id)
        if meter is None or grant.epoch < meter.epoch:
            return
        meter.epoch = grant.epoch
        if grant.renewal == meter.renewal:
            meter.renewal_answered = True
        ceiling = grant.ceiling_nano_usd
        room = None if ceiling is None else ceiling - meter.total_nano_usd
        if room is None:
            # No budget: nothing to renew early, and no haste with interims.
            meter.renew_at_nano_usd = 2**63 - 1
        elif room <= 0 or grant.final:
            meter.renew_at_nano_usd = None
        else:
            meter.renew_at_nano_usd = meter.total_nano_usd + (room + 1) // 2
        if room is None or room > 0:
            meter.exhausted = False

    def _rejected(self, reject: Reject, now_ms: int) -> None:
        self.rejected[reject.code] += 1
        meter = None if reject.meter_id is None else self._meters.get(reject.meter_id)
        if reject.code in ("version", "forbidden"):
            self.refusal = reject.message
        elif reject.code == "gap" and meter is not None:
            # From where it says, even below `acked`: of an old message that is harmless, and of a
            # ledger that has lost something it is the only way on.
            if reject.durable_seq is None or reject.durable_seq < meter.sent_through:
                self._in_flight_bytes -= meter.rewind(now_ms)
                meter.sent_through = min(meter.acked, reject.durable_seq or 0)
        elif reject.code == "unavailable":
            self._paused_until_ms = now_ms + UNAVAILABLE_PAUSE_MS
            for each in [meter] if meter is not None else list(self._meters.values()):
                self._in_flight_bytes -= each.rewind(now_ms)
                each.due_ms = self._paused_until_ms if each.unsent else None
        # "malformed": sent again with the resend timer's growing pauses, and counted.

    def _output(self, now_ms: int) -> list[ClientMessage]:
        if not self._connected or self.refusal is not None:
            return []
        messages: list[ClientMessage] = []
        unanswered = self._hello_sent_ms is not None and (
            now_ms >= self._hello_sent_ms + ANSWER_TIMEOUT_MS
        )
        if self._hello_due or unanswered:
            self._hello_due = False
            self._hello_sent_ms = now_ms
            messages += self._hellos()
        if not self._welcomed or now_ms < self._paused_until_ms:
            return messages
        for meter in self._meters.values():
            if meter.due_ms is not None and now_ms >= meter.due_ms:
                self._send_records(meter, now_ms, messages)
            if meter.live and now_ms >= self._renew_at_ms(meter):
                messages.append(self._renew(meter, now_ms))
            if meter.wrapped_up and not meter.wrapped_up_sent:
                meter.wrapped_up_sent = True
                messages.append(WrappedUp(meter.meter_id))
        return messages

    def _hellos(self) -> list[Hello]:
        """All meters, in as many messages as it takes."""
        batches: list[list[MeterHeld]] = [[]]
        size = 0
        for m in self._meters.values():
            full = len(batches[-1]) == METERS_MAX or size + m.opened_bytes > self._batch_bytes_max
            if full and batches[-1]:
                batches.append([])
                size = 0
            first_seq_held = m.acked + 1 if m.pending else 0
            batches[-1].append(MeterHeld(m.meter_id, first_seq_held, m.last_seq, m.opened))
            size += m.opened_bytes
        return [
            Hello(
                version=PROTOCOL_VERSION,
                process_id=self._process_id,
                meters=held,
                ledger_id=self.ledger_id,
                generation=self.generation,
            )
            for held in batches
        ]

    def _send_records(self, meter: _Meter, now_ms: int, messages: list[ClientMessage]) -> None:
        """As many ranges as flow control allows; one always goes, or nothing ever would."""
        while meter.unsent and self._in_flight_bytes < self._unacked_bytes_max:
            records: list[Record] = []
            size = 0
            while meter.unsent and size < self._batch_bytes_max:
                entry = meter.pending.get(meter.unsent.popleft())
                if entry is not None:  # else superseded meanwhile
                    records.append(entry[0])
                    size += entry[1]
            through = records[-1].seq if meter.unsent and records else meter.last_seq
            if not meter.in_flight:
                meter.progress_ms = now_ms
            messages.append(Records(meter.meter_id, meter.sent_through, through, records))
            meter.in_flight.append((through, size))
            self._in_flight_bytes += size
            meter.sent_through = through
        if not meter.unsent:
            meter.due_ms = None

    def _renew_at_ms(self, meter: _Meter) -> int:
        if meter.renew_due:
            return 0
        wait_ms = RENEW_INTERVAL_MS if meter.renewal_answered else ANSWER_TIMEOUT_MS
        return meter.renewed_ms + wait_ms

    def _renew(self, meter: _Meter, now_ms: int) -> Renew:
        meter.renewal += 1
        meter.renewed_ms = now_ms
        meter.renew_due = meter.renewal_answered = False
        return Renew(meter.meter_id, meter.renewal, meter.total_nano_usd, meter.exhausted)
