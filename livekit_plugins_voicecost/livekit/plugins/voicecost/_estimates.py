"""What an LLM request cost when its provider never said: interrupted, failed, cut.

The provider's own reports on other requests calibrate the estimate:

- Prompt: the nearest request of the same meter that reported its usage, plus the difference in
  characters at that request's tokens per character, and four tokens for each message more: the
  chat template's. Consecutive requests of a call share most of their prompt, so little is left
  to estimate.
- Completion: one token a chunk where the model's completed requests show so, else its characters
  at their ratio.
- Cached share: the nearest request's.

Every new report can better earlier estimates, so stopped legs are settled again. Without any
report of the meter's own, those of the same model in this process stand in; without these, the
usual four characters a token of English prose.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from voicecost_ledger.money import round_half_even
from voicecost_ledger.records import Basis, LegAttributes

from . import _faults

if TYPE_CHECKING:
    from .legs import Leg, LegMeter

_CHARACTERS_PER_TOKEN: Final = 4
_MESSAGE_TOKENS: Final = 4
_PRIMING_TOKENS: Final = 3
"""What OpenAI's chat template adds around each message, and before the answer.
https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken"""
_REPORTS_MAX: Final = 512


@dataclass(slots=True)
class Counts:
    """What we saw of a request ourselves; recorded raw, so a later rule can settle it again."""

    prompt_characters: int = 0
    prompt_messages: int = 0
    completion_characters: int = 0
    completion_chunks: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a provider reported of one request, beside our own counts of it."""

    prompt_characters: int
    prompt_messages: int
    input_tokens: int
    cached_input_tokens: int

    def input_tokens_of(self, counts: Counts) -> int:
        """Input tokens of another prompt, which is mostly the same as this one."""
        template = _MESSAGE_TOKENS * self.prompt_messages + _PRIMING_TOKENS
        text_tokens = max(self.input_tokens - template, 1)
        characters = counts.prompt_characters - self.prompt_characters
        messages = counts.prompt_messages - self.prompt_messages
        tokens = self.input_tokens + messages * _MESSAGE_TOKENS
        tokens += round_half_even(characters * text_tokens, per=self.prompt_characters)
        return max(tokens, 1)


class Calibration:
    """The reports of one model, of one meter or of the whole process."""

    __slots__ = ("_characters", "_chunks", "_reports", "_tokens")

    def __init__(self) -> None:
        self._reports: list[Report] = []
        self._tokens = 0
        self._chunks = 0
        self._characters = 0

    def learn(
        self, counts: Counts, *, input_tokens: int, cached_input_tokens: int, output_tokens: int
    ) -> None:
        """Take the provider's report on a completed request."""
        if counts.prompt_characters > 0 and input_tokens > 0:
            if len(self._reports) == _REPORTS_MAX:
                del self._reports[0]
            self._reports.append(
                Report(
                    counts.prompt_characters,
                    counts.prompt_messages,
                    input_tokens,
                    cached_input_tokens,
                )
            )
        if counts.completion_chunks > 0 and output_tokens > 0:
            self._tokens += output_tokens
            self._chunks += counts.completion_chunks
            self._characters += counts.completion_characters

    def prompt(self, counts: Counts) -> tuple[int, int] | None:
        """Input tokens of such a prompt and how many of them were cached; None: unknown."""
        nearest = min(
            reversed(self._reports),  # of two as near, the later
            key=lambda report: abs(report.prompt_characters - counts.prompt_characters),
            default=None,
        )
        if nearest is None:
            return None
        tokens = nearest.input_tokens_of(counts)
        return tokens, min(
            tokens,
            round_half_even(tokens * nearest.cached_input_tokens, per=nearest.input_tokens),
        )

    def output_tokens(self, counts: Counts) -> int | None:
        """Output tokens received so far; None: unknown."""
        if self._chunks == 0:
            return None
        # A token too many or too few a request (its end, a tool call's frame) is no other rule.
        if 4 * abs(self._tokens - self._chunks) <= self._chunks or self._characters == 0:
            return counts.completion_chunks
        return round_half_even(counts.completion_characters * self._tokens, per=self._characters)


class Estimates:
    """Estimates for one model in one meter; settles its legs again when they get better.

    Args:
        fallback: The process-wide reports of the same model.
    """

    def __init__(self, fallback: Calibration) -> None:
        self._own = Calibration()
        self._fallback = fallback
        # Weakly: a leg holds its meter, which must not live for its estimates' sake.
        self._estimated: list[tuple[weakref.ref[Leg], Counts]] = []

    def usage(self, counts: Counts) -> dict[str, int]:
        """The best usage for what was seen of a request, all units of an LLM leg."""
        input_tokens, cached = (
            self._own.prompt(counts)
            or self._fallback.prompt(counts)
            or (_uncalibrated_tokens(counts), 0)
        )
        return llm_usage(counts, input_tokens, cached, self.output_tokens(counts))

    def output_tokens(self, counts: Counts) -> int:
        """The best count of the output tokens received so far."""
        if counts.completion_chunks == 0:
            return 0
        known = self._own.output_tokens(counts)
        if known is None:
            known = self._fallback.output_tokens(counts)
        if known is not None:
            return known
        return -(-counts.completion_characters // _CHARACTERS_PER_TOKEN)

    def learn(self, counts: Counts, usage: dict[str, int]) -> None:
        """Take a completed request's reported usage; estimated legs are settled again."""
        for calibration in (self._own, self._fallback):
            calibration.learn(
                counts,
                input_tokens=usage["input_tokens"],
                cached_input_tokens=usage["cached_input_tokens"],
                output_tokens=usage["output_tokens"],
            )
        self.settle()

    def settle_later(self, leg: Leg, counts: Counts) -> None:
        """Remember a stopped leg that was only estimated."""
        self._estimated.append((weakref.ref(leg), counts))

    def settle(self) -> None:
        """Correct the stopped legs whose estimate has changed."""
        for reference, counts in self._estimated:
            leg, usage = reference(), self.usage(counts)
            if leg is not None and usage != leg.usage:
                leg.correct(usage, Basis.ESTIMATED)


def _uncalibrated_tokens(counts: Counts) -> int:
    template = _MESSAGE_TOKENS * counts.prompt_messages + _PRIMING_TOKENS
    return template + -(-counts.prompt_characters // _CHARACTERS_PER_TOKEN)


def llm_usage(counts: Counts, input_tokens: int, cached: int, output: int) -> dict[str, int]:
    """All units of an LLM leg."""
    return {
        "input_tokens": input_tokens,
        "cached_input_tokens": cached,
        "output_tokens": output,
        "prompt_characters": counts.prompt_characters,
        "completion_characters": counts.completion_characters,
        "completion_chunks": counts.completion_chunks,
    }


_lock = threading.Lock()
_process: dict[tuple[str, str], Calibration] = {}
_of_meters: weakref.WeakKeyDictionary[LegMeter, dict[tuple[str, str], Estimates]] = (
    weakref.WeakKeyDictionary()
)


def estimates_for(meter: LegMeter | None, attributes: LegAttributes) -> Estimates:
    """The estimates for a leg's model, of its meter; of the process where there is no meter yet."""
    key = (attributes.provider, attributes.model)
    with _lock:
        fallback = _process.setdefault(key, Calibration())
        if meter is None:
            return Estimates(fallback)
        models = _of_meters.setdefault(meter, {})
        return models.setdefault(key, Estimates(fallback))


def settle(meter: LegMeter) -> None:
    """Correct a meter's estimated legs one last time: it is about to close."""
    with _lock:
        models = list(_of_meters.pop(meter, {}).values())
    for estimates in models:
        try:
            estimates.settle()
        except Exception as error:
            _faults.count("settle_estimates", error)
