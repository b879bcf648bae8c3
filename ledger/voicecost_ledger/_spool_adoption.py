"""Taking over what dead processes left: `AdoptedSpool` and `adoptable` of `spool`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from voicecost_ledger._spool_files import (
    LOCK_NAME,
    SEGMENT_SUFFIX,
    SpoolContents,
    delete_directory,
    encode_frame,
    fdatasync,
    read_segment,
    same_file,
    take_lock,
)
from voicecost_ledger.records import (
    ADOPTED,
    Coverage,
    Gap,
    MeterClose,
    Record,
    encode_record,
)

logger = logging.getLogger("voicecost.spool")


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


def _release_all() -> None:
    for adopted in list(_adopted):
        adopted.release()
    _adopted.clear()


# As for a process's own spool: a forked child shares the lock until it closes it.
os.register_at_fork(after_in_child=_release_all)


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
