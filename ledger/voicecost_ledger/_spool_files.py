"""What a spool is on disk: frames, segments, the directory and its lock. Private to `spool`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from voicecost_ledger.records import Record, decode_record

MARKER: Final = b"\xf5VC1"
MAX_PAYLOAD_BYTES: Final = 1024 * 1024  # a longer one is a corrupt length, not a record
HEADER: Final = struct.Struct("<4sII")
LOCK_NAME: Final = "lock"
SEGMENT_SUFFIX: Final = ".seg"

# File systems where flock may not reach the other host, or a write waits for a network.
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "ocfs2", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mount-s3"),
        *("fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    }
)


class SpoolUnusableError(Exception):
    """No spool can be kept under `root`; `reason` says why, the message what to do."""

    def __init__(self, root: Path, reason: str) -> None:
        """Name the directory and why it will not do."""
        self.root = root
        self.reason = reason
        super().__init__(
            f"cannot keep a spool in {root}: {reason}. Set VOICECOST_SPOOL_DIR to a writable "
            "directory on a local disk."
        )


class SpoolContents(msgspec.Struct, frozen=True, kw_only=True):
    """What was read from a spool, in the order it was written."""

    records: list[Record]
    skipped_bytes: int = 0  # corrupt parts in the middle: records were lost, say so as a gap
    torn_tail_bytes: int = 0  # an append that never returned: nothing was lost


def encode_frame(payload: bytes) -> bytes:
    """One payload as it stands in a segment."""
    return HEADER.pack(MARKER, len(payload), zlib.crc32(payload)) + payload


def read_segment(data: bytes) -> SpoolContents:
    """Decode every good frame of a segment, resynchronising on the marker after a bad one."""
    records: list[Record] = []
    skipped = 0
    position = 0
    bad_from: int | None = None
    while position < len(data):
        end = _frame_end(data, position)
        if end is None:
            bad_from = position if bad_from is None else bad_from
            found = data.find(MARKER, position + 1)
            position = found if found >= 0 else len(data)
            continue
        if bad_from is not None:
            skipped += position - bad_from
            bad_from = None
        try:
            records.append(decode_record(memoryview(data)[position + HEADER.size : end]))
        except (msgspec.DecodeError, msgspec.ValidationError):
            skipped += end - position  # whole, but of a version that this one cannot read
        position = end
    torn = 0
    if bad_from is not None:
        if _is_torn(data, bad_from):
            torn = len(data) - bad_from
        else:
            skipped += len(data) - bad_from
    return SpoolContents(records=records, skipped_bytes=skipped, torn_tail_bytes=torn)


def _frame_end(data: bytes, position: int) -> int | None:
    """Where the frame at `position` ends, or None when no whole good frame starts there."""
    if position + HEADER.size > len(data):
        return None
    marker, length, crc = HEADER.unpack_from(data, position)
    end = position + HEADER.size + length
    if marker != MARKER or length > MAX_PAYLOAD_BYTES or end > len(data):
        return None
    payload = memoryview(data)[position + HEADER.size : end]
    return end if zlib.crc32(payload) == crc else None


def _is_torn(data: bytes, position: int) -> bool:
    """Whether `data[position:]` is the beginning of one frame, cut by the end of the file."""
    rest = data[position : position + HEADER.size]
    if len(rest) < HEADER.size:
        return MARKER.startswith(rest[: len(MARKER)])
    marker, length, _ = HEADER.unpack(rest)
    end = position + HEADER.size + length
    return marker == MARKER and length <= MAX_PAYLOAD_BYTES and end > len(data)


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that holds `path`, or None on a local one.

    Read from the kernel's mount table (Linux); elsewhere unknown, and taken for local.
    """
    if sys.platform != "linux":
        return None
    real = os.path.realpath(path)
    best, best_type = "", ""
    try:
        # surrogateescape as in os.fsdecode: a mount point need not be valid UTF-8.
        lines = (
            Path("/proc/self/mountinfo").read_text("utf-8", errors="surrogateescape").splitlines()
        )
    except OSError:
        return None
    for line in lines:
        fields, _, source = line.partition(" - ")
        mount_point = fields.split(" ")[4].replace("\\040", " ")
        inside = real == mount_point or real.startswith(mount_point.rstrip("/") + "/")
        if inside and len(mount_point) >= len(best):  # a later mount on the same point hides it
            best, best_type = mount_point, source.split(" ")[0]
    return best_type if best_type in _NETWORK_FILE_SYSTEMS else None


def prepare_root(root: Path) -> Path:
    """Make the spool root and check that a spool can live there.

    Raises:
        SpoolUnusableError: It cannot be written, or is on a network file system.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SpoolUnusableError(root, error.strerror or str(error)) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise SpoolUnusableError(root, "the directory is not writable")
    if kind := network_file_system(root):
        raise SpoolUnusableError(root, f"it is on a network file system ({kind})")
    return root


def make_directory(root: Path, label: str) -> tuple[Path, int]:
    """A new directory with its lock held before any adopter can see it."""
    name = f"{label}-{os.getpid()}-{secrets.token_hex(8)}"
    hidden, path = root / f".{name}", root / name
    hidden.mkdir(mode=0o700)
    fd = os.open(hidden / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        hidden.rename(path)
    except OSError:
        os.close(fd)
        raise
    return path, fd


def delete_directory(path: Path) -> None:
    for segment in path.glob(f"*{SEGMENT_SUFFIX}"):
        with contextlib.suppress(OSError):
            segment.unlink()
    with contextlib.suppress(OSError):
        (path / LOCK_NAME).unlink()
        path.rmdir()


def spooled_bytes(root: Path, besides: str | None) -> int:
    """What all spools under `root` take, `besides` left out."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(root) as spools:
        for spool in spools:
            if spool.name == besides:
                continue
            # Others come and go meanwhile: what is gone takes nothing.
            with contextlib.suppress(OSError), os.scandir(spool) as files:
                total += sum(each.stat().st_size for each in files)
    return total


def take_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def same_file(fd: int, path: Path) -> bool:
    """Whether the locked file is still the one at `path`: its owner may just have deleted it."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


# macOS has no fdatasync.
fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
