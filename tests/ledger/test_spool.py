"""The spool keeps what was appended: through SIGKILL, torn and corrupt files, and a full disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicecost_ledger.records import (
    Basis,
    Coverage,
    Gap,
    LegInterim,
    LegStop,
    MeterClose,
    MeterOpen,
    Outcome,
    Record,
    encode_record,
)
from voicecost_ledger.spool import (
    EMBEDDED,
    SIDECAR,
    AdoptedSpool,
    Spool,
    SpoolUnusableError,
    adoptable,
    encode_frame,
    read_segment,
)


def opened(meter: str = "M") -> MeterOpen:
    return MeterOpen(meter, 1, 1)


def interim(seq: int, meter: str = "M", leg: int = 1) -> LegInterim:
    return LegInterim(meter, seq, seq, leg, {"characters": seq}, Basis.OBSERVED)


def stop(seq: int, meter: str = "M", leg: int = 1) -> LegStop:
    return LegStop(meter, seq, seq, leg, {"characters": seq}, Basis.OBSERVED, Outcome.SERVED)


def closed(seq: int, meter: str = "M") -> MeterClose:
    return MeterClose(meter, seq, seq, Coverage.COMPLETE)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path)
    yield spool
    spool.close()


def adopt_one(root: Path) -> AdoptedSpool:
    [adopted] = adoptable(root)
    return adopted


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with this one's import path."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_was_appended_is_read_back_in_order(tmp_path: Path, spool: Spool) -> None:
    records = [opened(), interim(2), stop(3)]
    assert all(spool.append(record) for record in records)
    spool.close()
    contents = adopt_one(tmp_path).read()
    assert contents.records == records
    assert contents.skipped_bytes == 0
    assert contents.torn_tail_bytes == 0


def test_a_living_process_is_not_adopted(tmp_path: Path, spool: Spool) -> None:
    spool.append(opened())
    assert list(adoptable(tmp_path)) == []


def test_an_adopted_spool_is_held_until_it_is_released(tmp_path: Path, spool: Spool) -> None:
    spool.append(opened())
    spool.close()
    adopted = adopt_one(tmp_path)
    assert list(adoptable(tmp_path)) == []
    adopted.release()
    adopt_one(tmp_path).delete()
    assert os.listdir(tmp_path) == []


def test_a_backlog_of_dead_spools_costs_one_descriptor_at_a_time(tmp_path: Path) -> None:
    """A live call adopts them: it must not lose its descriptors to them."""
    for number in range(20):
        spool = Spool(tmp_path)
        spool.append(opened(f"M{number}"))
        spool.close()
    before = len(os.listdir("/proc/self/fd"))
    free = adoptable(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    for spool_taken in free:
        assert len(os.listdir("/proc/self/fd")) == before + 1
        spool_taken.delete()
    assert os.listdir(tmp_path) == []


def test_a_dropped_spool_is_free_again(tmp_path: Path, spool: Spool) -> None:
    spool.append(opened())
    spool.close()
    adopt_one(tmp_path)  # and forgotten
    assert adopt_one(tmp_path).read().records == [opened()]


def test_without_descriptors_adoption_ends_without_a_leak(tmp_path: Path) -> None:
    code = """
        import os, resource, sys
        from pathlib import Path
        from tests.ledger.test_spool import *
        for number in range(20):
            spool = Spool(Path(sys.argv[1]))
            spool.append(opened(f"M{number}"))
            spool.close()
        used = max(map(int, os.listdir("/proc/self/fd"))) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, used + 4))
        taken = list(adoptable(Path(sys.argv[1])))
        assert 0 < len(taken) < 20, taken
        del taken[1:]
        assert len(list(adoptable(Path(sys.argv[1])))) > 1  # those that were dropped
    """
    result = run_python(code, str(tmp_path))
    assert result.returncode == 0, result.stderr


def test_labels_keep_an_embedded_ledgers_spools_from_a_sidecars_adopter(tmp_path: Path) -> None:
    for label in (SIDECAR, EMBEDDED):
        spool = Spool(tmp_path, label=label)
        spool.append(opened(label))
        spool.close()
    [embedded] = adoptable(tmp_path, EMBEDDED)
    assert embedded.read().records == [opened(EMBEDDED)]
    [sidecar] = adoptable(tmp_path)
    assert sidecar.read().records == [opened(SIDECAR)]


def test_nothing_is_left_when_everything_is_acknowledged(tmp_path: Path, spool: Spool) -> None:
    spool.append(opened())
    spool.append(closed(2))
    spool.acknowledged({"M": 1})
    assert not spool.retire()
    spool.acknowledged({"M": 2})
    assert spool.retire()
    assert os.listdir(tmp_path) == []
    spool.append(opened("N"))  # and it goes on in a new directory
    assert len(os.listdir(tmp_path)) == 1


def test_an_open_meter_keeps_its_directory(tmp_path: Path, spool: Spool) -> None:
    """All of it is durable, but an adopter must learn that the meter died."""
    spool.append(opened())
    spool.acknowledged({"M": 1})
    assert not spool.close()
    assert adopt_one(tmp_path).read().records == [opened()]


def test_acknowledged_segments_are_deleted_and_open_meters_said_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=200)
    spool.append(opened())
    for seq in range(2, 60):
        spool.append(interim(seq))
    before = len(list(tmp_path.glob("*/*.seg")))
    spool.acknowledged({"M": 58})
    assert len(list(tmp_path.glob("*/*.seg"))) < before
    spool.close()
    records = adopt_one(tmp_path).read().records
    assert opened() in records
    assert interim(59) in records


# -- what a reader finds after an accident --------------------------------------------------------


def segment_of(count: int) -> tuple[list[Record], bytes]:
    records: list[Record] = [opened(), *(interim(seq) for seq in range(2, count + 1))]
    return records, b"".join(encode_frame(encode_record(record)) for record in records)


@pytest.mark.parametrize("cut", [1, 3, 4, 11, 12, 13, 20])
def test_a_torn_tail_costs_only_the_record_being_written(cut: int) -> None:
    records, data = segment_of(3)
    last = len(encode_frame(encode_record(records[-1])))
    contents = read_segment(data[: len(data) - last + cut])
    assert contents.records == records[:-1]
    assert contents.torn_tail_bytes == cut
    assert contents.skipped_bytes == 0


def test_a_corrupt_record_in_the_middle_is_skipped_and_said() -> None:
    records, data = segment_of(3)
    first, second = (len(encode_frame(encode_record(record))) for record in records[:2])
    broken = bytearray(data)
    broken[first + second - 1] ^= 0xFF
    contents = read_segment(bytes(broken))
    assert contents.records == [records[0], records[2]]
    assert contents.skipped_bytes == second


def test_a_corrupt_length_does_not_hide_what_is_behind_it() -> None:
    records, data = segment_of(3)
    first = len(encode_frame(encode_record(records[0])))
    broken = bytearray(data)
    broken[4:8] = (1_000_000).to_bytes(4, "little")
    contents = read_segment(bytes(broken))
    assert contents.records == records[1:]
    assert contents.skipped_bytes == first


@given(st.data())
def test_every_whole_record_outside_the_damage_is_read(data: st.DataObject) -> None:
    """Overwrite any stretch with any bytes: only records it touches are missing."""
    records, whole = segment_of(8)
    start = data.draw(st.integers(0, len(whole) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=60))[: len(whole) - start]
    broken = whole[:start] + junk + whole[start + len(junk) :]
    contents = read_segment(broken)
    position = 0
    untouched: list[Record] = []
    for record in records:
        end = position + len(encode_frame(encode_record(record)))
        if broken[position:end] == whole[position:end]:
            untouched.append(record)
        position = end
    assert [r for r in contents.records if r in untouched] == untouched
    assert set(map(repr, contents.records)) >= set(map(repr, untouched))


@given(st.binary(max_size=400))
def test_any_file_can_be_read(data: bytes) -> None:
    contents = read_segment(data)
    assert contents.skipped_bytes + contents.torn_tail_bytes <= len(data)


# -- sealing --------------------------------------------------------------------------------------


def test_sealing_closes_the_meters_that_died_in_their_own_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for record in (opened("dead"), interim(2, "dead"), opened("ended"), closed(2, "ended")):
        spool.append(record)
    spool.close()
    adopted = adopt_one(tmp_path)
    sealing = adopted.seal(adopted.read(), {"dead": 7, "ended": 2}, 99)
    # The authority knew more than the disk: the close comes after all of it.
    assert sealing == [MeterClose("dead", 8, 99, Coverage.COMPLETE, "adopted")]
    adopted.release()  # an adopter that dies here is followed by one that has nothing to add
    again = adopt_one(tmp_path)
    assert again.read().records[-1] == sealing[0]
    assert again.seal(again.read(), {"dead": 8, "ended": 2}, 100) == []


def test_what_could_not_be_read_is_a_gap(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for record in (opened(), interim(2), interim(3)):
        spool.append(record)
    spool.close()
    [segment] = tmp_path.glob("*/*.seg")
    data = bytearray(segment.read_bytes())
    data[len(encode_frame(encode_record(opened()))) + 13] ^= 0xFF
    segment.write_bytes(data)
    adopted = adopt_one(tmp_path)
    contents = adopted.read()
    assert contents.records == [opened(), interim(3)]
    assert adopted.seal(contents, {"M": 3}, 9) == [
        Gap("M", 4, 9, "spool_skipped"),
        MeterClose("M", 5, 9, Coverage.COMPLETE, "adopted"),
    ]
    assert adopted.seal(adopted.read(), {"M": 5}, 10) == []


# -- a disk that is full, slow or elsewhere -------------------------------------------------------

FULL_DISK = """
    import json, resource, sys
    from pathlib import Path
    from tests.ledger.test_spool import *
    spool = Spool(Path(sys.argv[1]))
    spool.append(opened())
    size = spool._segments[-1].size_bytes
    frame = len(encode_frame(encode_record(interim(2))))
    # Room for one record and a half: the second write is cut short by the kernel.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + frame + frame // 2, resource.RLIM_INFINITY))
    written = [spool.append(interim(2)), spool.append(interim(3))]
    spool.append(stop(4))
    spool.append(interim(5, leg=2))
    spool.append(interim(6, leg=2))
    queued = spool.queued_count
    on_disk = [r.seq for s in Path(sys.argv[1]).glob("*/*.seg")
               for r in read_segment(s.read_bytes()).records]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    spool.sync()
    print(json.dumps({"written": written, "queued": queued, "on_disk": on_disk,
                      "left": spool.queued_count, "faults": dict(spool.faults)}))
    spool.close()
"""


def test_a_full_disk_costs_nothing_and_leaves_no_torn_record(tmp_path: Path) -> None:
    """A short write is cut back; what waits is written when there is room again."""
    result = run_python(FULL_DISK, str(tmp_path))
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["written"] == [True, False]
    assert told["on_disk"] == [1, 2]
    assert told["queued"] == 2  # the stop, and the newest interim of the other leg
    assert told["left"] == 0
    assert told["faults"]["spool_short_write"] >= 1
    contents = adopt_one(tmp_path).read()
    assert [record.seq for record in contents.records] == [1, 2, 4, 6]
    assert contents.skipped_bytes == contents.torn_tail_bytes == 0


def test_acknowledged_records_need_no_disk_any_more(tmp_path: Path) -> None:
    code = """
        import resource, sys
        from pathlib import Path
        from tests.ledger.test_spool import *
        spool = Spool(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        spool.append(opened()); spool.append(stop(2)); spool.append(closed(3))
        assert spool.queued_count == 3
        spool.acknowledged({"M": 3})
        assert spool.queued_count == 0
        assert spool.close()
    """
    result = run_python(code, str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path) == []


def test_the_queue_is_bounded_and_interims_give_way(tmp_path: Path) -> None:
    spool = Spool(tmp_path, queue_records_max=3)
    spool.write_behind = True  # as on a slow disk: appends queue
    spool.append(interim(1, leg=1))
    spool.append(stop(2, leg=2))
    spool.append(stop(3, leg=3))
    spool.append(stop(4, leg=4))
    spool.append(interim(5, leg=5))
    assert spool.queued_count == 3
    assert spool.faults["spool_queue_full"] == 2
    spool.close()
    assert [r.seq for r in adopt_one(tmp_path).read().records] == [2, 3, 4]


def test_a_slow_disk_is_written_by_a_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, slow_write_ms=0)  # every write counts as slow
    for seq in range(1, 30):
        spool.append(stop(seq, leg=seq))
    assert spool.write_behind
    assert "in a thread" in caplog.text
    spool.close()
    assert [r.seq for r in adopt_one(tmp_path).read().records] == list(range(1, 30))


def test_a_long_outage_does_not_fill_the_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is dead has half of the root; interims go first, then all but opens and closes."""
    dead = Spool(tmp_path)
    while (dead.directory is None) or (size_of(tmp_path) < 50_000):
        dead.append(interim(1))
    dead.close()
    spool = Spool(tmp_path, segment_bytes=10_000, root_bytes_max=100_000)
    spool.append(opened())
    spool.sync()  # and see what the others take
    seq = 1
    while spool.append(interim(seq + 1)):
        seq += 1
    assert 80_000 < size_of(tmp_path) < 90_000
    while spool.append(stop(seq + 1)):
        seq += 1
    assert 99_000 < size_of(tmp_path) < 101_000
    assert spool.append(opened("N"))
    assert spool.append(closed(2, "N"))
    assert not spool.append(stop(seq + 1))
    assert spool.faults == {"spool_nearly_full": 1, "spool_full": 2}
    assert [record.getMessage().count("MiB that they may take") for record in caplog.records] == [
        1,
        1,
    ]

    spool.acknowledged({"M": seq, "N": 2})  # the ledger is back
    assert spool.append(interim(seq + 1))
    spool.close()


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("*/*.seg"))


def test_an_unwritable_root_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolUnusableError, match="VOICECOST_SPOOL_DIR"):
        Spool(tmp_path / "file" / "spool")


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's table says what it is; mounting one here would need a server."""
    table = f"36 35 98:0 / {tmp_path} rw,noatime shared:1 - nfs4 server:/export rw\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "1 0 8:1 / / rw - ext4 d rw\n" + table)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SpoolUnusableError, match=r"network file system \(nfs4\)"):
        Spool(tmp_path)


# -- processes ------------------------------------------------------------------------------------

VICTIM = """
    import os, sys
    from pathlib import Path
    from tests.ledger.test_spool import *
    spool = Spool(Path(sys.argv[1]), segment_bytes=20_000)
    spool.append(opened())
    os.write(1, b"1\\n")
    for seq in range(2, 10_000_000):
        spool.append(interim(seq))
        os.write(1, b"%d\\n" % seq)
"""


@pytest.mark.parametrize("seed", range(5))
def test_sigkill_loses_nothing_whose_append_returned(tmp_path: Path, seed: int) -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(VICTIM), str(tmp_path)], stdout=subprocess.PIPE
    )
    assert victim.stdout is not None
    wanted = random.Random(seed).randrange(1, 3000)
    told = 0
    with victim.stdout as lines:
        for line in lines:
            told = int(line)
            if told == wanted:
                victim.send_signal(signal.SIGKILL)
            # What is still in the pipe was told before the kill took effect.
    victim.wait()
    contents = adopt_one(tmp_path).read()
    seqs = {record.seq for record in contents.records}
    assert seqs >= set(range(1, told + 1))
    assert contents.skipped_bytes == 0


def test_a_forked_child_neither_writes_nor_keeps_the_lock(tmp_path: Path) -> None:
    """The child outlives its parent; the parent's spool is free all the same."""
    code = """
        import os, sys
        from pathlib import Path
        from tests.ledger.test_spool import *
        spool = Spool(Path(sys.argv[1]))
        spool.append(opened())
        parent = os.getpid()
        if os.fork():
            os.kill(parent, 9)
        assert not spool.append(stop(2))
        sys.stdin.read()  # until the test has looked
        print("child done", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.wait(timeout=30)
    adopted = adopt_one(tmp_path)
    assert adopted.read().records == [opened()]
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    with process.stdout as lines:
        assert lines.read() == "child done\n"
