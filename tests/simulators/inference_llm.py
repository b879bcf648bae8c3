"""Simulates LiveKit Inference's chat completions and keeps LiveKit's bill.

Wire: OpenAI's chat completions with a LiveKit access token as the API key and LiveKit's own headers
(`livekit/agents/inference/_utils.py`, `inference/llm.py` of
https://github.com/livekit/agents). Models are named with their maker: "openai/gpt-4o-mini".

Billing rules: those of `openai_chat`, by the model that served (https://livekit.io/pricing lists a
price for each). The gateway may serve another model than the one asked for when that is not
available; then the chunks' `model` names it.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, cast

from aiohttp import web

from .openai_chat import OpenAISimulator, error_response


class InferenceSimulator(OpenAISimulator):
    """LiveKit's gateway to language models.

    Attributes:
        fallback_model: What serves instead of the model asked for; None serves that.
    """

    provider = "livekit"
    fallback_model: str | None = None

    def serving_model(self, model: str) -> str:
        """The fallback, where there is one."""
        return self.fallback_model or model

    def refuses(self, request: web.Request) -> web.Response | None:
        """The answer to a request that no LiveKit agent sends."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        agent = request.headers.get("User-Agent", "")
        if scheme == "Bearer" and _may_infer(token) and agent.startswith("LiveKit Agents/"):
            return None
        return error_response(401, "invalid access token", "invalid_request_error")


def _may_infer(token: str) -> bool:
    """Whether a LiveKit access token allows inference; its signature is not checked."""
    try:
        payload = token.split(".")[1]
        claims: Any = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, binascii.Error, ValueError):
        return False
    granted = cast("dict[str, Any]", claims).get("inference") or {}
    return bool(granted.get("perform"))
