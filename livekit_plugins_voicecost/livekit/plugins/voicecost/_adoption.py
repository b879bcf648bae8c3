"""Brings home what dead processes of this host left in their spools, and ends their meters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from voicecost_ledger.records import Record
from voicecost_ledger.spool import AdoptedSpool, SpoolContents, adoptable

from ._faults import contained
from .log import logger

HELD_MAX: Final = 4
"""Spools that are adopted at a time. After an outage thousands may wait: each that is held costs
this process, which serves a live call, a file descriptor and the memory of its records."""
STUCK_AFTER_S: Final = 60.0
STUCK_MAX: Final = 64
"""Spools held in all, those included that do not come home: file descriptors of a live call."""


class _Orphan:
    """One adopted spool on its way: what must become durable before the next step."""

    def __init__(self, spool: AdoptedSpool, contents: SpoolContents) -> None:
        self.spool = spool
        self.contents = contents
        self.taken_s = time.monotonic()
        self.sealed = False
        self.durable: dict[str, int] = {}
        self.last_seqs: dict[str, int] = {}
        self.await_durable(contents.records)

    def await_durable(self, records: list[Record]) -> None:
        for record in records:
            known = self.last_seqs.get(record.meter_id, 0)
            self.last_seqs[record.meter_id] = max(known, record.seq)

    @property
    def all_durable(self) -> bool:
        return all(self.durable.get(meter, 0) >= seq for meter, seq in self.last_seqs.items())


class Adoption:
    """Adopts free spools under a root; the uplink sends their records like any others.

    A spool is read, sent, sealed (its meters are closed with reason "adopted", in the spool
    first), sent again and deleted. Whatever dies in between, the next adopter goes on from there.

    Args:
        root: The spool root of this host.
        label: Whose spools, see `Spool`.
        send: Takes the records to be sent, in order.
    """

    def __init__(self, root: Path, label: str, send: Callable[[list[Record]], None]) -> None:
        self._root = root
        self._label = label
        self._send = send
        self._orphans: list[_Orphan] = []
        self._free: Iterator[AdoptedSpool] = iter(())

    @property
    def busy(self) -> bool:
        """Whether an adopted spool is not home yet."""
        return bool(self._orphans)

    def look(self) -> None:
        """Adopt every spool whose owner is dead: a few now, the next when one of them is home."""
        with contained("adoption"):
            self._free = adoptable(self._root, self._label)
        self._take_more()

    def _take_more(self) -> None:
        # One that does not come home in a minute (a ledger that refuses it) is kept, but must not
        # keep the others waiting.
        stuck_since = time.monotonic() - STUCK_AFTER_S
        while sum(orphan.taken_s > stuck_since for orphan in self._orphans) < HELD_MAX:
            if len(self._orphans) >= STUCK_MAX:
                return
            spool = next(self._free, None)
            if spool is None:
                return
            with contained("adoption"):
                self._take(spool)

    def _take(self, spool: AdoptedSpool) -> None:
        try:
            contents = spool.read()
            logger.info(
                "adopting a dead process's spool: %d records, %d bytes could not be read",
                len(contents.records),
                contents.skipped_bytes,
            )
            if not contents.records:
                spool.delete()
                return
            self._send(contents.records)
        except Exception:
            spool.release()  # whatever is wrong with it is wrong with it alone
            raise
        self._orphans.append(_Orphan(spool, contents))

    def acknowledged(self, durable: Mapping[str, int]) -> None:
        """The authority has this much of each meter: take the next step with what is home."""
        for orphan in list(self._orphans):
            for meter_id in orphan.last_seqs.keys() & durable.keys():
                orphan.durable[meter_id] = max(durable[meter_id], orphan.durable.get(meter_id, 0))
            if orphan.all_durable:
                with contained("adoption"):
                    self._next_step(orphan)
        self._take_more()

    def _next_step(self, orphan: _Orphan) -> None:
        sealing: list[Record] = []
        if not orphan.sealed:
            try:
                sealing = orphan.spool.seal(
                    orphan.contents, orphan.durable, time.time_ns() // 1_000_000
                )
            except OSError:
                self._orphans.remove(orphan)
                orphan.spool.release()  # a full disk: whoever looks next tries again
                raise
            orphan.sealed = True
        if sealing:
            orphan.await_durable(sealing)
            self._send(sealing)
        else:
            self._orphans.remove(orphan)
            orphan.spool.delete()

    def release(self) -> None:
        """The process ends: leave what is not home to the next adopter."""
        self._free = iter(())
        while self._orphans:
            self._orphans.pop().spool.release()
