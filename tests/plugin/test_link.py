"""A meter's link: what does not wait to be sent with more."""

from __future__ import annotations

from collections.abc import Callable

from livekit.plugins.voicecost._link import MeterLink
from voicecost_ledger.protocol import ClientMessage
from voicecost_ledger.records import Basis, LegInterim, Record
from voicecost_ledger.uplink import Uplink


class Outlet:
    """Keeps what a runtime would pass on."""

    def __init__(self) -> None:
        self.uplink = Uplink("process")
        self.handed_in: list[Record | Callable[[int], list[ClientMessage]]] = []

    def record(self, record: Record) -> None:
        self.handed_in.append(record)

    def hand_in(self, action: Callable[[int], list[ClientMessage]]) -> None:
        self.handed_in.append(action)


def test_the_record_that_reaches_the_end_of_a_budget_is_sent_at_once() -> None:
    """Others linger to be sent together; a caller whose money is gone should not wait for that."""
    outlet = Outlet()
    link = MeterLink(outlet, None, budget_nano_usd=1_000)  # of it 200 for the end
    flush = outlet.uplink.flush

    def flushes(total_nano_usd: int) -> bool:
        outlet.handed_in.clear()
        link.total_nano_usd = total_nano_usd
        link.write(LegInterim, leg=1, usage={}, basis=Basis.OBSERVED)
        assert isinstance(outlet.handed_in[0], LegInterim)
        return outlet.handed_in[1:] == [flush]

    assert not flushes(799)
    assert flushes(800)  # only what the end costs is left
    assert not flushes(999)
    assert flushes(1_000)
    assert not flushes(1_200)  # said once
