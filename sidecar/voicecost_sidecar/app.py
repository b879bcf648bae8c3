"""The ASGI application: routes, who may use them, and what goes wrong in words."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import msgspec
from litestar import Litestar, MediaType, Request, Response, post
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import ClientException, NotAuthorizedException
from litestar.handlers import BaseRouteHandler
from litestar.logging import LoggingConfig
from litestar.types import Serializer

from voicecost_ledger.stores import StoreUnavailable
from voicecost_sidecar.api import (
    get_call,
    get_costs,
    get_latency,
    get_metrics,
    health,
    list_calls,
)
from voicecost_sidecar.api_corrections import (
    get_explanation,
    get_what_if,
    post_adjustment,
    post_rerate,
)
from voicecost_sidecar.auth import AuthError
from voicecost_sidecar.ingest import MESSAGE_BYTES_MAX, RETRY_AFTER_S, ingest, post_records
from voicecost_sidecar.money_json import encode_json
from voicecost_sidecar.openapi import openapi_config
from voicecost_sidecar.parts import Parts, PartsDependency
from voicecost_sidecar.webhooks import WebhookError, parse_webhook

logger = logging.getLogger(__name__)

# LiveKit's limits: 512 kB of metadata each for room and participant, 64 kB of attributes; and JSON
# may double them.
WEBHOOK_BYTES_MAX: Final = 4 * 1024 * 1024


class LedgerResponse(Response[Any]):
    """Structs as JSON with money as strings."""

    def render(self, content: Any, media_type: str, enc_hook: Serializer | None = None) -> bytes:
        """Encode by our rule what Litestar would encode by its own."""
        if isinstance(content, msgspec.Struct):
            return encode_json(content)
        return super().render(content, media_type, *([enc_hook] if enc_hook else []))


def create_app(
    parts: Parts, *, running: Callable[[], AbstractAsyncContextManager[None]]
) -> Litestar:
    """The application over its parts.

    Args:
        parts: The store and everything around it.
        running: Entered while the application serves: whatever must run on its event loop.
    """

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncGenerator[None]:
        async with running():
            yield

    def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        authorization = connection.headers.get("Authorization")
        try:
            match handler.opt.get("auth"):
                case "none" | "webhook":  # a webhook's signature is over its body: checked there
                    pass
                case "agent":
                    parts.authenticator.check_agent(authorization)
                case _:
                    parts.authenticator.check_operator(authorization)
        except AuthError as error:
            raise NotAuthorizedException(
                str(error), headers={"WWW-Authenticate": "Bearer"}
            ) from None

    return Litestar(
        route_handlers=[
            health,
            list_calls,
            get_call,
            get_costs,
            get_latency,
            get_explanation,
            get_what_if,
            post_rerate,
            post_adjustment,
            get_metrics,
            ingest,
            post_records,
            livekit_webhook,
        ],
        guards=[guard],
        dependencies={"parts": Provide(lambda: parts, sync_to_thread=False)},
        exception_handlers={StoreUnavailable: _store_unavailable},
        lifespan=[lifespan],
        response_class=LedgerResponse,
        openapi_config=openapi_config(),
        request_max_body_size=MESSAGE_BYTES_MAX,
        # Ours is set up by `serve`; Litestar's would log exceptions with what is in them.
        logging_config=LoggingConfig(configure_root_logger=False, log_exceptions="never"),
    )


@post(
    "/livekit/webhook",
    opt={"auth": "webhook"},
    status_code=200,
    media_type=MediaType.TEXT,
    security=[{}],
    request_max_body_size=WEBHOOK_BYTES_MAX,
)
async def livekit_webhook(request: Request[Any, Any, Any], parts: PartsDependency) -> str:
    """Take one of LiveKit's webhooks: 200 only once it is committed, 503 when it cannot be.

    LiveKit takes a 4xx for delivered and never sends it again: here it means not LiveKit's.
    """
    body = await request.body()
    try:
        parts.authenticator.check_webhook(request.headers.get("Authorization"), body)
    except AuthError as error:
        raise NotAuthorizedException(str(error)) from None
    try:
        event = parse_webhook(body, livekit_project=parts.config.livekit_project or "")
    except WebhookError as error:
        raise ClientException(str(error)) from None
    if parts.checkpoints is not None:
        # Before the event: it is the event that is not handled again when it is delivered twice.
        for seen in parts.checkpoints.read(event.room_name, event.participant):
            await parts.hub.submit(seen)
    await parts.hub.submit(event)
    if parts.poller is not None:
        parts.poller.saw(event)
    return "stored"


def _store_unavailable(_: Request[Any, Any, Any], error: StoreUnavailable) -> Response[Any]:
    # The reason alone: the whole sentence names a path of this machine.
    return Response(
        content={
            "status_code": 503,
            "detail": f"the ledger is not available ({error.reason}): nothing was stored; try "
            "again",
        },
        status_code=503,
        media_type=MediaType.JSON,
        headers={"Retry-After": RETRY_AFTER_S},
    )
