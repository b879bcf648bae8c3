"""Takes over the spools of dead agent processes on this host (I4): once a second, at no cost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from voicecost_ledger.protocol import (
    PROTOCOL_VERSION,
    Hello,
    MeterHeld,
    Records,
    Reject,
    Welcome,
)
from voicecost_ledger.records import MeterOpen, Record
from voicecost_ledger.spool import SIDECAR, AdoptedSpool, adoptable
from voicecost_ledger.stores import StoreUnavailable
from voicecost_sidecar.hub import Hub

ADOPT_INTERVAL_S: Final = 1.0
BATCH_RECORDS: Final = 500

logger = logging.getLogger(__name__)


class AdopterCounts(msgspec.Struct):
    """What the adopter did, for metrics."""

    spools: int = 0
    meters: int = 0
    skipped_bytes: int = 0
    failures: int = 0


class _RefusedError(Exception):
    """The ledger will never take what this spool holds."""


class Adopter:
    """Brings the records of dead processes home and closes their meters.

    Args:
        root: The spool directory shared with the agents of this host.
        label: Whose spools, see `voicecost_ledger.spool.Spool`; None: all.
        hub: Where records go.
        interval_s: Between two looks.
    """

    def __init__(
        self,
        root: Path,
        hub: Hub,
        *,
        label: str | None = SIDECAR,
        interval_s: float = ADOPT_INTERVAL_S,
    ) -> None:
        self._root = root
        self._label = label
        self._hub = hub
        self._interval_s = interval_s
        self._refused: dict[Path, AdoptedSpool] = {}
        self.counts = AdopterCounts()

    async def run(self) -> None:
        """Adopt until cancelled."""
        try:
            while True:
                await self.adopt()
                await asyncio.sleep(self._interval_s)
        finally:
            for spool in self._refused.values():
                spool.release()

    async def adopt(self) -> None:
        """Adopt every free spool once. What cannot be stored now is left to the next look."""
        try:
            spools = await asyncio.to_thread(adoptable, self._root, self._label)
        except OSError as error:
            self._failed(error)
            return
        for spool in spools:
            try:
                await self._adopt(spool)
            except _RefusedError as error:
                # Held, not deleted and not tried again before a restart: somebody should look.
                self._refused[spool.path] = spool
                self.counts.failures += 1
                logger.error("a dead process's spool is kept, but not understood: %s", error)
            except (StoreUnavailable, OSError) as error:
                spool.release()
                self._failed(error)
            except BaseException:
                spool.release()
                raise

    def _failed(self, error: Exception) -> None:
        self.counts.failures += 1
        if self.counts.failures == 1:
            logger.warning("adopting a spool failed (%s); trying again", type(error).__name__)

    async def _adopt(self, spool: AdoptedSpool) -> None:
        contents = await asyncio.to_thread(spool.read)
        # A segment repeats the MeterOpen of every open meter: by seq, each record counts once.
        meters: dict[str, dict[int, Record]] = {}
        for record in contents.records:
            meters.setdefault(record.meter_id, {})[record.seq] = record
        hello = Hello(
            version=PROTOCOL_VERSION,
            process_id=f"adopter:{spool.path.name}",
            meters=[_held(meter_id, records) for meter_id, records in meters.items()],
        )
        durable_seqs: dict[str, int] = {}
        for reply in await self._hub.submit(hello):
            if isinstance(reply, Reject):
                raise _RefusedError(f"{reply.code}: {reply.message}")
            if isinstance(reply, Welcome):
                durable_seqs = reply.durable_seqs
        for meter_id, records in meters.items():
            durable_seq = durable_seqs.get(meter_id, 0)
            durable_seqs[meter_id] = await self._submit(meter_id, records, durable_seq)
        sealing = await asyncio.to_thread(spool.seal, contents, durable_seqs, _now_unix_ms())
        ends: dict[str, dict[int, Record]] = {}
        for record in sealing:
            ends.setdefault(record.meter_id, {})[record.seq] = record
        for meter_id, records in ends.items():
            await self._submit(meter_id, records, durable_seqs[meter_id])
        await asyncio.to_thread(spool.delete)
        self.counts.spools += 1
        self.counts.meters += len(meters)
        self.counts.skipped_bytes += contents.skipped_bytes
        logger.info(
            "adopted a dead process's spool: %d meters, %d bytes could not be read",
            len(meters),
            contents.skipped_bytes,
        )

    async def _submit(self, meter_id: str, records: dict[int, Record], durable_seq: int) -> int:
        """Send what is not durable yet; returns what is then."""
        unsent = iter([records[seq] for seq in sorted(records) if seq > durable_seq])
        after_seq = durable_seq
        for batch in _batches(unsent):
            through_seq = batch[-1].seq
            replies = await self._hub.submit(
                Records(
                    meter_id=meter_id,
                    after_seq=after_seq,
                    through_seq=through_seq,
                    records=batch,
                    sent_at_unix_ms=_now_unix_ms(),  # a process of this host had this clock
                )
            )
            for reply in replies:
                if isinstance(reply, Reject):
                    raise _RefusedError(f"{reply.code}: {reply.message}")
            after_seq = through_seq
        return after_seq


def _held(meter_id: str, records: dict[int, Record]) -> MeterHeld:
    """What a spool has of a meter. Its MeterOpen outlives what was acknowledged and deleted."""
    opened = next((r for r in records.values() if isinstance(r, MeterOpen)), None)
    rest = [seq for seq, record in records.items() if record is not opened]
    first_seq = min(rest, default=0)
    if opened is not None and first_seq <= opened.seq + 1:
        first_seq = opened.seq
    return MeterHeld(
        meter_id=meter_id, first_seq_held=first_seq, last_seq=max(records), opened=opened
    )


def _now_unix_ms() -> int:
    return time.time_ns() // 1_000_000


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH_RECORDS)):
        yield batch
