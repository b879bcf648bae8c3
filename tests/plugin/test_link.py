"""A meter's link: what does not wait to be sent with more, and what is never sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from livekit.plugins.voicecost import _faults
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


@pytest.mark.parametrize(
    "usage", [{"audio_ms": 1.5}, {"audio_ms": math.nan}, {"audio_ms": None}, {7: 1}]
)
def test_a_record_that_no_ledger_could_read_is_not_sent(
    usage: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger refuses it each time that it comes, and takes nothing behind a missing number."""
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "0")
    outlet = Outlet()
    link = MeterLink(outlet, None)
    faults = _faults.counts().get("record", 0)
    link.write(LegInterim, leg=1, usage={"audio_ms": 1}, basis=Basis.OBSERVED)
    link.write(LegInterim, leg=1, usage=usage, basis=Basis.OBSERVED)
    link.write(LegInterim, leg=1, usage={"audio_ms": 2}, basis=Basis.OBSERVED)
    sent = [each for each in outlet.handed_in if isinstance(each, LegInterim)]
    assert [(each.seq, each.usage) for each in sent] == [(1, {"audio_ms": 1}), (2, {"audio_ms": 2})]
    assert _faults.counts()["record"] == faults + 1
