"""The spool: where a record is before anybody else sees it (I4).

One directory per process under the spool root, an append-only file per segment, one frame per
record:

    root/<label>-<pid>-<random>/lock           flock held for the owner's life: free means dead
    root/<label>-<pid>-<random>/00000001.seg    frame frame frame ...
    frame = marker (4) | payload length u32 | crc32 of the payload u32 | payload (MessagePack)

`Spool.append` is one `write(2)`: it survives SIGKILL. A thread calls fdatasync every 50 ms, which
bounds what a power cut takes. A dead process's directory is taken over with `adoptable`.
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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import platformdirs

from voicecost_ledger._spool_files import (
    HEADER,
    LOCK_NAME,
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
    same_file,
    take_lock,
)
from voicecost_ledger.records import (
    ADOPTED,
    Coverage,
    Gap,
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
        sync_interval_ms: int = SYNC_INTERVAL_MS,
        slow_write_ms: float = SLOW_WRITE_MS,
        queue_records_max: int = QUEUE_RECORDS_MAX,
    ) -> None:
        """Open a spool under `root`; see `prepare_root` for what is refused.

        Args:
            root: Directory shared by all processes of the host.
            label: Whose records these are, `SIDECAR` or `EMBEDDED`: a process that keeps its own
                ledger must not adopt what a sidecar has half of.
            segment_bytes: A segment is closed when it has grown to this.
            sync_interval_ms: How often the keeper thread calls fdatasync while there is news.
            slow_write_ms: A write that takes longer counts as slow; repeatedly slow, writing
                moves to the keeper thread (`write_behind`).
            queue_records_max: Bound of the queue for a full or slow disk.

        Raises:
            SpoolUnusableError: `root` cannot be written or is on a network file system.
        """
        self.root = prepare_root(root)
        self._label = label
        self.faults: Counter[str] = Counter()
        self.write_behind = False  # appends queue and the keeper writes: the disk is too slow
        self._segment_bytes = segment_bytes
        self._sync_interval_s = sync_interval_ms / 1000
        self._slow_write_ns = int(slow_write_ms * 1_000_000)
        self._queue_records_max = queue_records_max
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
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None
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
        """Write one record; True when it is with the kernel, False when it had to be queued."""
        payload = encode_record(record)
        frame = HEADER.pack(MARKER, len(payload), zlib.crc32(payload)) + payload
        with self._lock:
            if self._closed:
                return False
            kind = type(record)
            if kind is MeterOpen:
                self._open_frames[record.meter_id] = frame
            written = False
            if not self._queue and not self.write_behind:
                written = self._write(record.meter_id, record.seq, frame)
            if not written:
                self._enqueue(record, frame)
            if kind is MeterClose:
                self._open_frames.pop(record.meter_id, None)
        if not self._news.is_set():
            self._news.set()
            if self._keeper is None:
                self._start_keeper()
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
                return  # the keeper is writing without the lock; the next ack prunes
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

    def sync(self) -> None:
        """Write what is queued, then make everything written so far durable (fdatasync)."""
        self._drain()
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
        self._stopping.set()
        self._news.set()
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join(timeout=2)
            if self._keeper.is_alive():
                return False  # stuck in a write; the lock falls when the process ends
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

    # -- keeper thread --------------------------------------------------------------------------

    def _start_keeper(self) -> None:
        with self._lock:
            if self._keeper is None and not self._closed:
                keeper = threading.Thread(target=self._keep, name="voicecost-spool", daemon=True)
                keeper.start()
                self._keeper = keeper

    def _keep(self) -> None:
        while not self._stopping.is_set():
            self._news.wait()
            full = bool(self._queue) and not self.write_behind
            self._stopping.wait(RETRY_INTERVAL_MS / 1000 if full else self._sync_interval_s)
            self._news.clear()
            self.sync()
            if self._queue:
                self._news.set()

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
    for adopted in list(_adopted):
        adopted.release()
    _adopted.clear()


# A flock belongs to the open file, which a fork shares: O_CLOEXEC does not help, closing does.
os.register_at_fork(after_in_child=_abandon_all)


class AdoptedSpool:
    """A dead process's directory, held by its lock. Read it, send it, `seal` it, `delete` it."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        """Take over `path`, whose lock `lock_fd` holds; use `adoptable`."""
        self.path = path
        self._lock_fd = lock_fd
        _adopted.add(self)

    def read(self) -> SpoolContents:
        """All records, oldest first. A meter's first record may stand in it several times."""
        records: list[Record] = []
        skipped = torn = 0
        for segment in sorted(self.path.glob(f"*{SEGMENT_SUFFIX}")):
            part = read_segment(segment.read_bytes())
            records += part.records
            skipped += part.skipped_bytes
            torn += part.torn_tail_bytes
        return SpoolContents(records=records, skipped_bytes=skipped, torn_tail_bytes=torn)

    def seal(
        self, contents: SpoolContents, durable: Mapping[str, int], at_unix_ms: int
    ) -> list[Record]:
        """End the meters that died with the process, in their own spool first (I4).

        Call it when everything in `contents` is durable. If something could not be read, every
        meter gets a Gap; one without a MeterClose gets that, with reason `ADOPTED`: the ledger
        settles such a call as crashed. Sealing is written before it is sent,
        so an adopter that dies in between is followed by one that finds the meter closed.

        Args:
            contents: What `read` gave.
            durable: The authority's durable seq per meter; it may know more than the spool.
            at_unix_ms: Now.

        Returns:
            The new records, to be sent like any other.

        Raises:
            OSError: They could not be written; release the spool and try again later.
        """
        last_seqs: dict[str, int] = {}
        closed: set[str] = set()
        told: set[str] = set()
        for record in contents.records:
            meter_id = record.meter_id
            known = last_seqs.get(meter_id) or durable.get(meter_id, 0)
            last_seqs[meter_id] = max(record.seq, known)
            if isinstance(record, MeterClose):
                closed.add(meter_id)
            elif isinstance(record, Gap) and record.reason == "spool_skipped":
                told.add(meter_id)
        sealing: list[Record] = []
        for meter_id, seq in last_seqs.items():
            if contents.skipped_bytes and meter_id not in told:
                seq += 1
                sealing.append(
                    Gap(meter_id=meter_id, seq=seq, at_unix_ms=at_unix_ms, reason="spool_skipped")
                )
            if meter_id not in closed:
                sealing.append(
                    MeterClose(
                        meter_id=meter_id,
                        seq=seq + 1,
                        at_unix_ms=at_unix_ms,
                        coverage=Coverage.COMPLETE,  # of what was seen; gaps say the rest
                        reason=ADOPTED,
                    )
                )
        if sealing:
            self._write_segment(sealing)
        return sealing

    def delete(self) -> None:
        """Everything is durable elsewhere: remove the directory and let go of the lock."""
        if self._lock_fd >= 0:
            delete_directory(self.path)
        self.release()

    def release(self) -> None:
        """Let go of the lock and leave the records to the next adopter."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        """Let go: a spool that was dropped on the way must not stay locked for good."""
        self.release()

    def _write_segment(self, records: Iterable[Record]) -> None:
        last = max((int(s.stem) for s in self.path.glob(f"*{SEGMENT_SUFFIX}")), default=0)
        path = self.path / f"{last + 1:08}{SEGMENT_SUFFIX}"
        data = b"".join(encode_frame(encode_record(record)) for record in records)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, "no space left to seal an adopted spool")
            fdatasync(fd)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)


_adopted: weakref.WeakSet[AdoptedSpool] = weakref.WeakSet()


def adoptable(root: Path, label: str | None = None) -> Iterator[AdoptedSpool]:
    """Take the directories under `root` whose owner is dead: whose lock is free (never a pid).

    Each is taken when it is asked for, and costs a file descriptor while
    it is held: after an outage there may be thousands, more than a live call has descriptors.

    Args:
        root: The spool root; one that does not exist holds nothing.
        label: Only those made with this label; None: all.

    Returns:
        What is free, held from when it is taken until `delete` or `release`, until nobody refers
        to it any more, or until this process dies. Ends early, leaving the rest to another look,
        when one cannot be opened.

    Raises:
        OSError: `root` cannot be listed.
    """
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        names = []
    return _take_free(root, [n for n in names if label is None or n.startswith(f"{label}-")])


def _take_free(root: Path, names: Iterable[str]) -> Iterator[AdoptedSpool]:
    for name in names:
        path = root / name
        if name.startswith(".") or not path.is_dir():
            continue
        lock_path = path / LOCK_NAME
        try:
            fd = os.open(lock_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                path.rmdir()  # its owner died between removing the lock and the directory
            continue
        except PermissionError:
            continue  # another user's process
        except OSError as error:
            logger.warning("dead processes' spools are left for later: %s", error.strerror)
            return
        if take_lock(fd) and same_file(fd, lock_path):
            yield AdoptedSpool(path, fd)
        else:
            os.close(fd)
