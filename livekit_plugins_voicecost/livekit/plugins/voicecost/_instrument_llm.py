"""LLM legs: one per attempt of a request, from the prompt's size to the provider's own count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from livekit.agents.llm import ChatChunk, CompletionUsage

from voicecost_catalog.names import same_model
from voicecost_ledger.records import Basis, Modality, Outcome

from . import _faults, _wire_clients
from ._answers import Answer, same_tier, with_maker
from ._attributes import describe, plain
from ._counts import Counts, llm_usage
from ._estimates import Estimates, estimates_for
from ._instrument_attempts import Attempt, was_refused
from ._prompts import answered, asks_to_think, billed_items, count_prompt, options
from ._wire_openai import ResponsesSocket, asks_for_response

CHUNKS_AT_ONCE: Final = 4
"""Chunks of an answer that are estimated together while every limit is far: what a SIGKILL in
mid-answer can cost, less one; the answer's end is always settled with all of them."""


_LIVEKIT_UNITS: Final = ("input_tokens", "cached_input_tokens", "output_tokens")


class LLMAttempt(Attempt):
    """One attempt of an LLM request.

    Mostly it is one answer of the provider's. A plugin may ask for several in a row, each billed,
    when one does not suffice (Gemini's long decode).
    """

    modality = Modality.LLM
    _began = False
    _refused_by_us = False

    def begin(self, *args: Any) -> None:
        """Open the leg with the prompt, before the request goes out."""
        _wire_clients.observe_loaded()
        stream = self.stream
        self._billed = billed_items(stream)
        attributes = describe(
            stream,
            stream._llm,
            Modality.LLM,
            model=plain(getattr(stream, "_model", "")),
            service_tier=_asked_tier(stream),
        )
        self._estimates: Estimates = estimates_for(self.owner.meter(), attributes)
        before = self._estimates.latest_prompt
        self._counts = count_prompt(self._billed, stream._tools, before)
        self._counts.asked_to_think = asks_to_think(stream, attributes.model)
        self._tally = self.tally(attributes)
        self._started_ns = time.monotonic_ns()
        self._wire: list[Answer] = []
        self._shown = Answer(self, self._counts)  # as LiveKit's own chunks show it
        self._socket: ResponsesSocket | None = None
        self._told_livekit: CompletionUsage | None = None
        usage = self._estimates.usage(self._counts)
        self._input_tokens = usage["input_tokens"]
        self._cached_input_tokens = usage["cached_input_tokens"]
        self._hidden_tokens = 0
        self._prompt_margins = self._tally.margins = self._estimates.margins(self._counts)
        self._began = True
        if not self._tally.spend(usage, Basis.ESTIMATED):
            self._refused_by_us = True
            self.end_for_budget()
        # Answers of clients that nobody observes show as LiveKit's own chunks.
        send_nowait: Callable[[ChatChunk], None] = stream._event_ch.send_nowait

        def observed_send_nowait(chunk: ChatChunk) -> None:
            try:
                self._livekit_chunk(chunk)
            except Exception as error:
                _faults.count("llm_chunk", error)
            send_nowait(chunk)

        stream._event_ch.send_nowait = observed_send_nowait

    # What the wire shows

    def answer_observed(self) -> Answer | None:
        """An answer is received from now on: LiveKit's own chunks, made of it, count nothing."""
        self.requests_itself()
        if not self._began:
            return None
        # One that follows another answers the same prompt, or a longer one that it will report.
        # What a plugin has said before the first one, it said by itself.
        counts = Counts(self._counts.prompt)
        counts.asked_to_think = self._counts.asked_to_think
        answer = Answer(self, counts)
        self._wire.append(answer)
        self._estimates.answer_seen()
        return answer

    def text_sending(self, connection: Any, payload: str) -> None:
        """Read along where a response is asked for over a WebSocket."""
        if asks_for_response(payload) and self._began:
            if self._socket is not None:  # that one was stale, and nothing came of it
                self._socket.close()
                answer = self._wire[-1]
            else:
                answer = self.answer_observed()
                assert answer is not None, "it has begun"
            self._socket = ResponsesSocket(connection, answer)

    # What an answer tells

    def answer_received(self, answer: Answer) -> None:
        """More of it came: count it, and end it when it may not be paid.

        Raises:
            CancelledError: The money is gone.
        """
        counts, tally = answer.counts, self._tally
        if tally.outcome is not None:
            return  # it was left; see `_follow`
        chunks = counts.completion_chunks
        if chunks <= 1:
            self._first_of(counts)
        if chunks % CHUNKS_AT_ONCE:
            # An estimate is 3 µs of the agent's time; with the money far away a few chunks wait.
            leg = tally.leg
            if leg is not None and leg.may_lag():
                return
        if counts.reported or len(self._wire) > 1:
            usage = self._usage(self._estimates)
        else:
            output_tokens = self._estimates.output_tokens(counts, self._hidden_tokens)
            usage = llm_usage(counts, self._input_tokens, self._cached_input_tokens, output_tokens)
            output_margin = self._estimates.output_margin(counts)
            tally.margins = {**self._prompt_margins, "output_tokens": output_margin}
        if not tally.spend(usage, Basis.ESTIMATED):
            # What has arrived is owed; what may still come is what the budget can refuse.
            tally.owe(usage, Basis.ESTIMATED)
            self.end_for_budget()

    def answer_reported(self, answer: Answer) -> None:
        """The provider said what it has used so far: that is owed.

        Raises:
            CancelledError: The money is gone, and the answer goes on.
        """
        tally = self._tally
        if tally.outcome is not None:
            return  # it was left; see `_follow`
        if 0 < answer.counts.completion_chunks <= 1:
            self._first_of(answer.counts)
        all_told = all(each.final for each in self._answers())
        basis = Basis.REPORTED if all_told else Basis.ESTIMATED
        tally.owe(self._usage(self._estimates), basis)
        if not answer.final and tally.leg is not None and not tally.leg.allow(tally.usage):
            self.end_for_budget()

    def _first_of(self, counts: Counts) -> None:
        """The first of an answer, or thoughts before it."""
        self._tally.first_answer()
        if counts.completion_chunks:
            counts.waited_ms = self._elapsed_ms()
        self._hidden_tokens = self._estimates.hidden_tokens(counts)[0]

    def answer_served_by(self, model: str, service_tier: str) -> None:
        """The provider said who serves it."""
        asked = self._tally.attributes
        if same_model(asked.model, model):
            model = ""
        if asked.provider == "livekit":
            # What the maker says to LiveKit: its own name of the model, the tier that LiveKit buys.
            model, service_tier = with_maker(model), ""
            host = plain(getattr(self.stream, "_provider", None))
            if host and not model:  # a host that was asked for has prices of its own
                model = f"{asked.model}@{host}"
        elif same_tier(asked.service_tier, service_tier):
            service_tier = ""
        self._tally.served_by(model, service_tier)

    # The end

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg: as reported, as nothing when it was refused, else as estimated."""
        if not self._began:
            return
        self.stream._event_ch.__dict__.pop("send_nowait", None)
        counts, tally = self._counts, self._tally
        if self._refused_by_us:  # never sent, and said so
            tally.stop(outcome, llm_usage(counts, 0, 0, 0), Basis.OBSERVED)
            return
        goes_on = False
        if self._socket is not None:
            goes_on = isinstance(error, asyncio.CancelledError) and not self._wire[-1].final
            if goes_on and self.cut:
                _in_background(self._socket.hang_up())
            elif goes_on:
                _in_background(self._follow(self._socket))
            else:
                self._socket.close()
        answers = self._answers()
        if outcome is Outcome.SERVED:
            for answer in answers:
                answer.came_to_its_end()
        outcome = self.outcome_of(outcome, tally)
        for answer in answers:
            if answer.counts.completion_chunks == 0:
                answer.counts.waited_ms = self._elapsed_ms()
        # Now the meter is known if it ever will be, also where it was attached meanwhile.
        estimates = estimates_for(self.owner.meter(), tally.attributes)
        usage = self._usage(estimates)
        if all(answer.final for answer in answers):
            tally.stop(outcome, usage, Basis.REPORTED)
        elif self._costs_nothing(answers, error):
            tally.stop(outcome, llm_usage(counts, 0, 0, 0), Basis.OBSERVED)
        else:
            tally.margins = self._margins(estimates)
            tally.stop(outcome, usage, Basis.ESTIMATED)
            if tally.leg is not None and len(answers) == 1 and not goes_on:
                estimates.settle_later(tally.leg, answers[0].counts)
        if tally.usage:  # else it is another's, who asked for it
            counts = self._livekit_counts(tally.usage)
            tally.livekit_counts(counts)
            self.overheard(tally.attributes, tally.usage | counts)
        if error is None:
            answered(self.stream, self._billed)
        for answer in answers:
            if answer.final or "input_tokens" in answer.counts.reported:
                estimates.learn(answer.counts, answer.learned())

    async def _follow(self, socket: ResponsesSocket) -> None:
        """Settle the leg with what the provider generates after the plugin has left."""
        answer = self._wire[-1]
        await socket.follow(lambda: answer.final)
        leg = self._tally.leg
        if leg is None:
            return
        estimates = estimates_for(self.owner.meter(), self._tally.attributes)
        basis = Basis.REPORTED if answer.final else Basis.ESTIMATED
        leg.margins = {} if answer.final else self._margins(estimates)
        leg.correct(self._usage(estimates), basis)
        if answer.final:
            estimates.learn(answer.counts, answer.learned())
        else:
            estimates.settle_later(leg, answer.counts)

    def _answers(self) -> list[Answer]:
        return self._wire or [self._shown]

    def _costs_nothing(self, answers: list[Answer], error: BaseException | None) -> bool:
        """Whether nothing was ever generated: refused, or never sent."""
        if any(answer.counts.completion_chunks or answer.counts.reported for answer in answers):
            return False
        return was_refused(error) or any(answer.refused for answer in answers)

    def _usage(self, estimates: Estimates) -> dict[str, int]:
        """The totals of all answers, as far as reported, else as estimated."""
        answers = self._answers()
        if len(answers) == 1:
            return answers[0].usage(estimates)
        total: dict[str, int] = {}
        for answer in answers:
            for unit, quantity in answer.usage(estimates).items():
                total[unit] = total.get(unit, 0) + quantity
        total["prompt_characters"] = self._counts.prompt.characters
        return total

    def _margins(self, estimates: Estimates) -> dict[str, int]:
        total: dict[str, int] = {}
        for answer in self._answers():
            if not answer.final:
                for unit, margin in estimates.margins(answer.counts).items():
                    total[unit] = total.get(unit, 0) + margin
        return total

    def _livekit_counts(self, usage: dict[str, int]) -> dict[str, int]:
        """What LiveKit counts of it: what the plugin told, as far as it is known why that differs.

        Some plugins tell nothing, and some tell tokens in their total only: thoughts, what tools of
        the provider's brought, the cache of a prompt.
        """
        told = self._told_livekit
        if told is None:
            return dict.fromkeys(_LIVEKIT_UNITS, 0)
        units = (told.prompt_tokens, told.prompt_cached_tokens, told.completion_tokens)
        counts: dict[str, int] = dict(zip(_LIVEKIT_UNITS, units, strict=True))
        read = usage["input_tokens"] - told.prompt_tokens
        said = usage["output_tokens"] - told.completion_tokens
        in_total_only = told.total_tokens - told.prompt_tokens - told.completion_tokens
        foretold = sum(answer.foretold for answer in self._wire)  # Anthropic's plugin adds that up
        if (
            (min(read, said) >= 0 and read + said == in_total_only)
            or (read, said) == (0, -foretold)
            or len(self._wire) > 1  # of several answers a plugin may tell one
        ):
            return counts
        return {unit: count for unit, count in counts.items() if not count}

    def _elapsed_ms(self) -> int:
        return (time.monotonic_ns() - self._started_ns) // 1_000_000

    def _livekit_chunk(self, chunk: ChatChunk) -> None:
        self._told_livekit = chunk.usage or self._told_livekit
        if self._wire:
            return
        answer, usage, delta = self._shown, chunk.usage, chunk.delta
        if delta is not None:
            if delta.content:
                answer.prose(delta.content)
            for call in delta.tool_calls:
                answer.call(call.name, call.arguments)
        if usage is not None:
            answer.report(_livekit_usage(usage, self._tally.attributes.provider), final=False)
        answer.read()


_tasks: set[asyncio.Task[None]] = set()


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    """Do it beside the agent's own work; a fault of it is counted."""

    async def contained() -> None:
        try:
            await work
        except Exception as error:
            _faults.count("llm_socket", error)

    task = asyncio.get_running_loop().create_task(contained(), name="voicecost-llm-socket")
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _livekit_usage(usage: CompletionUsage, provider: str) -> dict[str, int]:
    """Units of what a plugin reports to LiveKit, which some hold otherwise than LiveKit says."""
    input_tokens, output_tokens = usage.prompt_tokens, usage.completion_tokens
    cached, written = usage.prompt_cached_tokens, usage.cache_creation_tokens
    reasoning = getattr(usage, "reasoning_tokens", 0)  # not yet in LiveKit 1.5
    only_in_total = max(0, usage.total_tokens - input_tokens - output_tokens)
    if "bedrock" in provider.lower() or cached > input_tokens:
        # Bedrock's prompt is without what was read from its cache or written to it:
        # https://github.com/livekit/agents/pull/6663
        input_tokens += only_in_total
        written = max(written, only_in_total - cached)
    else:  # Gemini's plugin leaves out the thoughts
        output_tokens += only_in_total
        reasoning = reasoning or only_in_total
    return {
        "input_tokens": input_tokens,
        "cached_input_tokens": cached,
        "output_tokens": output_tokens,
        "cache_write_tokens": written,
        "reasoning_tokens": reasoning,
    }


def _asked_tier(stream: Any) -> str:
    """The service tier that was asked for; with LiveKit Inference, the inference class."""
    asked = options(stream).get("service_tier")
    asked = getattr(asked, "value", asked)  # Google's is an enum
    return plain(asked) or plain(getattr(stream, "_inference_class", None))
