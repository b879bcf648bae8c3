"""A dead process's spool is brought home, whole or not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from tests.sidecar.running import RunningSidecar, a_call, batch, until
from voicecost_ledger.protocol import Ack
from voicecost_ledger.records import Record, encode_record
from voicecost_ledger.spool import Spool

_WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import msgspec
from voicecost_ledger.records import decode_record
from voicecost_ledger.spool import Spool
acknowledged_seq = int(sys.argv[2])
spool = Spool(Path(sys.argv[1]), segment_bytes=1 if acknowledged_seq else 4096)
for payload in msgspec.msgpack.decode(sys.stdin.buffer.read(), type=list[bytes]):
    spool.append(record := decode_record(payload))
spool.acknowledged({record.meter_id: acknowledged_seq})
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_agent(root: Path, records: list[Record], *, acknowledged_seq: int = 0) -> None:
    """Spool records in a process that is then killed; what was acknowledged is gone from there."""
    body = msgspec.msgpack.encode([encode_record(record) for record in records])
    died = subprocess.run(
        [sys.executable, "-c", _WRITE_AND_DIE, str(root), str(acknowledged_seq)],
        input=body,
        check=False,
    )
    assert died.returncode == -9


def calls_of(sidecar: RunningSidecar) -> list[dict[str, object]]:
    return [call for call in sidecar.get("/v1/calls")["calls"] if call["state"] == "settled"]


def test_a_killed_agents_records_are_adopted_and_its_call_settles_as_crashed(
    sidecar: RunningSidecar,
) -> None:
    killed_agent(sidecar.spool_root, a_call()[:3])
    (call,) = until(lambda: calls_of(sidecar))
    assert (call["reason"], call["total_nano_usd"]) == ("crashed", "4800000")
    assert until(lambda: not list(sidecar.spool_root.iterdir()))


def test_what_had_arrived_before_counts_once(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.send(batch(a_call()[:2]))
        agent.hear_a(Ack)
    killed_agent(sidecar.spool_root, a_call()[:3])
    (call,) = until(lambda: calls_of(sidecar))
    assert call["total_nano_usd"] == "4800000"


def test_a_ledger_that_is_new_to_a_meter_learns_whose_it_was_and_what_is_lost(
    sidecar: RunningSidecar,
) -> None:
    """Another ledger had acknowledged the start; this one was put in its place."""
    killed_agent(sidecar.spool_root, a_call(agent="greeter")[:3], acknowledged_seq=2)
    (call,) = until(lambda: calls_of(sidecar))
    assert (call["project"], call["agent"], call["coverage"]) == ("shop", "greeter", "partial")
    detail = sidecar.get(f"/v1/calls/{call['call_id']}")
    assert [gap["reason"] for gap in detail["gaps"]] == ["records_lost"]


def test_what_is_adopted_hours_later_is_booked_when_it_was_used(sidecar: RunningSidecar) -> None:
    earlier_ms = time.time_ns() // 1_000_000 - 5 * 3_600_000
    records = [msgspec.structs.replace(record, at_unix_ms=earlier_ms) for record in a_call()[:3]]
    killed_agent(sidecar.spool_root, records)
    (call,) = until(lambda: calls_of(sidecar))
    (entry,) = sidecar.get(f"/v1/calls/{call['call_id']}")["entries"]
    assert entry["accrued_at_unix_ms"] == earlier_ms


def test_a_living_agents_spool_is_left_alone(sidecar: RunningSidecar) -> None:
    spool = Spool(sidecar.spool_root)
    for record in a_call("M_alive")[:3]:
        spool.append(record)
    killed_agent(sidecar.spool_root, a_call("M_dead")[:3])
    assert until(lambda: calls_of(sidecar))
    (call,) = sidecar.get("/v1/calls")["calls"]
    meters = sidecar.get(f"/v1/calls/{call['call_id']}")["meters"]
    assert [meter["meter_id"] for meter in meters] == ["M_dead"]
    assert spool.directory is not None
    assert spool.directory.is_dir()
    spool.close()


def test_a_corrupt_frame_costs_itself_alone_and_is_said(sidecar: RunningSidecar) -> None:
    spool = Spool(sidecar.spool_root)
    for record in a_call()[:3]:
        spool.append(record)
    spool.sync()
    assert spool.directory is not None
    (segment,) = spool.directory.glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF  # in the start of the leg, behind the MeterOpen
    segment.write_bytes(data)
    fds = [spool._fd, spool._lock_fd]
    spool._fd = spool._lock_fd = -1
    for fd in fds:
        os.close(fd)  # what death does
    (call,) = until(lambda: calls_of(sidecar))
    detail = sidecar.get(f"/v1/calls/{call['call_id']}")
    assert "spool_skipped" in {gap["reason"] for gap in detail["gaps"]}
    assert call["coverage"] == "partial"
