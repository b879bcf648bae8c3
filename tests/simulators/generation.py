"""What all simulated language models share: an answer as it is generated, and what it is billed.

Wire protocols differ, generation does not: hidden thoughts first, then tool calls or text, token by
token, and a provider bills what it generated. Each simulator says how the pieces look on its wire.

Two bills, as providers document no rule for a client that leaves: `units` holds what was generated
until the client left, `generated_ahead` what half a second more adds. Hidden thoughts are generated
and billed although nobody sees them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from aiohttp import web

from .bill import Bill, BillRow
from .script import Fault, Faults, Reply, ToolCall
from .server import Simulator
from .tokens import count_tokens, tokenize

NOTICED_LATE_MS = 500  # second bill: how long generation may go on after the client has left
CALL_OVERHEAD_TOKENS = 4  # the model writes a tool call's frame too


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens that are generated, and sent, at once.

    `call` begins tool call number `index` (its text is the name), `arguments` is a part of the
    arguments of that call.
    """

    kind: Literal["thought", "text", "call", "arguments"]
    text: str
    token_count: int
    index: int = 0


class Generation:
    """An answer, cut into pieces as irregular as a provider's are.

    Args:
        reply: What the model says.
        seed: The same request of the same run is cut the same way.
        token_count_max: Where the answer is cut off; thoughts count.
    """

    def __init__(self, reply: Reply, *, seed: str, token_count_max: int | None = None) -> None:
        sizes = random.Random(seed)
        self.calls: Sequence[ToolCall] = reply.tool_calls
        self.refused = reply.refused
        self.cut_off = False
        pieces = _cut("thought", tokenize(reply.thoughts), sizes)
        for index, call in enumerate(self.calls):
            name_tokens = count_tokens(call.name) + CALL_OVERHEAD_TOKENS
            pieces.append(Piece("call", call.name, name_tokens, index))
            pieces += _cut("arguments", tokenize(json.dumps(call.arguments)), sizes, index)
        if not self.calls:
            pieces += _cut("text", tokenize(reply.text), sizes)
        self.pieces = pieces
        if token_count_max is not None and self.token_count > token_count_max:
            self.cut_off = True
            self.pieces = list(_first_tokens(pieces, token_count_max))
        self.text = "".join(piece.text for piece in self.pieces if piece.kind == "text")

    @property
    def token_count(self) -> int:
        """All tokens of it, thoughts included."""
        return sum(piece.token_count for piece in self.pieces)

    @property
    def thought_token_count(self) -> int:
        """The tokens of its thoughts."""
        return sum(piece.token_count for piece in self.pieces if piece.kind == "thought")

    def call_id(self, index: int, prefix: str, seed: str) -> str:
        """A provider's id for a tool call, always the same for the same request."""
        return f"{prefix}{hashlib.sha256(f'{seed}/{index}'.encode()).hexdigest()[:24]}"


class DiedError(Exception):
    """The scripted fault of a provider that breaks off in mid-answer."""


class ModelSimulator(Simulator):
    """A provider of language models. Subclasses speak its wire protocol.

    Args:
        replies: What to answer, first match wins; without one, a long answer of several sentences.
        bill: Where to keep the bill; its own by default.
        first_token_delay_ms: From the request to the first token, of thoughts too.
        token_delay_ms: From token to token.

    Attributes:
        sound_tokens: Of every prompt so many tokens more are sound, and of every answer its first.
    """

    provider: str
    sound_tokens: tuple[int, int] = (0, 0)

    def __init__(
        self,
        *,
        replies: Sequence[Reply] = (),
        bill: Bill | None = None,
        first_token_delay_ms: int = 150,
        token_delay_ms: int = 15,
    ) -> None:
        super().__init__()
        self.replies = list(replies)
        self.bill = bill or Bill()
        self.faults = Faults()
        self.first_token_delay_ms = first_token_delay_ms
        self.token_delay_ms = token_delay_ms
        self.request_count = 0
        self._moved = asyncio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; looked at with every request and every piece."""
        while not condition():
            self._moved.clear()
            await self._moved.wait()

    def open_row(
        self, model: str, request_id: str, attributes: dict[str, str | int]
    ) -> tuple[BillRow, Fault | None]:
        """A row of the bill for a request, and the fault that was scripted for it."""
        row = self.bill.open(
            provider=self.provider,
            service="llm",
            model=model,
            request_id=request_id,
            units={"input_tokens": 0, "cached_input_tokens": 0, "output_tokens": 0},
            attributes=attributes,
        )
        self._moved.set()
        return row, self.faults.take()

    def read_sound(self, row: BillRow) -> None:
        """Bill what of the prompt is sound; its text is counted already."""
        if self.sound_tokens[0]:
            row.units["input_tokens"] += self.sound_tokens[0]
            row.units["input_audio_tokens"] = self.sound_tokens[0]

    @asynccontextmanager
    async def billing(
        self, row: BillRow, generation: Generation, fault: Fault | None, *, hidden: bool = False
    ) -> AsyncGenerator[None]:
        """Bill a request that was accepted: how it ends is seen here, and what it cost by then.

        Args:
            row: Its row, with the prompt's units.
            generation: What is generated for it.
            fault: A fault that accepts the request, if any.
            hidden: Whether nothing is delivered before all is generated (no streaming).
        """
        started_ms = time.monotonic_ns() // 1_000_000
        try:
            if fault is not None and fault.silent:
                await asyncio.Event().wait()
            yield
        except (asyncio.CancelledError, ConnectionError):
            elapsed_ms = time.monotonic_ns() // 1_000_000 - started_ms
            if fault is None or not fault.silent:
                if hidden:
                    self._count(row, generation, self._generated(generation, elapsed_ms))
                # The schedule is a lower bound of the delay per token, so never less than billed.
                billed = row.units["output_tokens"]
                late = self._generated(generation, elapsed_ms + NOTICED_LATE_MS)
                row.generated_ahead["output_tokens"] = max(0, late - billed)
            self.bill.close(row, "cancelled")
            raise

    async def pieces(
        self, row: BillRow, generation: Generation, fault: Fault | None
    ) -> AsyncGenerator[Piece]:
        """The pieces in their time; each is billed once the caller has sent it.

        Raises:
            DiedError: The provider breaks off here.
        """
        dies_after = fault.dies_after if fault is not None else None
        await asyncio.sleep(self.first_token_delay_ms / 1000)
        for piece in generation.pieces:
            if dies_after is not None and row.units["output_tokens"] >= dies_after:
                self.bill.close(row, "died")
                raise DiedError
            yield piece
            self._count(row, generation, row.units["output_tokens"] + piece.token_count)
            await asyncio.sleep(piece.token_count * self.token_delay_ms / 1000)
        # Everything is generated: whoever leaves now pays in full.
        self.bill.close(row, "completed")

    async def generate_whole(self, row: BillRow, generation: Generation) -> None:
        """The same for a request without streaming."""
        due_ms = self.first_token_delay_ms + generation.token_count * self.token_delay_ms
        await asyncio.sleep(due_ms / 1000)
        self._count(row, generation, generation.token_count)
        self.bill.close(row, "completed")

    def _generated(self, generation: Generation, at_ms: int) -> int:
        if at_ms < self.first_token_delay_ms:
            return 0
        if self.token_delay_ms == 0:
            return generation.token_count
        steps = (at_ms - self.first_token_delay_ms) // self.token_delay_ms + 1
        return min(generation.token_count, steps)

    def _count(self, row: BillRow, generation: Generation, output_tokens: int) -> None:
        row.units["output_tokens"] = output_tokens
        thoughts = generation.thought_token_count
        if thoughts:
            row.units["reasoning_tokens"] = min(thoughts, output_tokens)
        if self.sound_tokens[1]:
            spoken = min(self.sound_tokens[1], output_tokens - min(thoughts, output_tokens))
            row.units["output_audio_tokens"] = spoken
        self._moved.set()


class PrefixCache:
    """Which beginnings of prompts a provider has read before. Nothing is evicted here.

    Args:
        tokens_min: Shorter beginnings are not kept.
        step: Beginnings are kept in multiples of so many tokens.
    """

    def __init__(self, *, tokens_min: int, step: int) -> None:
        self._tokens_min = tokens_min
        self._step = step
        self._seen: set[tuple[str, bytes]] = set()

    def read(self, model: str, prompt: Sequence[str]) -> int:
        """How much of the prompt was read before; from now on all of it was."""
        digest = hashlib.sha256()
        cached = 0
        step = self._step
        for end in range(step, len(prompt) - len(prompt) % step + 1, step):
            digest.update("\0".join(prompt[end - step : end]).encode())
            if end >= self._tokens_min:
                prefix = (model, digest.digest())
                if prefix in self._seen:
                    cached = end
                self._seen.add(prefix)
        return cached


def _first_tokens(pieces: list[Piece], token_count: int) -> Iterator[Piece]:
    """The pieces up to where an answer is cut off."""
    for piece in pieces:
        if piece.token_count > token_count:
            tokens = tokenize(piece.text)[:token_count]
            if tokens and piece.kind != "call":
                yield replace(piece, text="".join(tokens), token_count=len(tokens))
            return
        token_count -= piece.token_count
        yield piece


async def send_event(response: web.StreamResponse, data: Any, *, event: str | None = None) -> None:
    """Send one server-sent event; TCP knows none, so some arrive in two pieces."""
    name = f"event: {event}\n" if event is not None else ""
    payload = f"{name}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
    cut = len(payload) // 3 if len(payload) % 5 == 0 else len(payload)
    await response.write(payload[:cut])
    if cut < len(payload):
        await response.write(payload[cut:])


def event_stream(**headers: str) -> web.StreamResponse:
    """The head of an answer that streams."""
    return web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            **headers,
        }
    )


def abort(request: web.Request) -> None:
    """Break the connection off, as a provider's crash does."""
    assert request.transport is not None
    request.transport.abort()


def _cut(
    kind: Literal["thought", "text", "arguments"],
    tokens: list[str],
    sizes: random.Random,
    index: int = 0,
) -> list[Piece]:
    """Mostly one token a piece, now and then up to four."""
    pieces: list[Piece] = []
    start = 0
    while start < len(tokens):
        size = sizes.choice((1, 1, 1, 1, 1, 2, 2, 3, 4))
        taken = tokens[start : start + size]
        pieces.append(Piece(kind, "".join(taken), len(taken), index))
        start += size
    return pieces
