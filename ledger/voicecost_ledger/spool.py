"""The spool: where a record is before anybody else sees it (I4).

One directory per process under the spool root, an append-only file per segment, one frame per
record:

    root/<label>-<pid>-<random>/lock           flock held for the owner's life: free means dead
    root/<label>-<pid>-<random>/00000001.seg    frame frame frame ...
    frame = marker (4) | payload length u32 | crc32 of the payload u32 | payload (MessagePack)

`Spool.append` is one `write(2)`: it survives SIGKILL. The uplink's thread calls `keep`, which is an
fdatasync every 50 ms while there is news: that bounds what a power cut takes. A dead process's
directory is taken over with `adoptable`.

However long the ledger is away, the root is kept to about `ROOT_BYTES_MAX`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import platformdirs

from voicecost_ledger._spool_adoption import AdoptedSpool, adoptable
from voicecost_ledger._spool_files import (
    HEADER,
    MARKER,
    SEGMENT_SUFFIX,
    SpoolContents,
    SpoolUnusableError,
    delete_directory,
    encode_frame,
    fdatasync,
    make_directory,
    prepare_root,
    read_segment,
    spooled_bytes,
)
from voicecost_ledger.records import (
    LegInterim,
    LegStop,
    MeterClose,
    MeterOpen,
    Record,
    encode_record,
)

__all__ = [
    "EMBEDDED",
    "SIDECAR",
    "AdoptedSpool",
    "Spool",
    "SpoolContents",
    "SpoolUnusableError",
    "adoptable",
    "default_root",
    "encode_frame",
    "prepare_root",
    "read_segment",
]

logger = logging.getLogger("voicecost.spool")

SIDECAR: Final = "sidecar"
EMBEDDED: Final = "embedded"
SEGMENT_BYTES: Final = 4 * 1024 * 1024
SYNC_INTERVAL_MS: Final = 50
SLOW_WRITE_MS: Final = 5
SLOW_WRITES_TOLERATED: Final = 5  # in a run of SLOW_WRITES_WINDOW appends
SLOW_WRITES_WINDOW: Final = 100
QUEUE_RECORDS_MAX: Final = 20_000  # about 4 MB of records waiting for a full or slow disk
RETRY_INTERVAL_MS: Final = 1_000  # a full disk is asked again this often
ROOT_BYTES_MAX: Final = 1024 * 1024 * 1024  # of all processes of a host, see `Spool.append`
FRAMES_BETWEEN_LOOKS: Final = 64  # far below an eighth of that
ROOT_MEASURE_INTERVAL_S: Final = 60.0  # the other processes' share of it


def default_root() -> Path:
    """`VOICECOST_SPOOL_DIR`, else `voicecost/spool` in the platform's state directory."""
    configured = os.environ.get("VOICECOST_SPOOL_DIR")
    if configured:
        return Path(configured)
    return platformdirs.user_state_path("voicecost", appauthor=False) / "spool"


class _Segment:
    """One file and what must be acknowledged before it can go."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.last_seqs: dict[str, int] = {}
        self.size_bytes = 0

    def covered_by(self, durable: Mapping[str, int]) -> bool:
        return all(seq <= durable.get(meter_id, 0) for meter_id, seq in self.last_seqs.items())


class Spool:
    """This process's records on disk until they are acknowledged. Thread-safe.

    The directory is made at the first append and removed by `retire` when everything in it is
    acknowledged and no meter is open. `append` never raises for want of disk: what cannot be
    written waits in a bounded queue (`queued_count`) and is counted in `faults`.
    """

    def __init__(
        self,
        root: Path,
        *,
        label: str = SIDECAR,
        segment_bytes: int = SEGMENT_BYTES,
        slow_write_ms: float = SLOW_WRITE_MS,
        queue_records_max: int = QUEUE_RECORDS_MAX,
        root_bytes_max: int = ROOT_BYTES_MAX,
    ) -> None:
        """Open a spool under `root`; see `prepare_root` for what is refused.

        Args:
            root: Directory shared by all processes of the host.
            label: Whose records these are, `SIDECAR` or `EMBEDDED`: a process that keeps its own
                ledger must not adopt what a sidecar has half of.
            segment_bytes: A segment is closed when it has grown to this.
            slow_write_ms: A write that takes longer counts as slow; repeatedly slow, writing
                moves to whoever calls `keep` (`write_behind`).
            queue_records_max: Bound of the queue for a full or slow disk.
            root_bytes_max: Bound of all spools under `root` together; each process keeps to it by
                what it last saw of the others.

        Raises:
            SpoolUnusableError: `root` cannot be written or is on a network file system.
        """
        self.root = prepare_root(root)
        self._label = label
        self.faults: Counter[str] = Counter()
        self.write_behind = False  # appends queue and `keep` writes: the disk is too slow
        self._segment_bytes = segment_bytes
        self._slow_write_ns = int(slow_write_ms * 1_000_000)
        self._queue_records_max = queue_records_max
        self._root_bytes_max = root_bytes_max
        self._other_bytes = 0
        self._frames_until_look = 0  # at how much room is left
        self._measured_s: float | None = None
        self._lock = threading.Lock()  # short: a write(2), never an fsync
        self._directory: Path | None = None
        self._lock_fd = -1
        self._fd = -1
        self._segments: list[_Segment] = []
        self._open_frames: dict[str, bytes] = {}  # MeterOpen of each open meter
        self._durable: dict[str, int] = {}
        self._queue: dict[tuple[str, int], tuple[Record, bytes]] = {}
        self._rolled_fds: list[int] = []
        self._unsynced_directory: Path | None = None
        self._draining = False
        self._appended = 0
        self._slow_writes = 0
        self._news = False  # something is not synced yet; a lost race costs one sync interval
        self._keep_at_ms = 0
        self._closed = False
        _spools.add(self)

    @property
    def directory(self) -> Path | None:
        """This process's directory; None before the first append and after `retire`."""
        return self._directory

    @property
    def queued_count(self) -> int:
        """Records that are in memory only, because the disk is full or slow."""
        return len(self._queue)

    def append(self, record: Record) -> bool:
        """Write one record; True when it is with the kernel, False when it had to be queued.

        When the root is nearly full, interims are no longer written, and when it is full only the
        opening and closing of meters is: False too, and counted. The uplink still has them all,
        so that they are lost only if this process dies before the ledger has taken them.
        """
        payload = encode_record(record)
        frame = HEADER.pack(MARKER, len(payload), zlib.crc32(payload)) + payload
        with self._lock:
            if self._closed:
                return False
            kind = type(record)
            if kind is MeterOpen:
                self._open_frames[record.meter_id] = frame
            written = False
            if self._no_room_for(kind):
                return False
            if not self._queue and not self.write_behind:
                written = self._write(record.meter_id, record.seq, frame)
            if not written:
                self._enqueue(record, frame)
            if kind is MeterClose:
                self._open_frames.pop(record.meter_id, None)
        self._news = True
        return written

    def acknowledged(self, durable: Mapping[str, int]) -> None:
        """Forget what is durable elsewhere (cumulative seq per meter); deletes whole segments."""
        with self._lock:
            known = self._durable
            for meter_id, seq in durable.items():
                if seq > known.get(meter_id, 0):
                    known[meter_id] = seq
            for key in [k for k, (r, _) in self._queue.items() if r.seq <= known.get(k[0], 0)]:
                del self._queue[key]
            if self._draining:
                return  # `keep` is writing without the lock; the next ack prunes
            done = [s for s in self._segments[:-1] if s.covered_by(known)]
            self._segments = [s for s in self._segments if s not in done]
        for segment in done:  # outside the lock: unlinking 4 MB takes its time
            with contextlib.suppress(OSError):
                segment.path.unlink()

    def retire(self) -> bool:
        """Remove the directory if all is acknowledged and no meter is open; True when it is gone.

        The next append makes a new one.
        """
        with self._lock:
            if self._directory is None:
                return not self._queue
            if self._open_frames or self._queue or self._draining:
                return False
            if not all(segment.covered_by(self._durable) for segment in self._segments):
                return False
            directory, lock_fd = self._directory, self._lock_fd
            fds = [fd for fd in (*self._rolled_fds, self._fd) if fd >= 0]
            self._directory, self._lock_fd, self._fd = None, -1, -1
            self._segments, self._rolled_fds = [], []
            self._durable.clear()
        for fd in fds:
            os.close(fd)
        delete_directory(directory)
        os.close(lock_fd)  # last: nobody adopts what is being deleted
        return True

    @property
    def unkept(self) -> bool:
        """Whether something is not durable yet: `keep` is to be called again."""
        return self._news

    def keep(self, now_ms: int) -> None:
        """Sync what is new, if that is due. Call it often, from one thread, off the event loop.

        Args:
            now_ms: Any clock that never goes back.
        """
        if self._news and now_ms >= self._keep_at_ms:
            self._news = False
            self.sync()
            self._news = self._news or bool(self._queue)
            full = bool(self._queue) and not self.write_behind
            self._keep_at_ms = now_ms + (RETRY_INTERVAL_MS if full else SYNC_INTERVAL_MS)

    def sync(self) -> None:
        """Write what is queued, then make everything written so far durable (fdatasync)."""
        self._drain()
        self._measure_others()
        with self._lock:
            rolled, self._rolled_fds = self._rolled_fds, []
            fds = [*rolled, os.dup(self._fd)] if self._fd >= 0 else rolled
            directory, self._unsynced_directory = self._unsynced_directory, None
        if directory is not None:  # a new file is durable when its name is
            with contextlib.suppress(OSError):
                fds.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
        for fd in fds:
            try:
                fdatasync(fd)
            except OSError as error:
                self._fault("spool_sync", f"fdatasync failed: {error.strerror}")
            finally:
                os.close(fd)

    def close(self) -> bool:
        """End of the process: sync, then `retire`, else leave the records to an adopter.

        Returns:
            True when everything was acknowledged and the directory is gone.
        """
        self.sync()
        gone = self.retire()
        with self._lock:
            self._closed = True
            fds = [fd for fd in (self._fd, self._lock_fd) if fd >= 0]
            self._fd = self._lock_fd = -1
        for fd in fds:
            os.close(fd)
        return gone

    # -- under self._lock -----------------------------------------------------------------------

    def _write(self, meter_id: str, seq: int, frame: bytes) -> bool:
        """One write(2); on a short or failed one leaves no torn frame behind, returns False."""
        try:
            if self._fd < 0 or self._segments[-1].size_bytes >= self._segment_bytes:
                self._roll()
            segment = self._segments[-1]
            before_ns = time.perf_counter_ns()
            written = os.write(self._fd, frame)
            took_ns = time.perf_counter_ns() - before_ns
        except OSError as error:
            self._fault("spool_write", f"cannot write to the spool: {error.strerror}")
            return False
        if written != len(frame):
            self._fault("spool_short_write", "a write to the spool was cut short: disk full?")
            try:
                os.ftruncate(self._fd, segment.size_bytes)
            except OSError:
                # Nothing good may stand behind a torn frame: the next one opens a new segment.
                self._rolled_fds.append(self._fd)
                self._fd = -1
            return False
        segment.size_bytes += written
        segment.last_seqs[meter_id] = seq
        if took_ns > self._slow_write_ns:
            self._slow_writes += 1
            if self._slow_writes >= SLOW_WRITES_TOLERATED and not self.write_behind:
                self.write_behind = True
                self._fault(
                    "spool_slow",
                    f"writes to the spool take over {self._slow_write_ns // 1_000_000} ms; they "
                    "now happen in a thread, so SIGKILL can cost the last ones. Set "
                    "VOICECOST_SPOOL_DIR to a faster disk.",
                )
        self._appended += 1
        if self._appended % SLOW_WRITES_WINDOW == 0:
            self._slow_writes = 0
        return True

    def _roll(self) -> None:
        """Open the next segment, and the directory with its lock if there is none.

        A new segment begins with the MeterOpen of every open meter: its older segments may be
        deleted, and still an adopter must learn which meters died with the process.
        """
        if self._directory is None:
            self._directory, self._lock_fd = make_directory(self.root, self._label)
        number = self._segments[-1].number + 1 if self._segments else 1
        path = self._directory / f"{number:08}{SEGMENT_SUFFIX}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        segment = _Segment(path, number)
        header = b"".join(self._open_frames.values()) if self._segments else b""
        try:
            if header and os.write(fd, header) != len(header):
                raise OSError(errno.ENOSPC, "no space left for a new segment")
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        if header:
            segment.size_bytes = len(header)
            segment.last_seqs = dict.fromkeys(self._open_frames, 1)
        if self._fd >= 0:
            self._rolled_fds.append(self._fd)
        self._fd = fd
        self._segments.append(segment)
        self._unsynced_directory = self._directory

    def _no_room_for(self, kind: type[Record]) -> bool:
        if self._frames_until_look > 0:
            self._frames_until_look -= 1
            return False
        left = self._root_bytes_max - self._other_bytes - sum(s.size_bytes for s in self._segments)
        if left > self._root_bytes_max // 8:
            self._frames_until_look = FRAMES_BETWEEN_LOOKS
            return False
        if kind is MeterOpen or kind is MeterClose:
            return False
        if kind is LegInterim:
            self._fault("spool_nearly_full", f"{self._fullness()}: totals in between are not kept")
        elif left <= 0:
            self._fault("spool_full", f"{self._fullness()}: what is used now is not kept")
        return kind is LegInterim or left <= 0

    def _fullness(self) -> str:
        return (
            f"the ledger takes no records, and the spools under {self.root} are near the "
            f"{self._root_bytes_max // 1_048_576} MiB that they may take"
        )

    def _enqueue(self, record: Record, frame: bytes) -> None:
        queue = self._queue
        interim = isinstance(record, LegInterim)
        if isinstance(record, (LegInterim, LegStop)):
            queue.pop((record.meter_id, -record.leg), None)  # superseded: totals are cumulative
        if len(queue) >= self._queue_records_max:
            # Interims give way: a later one or the stop restates what they said.
            victim = next((key for key, (r, _) in queue.items() if isinstance(r, LegInterim)), None)
            self._fault("spool_queue_full", "records are lost to the spool: its queue is full")
            if interim or victim is None:
                return
            del queue[victim]
        key = (record.meter_id, -record.leg if isinstance(record, LegInterim) else record.seq)
        queue[key] = (record, frame)

    # -- off the event loop ---------------------------------------------------------------------

    def _drain(self) -> None:
        """Write the queue, oldest first, without holding the lock through a slow write.

        Appends go to the queue while it is not empty, so nobody else writes meanwhile.
        """
        while True:
            with self._lock:
                if self._closed or not self._queue:
                    return
                key, (record, frame) = next(iter(self._queue.items()))
                if not self.write_behind:
                    if not self._write(record.meter_id, record.seq, frame):
                        return
                    del self._queue[key]
                    continue
                self._draining = True
            # Slow disk: only the keeper writes in this mode; `_draining` keeps the rest away
            # from the segments.
            written = self._write(record.meter_id, record.seq, frame)
            with self._lock:
                self._draining = False
                if not written:
                    return
                if (entry := self._queue.get(key)) is not None and entry[0] is record:
                    del self._queue[key]

    def _measure_others(self) -> None:
        now_s = time.monotonic()
        if self._measured_s is not None and now_s < self._measured_s + ROOT_MEASURE_INTERVAL_S:
            return
        self._measured_s = now_s
        own = self._directory
        self._other_bytes = spooled_bytes(self.root, besides=None if own is None else own.name)

    def _fault(self, kind: str, message: str) -> None:
        self.faults[kind] += 1
        if self.faults[kind] == 1:  # once per kind: a full disk would fill the log too
            logger.warning("%s; the call goes on, records wait in memory", message)

    def _abandon(self) -> None:
        """In a forked child: let go of the parent's files without touching what is in them."""
        fds = [self._fd, self._lock_fd, *self._rolled_fds]
        self._lock = threading.Lock()  # a thread that exists no longer may have held it
        self._closed = True
        self._fd = self._lock_fd = -1
        self._rolled_fds = []
        self._directory = None
        for fd in fds:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)


_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


def _abandon_all() -> None:
    for spool in list(_spools):
        spool._abandon()  # pyright: ignore[reportPrivateUsage]  # the class's own fork hook
    _spools.clear()


# A flock belongs to the open file, which a fork shares: O_CLOEXEC does not help, closing does.
os.register_at_fork(after_in_child=_abandon_all)
