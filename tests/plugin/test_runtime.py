"""The runtime against a real WebSocket server and a real embedded ledger."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import WSMsgType, web

from livekit.plugins.voicecost import _faults
from livekit.plugins.voicecost._connection import authorization, ingest_url
from livekit.plugins.voicecost._runtime import MeterLink, Runtime
from voicecost_ledger.grants import Answer
from voicecost_ledger.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Action,
    ClientMessage,
    Command,
    Grant,
    Hello,
    Records,
    Reject,
    Renew,
    ServerMessage,
    Welcome,
    decode_client_message,
    encode_message,
)
from voicecost_ledger.records import (
    Basis,
    Coverage,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    Modality,
    Outcome,
    Record,
)
from voicecost_ledger.stores import CallQuery
from voicecost_ledger.stores.sqlite import SqliteStore

TTS = LegAttributes(Modality.TTS, "Deepgram", "aura-2-andromeda-en", host="api.deepgram.com")
SECRET = "a secret of at least thirty-two bytes"


class Sidecar:
    """A WebSocket server on loopback that keeps what it is sent, by the protocol's rules."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.records: dict[str, list[Record]] = {}
        self.durable: dict[str, int] = {}
        self.authorization: list[str | None] = []
        self.meters_said: list[str] = []
        self.clocks_said: list[int] = []
        self.deaf_to: str | None = None
        self.sockets: list[web.WebSocketResponse] = []
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        started: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        started.result(10)

    def stop(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._loop = self._thread = None

    def send(self, message: ServerMessage) -> None:
        """To every connection."""
        loop = self._loop
        assert loop is not None
        for each in self.sockets:
            asyncio.run_coroutine_threadsafe(each.send_bytes(encode_message(message)), loop).result(
                5
            )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=15), self.records

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        app = web.Application()
        app.router.add_get("/v1/ingest", self._ingest)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        started.set_result(None)
        await self._stop.wait()
        for each in list(self.sockets):
            await each.close()
        await runner.cleanup()

    async def _ingest(self, request: web.Request) -> web.WebSocketResponse:
        self.authorization.append(request.headers.get("Authorization"))
        response = web.WebSocketResponse()
        await response.prepare(request)
        self.sockets.append(response)
        try:
            async for frame in response:
                if frame.type is WSMsgType.BINARY:
                    for answer in self._receive(decode_client_message(frame.data)):
                        await response.send_bytes(encode_message(answer))
        finally:
            self.sockets.remove(response)
        return response

    def _receive(self, message: ClientMessage) -> list[ServerMessage]:
        with self._changed:
            try:
                return self._answer(message)
            finally:
                self._changed.notify_all()

    def _answer(self, message: ClientMessage) -> list[ServerMessage]:
        match message:
            case Hello():
                self.meters_said = [held.meter_id for held in message.meters]
                known = {name: self.durable.get(name, 0) for name in self.meters_said}
                return [Welcome(PROTOCOL_VERSION, "L", 1, known)]
            case Records() if message.meter_id == self.deaf_to:
                return []
            case Records():
                self.clocks_said.append(message.sent_at_unix_ms)
                durable = self.durable.get(message.meter_id, 0)
                if message.after_seq > durable:
                    return [Reject("gap", "resend", message.meter_id, durable)]
                known_records = self.records.setdefault(message.meter_id, [])
                known_records += [r for r in message.records if r.seq > durable]
                self.durable[message.meter_id] = max(durable, message.through_seq)
                return [Ack({message.meter_id: self.durable[message.meter_id]}, {})]
            case Renew():
                return [Grant(message.meter_id, 1, message.renewal, 1_000, 1_000, 1_000, 30_000)]
            case _:
                return []


class Listener:
    """Collects what a meter hears, and lets a test wait for it."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self._changed = threading.Condition()

    def _hear(self, what: Any) -> None:
        with self._changed:
            self.heard.append(what)
            self._changed.notify_all()

    def on_command(self, command: Command) -> None:
        self._hear(command)

    def on_grant(self, grant: Grant) -> None:
        self._hear(grant)

    def on_ack(self, durable_seq: int) -> None:
        self._hear(durable_seq)

    def wait_for(self, kind: type[Any]) -> Any:
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(isinstance(each, kind) for each in self.heard), timeout=15
            )
            return next(each for each in self.heard if isinstance(each, kind))


@pytest.fixture
def spool_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VOICECOST_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("VOICECOST_DATABASE_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("VOICECOST_TOKEN", "token")
    return tmp_path / "spool"


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    sidecar = Sidecar()
    yield sidecar
    sidecar.stop()


@pytest.fixture
def runtimes(spool_dir: Path) -> Iterator[Callable[[str | None], Runtime]]:
    made: list[Runtime] = []

    def make(url: str | None) -> Runtime:
        made.append(Runtime(url))
        return made[-1]

    faults = _faults.counts()
    yield make
    for each in made:
        each.close(10)
    assert _faults.counts() == faults


def speak(link: MeterLink, characters: int = 10) -> None:
    """One leg, from its start to its end."""
    leg = link.next_leg()
    link.write(LegStart, leg=leg, attributes=TTS, usage={"characters": 0})
    link.write(LegInterim, leg=leg, usage={"characters": 1}, basis=Basis.OBSERVED)
    link.write(
        LegStop,
        leg=leg,
        usage={"characters": characters},
        basis=Basis.OBSERVED,
        outcome=Outcome.SERVED,
    )


async def test_a_call_arrives_and_leaves_nothing_behind(
    sidecar: Sidecar, runtimes: Callable[[str | None], Runtime], spool_dir: Path
) -> None:
    sidecar.start()
    runtime = runtimes(sidecar.url)
    link = runtime.open_meter(project="shop", room_name="room")
    speak(link)
    link.close(Coverage.COMPLETE, "completed")
    assert await runtime.flushed(10)
    records = sidecar.records[link.meter_id]
    assert [type(r) for r in records] == [MeterOpen, LegStart, LegStop, MeterClose]
    assert isinstance(records[0], MeterOpen)
    assert (records[0].project, records[0].room_name) == ("shop", "room")
    # What it says its clock is: near enough to tell an hour, a day or 1970.
    assert all(abs(time.time() * 1000 - said) < 60_000 for said in sidecar.clocks_said)
    assert sidecar.clocks_said
    assert sidecar.durable == {link.meter_id: 5}
    assert sidecar.authorization == ["Bearer token"]
    assert os.listdir(spool_dir) == []


async def test_a_sidecar_that_is_down_for_the_whole_call_gets_everything_later(
    sidecar: Sidecar,
    runtimes: Callable[[str | None], Runtime],
    spool_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runtime = runtimes(sidecar.url)
    link = runtime.open_meter()
    for _ in range(50):
        assert link.ask(0, 1) is Answer.YES
        speak(link)
    link.close(Coverage.COMPLETE, "completed")
    assert not await runtime.flushed(0.3)
    assert len(os.listdir(spool_dir)) == 1
    assert caplog.text.count("cannot be reached") == 1
    sidecar.start()
    assert await runtime.flushed(15)
    stops = [r for r in sidecar.records[link.meter_id] if isinstance(r, LegStop)]
    assert [stop.leg for stop in stops] == list(range(1, 51))
    assert isinstance(sidecar.records[link.meter_id][-1], MeterClose)
    assert os.listdir(spool_dir) == []


async def test_a_finished_call_does_not_wait_for_the_others(
    sidecar: Sidecar, runtimes: Callable[[str | None], Runtime]
) -> None:
    """In a worker with other live calls there is always something that is not durable yet."""
    sidecar.start()
    runtime = runtimes(sidecar.url)
    other, link = runtime.open_meter(), runtime.open_meter()
    sidecar.deaf_to = other.meter_id
    speak(other)
    speak(link)
    link.close(Coverage.COMPLETE, "completed")
    assert await runtime.flushed(30, link.meter_id)
    assert sidecar.durable == {link.meter_id: 5}
    assert not await runtime.flushed(0.1)


async def test_a_sidecar_that_restarts_misses_nothing(
    sidecar: Sidecar, runtimes: Callable[[str | None], Runtime]
) -> None:
    sidecar.start()
    runtime = runtimes(sidecar.url)
    link = runtime.open_meter()
    speak(link)
    assert await runtime.flushed(10)
    await asyncio.to_thread(sidecar.stop)
    speak(link)
    sidecar.start()
    speak(link)
    link.close(Coverage.COMPLETE, "completed")
    assert await runtime.flushed(15)
    assert sidecar.durable == {link.meter_id: 11}
    assert [r.leg for r in sidecar.records[link.meter_id] if isinstance(r, LegStop)] == [1, 2, 3]


async def test_grants_and_commands_reach_the_meter(
    sidecar: Sidecar, runtimes: Callable[[str | None], Runtime]
) -> None:
    sidecar.start()
    listener = Listener()
    link = runtimes(sidecar.url).open_meter(listener=listener, budget_nano_usd=5_000)
    grant = await asyncio.to_thread(listener.wait_for, Grant)
    assert grant.ceiling_nano_usd == 1_000
    assert link.ask(0, 1_000) is Answer.YES
    assert link.ask(1_000, 1) is Answer.MEANWHILE
    assert link.ask(1_000, 4_001) is Answer.NO
    command = Command(link.meter_id, Action.WRAP_UP, "call", 5_000, 4_000)
    await asyncio.to_thread(sidecar.send, command)
    assert await asyncio.to_thread(listener.wait_for, Command) == command


async def test_two_threads_share_a_runtime_and_a_meter(
    sidecar: Sidecar, runtimes: Callable[[str | None], Runtime]
) -> None:
    sidecar.start()
    runtime = runtimes(sidecar.url)
    shared = runtime.open_meter()
    own: list[MeterLink] = []

    def work() -> None:
        link = runtime.open_meter()
        own.append(link)
        for _ in range(200):
            speak(link)
            speak(shared)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert await runtime.flushed(15)
    assert {link.meter_id: 601 for link in own} | {shared.meter_id: 1201} == sidecar.durable
    legs = [r.leg for r in sidecar.records[shared.meter_id] if isinstance(r, LegStop)]
    assert sorted(legs) == list(range(1, 401))


def run_agent(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Another agent process of this host."""
    prelude = """
        import asyncio, json, os, sys
        from tests.plugin.test_runtime import speak
        from livekit.plugins.voicecost._runtime import runtime
        from voicecost_ledger.records import *
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
        check=False,
    )


async def test_a_killed_process_is_adopted_and_its_meter_closed(
    sidecar: Sidecar, runtimes: Callable[[str | None], Runtime], spool_dir: Path
) -> None:
    killed = run_agent(
        """
        link = runtime(os.environ["URL"]).open_meter()
        speak(link)
        print(link.meter_id, flush=True)
        os.kill(os.getpid(), 9)
        """,
        URL=sidecar.url,
    )
    meter_id = killed.stdout.strip()
    assert meter_id, killed.stderr
    sidecar.start()
    runtime = runtimes(sidecar.url)
    link = runtime.open_meter()
    await asyncio.to_thread(
        sidecar.wait_for,
        lambda: any(isinstance(r, MeterClose) for r in sidecar.records.get(meter_id, [])),
    )
    records = sidecar.records[meter_id]
    assert [r.seq for r in records if not isinstance(r, LegInterim)] == [1, 2, 4, 5]
    close = records[-1]
    assert isinstance(close, MeterClose)
    assert (close.reason, close.coverage) == ("adopted", Coverage.COMPLETE)
    link.close(Coverage.COMPLETE, "completed")
    assert await runtime.flushed(10)
    assert os.listdir(spool_dir) == []


def test_a_forked_child_has_a_runtime_and_meters_of_its_own(
    sidecar: Sidecar, spool_dir: Path
) -> None:
    """As a forkserver does it: the parent has imported, and may even have metered."""
    sidecar.start()
    done = run_agent(
        """
        import gc
        url = os.environ["URL"]
        parent = runtime(url)
        link = parent.open_meter()
        speak(link)
        def work(name):
            own = runtime(url)
            mine = own.open_meter()
            speak(mine)
            mine.close(Coverage.COMPLETE, "completed")
            assert asyncio.run(asyncio.wait_for(wait(own), 20))
            os.write(1, (json.dumps([name, mine.meter_id]) + "\\n").encode())  # whole lines
        async def wait(own):
            return await own.flushed(15)
        children = []
        for name in ("one", "two"):
            pid = os.fork()
            if not pid:
                assert runtime(url) is not parent
                speak(link)  # the parent's meter: nobody's business here
                work(name)
                os._exit(0)
            children.append(pid)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        link.close(Coverage.COMPLETE, "completed")
        assert asyncio.run(wait(parent))
        print(json.dumps(["parent", link.meter_id]))
        """,
        URL=sidecar.url,
    )
    assert done.returncode == 0, done.stderr
    meters = dict(json.loads(line) for line in done.stdout.splitlines())
    assert sorted(meters) == ["one", "parent", "two"]
    assert sidecar.durable == dict.fromkeys(meters.values(), 5)
    assert os.listdir(spool_dir) == []


def test_importing_starts_and_opens_nothing(spool_dir: Path) -> None:
    done = run_agent(
        """
        import threading
        runtime(None), runtime("http://127.0.0.1:1")
        print(threading.active_count(), os.path.exists(os.environ["VOICECOST_SPOOL_DIR"]))
        """
    )
    assert done.stdout == "1 False\n", done.stderr


def test_a_process_that_cannot_report_ends_and_keeps_its_spool(spool_dir: Path) -> None:
    done = run_agent(
        """
        link = runtime("http://127.0.0.1:1").open_meter()
        speak(link)
        link.close(Coverage.COMPLETE, "completed")
        """
    )
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(spool_dir)) == 1
    assert "Traceback" not in done.stderr


async def test_the_embedded_ledger_has_the_call(
    runtimes: Callable[[str | None], Runtime], spool_dir: Path, tmp_path: Path
) -> None:
    runtime = runtimes(None)
    listener = Listener()
    link = runtime.open_meter(project="shop", budget_nano_usd=1_000_000_000, listener=listener)
    grant = await asyncio.to_thread(listener.wait_for, Grant)
    assert 0 < grant.ceiling_nano_usd <= 1_000_000_000
    speak(link, characters=100)
    link.close(Coverage.COMPLETE, "completed")
    assert await runtime.flushed(15)
    assert os.listdir(spool_dir) == []
    store = SqliteStore.open(tmp_path / "ledger.db")
    [call] = store.calls(CallQuery())
    store.close()
    assert (call.project, call.coverage, call.unpriced_leg_count) == ("shop", "complete", 0)
    assert call.total_nano_usd == 3_000_000  # $0.030 per 1,000 characters


async def test_several_processes_share_one_embedded_ledger(
    runtimes: Callable[[str | None], Runtime], spool_dir: Path, tmp_path: Path
) -> None:
    """Another process meters into the same file at the same time; a third was killed."""
    killed = run_agent(
        """
        link = runtime(None).open_meter(job_id="AJ_killed", room_name="k", room_sid="RM_k")
        speak(link, characters=100)
        print(link.meter_id, flush=True)
        os.kill(os.getpid(), 9)
        """
    )
    assert killed.stdout, killed.stderr
    runtime = runtimes(None)
    link = runtime.open_meter(job_id="AJ_1", room_name="r", room_sid="RM_1")
    other = await asyncio.to_thread(
        run_agent,
        """
        async def main():
            link = runtime(None).open_meter(job_id="AJ_2", room_name="s", room_sid="RM_2")
            speak(link, characters=100)
            link.close(Coverage.COMPLETE, "completed")
            assert await runtime(None).flushed(30)
        asyncio.run(main())
        """,
    )
    assert other.returncode == 0, other.stderr
    speak(link, characters=100)
    link.close(Coverage.COMPLETE, "completed")
    assert await runtime.flushed(30)
    store = SqliteStore.open(tmp_path / "ledger.db")
    totals = [call.total_nano_usd for call in store.calls(CallQuery())]
    store.close()
    assert totals == [3_000_000] * 3
    assert os.listdir(spool_dir) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8787", "ws://127.0.0.1:8787/v1/ingest"),
        ("ws://localhost:8787/", "ws://localhost:8787/v1/ingest"),
        ("http://[::1]:8787", "ws://[::1]:8787/v1/ingest"),
        ("https://costs.example.com/base", "wss://costs.example.com/base/v1/ingest"),
    ],
)
def test_the_address_of_ingest(url: str, expected: str) -> None:
    assert ingest_url(url) == expected


@pytest.mark.parametrize("url", ["http://costs.example.com", "ws://10.0.0.7:8787"])
def test_nothing_goes_unencrypted_beyond_this_machine(url: str) -> None:
    with pytest.raises(ValueError, match="unencrypted"):
        Runtime(url)


def test_a_livekit_key_makes_a_token_that_opens_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOICECOST_TOKEN", raising=False)
    monkeypatch.setenv("LIVEKIT_API_KEY", "key")
    monkeypatch.setenv("LIVEKIT_API_SECRET", SECRET)
    scheme, token = authorization("P")["Authorization"].split()
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="voicecost")
    assert scheme == "Bearer"
    assert claims["iss"] == "key"
    assert 0 < claims["exp"] - claims["iat"] <= 600
    assert not {"video", "sip"} & claims.keys()


@pytest.mark.parametrize("embedded", [False, True], ids=["sidecar", "embedded"])
def test_one_thread_does_it_all(sidecar: Sidecar, spool_dir: Path, embedded: bool) -> None:
    """It talks to the ledger, or keeps it, and makes the spool durable."""
    sidecar.start()
    done = run_agent(
        """
        import threading
        own = runtime(os.environ["URL"] or None)
        link = own.open_meter()
        speak(link)
        async def durable():
            assert await own.flushed(15)
            while own._spool.unkept:
                await asyncio.sleep(0.01)
        asyncio.run(asyncio.wait_for(durable(), 20))
        print(sorted(t.name for t in threading.enumerate() if t.name.startswith("voicecost-")))
        link.close(Coverage.COMPLETE, "completed")
        """,
        URL="" if embedded else sidecar.url,
        VOICECOST_DATABASE_URL=f"sqlite:///{spool_dir}/ledger.db",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['voicecost-uplink']"
