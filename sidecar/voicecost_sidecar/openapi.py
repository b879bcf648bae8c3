"""The OpenAPI document: Litestar's paths, msgspec's schemas.

Litestar's schemas of msgspec structs lose docstrings and make floats of integer bounds; msgspec's
own are right. Money is a string in JSON (`money_json`), so it is one here.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from litestar import Request, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme

from voicecost_ledger._version import __version__
from voicecost_ledger.events import Adjusted
from voicecost_ledger.protocol import ClientMessage, ServerMessage
from voicecost_sidecar.api import Health
from voicecost_sidecar.explanations import EntryExplanation
from voicecost_sidecar.money_json import money_schema
from voicecost_sidecar.queries import CallAnswer, CallList, Costs, Latency
from voicecost_sidecar.rerating import RerateReport
from voicecost_sidecar.what_if import WhatIf

_REF: Final = "#/components/schemas/{name}"
_BODIES: Final = (
    CallAnswer,
    CallList,
    Costs,
    Latency,
    EntryExplanation,
    WhatIf,
    RerateReport,
    Adjusted,
    Health,
    list[ClientMessage],
    list[ServerMessage],
)


class _Document(JsonRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document with msgspec's schemas in Litestar's place."""
        return json.dumps(complete(openapi_schema)).encode()


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Put msgspec's component schemas, and the ingest body, into Litestar's document."""
    schemas, components = msgspec.json.schema_components(_BODIES, ref_template=_REF)
    known = document.setdefault("components", {}).setdefault("schemas", {})
    known.update({name: money_schema(schema) for name, schema in components.items()})
    messages, replies = schemas[-2], schemas[-1]
    operation = document["paths"]["/v1/records"]["post"]
    media = ("application/msgpack", "application/json")
    operation["requestBody"] = {
        "required": True,
        "content": {kind: {"schema": messages} for kind in media},
    }
    for status, description in (("200", "All of it is stored."), ("503", "Send it again.")):
        operation["responses"][status] = {
            "description": description,
            "content": {kind: {"schema": replies} for kind in media},
        }
    return document


def openapi_config() -> OpenAPIConfig:
    """Serve the document at `/openapi.json`, to anybody, and no user interface with it."""
    return OpenAPIConfig(
        title="voicecost",
        version=__version__,
        use_handler_docstrings=True,
        components=Components(
            security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}
        ),
        security=[{"token": []}],
        openapi_router=Router(
            "/", route_handlers=[], opt={"auth": "none"}, include_in_schema=False
        ),
        render_plugins=[_Document(path="/openapi.json")],
    )
