"""The same against the real livekit-server: its webhooks, its listings, its DeleteRoom."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from livekit import rtc

from examples.demo.livekit_server import LiveKitServer
from examples.demo.processes import Processes
from scripts.tools import find_livekit_server
from tests.sidecar.running import RunningSidecar, a_call, batch, running_sidecar, until
from voicecost_ledger.protocol import Ack, Action, Command, Renew
from voicecost_ledger.records import OnBudget
from voicecost_sidecar.config import LiveKitConfig
from voicecost_sidecar.server import listening_socket

pytestmark = pytest.mark.room


@asynccontextmanager
async def sidecar_beside_livekit(
    folder: Path, *, webhooks: bool, poll_interval_s: float
) -> AsyncGenerator[tuple[RunningSidecar, LiveKitServer]]:
    """Both on loopback, knowing each other."""
    binary = find_livekit_server()
    if binary is None:
        reason = "no livekit-server: put it on PATH, or run `make tools` with Go installed"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"{reason} (with CI=true this is a failure)")
        pytest.skip(reason)
    listening = listening_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/livekit/webhook"
    with Processes(folder / "logs") as processes:
        server = LiveKitServer(
            processes, binary, folder / "livekit", webhook_urls=[url] if webhooks else []
        )
        livekit = LiveKitConfig(
            url=server.url, api_key=server.api_key, api_secret=server.api_secret
        )
        await server.start()
        with running_sidecar(
            folder,
            livekit=livekit,
            listening=listening,
            poll_interval_s=poll_interval_s,
            host_aliases={livekit.project: "livekit"},  # it bills as LiveKit Cloud does
        ) as sidecar:
            yield sidecar, server


async def calls(sidecar: RunningSidecar, state: str) -> list[dict[str, Any]]:
    """Wait for calls in a state; LiveKit's client needs the event loop meanwhile."""
    path = "/v1/calls"
    return await asyncio.to_thread(
        until, lambda: [c for c in sidecar.get(path)["calls"] if c["state"] == state]
    )


def spend_too_much(sidecar: RunningSidecar, room_sid: str) -> float:
    """A meter in the room overspends; returns when the command to end was heard."""
    records = a_call(
        room_name="r",
        room_sid=room_sid,
        job_id="AJ_1",
        budget_nano_usd=1_000_000,
        on_budget=OnBudget.END,
    )
    with sidecar.agent() as meter:
        meter.send(batch(records[:1]))
        meter.send(Renew("M_1", 1, 0))
        meter.send(batch(records[1:3]))
        while meter.hear_a(Command).action is not Action.END:
            pass
        return time.monotonic()


async def test_a_breach_disconnects_the_caller_and_the_room_is_gone(tmp_path: Path) -> None:
    async with sidecar_beside_livekit(tmp_path, webhooks=True, poll_interval_s=600) as (
        sidecar,
        server,
    ):
        caller, gone = rtc.Room(), asyncio.Event()
        reasons: list[int] = []

        def on_disconnected(reason: int) -> None:
            reasons.append(reason)
            gone.set()

        caller.on("disconnected", on_disconnected)
        await caller.connect(server.url, server.token("r", "caller"))
        assert await calls(sidecar, "open")  # room_started arrived
        await asyncio.to_thread(spend_too_much, sidecar, await caller.sid)
        async with asyncio.timeout(10):
            await gone.wait()
        assert reasons == [rtc.DisconnectReason.ROOM_DELETED]
        assert await server.room_sids("r") == []
        (call,) = await asyncio.to_thread(
            until,
            lambda: [
                c for c in sidecar.get("/v1/calls")["calls"] if c["state"] in ("ended", "settled")
            ],
        )
        assert call["reason"] == "budget"
        audit = sidecar.get(f"/v1/calls/{call['call_id']}")["audit"]
        assert [step["step"] for step in audit][-2:] == ["end", "gone"]


async def test_without_any_webhook_the_poller_finds_a_call_and_its_end(tmp_path: Path) -> None:
    async with sidecar_beside_livekit(tmp_path, webhooks=False, poll_interval_s=0.1) as (
        sidecar,
        server,
    ):
        caller = rtc.Room()
        await caller.connect(server.url, server.token("r", "caller"))
        sid = await caller.sid
        (call,) = await calls(sidecar, "open")
        assert call["room_name"] == "r"

        def meter_closes() -> None:
            with sidecar.agent() as meter:
                meter.send(batch(a_call(room_name="r", room_sid=sid, job_id="AJ_1")))
                meter.hear_a(Ack)

        await asyncio.to_thread(meter_closes)
        assert sidecar.get("/v1/calls")["calls"][0]["state"] == "open"  # somebody is connected
        await caller.disconnect()
        await server.delete_room("r")
        (call,) = await calls(sidecar, "settled")
        assert call["reason"] == "completed"


@pytest.mark.parametrize("webhooks", [True, False])
async def test_livekits_minutes_accrue_while_nobody_speaks(tmp_path: Path, webhooks: bool) -> None:
    """The meter says nothing, the caller neither: the connection costs its minute all the same."""
    async with sidecar_beside_livekit(tmp_path, webhooks=webhooks, poll_interval_s=0.1) as (
        sidecar,
        server,
    ):
        caller = rtc.Room()
        before = time.monotonic()
        await caller.connect(server.url, server.token("r", "caller"))
        inside = time.monotonic()
        sid = await caller.sid
        records = a_call(room_name="r", room_sid=sid, job_id="AJ_1")

        def connection() -> dict[str, Any]:
            (call,) = sidecar.get("/v1/calls")["calls"]
            legs = sidecar.get(f"/v1/calls/{call['call_id']}")["legs"]
            found = [leg for leg in legs if leg["modality"] == "participant"]
            return found[0] if found else {"usage": {"connected_ms": 0}}

        def accrues() -> None:
            with sidecar.agent() as meter:
                meter.send(batch(records[:1]))
                meter.hear_a(Ack)
                first = until(lambda: connection()["usage"]["connected_ms"])
                until(lambda: connection()["usage"]["connected_ms"] > first)
                assert connection()["amount_nano_usd"] == "500000"
                assert connection()["outcome"] is None
                meter.send(batch(records[1:]))
                meter.hear_a(Ack)

        await asyncio.to_thread(accrues)
        outside = time.monotonic()
        await caller.disconnect()
        await server.delete_room("r")
        (call,) = await calls(sidecar, "settled")
        over = time.monotonic()
        leg = connection()
        assert (leg["model"], leg["outcome"]) == ("standard", "served")
        assert leg["basis"] == ("observed" if webhooks else "estimated")
        # LiveKit tells the end of a connection to the second.
        assert (outside - inside) * 1000 - 1_000 <= leg["usage"]["connected_ms"]
        assert leg["usage"]["connected_ms"] <= (over - before) * 1000 + 1_000
        assert call["nano_usd_by_modality"]["participant"] == "500000"
