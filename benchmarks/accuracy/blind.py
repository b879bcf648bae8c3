"""Makes this process see nothing on the wire: every plugin is one that nobody has looked into."""

from __future__ import annotations

from collections.abc import Callable

from livekit.plugins.voicecost import (
    _wire,
    _wire_audio,
    _wire_clients,
    _wire_connections,
    _wire_http,
    _wire_openai,
    _wire_text,
)


def see_nothing_on_the_wire() -> None:
    """Forget every protocol and observe no client or socket; before the first `VoiceCost()`."""
    _wire_text.TEXT_PROTOCOLS.clear()
    _wire_text.BODY_PROTOCOLS.clear()
    _wire_audio._PROTOCOLS.clear()  # pyright: ignore[reportPrivateUsage]  # only for measuring
    _wire.observe_websockets = _wire.observe_requests = _observe_nothing
    _wire_connections.observe_connections = _wire_http.observe_http = _observe_nothing
    _wire_openai.observe_openai_clients = _wire_clients.observe_clients = _observe_nothing


def _observe_nothing() -> Callable[[], None]:
    return lambda: None
