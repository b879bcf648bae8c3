"""Bringing dead processes' spools home, beside a live call: a few at a time, each on its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from livekit.plugins.voicecost import _faults
from livekit.plugins.voicecost._adoption import HELD_MAX, Adoption
from voicecost_ledger.records import MeterClose, MeterOpen, Record
from voicecost_ledger.spool import EMBEDDED, Spool


def die(root: Path, meter_id: str) -> Path:
    """Leave what a process leaves that is killed with an open meter."""
    spool = Spool(root, label=EMBEDDED)
    spool.append(MeterOpen(meter_id, 1, 1))
    directory = spool.directory
    assert directory is not None
    spool.close()
    return directory


class Authority:
    """Takes what is sent, and acknowledges it when asked to."""

    def __init__(self, root: Path) -> None:
        self.adoption = Adoption(root, EMBEDDED, self._take)
        self.closed: set[str] = set()
        self.unacknowledged: dict[str, int] = {}

    def _take(self, records: list[Record]) -> None:
        for record in records:
            self.unacknowledged[record.meter_id] = record.seq
            if isinstance(record, MeterClose):
                self.closed.add(record.meter_id)

    def acknowledge(self) -> None:
        durable, self.unacknowledged = self.unacknowledged, {}
        self.adoption.acknowledged(durable)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_after_an_outage_spools_are_adopted_a_few_at_a_time(tmp_path: Path) -> None:
    """All at once they took every descriptor of the process, and with them its call."""
    meters = {f"MT_{number}" for number in range(5 * HELD_MAX)}
    for meter_id in meters:
        die(tmp_path, meter_id)
    before = descriptors()
    authority = Authority(tmp_path)
    authority.adoption.look()
    assert len(authority.unacknowledged) == HELD_MAX
    while authority.adoption.busy:
        assert descriptors() <= before + HELD_MAX
        authority.acknowledge()
    assert authority.closed == meters
    assert os.listdir(tmp_path) == []
    assert descriptors() == before


def test_a_spool_that_cannot_be_read_keeps_none_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = sorted(die(tmp_path, f"MT_{number}") for number in range(3))
    unreadable = directories[0]
    (segment,) = unreadable.glob("*.seg")
    segment.unlink()
    segment.mkdir()  # as good as an I/O error, also for root
    monkeypatch.delenv("VOICECOST_RAISE_FAULTS")
    before, faults = descriptors(), _faults.counts().get("adoption", 0)
    authority = Authority(tmp_path)
    authority.adoption.look()
    while authority.adoption.busy:
        authority.acknowledge()
    assert len(authority.closed) == 2
    assert [path for path in directories if path.exists()] == [unreadable]
    assert _faults.counts()["adoption"] == faults + 1
    assert descriptors() == before  # and its lock is free for the next adopter
