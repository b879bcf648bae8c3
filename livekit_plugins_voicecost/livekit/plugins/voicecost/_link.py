"""A meter's link to its ledger: records go down it, the right to spend comes back up."""

from __future__ import annotations

import itertools
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from voicecost_ledger.grants import Allowance, Answer, FailureHandling
from voicecost_ledger.protocol import ClientMessage, Command, Grant
from voicecost_ledger.records import (
    Coverage,
    MeterClose,
    MeterOpen,
    Record,
    decode_record,
    encode_record,
)
from voicecost_ledger.uplink import Uplink

from . import _faults

_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS's runs on in sleep
_NEVER: Final = sys.maxsize
_TOTALS_MAX: Final = 4096  # forgetting the oldest only understates what is acknowledged


def steady_ms() -> int:
    """Milliseconds on a clock that never goes back and runs through suspend (leases need that)."""
    return time.clock_gettime_ns(_CLOCK) // 1_000_000


class MeterListener(Protocol):
    """What a meter hears from its ledger. Called on the uplink's thread: return at once."""

    def on_command(self, command: Command, /) -> object:
        """Do this; the same command may come twice."""
        ...

    def on_grant(self, grant: Grant, /) -> object:
        """New credit is in force; `MeterLink.ask` knows it already."""
        ...

    def on_ack(self, durable_seq: int, /) -> object:
        """Every record up to this one is durable."""
        ...


class _Nobody:
    """Listens to a closed meter."""

    def on_command(self, command: Command, /) -> None:
        pass

    def on_grant(self, grant: Grant, /) -> None:
        pass

    def on_ack(self, durable_seq: int, /) -> None:
        pass


_NOBODY: Final = _Nobody()


class Outlet(Protocol):
    """What a link needs of the process's runtime."""

    @property
    def uplink(self) -> Uplink:
        """The protocol machine, only for what is handed in."""
        ...

    def record(self, record: Record) -> None:
        """Spool a record and pass it on."""
        ...

    def hand_in(self, action: Callable[[int], list[ClientMessage]]) -> None:
        """Run on the uplink's thread, soon, with the time in ms."""
        ...


class MeterLink:
    """One meter's way to its ledger. Thread-safe; nothing here raises, awaits or waits.

    Attributes:
        meter_id: Random; the meter's name in the ledger.
        opened: Its first record, once that is written.
        room_name: Where its call is, if in a LiveKit room.
        allowance: What it may spend.
        total_nano_usd: Its own rated total as last told.
    """

    __slots__ = (
        "_acked_nano_usd",
        "_clear",
        "_closed",
        "_end_nano_usd",
        "_legs",
        "_listener",
        "_lock",
        "_outlet",
        "_report_at_nano_usd",
        "_seq",
        "_totals",
        "allowance",
        "meter_id",
        "opened",
        "room_name",
        "total_nano_usd",
    )

    def __init__(
        self,
        outlet: Outlet,
        listener: MeterListener | None,
        *,
        room_name: str | None = None,
        budget_nano_usd: int | None = None,
        failure_handling: FailureHandling = FailureHandling.CONTINUE,
    ) -> None:
        """Draw an id; use `Runtime.open_meter`."""
        self.meter_id = f"MT_{uuid.uuid4().hex}"
        self.opened: MeterOpen | None = None
        self.room_name = room_name
        self.allowance = Allowance(
            steady_ms(), budget_nano_usd=budget_nano_usd, failure_handling=failure_handling
        )
        self.total_nano_usd = 0
        self._outlet = outlet
        self._listener = listener
        self._lock = threading.Lock()
        self._seq = 0
        self._legs = itertools.count(1)
        self._closed = False
        self._totals: deque[tuple[int, int]] = deque(maxlen=_TOTALS_MAX)  # seq, total by then
        self._acked_nano_usd = 0
        self._report_at_nano_usd = _NEVER
        self._end_nano_usd = self._next_end_nano_usd()
        self._clear = (-1, 0)  # see `clear`

    @property
    def soft_end_nano_usd(self) -> int | None:
        """The total at which the call begins to wrap up; None: no budget applies."""
        return self.allowance.soft_end_nano_usd

    @property
    def last_seq(self) -> int:
        """The number of the last record written."""
        return self._seq

    def in_thread(self, action: Callable[[], None]) -> None:
        """Run something on the uplink's thread, soon."""

        def run(now_ms: int) -> list[ClientMessage]:
            action()
            return []

        self._outlet.hand_in(run)

    def next_leg(self) -> int:
        """The next leg's number within the meter."""
        return next(self._legs)

    def write(self, make: type[Record], **fields: Any) -> None:
        """Spool one record; `meter_id`, `seq` and `at_unix_ms` are filled in.

        A record after `close` is kept too: a late correction amends the call. One that no ledger
        could read is a counted fault, and gets no number: it would come again and again, and
        nothing behind it would ever arrive.
        """
        try:
            with self._lock:
                seq = self._seq + 1
                record = make(
                    meter_id=self.meter_id,
                    seq=seq,
                    at_unix_ms=time.time_ns() // 1_000_000,
                    **fields,
                )
                decode_record(encode_record(record))  # 3 µs; raises what a ledger would
                self._seq = seq
                if self.opened is None and isinstance(record, MeterOpen):
                    self.opened = record
                self._totals.append((seq, self.total_nano_usd))
                self._outlet.record(record)
            if self.total_nano_usd >= self._end_nano_usd:
                # The record that ends the call does not linger: the ledger decides on it now.
                self._end_nano_usd = self._next_end_nano_usd(self.total_nano_usd)
                self.flush()
        except Exception as error:
            _faults.count("record", error)

    def clear(self, total_nano_usd: int) -> bool:
        """Whether the meter is far from everything that could matter at such a total.

        Then `ask` would say yes, nothing has to be reported at once, and the call does not
        end yet. False says nothing. This is asked for every chunk, push and frame.
        """
        clear_nano_usd, until_ms = self._clear
        return total_nano_usd < clear_nano_usd and steady_ms() < until_ms

    def ask(self, total_nano_usd: int, next_nano_usd: int) -> Answer:
        """Whether the meter may go from its total to `total + next`: ask before every push."""
        self.total_nano_usd = total_nano_usd
        if total_nano_usd + next_nano_usd >= self._report_at_nano_usd:
            self._report_at_nano_usd = _NEVER  # once; the next grant or acknowledgement sets it
            self.flush()
        return self.allowance.ask(total_nano_usd, next_nano_usd, self._acked_nano_usd, steady_ms())

    def renew(self, total_nano_usd: int) -> None:
        """The meter goes on, but needs more credit: report all and ask for it, at once."""
        self.total_nano_usd = total_nano_usd
        uplink, meter_id = self._outlet.uplink, self.meter_id
        self._outlet.hand_in(lambda now_ms: uplink.renew(meter_id, total_nano_usd, now_ms))

    def exhausted(self, total_nano_usd: int) -> None:
        """The meter has stopped for want of credit: report all and ask for more, at once."""
        self.total_nano_usd = total_nano_usd
        uplink, meter_id = self._outlet.uplink, self.meter_id
        self._outlet.hand_in(lambda now_ms: uplink.exhausted(meter_id, total_nano_usd, now_ms))

    def wrapped_up(self) -> None:
        """The wrap-up sentence was said, or given up: the room may go."""
        uplink, meter_id = self._outlet.uplink, self.meter_id
        self._outlet.hand_in(lambda now_ms: uplink.wrapped_up(meter_id, now_ms))

    def flush(self) -> None:
        """Send at once what would linger to be sent with more."""
        self._outlet.hand_in(self._outlet.uplink.flush)

    def close(self, coverage: Coverage, reason: str) -> None:
        """Write the meter's last record. Closing twice is a no-op."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._listener = _NOBODY  # a meter, its call and its job must not wait for the ledger
        self.write(MeterClose, coverage=coverage, reason=reason)
        self.flush()

    # -- on the uplink's thread -------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the meter is closed and every record of it durable."""
        return self._closed and not self._totals

    def acked(self, durable_seq: int) -> None:
        """The authority has every record up to this one."""
        totals = self._totals
        # Popped one by one: a writer may append meanwhile.
        while totals and totals[0][0] <= durable_seq:
            self._acked_nano_usd = totals.popleft()[1]
        self._set_report()
        if self._listener is not None:
            with _faults.contained("listener"):
                self._listener.on_ack(durable_seq)

    def granted(self, grant: Grant) -> None:
        """A grant came."""
        if not self.allowance.granted(grant):
            return
        self._set_report()
        # Of what is written: what is only rated so far has its record still to come.
        written_nano_usd = self._totals[-1][1] if self._totals else self._acked_nano_usd
        self._end_nano_usd = self._next_end_nano_usd(written_nano_usd)
        if self._listener is not None:
            with _faults.contained("listener"):
                self._listener.on_grant(grant)

    def commanded(self, command: Command) -> None:
        """A command came."""
        if self._listener is not None:
            with _faults.contained("listener"):
                self._listener.on_command(command)

    def _set_report(self) -> None:
        """Half of the unreported window or of the grant: at that total the uplink acts at once."""
        window = self.allowance.report_at_nano_usd(self._acked_nano_usd)
        grant = self._outlet.uplink.report_at_nano_usd(self.meter_id)
        self._report_at_nano_usd = min(
            _NEVER if window is None or window <= self.total_nano_usd else window,
            _NEVER if grant is None else grant,
        )
        self._set_clear()

    def _set_clear(self) -> None:
        # On this thread only: a grant that lowers a ceiling is never overwritten with an older one.
        limit, until_ms = self.allowance.clear(self._acked_nano_usd)
        soft_end = self.allowance.soft_end_nano_usd
        ends = limit, self._report_at_nano_usd, _NEVER if soft_end is None else soft_end
        self._clear = min(ends), until_ms

    def _next_end_nano_usd(self, written_nano_usd: int = 0) -> int:
        """Where the call begins to wrap up, or is cut: the first of these not yet written."""
        ends = self.allowance.soft_end_nano_usd, self.allowance.ceiling_nano_usd
        return min(
            (end for end in ends if end is not None and end > written_nano_usd), default=_NEVER
        )
