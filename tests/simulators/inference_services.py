"""Simulates what LiveKit Inference serves besides speech and text: decisions, turns, avatars.

Wire, as LiveKit's own client speaks it (no other document is public):
- `POST /decisions`: https://github.com/livekit/agents/blob/main/livekit-agents/livekit/agents/inference/decision_model.py
- `/eot`, binary protobuf over a WebSocket: https://github.com/livekit/agents/blob/main/livekit-agents/livekit/agents/inference/eot/transports.py
  and https://github.com/livekit/protocol/blob/main/protobufs/agent/livekit_agent_inference.proto
- `/bargein`, JSON and raw audio over a WebSocket: https://github.com/livekit/agents/blob/main/livekit-agents/livekit/agents/inference/interruption.py
- `POST /avatar/sessions` and `/avatar/sessions/terminate`: https://github.com/livekit/agents/blob/main/livekit-agents/livekit/agents/inference/avatar.py

Billing rules. LiveKit's billing page (https://docs.livekit.io/deploy/admin/billing) names tokens,
seconds and characters for LLM, STT and TTS and says nothing of these, so all of it is assumed:
- A decision: a request once accepted, with all tokens of its text and questions; the answers'
  tokens when it was answered. Left early: the input alone; half a second later the answers too.
- Turn and interruption detection: every inference asked for once it was received, whether or not
  its result was waited for. Nothing is generated ahead.
- An avatar: wall clock from the accepted create to the accepted terminate ("keep billing until its
  provider idle timeout", a warning in LiveKit's client), or until `worker_leaves`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
import uuid
from typing import Any

from aiohttp import WSMsgType, web
from livekit.protocol.agent_pb.agent_inference import (
    ClientMessage,
    EotPrediction,
    InferenceStarted,
    ServerMessage,
    SessionClosed,
    SessionCreated,
)

from .bill import Bill, BillRow, Ending
from .script import Fault, Faults
from .server import Simulator
from .tokens import count_tokens

_ANSWER_TOKENS = 3  # of one decision


class InferenceServicesSimulator(Simulator):
    """LiveKit Inference's gateway, the part of it that is neither LLM nor STT nor TTS.

    Args:
        bill: Where to keep the bill; one of its own by default.
        answer_delay_ms: How long an answer takes.
        reports_tokens: Whether decisions say what they used.
        served_model: The model that decisions say served them; None: the one asked for.
    """

    def __init__(
        self,
        *,
        bill: Bill | None = None,
        answer_delay_ms: int = 2,
        reports_tokens: bool = True,
        served_model: str | None = None,
    ) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.answer_delay_ms = answer_delay_ms
        self.reports_tokens = reports_tokens
        self.served_model = served_model
        self.decision_faults = Faults()
        self.turn_faults = Faults()
        self.interruption_faults = Faults()
        self.avatar_faults = Faults()
        self.probability = 0.9  # of an end of turn, and of an interruption
        self._avatars: dict[str, tuple[BillRow, int]] = {}
        self._asked = asyncio.Condition()

    def add_routes(self, app: web.Application) -> None:
        """Add the gateway's routes."""
        app.router.add_post("/decisions", self._decide)
        app.router.add_get("/eot", self._detect_turns)
        app.router.add_get("/bargein", self._detect_interruptions)
        app.router.add_post("/avatar/sessions", self._create_avatar)
        app.router.add_post("/avatar/sessions/terminate", self._terminate_avatar)

    async def asked(self, service: str, count: int) -> None:
        """Return when so many requests of this service were received over all connections."""
        async with self._asked:
            await self._asked.wait_for(
                lambda: (
                    sum(r.units["requests"] for r in self.bill.rows if r.service == service)
                    >= count
                )
            )

    def worker_leaves(self) -> None:
        """The provider ends every avatar by itself: its idle timeout."""
        for session_id in list(self._avatars):
            self._end_avatar(session_id, "timed_out")

    # Decisions

    async def _decide(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        fault = self.decision_faults.take()
        row = self.bill.open(
            provider="livekit",
            service="decision",
            model=body["model"],
            request_id=f"dec_{uuid.uuid4().hex}",
            units={"requests": 0, "input_tokens": 0, "output_tokens": 0},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            error = {"type": "error", "error": "The simulated gateway was told to refuse this."}
            return web.json_response(error, status=fault.status)
        questions: dict[str, Any] = body["questions"]
        row.units["requests"] = 1
        row.units["input_tokens"] = count_tokens(body["state"]) + sum(
            count_tokens(json.dumps(question)) + 4 for question in questions.values()
        )
        output_tokens = _ANSWER_TOKENS * len(questions)
        try:
            if fault is not None and fault.silent:
                await asyncio.Event().wait()
            await asyncio.sleep(self.answer_delay_ms / 1000)
        except asyncio.CancelledError:
            if fault is None or not fault.silent:
                row.generated_ahead["output_tokens"] = output_tokens
            self.bill.close(row, "cancelled")
            raise
        if fault is not None and fault.dies_after is not None:
            self.bill.close(row, "died")
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        row.units["output_tokens"] = output_tokens
        self.bill.close(row, "completed")
        usage = {unit: row.units[unit] for unit in ("input_tokens", "output_tokens")}
        return web.json_response(
            {
                "id": row.request_id,
                "model": self.served_model or body["model"],
                "answers": {name: _answer(question) for name, question in questions.items()},
                **({"usage": usage} if self.reports_tokens else {}),
            }
        )

    # Turns

    async def _detect_turns(self, request: web.Request) -> web.StreamResponse:
        return await self._connection(
            request, "turn_detection", "turn-detector-v1", self.turn_faults, self._serve_turns
        )

    async def _serve_turns(
        self, websocket: web.WebSocketResponse, row: BillRow, fault: Fault | None
    ) -> Ending:
        async for message in websocket:
            if message.type is not WSMsgType.BINARY:
                continue
            asked = ClientMessage.FromString(message.data)
            kind = asked.WhichOneof("message")
            if kind == "session_create":
                created = SessionCreated(default_thresholds={"en": 0.4}, default_threshold=0.5)
                await _tell(websocket, asked, session_created=created)
            elif kind == "session_close":
                await _tell(websocket, asked, session_closed=SessionClosed())
                return "completed"
            elif kind == "inference_start":
                if not await self._received(row, fault):
                    return "died"
                if fault is not None and fault.silent:
                    continue
                request_id = asked.inference_start.request_id
                await _tell(websocket, asked, request_id, inference_started=InferenceStarted())
                await asyncio.sleep(self.answer_delay_ms / 1000)
                prediction = EotPrediction(probability=self.probability)
                await _tell(websocket, asked, request_id, eot_prediction=prediction)
        return "cancelled"

    # Interruptions

    async def _detect_interruptions(self, request: web.Request) -> web.StreamResponse:
        return await self._connection(
            request,
            "interruption_detection",
            "adaptive interruption",
            self.interruption_faults,
            self._serve_interruptions,
        )

    async def _serve_interruptions(
        self, websocket: web.WebSocketResponse, row: BillRow, fault: Fault | None
    ) -> Ending:
        async for message in websocket:
            if message.type is WSMsgType.TEXT:
                kind = json.loads(message.data)["type"]
                if kind == "session.create":
                    await websocket.send_json({"type": "session.created", "default_threshold": 0.5})
                elif kind == "session.close":
                    await websocket.send_json({"type": "session.closed"})
                    return "completed"
            elif message.type is WSMsgType.BINARY:
                if not await self._received(row, fault):
                    return "died"
                if fault is not None and fault.silent:
                    continue
                (created_at,) = struct.unpack_from("<Q", message.data)
                await asyncio.sleep(self.answer_delay_ms / 1000)
                await websocket.send_json(
                    {
                        "type": "inference_done",
                        "created_at": created_at,
                        "prediction_duration": self.answer_delay_ms / 1000,
                        "probabilities": [self.probability, self.probability],
                    }
                )
        return "cancelled"

    async def _connection(
        self, request: web.Request, service: Any, model: str, faults: Faults, serve: Any
    ) -> web.StreamResponse:
        fault = faults.take()
        row = self.bill.open(
            provider="livekit",
            service=service,
            model=model,
            request_id=uuid.uuid4().hex,
            units={"requests": 0},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            return web.Response(status=fault.status)
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        ended: Ending = "cancelled"
        try:
            ended = await serve(websocket, row, fault)
            if ended == "died":
                assert request.transport is not None
                request.transport.abort()
            else:
                with contextlib.suppress(ConnectionError):
                    await websocket.close()
        except ConnectionError:
            pass  # the client left while it was being answered
        finally:
            self.bill.close(row, ended)
        return websocket

    async def _received(self, row: BillRow, fault: Fault | None) -> bool:
        """One more inference was asked for; False when the connection breaks instead."""
        if fault is not None and fault.dies_after == row.units["requests"]:
            return False
        row.units["requests"] += 1
        async with self._asked:
            self._asked.notify_all()
        return True

    # Avatars

    async def _create_avatar(self, request: web.Request) -> web.Response:
        body = await request.json()
        fault = self.avatar_faults.take()
        session_id = f"avs_{uuid.uuid4().hex}"
        row = self.bill.open(
            provider="livekit",
            service="avatar",
            model=body["provider"],
            request_id=session_id,
            units={"connected_ms": 0},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            return web.json_response({"error": "told to refuse"}, status=fault.status)
        self._avatars[session_id] = row, time.monotonic_ns()
        await asyncio.sleep(self.answer_delay_ms / 1000)
        return web.json_response(
            {
                "session_id": f"gw_{uuid.uuid4().hex}",
                "provider_session_id": session_id,
                "terminate_token": "secret",
                "sample_rate": 16000,
            }
        )

    async def _terminate_avatar(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._end_avatar(body["provider_session_id"], "completed")
        return web.json_response({})

    def _end_avatar(self, session_id: str, ended: Ending) -> None:
        known = self._avatars.pop(session_id, None)
        if known is not None:
            row, created_ns = known
            row.units["connected_ms"] = (time.monotonic_ns() - created_ns) // 1_000_000
            self.bill.close(row, ended)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Some answer to a question, of the kind that was asked for."""
    kind = question["type"]
    if kind == "noul":
        return {"type": "noul", "noul": 0.75}
    if kind == "choice":
        names = list(question["criteria"])
        rest = 0.25 / (len(names) - 1)
        shares = {name: 0.75 if index == 0 else rest for index, name in enumerate(names)}
        return {"type": "choice", "choice": names[0], "probabilities": shares}
    levels = question["criteria"]
    return {
        "type": "score",
        "score": 0.5,
        "probabilities": {str(index): 1 / len(levels) for index in range(len(levels))},
        "legend": levels,
    }


async def _tell(
    websocket: web.WebSocketResponse, asked: ClientMessage, request_id: str = "", **message: Any
) -> None:
    answer = ServerMessage(request_id=request_id, **message)
    answer.client_created_at.CopyFrom(asked.created_at)
    answer.server_created_at.GetCurrentTime()
    await websocket.send_bytes(answer.SerializeToString())
