"""What an LLM request cost when its provider never said: interrupted, failed, cut.

The provider's own reports on other requests calibrate the estimate:

- Prompt: the nearest request of the same meter that reported its usage, and the items in which
  the two differ: an answer of the model itself at what was reported for it, other text by its
  weight (`_text_weight`). Between two reports the rest is shared out, so that what was unknown of
  the conversation's growth cancels out.
- Completion: by the ruler that foretold the completed requests best (`_calibration`), its weight
  or its chunks: with some providers every token is a chunk, others send several in one.
- Cached share: the longest beginning that was asked before, in the provider's steps
  (`_prompt_cache`); what is written to the cache is the rest, where reports show such.
- Thoughts that nobody is shown: as in other requests of the model (`_thoughts`).
- By how much all this may be off: `_margins`, from what was foretold of completed requests.
- What the provider has told of a request that goes on is taken as told: the rest is estimated.

Every new report can better earlier estimates, so stopped legs are settled again. A meter starts
from what other calls of this process have learned of the model, and they from the encoders we
know.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

from voicecost_ledger.records import Basis, LegAttributes

from . import _faults
from ._calibration import (
    ONE,
    PRIMING_TOKENS,
    TEMPLATE_TOKENS,
    Line,
    Rulers,
    rounded,
)
from ._counts import Counts, Prompt, llm_usage
from ._margins import Spread
from ._prompt_cache import PromptCache
from ._text_weight import TOKEN
from ._thoughts import Thoughts

if TYPE_CHECKING:
    from .legs import Leg, LegMeter

_REPORTS_MAX: Final = 12
_NEAR_MAX: Final = 8
"""Reports that one estimate looks at: of a long call the nearest few tell it all."""
_ESTIMATED_MAX: Final = 12
"""Stopped legs that new reports can still better: each is a tenth of a millisecond, on the loop."""
_ANSWERS_MAX: Final = 256
_TOOLS_RATIO: Final = 4
"""How much heavier than its tools a prompt's text has to be, to tell of its encoder."""
_ITEM_WEIGHT: Final = TEMPLATE_TOKENS * TOKEN
_UNREAD_TOKENS: Final = 2
"""Tokens that were delivered and not read when a request was cut off: about a chunk's."""
_CHUNKS_UNREAD: Final = 2
"""The same where chunks are large, and each tells what was used so far."""
_FIRST_PERCENT: Final = 30  # of the very first estimate, of a model that nobody has heard of
_PROMPT_PERCENT: Final = 110


class Report(NamedTuple):
    """What a provider reported of one request; `warm_tokens` were cached by somebody else."""

    prompt: Prompt
    order: int
    input_tokens: int
    warm_tokens: int


class PromptEstimate(NamedTuple):
    """Tokens of a prompt, how many of them were cached, and by how much each may be off.

    `guessed_tokens` are those that no report says anything of; None: none says anything at all.
    """

    input_tokens: int
    cached_tokens: int
    input_margin: int
    cached_margin: int
    guessed_tokens: int | None = None


class Calibration:
    """The reports on one model, of one meter or of the whole process."""

    __slots__ = (
        "_answers",
        "cache",
        "prompt_spread",
        "reports",
        "rulers",
        "text",
        "thoughts",
        "unwritten",
    )

    def __init__(self, process: Calibration | None = None) -> None:
        self.reports: deque[Report] = deque(maxlen=_REPORTS_MAX)
        self.rulers = Rulers(None if process is None else process.rulers)
        self.thoughts = Thoughts(None if process is None else process.thoughts)
        self.prompt_spread = Spread(
            _PROMPT_PERCENT, None if process is None else process.prompt_spread
        )
        # What a provider keeps is a matter of the model, not of a call.
        self.cache: PromptCache = PromptCache() if process is None else process.cache
        self.unwritten: int | None = None
        """Tokens of the latest prompt that were neither cached nor written; None: none are."""
        self.text = Line(constant=TEMPLATE_TOKENS * ONE, rate_tokens=60, constant_per=15)
        self._answers: OrderedDict[int, int] = OrderedDict()

    def answered(self, key: int, tokens: int) -> None:
        """Remember the tokens of an answer that will be in later prompts."""
        self._answers[key] = tokens
        if len(self._answers) > _ANSWERS_MAX:
            self._answers.popitem(last=False)

    def answer(self, key: int) -> int | None:
        """The tokens of this text, if the model itself once said it."""
        return self._answers.get(key)


class Estimates:
    """Estimates for one model in one meter; settles its legs again when they get better.

    Args:
        process: The process-wide reports of the same model.
    """

    def __init__(self, process: Calibration) -> None:
        self._own = Calibration(process)
        self._process = process
        # Weakly: a leg holds its meter, which must not live for its estimates' sake.
        self._estimated: deque[tuple[weakref.ref[Leg], Counts]] = deque(maxlen=_ESTIMATED_MAX)
        self._solve()

    @property
    def knows_prompts(self) -> bool:
        """Whether any request of this model has reported how it counts."""
        return bool(self._own.reports or self._process.reports)

    def usage(self, counts: Counts) -> dict[str, int]:
        """The best usage for what was seen of a request, all units of an LLM leg."""
        return self._usage(counts)[0]

    def margins(self, counts: Counts) -> dict[str, int]:
        """By how much each unit of `usage` may be off, 19 times of 20; 0 where it is known."""
        return self._usage(counts)[1]

    def _usage(self, counts: Counts) -> tuple[dict[str, int], dict[str, int]]:
        reported = counts.reported
        input_tokens = reported.get("input_tokens")
        if input_tokens is None:
            prompt = self._prompt(counts)
        else:
            prompt = PromptEstimate(input_tokens, reported.get("cached_input_tokens", 0), 0, 0)
        hidden, hidden_margin = self.hidden_tokens(counts)
        usage = llm_usage(
            counts, prompt.input_tokens, prompt.cached_tokens, self.output_tokens(counts, hidden)
        )
        margins = {
            "input_tokens": prompt.input_margin,
            "cached_input_tokens": prompt.cached_margin,
            "output_tokens": self.output_margin(counts) + hidden_margin,
            "reasoning_tokens": hidden_margin,
        }
        if reported:
            usage = {**reported, **usage}
        elif self._own.unwritten is not None:
            rest = prompt.input_tokens - prompt.cached_tokens
            usage["cache_write_tokens"] = max(0, rest - self._own.unwritten)
            margins["cache_write_tokens"] = prompt.input_margin + prompt.cached_margin
        if hidden:
            usage["reasoning_tokens"] = hidden
        return usage, margins

    def output_margin(self, counts: Counts) -> int:
        """By how much the output that was seen so far may be off."""
        reported = counts.reported.get("output_tokens")
        chunks = counts.completion_chunks
        if chunks == 0:
            return 0
        seen = max(1, rounded(self._own.rulers.tokens(counts.answer)))
        if reported is not None:  # up to a chunk, and the next may have been on its way
            return seen * (counts.unreported_chunks + _CHUNKS_UNREAD) // chunks + _UNREAD_TOKENS
        return self._own.rulers.margin(counts.answer) + _UNREAD_TOKENS

    def output_tokens(self, counts: Counts, hidden_tokens: int = 0) -> int:
        """The best count of the output tokens so far, `hidden_tokens` included."""
        reported = counts.reported.get("output_tokens")
        chunks = counts.completion_chunks
        if chunks == 0:
            return hidden_tokens if reported is None else reported
        seen = max(1, rounded(self._own.rulers.tokens(counts.answer)))
        if reported is None:
            return seen + hidden_tokens
        return reported + seen * counts.unreported_chunks // chunks

    def hidden_tokens(self, counts: Counts) -> tuple[int, int]:
        """Output tokens that nobody is shown, and by how much that may be off."""
        reported = counts.reported.get("reasoning_tokens")
        if reported is not None:
            return reported, 0
        thoughts, thinking = self._own.thoughts, counts.thinking()
        if (
            thoughts.thinks
            or self._process.thoughts.thinks
            or thinking.weight
            or (thinking.asked and not self._own.thoughts.learned)
        ):
            return thoughts.estimate(thinking)
        return 0, 0

    def learn(self, counts: Counts, usage: dict[str, int]) -> None:
        """Take a completed request's reported usage; estimated legs are settled again."""
        self._solve()
        input_tokens = usage["input_tokens"]
        hidden_tokens = usage.get("reasoning_tokens", 0)
        with _lock:
            if input_tokens > 0:
                self._learn_prompt(counts, input_tokens, usage)
                self._solve()  # what the prompt has told of the language is of use for the answer
            if not hidden_tokens and counts.thinking().weight:  # shown, and not counted apart
                seen = rounded(self._own.rulers.tokens(counts.answer))
                hidden_tokens = max(0, usage["output_tokens"] - seen)
            output_tokens = usage["output_tokens"] - hidden_tokens  # of what was seen
            if usage["output_tokens"] > 0:
                self._own.thoughts.learn(hidden_tokens, counts.thinking())
            if counts.completion_chunks > 0 and output_tokens > 0:
                self._own.rulers.learn(counts.answer, output_tokens)
                key = counts.only_key()
                if key is not None:
                    self._own.answered(key, output_tokens * ONE - self._own.rulers.end)
        self._solve()
        self.settle()

    def settle_later(self, leg: Leg, counts: Counts) -> None:
        """Remember a stopped leg that was only estimated."""
        self._estimated.append((weakref.ref(leg), counts))

    def settle(self) -> None:
        """Correct the stopped legs whose estimate has changed."""
        for reference, counts in self._estimated:
            leg = reference()
            if leg is not None:
                usage, margins = self._usage(counts)
                if usage != leg.usage or margins != leg.margins:
                    leg.margins = margins
                    leg.correct(usage, Basis.ESTIMATED)

    def _solve(self) -> None:
        """Bring what is used with every chunk up to date."""
        process, own = self._process, self._own
        self._text = own.text.solve(process.text.solve(process.text.nominal))
        own.rulers.solve(self._text.rate)

    # Prompts

    def _prompt(self, counts: Counts) -> PromptEstimate:
        prompt = counts.prompt
        below, above = self._around(prompt, counts.order)
        if below is None:
            guessed = None
            input_tokens = max(1, PRIMING_TOKENS + rounded(self._text_tokens(prompt, 0)))
            # Of other scripts encoders differ more.
            latin = prompt.weight * 3 < prompt.characters * TOKEN
            percent = _FIRST_PERCENT if latin else 2 * _FIRST_PERCENT
            margin = -(-input_tokens * percent // 100)
        else:
            tokens, guessed = self._between(prompt, below, above)
            input_tokens = max(1, rounded(tokens))
            margin = self._own.prompt_spread.margin(guessed)
        shared, warm = self._shared_tokens(counts, input_tokens)
        cache = self._own.cache
        expected = min(input_tokens, max(cache.expected(shared), warm))
        if not cache.asked:
            cached_margin = expected
        elif cache.reliable or not shared:
            least, most = cache.cut(shared - margin), cache.cut(shared + margin)
            cached_margin = max(expected - least, most - expected, 0) if shared else 0
        else:
            cached_margin = max(expected, cache.cut(shared) - expected)
        return PromptEstimate(input_tokens, expected, margin, cached_margin, guessed)

    def _between(self, prompt: Prompt, below: Report, above: Report | None) -> tuple[int, int]:
        """Tokens of a prompt near to reports, in 2**-24ths, and how many had to be guessed."""
        from_below = self._growth(below.prompt, prompt)
        guessed = self._distance(below.prompt, prompt)
        tokens = below.input_tokens * ONE + from_below
        if above is not None:
            to_above = self._growth(prompt, above.prompt)
            unexplained = above.input_tokens * ONE - tokens - to_above
            share, whole = abs(from_below), abs(from_below) + abs(to_above)
            if whole:
                tokens += unexplained * share // whole
            beyond = self._distance(prompt, above.prompt)
            if guessed + beyond:  # known at both ends, it is most uncertain in between
                guessed = guessed * beyond // (guessed + beyond)
        return tokens, guessed // TOKEN

    def _near(self, order: int) -> list[Report]:
        """The reports asked shortly before and after, oldest first; other calls' without any."""
        reports = self._own.reports or self._process.reports
        if len(reports) <= _NEAR_MAX:
            return list(reports)
        near = sorted(reports, key=lambda report: abs(report.order - order))[:_NEAR_MAX]
        return sorted(near, key=lambda report: report.order)

    def _around(self, prompt: Prompt, order: int) -> tuple[Report | None, Report | None]:
        """The nearest reports on lighter and on heavier prompts; of two as near the later.

        One is the first of the two where it is alone.
        """
        below = above = None
        below_at = above_at = 0
        for report in self._near(order):
            distance = self._distance(report.prompt, prompt)
            if report.prompt.weight <= prompt.weight:
                if below is None or distance <= below_at:
                    below, below_at = report, distance
            elif above is None or distance <= above_at:
                above, above_at = report, distance
        return (above, None) if below is None else (below, above)

    def _distance(self, one: Prompt, other: Prompt) -> int:
        """The weight of all that only one of two prompts has and nobody has reported."""
        start = _shared(one, other)
        distance = abs(one.tools_weight - other.tools_weight)
        for prompt in (one, other):
            for item in prompt.items[start:]:
                distance += _ITEM_WEIGHT
                if self._own.answer(item.key) is None:
                    distance += item.weight
        return distance

    def _shared_tokens(self, counts: Counts, input_tokens: int) -> tuple[int, int]:
        """The longest beginning that was asked before, and the longest that others had cached."""
        shared = warm = 0
        prompt = counts.prompt
        for report in self._near(counts.order):
            earlier = report.order < counts.order
            if earlier or report.warm_tokens:
                beginning = self._beginning(prompt, input_tokens, report.prompt)
                if earlier:
                    whole = beginning is None  # then the report tells it to the token
                    shared = max(shared, report.input_tokens if whole else beginning or 0)
                kept = report.input_tokens if beginning is None else beginning
                warm = max(warm, min(report.warm_tokens, self._own.cache.cut(kept)))
        for _, other in self._estimated:
            if other.order < counts.order:
                beginning = self._beginning(prompt, input_tokens, other.prompt)
                if beginning is None:
                    beginning = input_tokens - self._tail_tokens(prompt, len(other.prompt.items))
                shared = max(shared, beginning)
        return min(shared, input_tokens), warm

    def _beginning(self, prompt: Prompt, input_tokens: int, other: Prompt) -> int | None:
        """Tokens with which a prompt begins as the other does; None if that is all of the other."""
        start = _shared(other, prompt)
        if start == 0 or prompt.tools_weight != other.tools_weight:
            return 0
        if start == len(other.items):
            return None
        return max(0, input_tokens - PRIMING_TOKENS - self._tail_tokens(prompt, start))

    def _tail_tokens(self, prompt: Prompt, start: int) -> int:
        weight, known, count = self._unknown(prompt, start)
        weight -= prompt.tools_weight
        return rounded(self._text.rate * weight + self._text.constant * count + known)

    def _growth(self, one: Prompt, other: Prompt) -> int:
        """How many tokens the other prompt has more, in 2**-24ths."""
        start = _shared(one, other)
        return self._text_tokens(other, start) - self._text_tokens(one, start)

    def _text_tokens(self, prompt: Prompt, start: int) -> int:
        """Tokens of the tools and of the items from `start` on, in 2**-24ths."""
        weight, known, count = self._unknown(prompt, start)
        return self._text.rate * weight + self._text.constant * count + known

    def _unknown(self, prompt: Prompt, start: int) -> tuple[int, int, int]:
        """Weight of what nobody reported, reported tokens of the rest, and the count of items."""
        weight, known = prompt.tools_weight, 0
        for item in prompt.items[start:]:
            tokens = self._own.answer(item.key)
            if tokens is None:
                weight += item.weight
            else:
                known += tokens
        return weight, known, len(prompt.items) - start

    def _learn_prompt(self, counts: Counts, input_tokens: int, usage: dict[str, int]) -> None:
        """Learn from a report how prompts grow and are kept, and how far off we would have been."""
        own, process = self._own, self._process
        foretold = self._prompt(counts)
        if foretold.guessed_tokens is not None:
            missed = input_tokens - foretold.input_tokens
            own.prompt_spread.learn(missed, foretold.guessed_tokens)
        cached = usage["cached_input_tokens"]
        shared, _ = self._shared_tokens(counts, input_tokens)
        warm = cached if own.cache.learn(shared, cached) else 0
        written = usage.get("cache_write_tokens", 0)
        if written:
            own.unwritten = process.unwritten = max(0, input_tokens - cached - written)
        self._learn_growth(counts, input_tokens)
        report = Report(counts.prompt, counts.order, input_tokens, warm)
        for calibration in (own, process):
            calibration.reports.append(report)

    def _learn_growth(self, counts: Counts, input_tokens: int) -> None:
        """Learn the rate of the text by which this prompt differs from the nearest reported."""
        prompt = counts.prompt
        nearest, _ = self._around(prompt, counts.order)
        if nearest is None:
            # How a provider shows tools to its model is no measure of its encoder.
            text_weight = prompt.weight - prompt.tools_weight
            if text_weight < _TOOLS_RATIO * prompt.tools_weight:
                return
            start, other = 0, (prompt.tools_weight, 0, 0)
            tokens = (input_tokens - PRIMING_TOKENS) * ONE
            tokens -= prompt.tools_weight * ONE // TOKEN
        else:
            start = _shared(nearest.prompt, prompt)
            other = self._unknown(nearest.prompt, start)
            tokens = (input_tokens - nearest.input_tokens) * ONE
        weight, known, count = (
            mine - theirs for mine, theirs in zip(self._unknown(prompt, start), other, strict=True)
        )
        for calibration in (self._own, self._process):
            calibration.text.learn(weight, count, tokens - known)


def _shared(one: Prompt, other: Prompt) -> int:
    """How many items both prompts begin with."""
    mine, theirs = one.items, other.items
    # Tuples are compared faster than their items one by one: halve what is left.
    low, high = 0, min(len(mine), len(theirs))
    while low < high:
        middle = (low + high + 1) // 2
        if mine[low:middle] == theirs[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


_lock = threading.Lock()
_process: dict[tuple[str, str], Calibration] = {}
_of_meters: weakref.WeakKeyDictionary[LegMeter, dict[tuple[str, str], Estimates]] = (
    weakref.WeakKeyDictionary()
)


def estimates_for(meter: LegMeter | None, attributes: LegAttributes) -> Estimates:
    """The estimates for a leg's model, of its meter; of the process where there is no meter yet."""
    key = (attributes.provider, attributes.model)
    with _lock:
        process = _process.setdefault(key, Calibration())
        if meter is None:
            return Estimates(process)
        models = _of_meters.setdefault(meter, {})
        estimates = models.get(key)
        if estimates is None:
            estimates = models[key] = Estimates(process)
        return estimates


def settle(meter: LegMeter) -> None:
    """Correct a meter's estimated legs one last time: it is about to close."""
    with _lock:
        models = list(_of_meters.pop(meter, {}).values())
    for estimates in models:
        try:
            estimates.settle()
        except Exception as error:
            _faults.count("settle_estimates", error)
