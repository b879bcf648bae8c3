"""A sidecar on loopback: real uvicorn, real SQLite; and what a client needs to speak to it."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import jwt
from websockets.sync.client import ClientConnection, connect

from tests.sidecar.simulated_livekit import API_KEY, API_SECRET
from voicecost_ledger.protocol import (
    PROTOCOL_VERSION,
    ClientMessage,
    Hello,
    MeterHeld,
    Records,
    ServerMessage,
    decode_server_message,
    encode_message,
)
from voicecost_ledger.records import (
    Basis,
    Coverage,
    Environment,
    LegAttributes,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    Modality,
    Outcome,
    Record,
)
from voicecost_ledger.stores.sqlite import SqliteStore
from voicecost_sidecar.config import Config, LiveKitConfig
from voicecost_sidecar.server import Sidecar, SidecarServer, listening_socket

M = TypeVar("M", bound=ServerMessage)
T = TypeVar("T")

TOKEN = "the operator's token"
AWAY = LiveKitConfig(url="ws://127.0.0.1:9", api_key=API_KEY, api_secret=API_SECRET)
FIXTURES = Path(__file__).parent / "fixtures"
NOVA = LegAttributes(modality=Modality.STT, provider="Deepgram", model="nova-3", language="en")


class RunningSidecar:
    """One sidecar and its ledger."""

    def __init__(self, url: str, store: SqliteStore, spool_root: Path) -> None:
        self.url = url
        self.store = store
        self.spool_root = spool_root
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"})

    def get(self, path: str, **params: str) -> Any:
        """The JSON of a GET that succeeds."""
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def webhook(self, event: dict[str, Any], **how: Any) -> httpx.Response:
        """Deliver one webhook as LiveKit does; `how` goes to `sign`."""
        body = json.dumps(event).encode()
        headers = {"Authorization": sign(body, **how), "Content-Type": "application/webhook+json"}
        return self.http.post("/livekit/webhook", content=body, headers=headers)

    def replay(self, fixture: str) -> None:
        """Deliver a recorded sequence; every one of it is answered with 200."""
        for event in recorded(fixture):
            assert self.webhook(event).status_code == 200

    @contextmanager
    def agent(self, *, token: str = TOKEN) -> Generator[Agent]:
        """A connected agent process."""
        with connect(
            f"{self.url.replace('http', 'ws', 1)}/v1/ingest",
            additional_headers={"Authorization": f"Bearer {token}"},
        ) as socket:
            yield Agent(socket)


class Agent:
    """An agent process as the protocol shows it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, message: ClientMessage) -> None:
        self.socket.send(encode_message(message))

    def hear(self) -> ServerMessage:
        """The next message; waits for it."""
        data = self.socket.recv(timeout=10)
        assert isinstance(data, bytes)
        return decode_server_message(data)

    def hear_a(self, kind: type[M]) -> M:
        """The next message of a kind; others before it are passed over."""
        while not isinstance(message := self.hear(), kind):
            pass
        return message


def recorded(fixture: str) -> list[dict[str, Any]]:
    """A sequence of webhooks as livekit-server 1.13.5 sent them."""
    return [row["event"] for row in json.loads((FIXTURES / f"{fixture}.json").read_text())]


def sign(
    body: bytes,
    *,
    key: str = API_KEY,
    secret: str = API_SECRET,
    age_s: int = 0,
    signed_body: bytes | None = None,
    **claims: Any,
) -> str:
    """The `Authorization` of a webhook, valid for five minutes like LiveKit's."""
    digest = hashlib.sha256(body if signed_body is None else signed_body).digest()
    now = int(time.time()) - age_s
    payload = {
        "iss": key,
        "nbf": now,
        "exp": now + 300,
        "sha256": base64.b64encode(digest).decode(),
    }
    return jwt.encode(payload | claims, secret, algorithm="HS256")


def agent_token(*, secret: str = API_SECRET, lives_s: int = 300, **claims: Any) -> str:
    """An agent's JWT; a claim of None is left out."""
    now = int(time.time())
    payload = {"iss": API_KEY, "aud": "voicecost", "exp": now + lives_s} | claims
    given = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(given, secret, algorithm="HS256")


def a_call(meter_id: str = "M_1", **opened: Any) -> list[Record]:
    """A whole meter: one minute of Deepgram's nova-3, $0.0048."""
    now = time.time_ns() // 1_000_000
    fields: dict[str, Any] = {"project": "shop", "environment": Environment.JOB} | opened
    usage = {"audio_ms": 60_000, "connected_ms": 60_000}
    return [
        MeterOpen(meter_id, 1, now, **fields),
        LegStart(meter_id, 2, now, 1, NOVA, {}),
        LegStop(meter_id, 3, now, 1, usage, Basis.OBSERVED, Outcome.SERVED),
        MeterClose(meter_id, 4, now, Coverage.COMPLETE),
    ]


def hello(*meter_ids: str) -> Hello:
    """A greeting that names meters whose records are all held."""
    held = [MeterHeld(meter_id, 1, 1) for meter_id in meter_ids]
    return Hello(PROTOCOL_VERSION, "P_test", held)


def batch(records: list[Record]) -> Records:
    """Everything of one meter in one message."""
    meter_id = records[0].meter_id
    return Records(meter_id, records[0].seq - 1, records[-1].seq, records)


def until(look: Callable[[], T], *, timeout_s: float = 15.0) -> T:
    """Wait for something that another thread brings about; the last look if it never does."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()) and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    return seen


def nothing_is_posted_for_a_while() -> None:
    """Open legs are posted at each quarter hour: wait out the seconds before one."""
    assert until(lambda: time.time() % 900 < 885, timeout_s=20.0)


@contextmanager
def running_sidecar(
    folder: Path,
    *,
    livekit: LiveKitConfig = AWAY,
    poll_interval_s: float = 600.0,
    busy_timeout_ms: int = 5_000,
    listening: socket.socket | None = None,
    **configured: Any,
) -> Generator[RunningSidecar]:
    """Serve until the test is over. By default LiveKit is away: only webhooks tell of rooms."""
    listening = listening or listening_socket("127.0.0.1", 0)
    config = Config(database_path=folder / "ledger.db", livekit=livekit, **configured)
    store = SqliteStore.open(config.database_path, busy_timeout_ms=busy_timeout_ms)
    sidecar = Sidecar(
        config,
        store,
        token=TOKEN,
        spool_root=folder / "spool",
        poll_interval_s=poll_interval_s,
    )
    started = threading.Event()
    server = SidecarServer(sidecar.app, on_started=started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    assert started.wait(20), "the sidecar did not start"
    running = RunningSidecar(
        f"http://127.0.0.1:{listening.getsockname()[1]}", store, folder / "spool"
    )
    try:
        yield running
    finally:
        running.http.close()
        server.should_exit = True
        thread.join(20)
        listening.close()
        store.close()
        assert not thread.is_alive(), "the sidecar did not stop"
