"""Google's Live API, as google-genai's live client receives it for LiveKit's plugin.

Usage is that of a turn, in which the whole conversation is read again
(https://ai.google.dev/gemini-api/docs/live-api/best-practices#pricing-billing). A turn may report
several times: with the same prompt it is a running total, and the last one stands; with another
prompt the model was run again, and both are billed
(https://discuss.ai.google.dev/t/173248: only the sum over all prompts meets the bill). LiveKit
reports no thoughts and no tool results; here they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, Final

from voicecost_ledger.records import Basis, Outcome

from ._faults import contained
from ._realtime_prompt import ITEM_TOKENS, Prompt, Scale, Size, text_tokens
from ._realtime_session import Response, SessionLegs
from ._reports import believed
from ._text_weight import TOKEN, RunningWeight

SOUND_TOKENS_PER_S: Final = 25  # in both directions; the same page
_OUT_BYTES_PER_MS: Final = 48  # 16-bit mono at 24 kHz
_MESSAGES_AT_ONCE: Final = 4  # are estimated together while every limit is far
_AHEAD_S: Final = 0.5
_OUTPUT_OFF: Final = 0.1


class _Turn(Response):
    """One turn of the model, and what was seen of it."""

    __slots__ = (
        "audio_bytes",
        "due",
        "earlier",
        "earlier_tools",
        "generated",
        "interrupted",
        "messages",
        "over",
        "prompt",
        "prompt_margins",
        "reported",
        "scale",
        "settled",
        "snapshot",
        "started_ns",
        "text",
        "tools",
    )

    def __init__(self, prompt: Prompt, scale: Scale) -> None:
        super().__init__("")
        self.scale = scale
        self.prompt = prompt.estimate()
        self.prompt_margins = prompt.margins()
        self.snapshot = prompt.snapshot()
        self.audio_bytes = 0
        self.text = RunningWeight()  # written, or thought; a transcript of speech is no output
        self.messages = 0
        self.generated = False  # whole, though perhaps not said to the end
        self.interrupted = False
        self.over = False
        self.due = False  # to be settled: it is over, and was reported
        self.settled = False
        self.earlier: dict[str, int] = {}  # of runs of the model before this turn's last one
        self.reported: dict[str, int] = {}  # of its last run
        self.tools = self.earlier_tools = 0  # of these, what the provider's tools brought
        self.started_ns = time.monotonic_ns()

    def guess(self) -> Size:
        """Its output so far, counted as the page says."""
        audio_ms = self.audio_bytes // _OUT_BYTES_PER_MS
        return Size(text=-(-self.text.value // TOKEN), audio=sound_tokens(audio_ms))

    def said(self) -> Size:
        """The same as this model counts, as far as its reports have shown that."""
        return self.scale.apply(self.guess())

    def usage(self) -> dict[str, int]:
        """All of it so far, as estimated."""
        said = self.said()
        return self.prompt | {"output_tokens": said.total, "output_audio_tokens": said.audio}

    def outcome(self) -> Outcome:
        """What became of it, now that it is over."""
        cut_short = self.interrupted and not self.generated
        return Outcome.INTERRUPTED if cut_short else Outcome.SERVED


class GoogleLive:
    """Follows one session's messages."""

    def __init__(self, legs: SessionLegs) -> None:
        self._legs = legs
        self._prompt = Prompt()
        self._scale = Scale()
        self._turn: _Turn | None = None  # the last one; over or not
        self._heard_ms = 0  # by the last report
        self._written = 0

    # ---- what is seen ----------------------------------------------------------------------------

    def received(self, message: Any) -> None:
        """The provider sent this; a `google.genai.types.LiveServerMessage`."""
        self._flush()  # LiveKit had the message before: what it did not pass on, it will not
        content, call = message.server_content, message.tool_call
        if call is not None or (content is not None and _is_output(content)):
            self._open_turn()
        turn = self._turn
        if turn is not None and not turn.over:
            if content is not None:
                self._take_content(turn, content)
            for each in (call.function_calls or ()) if call is not None else ():
                turn.text.add(f"{each.name}{each.args}")
            turn.over = call is not None or bool(content is not None and content.turn_complete)
            turn.due = turn.over and bool(turn.reported)
        if message.usage_metadata is not None:
            self._take_usage(message.usage_metadata)
        if turn is not self._waiting:  # else once it has its leg
            self._settle_due()

    def wrote(self, text: str) -> None:
        """The plugin is about to send this text."""
        self._written += 1
        self._prompt.put(f"text {self._written}", Size(text=ITEM_TOKENS + text_tokens(text)))

    def connected(self, instructions: str, tools: list[Any]) -> None:
        """A connection was made, with these instructions."""
        self._prompt.instruct(instructions)
        self._prompt.offer(tools)

    def response_created(self, response_id: str, speech: Any) -> None:
        """See `WireProtocol`."""
        turn = self._waiting
        if turn is not None:
            turn.id = response_id
            self._begin(turn, speech)
            self._settle_due()

    def reply_asked(self, future: asyncio.Future[Any], speech: Any) -> None:
        """See `WireProtocol`: who asked last is who is answered."""

    def estimate(self) -> dict[str, int]:
        """See `WireProtocol`."""
        return self._prompt.estimate() | {"output_tokens": 0}

    def closed(self) -> None:
        """See `WireProtocol`."""
        self.disconnected(Outcome.INTERRUPTED)

    def disconnected(self, outcome: Outcome) -> None:
        """The connection is gone, and every report that had not come by now."""
        self._flush()
        turn, self._turn = self._turn, None
        if turn is None or turn.settled:
            return
        if turn.over or not turn.reported:
            self._settle(turn, turn.outcome() if turn.over else outcome)
            return
        # The last report was of what had been generated by then.
        usage, seen = self._reported(turn), turn.usage()
        for unit in ("output_tokens", "output_audio_tokens"):
            usage[unit] = max(usage[unit], turn.earlier.get(unit, 0) + seen[unit])
        self._legs.settle(turn, outcome, usage, Basis.ESTIMATED, self._margins(turn))

    # ---- turns -----------------------------------------------------------------------------------

    _waiting: _Turn | None = None
    """Begun, and its leg not opened: LiveKit is about to say whose speech it is."""

    def _open_turn(self) -> None:
        turn = self._turn
        if turn is not None:
            if not turn.over:
                return
            if not turn.settled:  # its report will not come any more
                self._settle(turn, turn.outcome())
        self._turn = self._waiting = _Turn(self._prompt, self._scale)

    def _flush(self) -> None:
        if self._waiting is not None:
            self._begin(self._waiting, None)
            self._settle_due()

    def _settle_due(self) -> None:
        turn = self._turn
        if turn is not None and turn.due:
            turn.due = False
            self._settle(turn, turn.outcome())

    def _begin(self, turn: _Turn, speech: Any) -> None:
        self._waiting = None
        if turn.tally is None:
            self._legs.begin(turn, speech, turn.usage(), self._margins(turn))

    def _take_content(self, turn: _Turn, content: Any) -> None:
        parts = content.model_turn.parts if content.model_turn is not None else None
        for part in parts or ():
            if part.inline_data is not None and part.inline_data.data:
                turn.audio_bytes += len(part.inline_data.data)
            elif part.text:
                turn.text.add(part.text)
        if content.generation_complete:
            turn.generated = True
        if content.interrupted:
            turn.interrupted = True
        tally = turn.tally
        if tally is None or not parts:
            return
        tally.first_answer()
        turn.messages += 1
        if turn.messages % _MESSAGES_AT_ONCE and tally.leg is not None and tally.leg.may_lag():
            return
        if not turn.reported:
            self._legs.grow(turn, turn.usage(), self._margins(turn))

    def _take_usage(self, usage: Any) -> None:
        units = _units(usage)
        if units is None:
            return
        turn = self._turn
        if turn is None:  # of nothing that was seen
            turn = self._turn = _Turn(self._prompt, self._scale)
            turn.over = True
        before = turn.reported
        if before and before["input_tokens"] != units["input_tokens"]:
            turn.earlier = _sum(turn.earlier, before)
            turn.earlier_tools += turn.tools
        turn.tools = usage.tool_use_prompt_token_count or 0
        turn.reported = units
        audio, image = units["input_audio_tokens"], units["input_image_tokens"]
        read = Size(max(0, units["input_tokens"] - audio - image), audio, image)
        # Thoughts are not read again.
        spoken = units["output_audio_tokens"]
        written = units["output_tokens"] - units["reasoning_tokens"] - spoken
        said = Size(max(0, written), spoken)
        self._prompt.reported(turn.snapshot, read, units["cached_input_tokens"], said)
        turn.snapshot = self._prompt.snapshot()  # a later report of this turn replaces this one
        self._heard_ms = self._legs.sound_usage()["input_audio_ms"]
        if turn.over:
            turn.due = True
        elif turn.tally is not None:
            turn.tally.owe(self._reported(turn), Basis.REPORTED)

    def _reported(self, turn: _Turn) -> dict[str, int]:
        return _sum(turn.earlier, turn.reported)

    def _settle(self, turn: _Turn, outcome: Outcome) -> None:
        turn.settled = True
        if turn.reported and outcome is Outcome.SERVED and not turn.earlier:
            spoken = turn.reported["output_audio_tokens"]
            self._scale.learn(turn.guess(), Size(turn.reported["output_tokens"] - spoken, spoken))
        if turn.reported:
            self._legs.settle(turn, outcome, self._reported(turn), Basis.REPORTED)
            self._compare(turn)
        else:
            margins = self._margins(turn)
            self._legs.settle(turn, outcome, turn.usage(), Basis.ESTIMATED, margins)

    def _compare(self, turn: _Turn) -> None:
        """LiveKit's plugin reports neither thoughts nor what the provider's tools brought."""
        usage = self._reported(turn)
        if turn.tally is not None:
            turn.tally.livekit_counts({
                "input_tokens": usage["input_tokens"] - turn.tools - turn.earlier_tools,
                "output_tokens": usage["output_tokens"] - usage["reasoning_tokens"],
            })  # fmt: skip

    def _margins(self, turn: _Turn) -> dict[str, int]:
        margins = dict(turn.prompt_margins)
        heard_ms = self._legs.sound_usage()["input_audio_ms"] - self._heard_ms
        heard = sound_tokens(max(0, heard_ms))  # any part of it may have been speech
        margins["input_tokens"] += heard
        margins["input_audio_tokens"] = margins.get("input_audio_tokens", 0) + heard
        said = turn.said()
        elapsed_s = max(0.1, (time.monotonic_ns() - turn.started_ns) / 1e9)
        ahead = _AHEAD_S / elapsed_s + _OUTPUT_OFF
        margins["output_tokens"] = 2 + int(said.total * ahead)
        if said.audio:
            margins["output_audio_tokens"] = 1 + int(said.audio * ahead)
        return margins


def observe_connection(session: Any, connection: Any, google: GoogleLive) -> None:
    """Follow what a google-genai `AsyncSession` sends and receives for a LiveKit session."""
    receive = connection._receive
    send_content, send_results = connection.send_client_content, connection.send_tool_response

    async def observed_receive() -> Any:
        message = await receive()
        with contained("realtime_message"):
            google.received(message)
        return message

    async def observed_send_content(*args: Any, **kwargs: Any) -> Any:
        with contained("realtime_message"):
            for turn in kwargs.get("turns") or ():
                for part in turn.parts or ():
                    if part.text:
                        google.wrote(part.text)
        return await send_content(*args, **kwargs)

    async def observed_send_results(*args: Any, **kwargs: Any) -> Any:
        with contained("realtime_message"):
            for result in kwargs.get("function_responses") or ():
                google.wrote(str(result.response))
        return await send_results(*args, **kwargs)

    connection._receive = observed_receive
    connection.send_client_content = observed_send_content
    connection.send_tool_response = observed_send_results
    instructions = getattr(session._opts, "instructions", None)
    tools: list[Any] = []
    with contextlib.suppress(Exception):  # then the first prompt's estimate is less near
        tools = session._tools.parse_function_tools("openai", strict=True)
    google.connected(instructions if isinstance(instructions, str) else "", tools)


def sound_tokens(audio_ms: int) -> int:
    """How many tokens so much sound is."""
    return -(-audio_ms * SOUND_TOKENS_PER_S // 1000)


def _is_output(content: Any) -> bool:
    """Whether LiveKit takes this for the beginning of a response."""
    return bool(
        content.model_turn is not None
        or (content.output_transcription is not None and content.output_transcription.text)
        or (content.input_transcription is not None and content.input_transcription.text)
    )


def _units(usage: Any) -> dict[str, int] | None:
    """The units of a `usageMetadata`; what its details leave out is text. None: no report."""
    read = _by_modality(usage.prompt_tokens_details)
    tools = _by_modality(usage.tool_use_prompt_tokens_details)
    cached = _by_modality(usage.cache_tokens_details)
    said = _by_modality(usage.response_tokens_details)
    thoughts = usage.thoughts_token_count or 0
    cached_total = usage.cached_content_token_count
    return believed({
        "input_tokens": (usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0),
        "cached_input_tokens": sum(cached.values()) if cached_total is None else cached_total,
        "input_audio_tokens": _audio(read) + _audio(tools),
        "cached_input_audio_tokens": _audio(cached),
        "input_image_tokens": _pictures(read) + _pictures(tools),
        "cached_input_image_tokens": _pictures(cached),
        "output_tokens": (usage.response_token_count or 0) + thoughts,
        "reasoning_tokens": thoughts,
        "output_audio_tokens": _audio(said),
    })  # fmt: skip


def _by_modality(details: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for detail in details or ():
        name = str(getattr(detail.modality, "value", detail.modality))
        counts[name] = counts.get(name, 0) + (detail.token_count or 0)
    return counts


def _audio(counts: Mapping[str, int]) -> int:
    return counts.get("AUDIO", 0)


def _pictures(counts: Mapping[str, int]) -> int:
    return counts.get("IMAGE", 0) + counts.get("VIDEO", 0)


def _sum(earlier: Mapping[str, int], units: Mapping[str, int]) -> dict[str, int]:
    return {unit: earlier.get(unit, 0) + count for unit, count in units.items()}
