"""The sidecar put together: store, bookkeeper, edges; and uvicorn around it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import uvicorn
from litestar import Litestar

from voicecost_ledger.bookkeeper import Bookkeeper
from voicecost_ledger.events import EndRoom
from voicecost_ledger.spool import SIDECAR
from voicecost_ledger.stores import Store
from voicecost_sidecar.adopter import Adopter
from voicecost_sidecar.app import create_app
from voicecost_sidecar.auth import Authenticator
from voicecost_sidecar.checkpoints import CheckpointReader
from voicecost_sidecar.config import Config
from voicecost_sidecar.enforcer import Enforcer
from voicecost_sidecar.hub import Hub
from voicecost_sidecar.ingest import MESSAGE_BYTES_MAX
from voicecost_sidecar.livekit_rooms import LiveKitRooms
from voicecost_sidecar.metrics import Metrics
from voicecost_sidecar.parts import Parts
from voicecost_sidecar.poller import Poller
from voicecost_sidecar.price_books import price_book

RESTART_PAUSE_S: Final = 1.0
SHUTDOWN_TIMEOUT_S: Final = 5
_LEDGER_GAUGES: Final = frozenset({"posted_nano_usd", "overshoot_nano_usd", "unpriced_legs"})

logger = logging.getLogger(__name__)


class Sidecar:
    """One sidecar over one store.

    Args:
        config: What the operator decided.
        store: The ledger; the caller closes it after `app` has stopped.
        token: What `Authorization: Bearer` must carry.
        spool_root: Where spools of dead agents are looked for.
        adopt_embedded: Adopt also those of agents that kept the ledger themselves: right only
            when they kept it in this same file.
        poll_interval_s: Between two listings of LiveKit's rooms.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        token: str,
        spool_root: Path,
        adopt_embedded: bool = False,
        poll_interval_s: float = 10.0,
    ) -> None:
        self._prices = price_book(config)
        self._rooms = LiveKitRooms(config.livekit) if config.livekit else None
        self._hub = Hub(end_room=self._end_room)
        self._bookkeeper = Bookkeeper(
            store, self._prices, config.policy(), on_effects=self._hub.on_effects
        )
        self._checkpoints = self._poller = None
        if self._rooms is not None and config.livekit is not None:
            self._checkpoints = CheckpointReader(config.livekit)
            self._poller = Poller(
                self._rooms,
                self._hub,
                livekit_project=config.livekit.project,
                checkpoints=self._checkpoints,
                interval_s=poll_interval_s,
            )
        self._enforcer = Enforcer(self._rooms, self._hub, self._poller)
        label = None if adopt_embedded else SIDECAR
        self._adopter = Adopter(spool_root, self._hub, label=label)
        self.app: Litestar = create_app(
            Parts(
                config=config,
                store=store,
                prices=self._prices,
                hub=self._hub,
                authenticator=Authenticator(token, config.livekit),
                metrics=self._metrics(store),
                checkpoints=self._checkpoints,
                poller=self._poller,
            ),
            running=self._running,
        )

    def warm(self) -> None:
        """Load the price book; seconds, so before serving.

        Raises:
            ValueError: A host alias names a provider that has no prices.
        """
        self._prices.warm()

    def _end_room(self, order: EndRoom) -> None:
        self._enforcer.end_room(order)

    def _metrics(self, store: Store) -> Metrics:
        checkpoints, poller = self._checkpoints, self._poller
        counters: dict[str, Callable[[], Mapping[str, int]]] = {
            "ledger": lambda: _ledger_numbers(store, growing=True),
            "bookkeeper": lambda: {"faults": self._bookkeeper.fault_count},
            "enforcer": lambda: msgspec.structs.asdict(self._enforcer.counts),
            "adopter": lambda: msgspec.structs.asdict(self._adopter.counts),
        }
        if checkpoints is not None:
            counters["checkpoints"] = lambda: msgspec.structs.asdict(checkpoints.counts)
        if poller is not None:
            counters["poller"] = lambda: msgspec.structs.asdict(poller.counts)
        return Metrics(
            counters=counters,
            gauges={
                "ledger": lambda: _ledger_numbers(store, growing=False),
                "ingest": lambda: {"served_meters": self._hub.served_meter_count},
            },
        )

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            if self._rooms is not None:
                await stack.enter_async_context(self._rooms)
            self._hub.start(self._bookkeeper)
            self._bookkeeper.start()
            stack.push_async_callback(asyncio.to_thread, self._bookkeeper.close)
            stack.push_async_callback(self._enforcer.close)
            work = [self._adopter.run] + ([self._poller.run] if self._poller else [])
            tasks = [asyncio.create_task(_kept_alive(run)) for run in work]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _ledger_numbers(store: Store, *, growing: bool) -> dict[str, int]:
    """The ledger's counters, or its gauges: calls by state, and sums that corrections lower."""
    return {
        name: value
        for name, value in store.counters().items()
        if growing != (name in _LEDGER_GAUGES or name.startswith("calls_"))
    }


async def _kept_alive(run: Callable[[], Awaitable[None]]) -> None:
    """Run something for ever: a fault of ours must not end what bounds people's bills."""
    while True:
        try:
            await run()
        except Exception as error:
            logger.error(
                "%s failed (%s); starting it again", run.__qualname__, type(error).__name__
            )
        await asyncio.sleep(RESTART_PAUSE_S)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        OSError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    return listening


class SidecarServer(uvicorn.Server):
    """Uvicorn as we measured it: no deflate, no access log (paths hold call ids).

    Args:
        app: What to serve.
        on_started: Called once requests are answered.
    """

    def __init__(self, app: Litestar, *, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                cast("Any", app),  # ASGI types of Litestar and uvicorn differ in name only
                ws="websockets-sansio",
                ws_per_message_deflate=False,
                ws_max_size=MESSAGE_BYTES_MAX,
                lifespan="on",
                access_log=False,
                log_config=None,
                log_level="warning",
                server_header=False,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()
