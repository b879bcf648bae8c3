"""How many tokens a model makes of a text, learned from what its provider reports.

A `Ruler` foretells tokens from one measure of an answer: its weight (`_text_weight`), its chunks
or its characters. Prose and tool calls have a `Line` each, for JSON is cut otherwise than speech,
and what frames an answer is a constant of the line: it must not pass for tokens of its text.
All is exact in integers: the same reports give the same estimate anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from ._latest import Latest
from ._margins import Spread, square
from ._text_weight import TOKEN, RunningWeight

SHIFT: Final = 24
ONE: Final = 1 << SHIFT
"""One token: estimates are computed in 2**-24ths of it and rounded once."""

_END: Final = ONE // 2
"""The end of an answer, which an interrupted one never gets to: some providers count it."""
_TOLD_MAX: Final = 8
_DEVIATION_PERCENT: Final = 60
_CALL_TOKENS: Final = 6  # around the name and the arguments of a tool call
TEMPLATE_TOKENS: Final = 4
PRIMING_TOKENS: Final = 3
"""What OpenAI's chat template adds around each message, and before the answer.
https://cookbook.openai.com/examples/how_to_count_tokens_with_tiktoken"""
_RATE_MIN: Final = ONE // (4 * TOKEN)
_RATE_MAX: Final = ONE * 4 // TOKEN
_HANDICAP: Final = 3 * ONE  # tokens by which another ruler must have foretold better than weight
_CHUNK_SHIFT: Final = 3  # one token of eight: so far off, a chunk is not a token
_CHARACTER: Final = TOKEN // 4


def rounded(tokens: int) -> int:
    """Whole tokens, of 2**-24ths."""
    return (tokens + ONE // 2) >> SHIFT


class Coefficients(NamedTuple):
    """tokens = rate * weight + constant * count, in 2**-24ths of a token."""

    rate: int
    constant: int


class Line:
    """Fits `Coefficients` by least squares, drawn to a prior as long as little was seen.

    The variance of a text's tokens grows with its length, so a report counts by its weight.

    Args:
        constant: The constant before anything was learned, in 2**-24ths of a token.
        rate_tokens: The prior of the rate counts as a text of so many tokens.
        constant_per: The prior of the constant counts as one of so many tokens' text: the higher,
            the sooner reports move it.
    """

    __slots__ = ("_c", "_cc", "_ct", "_prior", "_rate_weight", "_t", "_w", "nominal")

    def __init__(self, *, constant: int, rate_tokens: int, constant_per: int) -> None:
        self.nominal = Coefficients(ONE // TOKEN, constant)
        self._rate_weight = rate_tokens * TOKEN
        self._prior = ONE // (constant_per * TOKEN)
        # Sums over the reports: weight, count, count²/weight, tokens, count*tokens/weight.
        self._w = self._c = self._cc = self._t = self._ct = 0

    def learn(self, weight: int, count: int, tokens: int, *, times: int = 1) -> None:
        """Take a report; `tokens` in 2**-24ths. One that tells nothing is left out.

        `times` -1 takes it back.
        """
        if weight >= TOKEN and tokens > 0:
            self._w += weight * times
            self._c += count * times
            self._cc += count * count * ONE // weight * times
            self._t += tokens * times
            self._ct += count * tokens // weight * times

    def solve(self, prior: Coefficients) -> Coefficients:
        """The coefficients that fit the reports and the prior best."""
        a11 = self._rate_weight + self._w
        a22 = self._prior + self._cc  # in 2**-24ths
        b1 = self._rate_weight * prior.rate + self._t
        b2 = (self._prior * prior.constant >> SHIFT) + self._ct
        determinant = a11 * a22 - (self._c * self._c << SHIFT)  # > 0: Cauchy-Schwarz
        rate = (b1 * a22 - (self._c * b2 << SHIFT)) // determinant
        constant = (a11 * b2 - self._c * b1 << SHIFT) // determinant
        return Coefficients(min(max(rate, _RATE_MIN), _RATE_MAX), max(constant, 0))


class Answer:
    """What was received of an answer, measured in every way."""

    __slots__ = (
        "call_characters",
        "call_chunks",
        "call_weight",
        "calls",
        "prose_characters",
        "prose_chunks",
        "prose_weight",
    )

    def __init__(self) -> None:
        self.prose_weight = RunningWeight()
        self.prose_chunks = 0
        self.prose_characters = 0
        self.call_weight = RunningWeight()
        self.call_chunks = 0
        self.call_characters = 0
        self.calls = 0


Reading = tuple[int, int, int]
"""An answer by one ruler: its prose, its tool calls, and how many these are."""


def by_weight(answer: Answer) -> Reading:
    """Read the answer's weight."""
    calls = answer.calls
    return answer.prose_weight.value, answer.call_weight.value if calls else 0, calls


def by_chunks(answer: Answer) -> Reading:
    """Read the answer's chunks, each as heavy as a token."""
    return answer.prose_chunks * TOKEN, answer.call_chunks * TOKEN, answer.calls


def by_characters(answer: Answer) -> Reading:
    """Read the characters of its prose, four as heavy as a token; of its calls the weight."""
    _, call_weight, calls = by_weight(answer)
    return answer.prose_characters * _CHARACTER, call_weight, calls


Read = Callable[[Answer], Reading]


class Scale(NamedTuple):
    """A ruler's coefficients at one time."""

    prose: Coefficients
    call: Coefficients

    def tokens(self, reading: Reading) -> int:
        """Tokens so far, in 2**-24ths, without the answer's end."""
        prose, call, calls = reading
        tokens = self.prose.rate * prose
        if calls:
            tokens += self.call.rate * call + self.call.constant * calls
        return tokens

    def whole(self, reading: Reading) -> int:
        """The same of an answer that came to its end."""
        return self.tokens(reading) + self.prose.constant


class _Told(NamedTuple):
    """A reading of an answer whose tokens were reported, and what its line has learned from it."""

    prose: int
    call: int
    calls: int
    output_tokens: int
    tokens: int


class Ruler:
    """Foretells the tokens of an answer from one reading of it.

    Attributes:
        squares: Of the misses when each of the latest answers is foretold from all the others, the
            sum; see `_margins.square`.
        missed: Tokens of these, all in all; only prose, for the frame of a call would be the most
            of it.
    """

    __slots__ = ("_call", "_prose", "_prose_tokens", "_told", "missed", "squares")

    def __init__(self, *, rate_tokens: int) -> None:
        self._prose = Line(constant=_END, rate_tokens=rate_tokens, constant_per=_END_PER)
        self._call = Line(
            constant=_CALL_TOKENS * ONE, rate_tokens=2 * rate_tokens, constant_per=_CALL_PER
        )
        self._told: Latest[_Told] = Latest(_TOLD_MAX)
        self.squares = self.missed = self._prose_tokens = 0

    @property
    def count(self) -> int:
        """How many answers it is judged by."""
        return len(self._told)

    def nominal(self) -> Scale:
        """Before anything was learned."""
        return Scale(self._prose.nominal, self._call.nominal)

    def scale(self, prior: Scale) -> Scale:
        """As learned so far."""
        return Scale(self._prose.solve(prior.prose), self._call.solve(prior.call))

    def learn(self, reading: Reading, output_tokens: int, prior: Scale) -> None:
        """Take the provider's report on a whole answer."""
        tokens = output_tokens * ONE
        prose, call, calls = reading
        if calls:
            said = self.scale(prior).prose
            tokens -= said.rate * prose + said.constant
        told = _Told(prose, call, calls, output_tokens, tokens)
        self._learn(told)
        self._told.add(told)
        self._judge(prior)

    def _learn(self, told: _Told, *, times: int = 1) -> None:
        if told.calls:
            self._call.learn(told.call, told.calls, told.tokens, times=times)
        else:
            self._prose.learn(told.prose, 1, told.tokens, times=times)

    def score(self, read: Read) -> int:
        """How badly it foretells; the rulers are compared by that."""
        if read is by_chunks and self.missed > self._prose_tokens >> _CHUNK_SHIFT:
            return 1 << 100  # a chunk is no token here, however badly others began
        return self.missed + _HANDICAP * (read is not by_weight)

    def _judge(self, prior: Scale) -> None:
        self.squares = self.missed = self._prose_tokens = 0
        for told in self._told:
            self._learn(told, times=-1)
            foretold = self.scale(prior).whole((told.prose, told.call, told.calls))
            self._learn(told)
            missed = told.output_tokens * ONE - foretold
            self.squares += square(rounded(missed), told.output_tokens + _CALL_TOKENS * told.calls)
            if not told.calls:
                self.missed += abs(missed)
                self._prose_tokens += told.output_tokens * ONE


_END_PER: Final = 7
_CALL_PER: Final = 60
_TEXT_RATE_TOKENS: Final = 22
_CHUNK_RATE_TOKENS: Final = 2_000  # a chunk is a token, or this ruler is not the better one


def _rulers() -> dict[Read, Ruler]:
    return {
        by_weight: Ruler(rate_tokens=_TEXT_RATE_TOKENS),
        by_chunks: Ruler(rate_tokens=_CHUNK_RATE_TOKENS),
        by_characters: Ruler(rate_tokens=_TEXT_RATE_TOKENS),
    }


class Rulers:
    """The rulers of one model, of one meter; of the whole process where `process` is None."""

    __slots__ = ("_priors", "_process", "_rulers", "_scales", "_spread", "best", "whole_chunks")

    def __init__(self, process: Rulers | None = None) -> None:
        self._process = process
        self._rulers = _rulers()
        self._priors: dict[Read, Scale] = {}
        self._scales: dict[Read, Scale] = {}
        self._spread = Spread(_DEVIATION_PERCENT, None if process is None else process._spread)
        self.whole_chunks: bool | None = None if process is None else process.whole_chunks
        """Whether every chunk brought a token at least; None before any report could show it."""
        self.solve(ONE // TOKEN)

    def solve(self, text_rate: int) -> None:
        """Bring `best` up to date: how to read an answer now, and the scale for it.

        Args:
            text_rate: Tokens per weight of the prompts' text: it tells how the encoder takes this
                language before the model has spoken any.
        """
        if self._process is not None:
            self._process.solve(text_rate)
        for read, ruler in self._rulers.items():
            if self._process is not None:
                prior = self._process._scales[read]
            else:
                prior = ruler.nominal()
                if read is by_weight:
                    prior = prior._replace(prose=prior.prose._replace(rate=text_rate))
            self._priors[read] = prior
            self._scales[read] = ruler.scale(prior)
        # How a provider streams is the same in all calls: the process has seen the most of it.
        seen = self._rulers if self._process is None else self._process._rulers
        read = min(seen, key=lambda read: seen[read].score(read))
        self.best: tuple[Read, Scale] = read, self._scales[read]
        self._spread.judge(self._rulers[read].squares, self._rulers[read].count)

    def tokens(self, answer: Answer) -> int:
        """Tokens of what was received so far, in 2**-24ths."""
        read, scale = self.best
        tokens = scale.tokens(read(answer))
        if self.whole_chunks:
            return max(tokens, (answer.prose_chunks + answer.call_chunks) << SHIFT)
        return tokens

    def margin(self, answer: Answer) -> int:
        """By how many tokens `tokens` may be off, 19 times of 20."""
        guessed = max(1, rounded(self.tokens(answer))) + _CALL_TOKENS * answer.calls
        return self._spread.margin(guessed)

    @property
    def end(self) -> int:
        """Tokens that the end of an answer counts as, in 2**-24ths: they are in no later prompt."""
        return self.best[1].prose.constant

    def learn(self, answer: Answer, output_tokens: int) -> None:
        """Take the provider's report on a whole answer."""
        for rulers in (self._process, self):
            if rulers is not None:
                whole = answer.prose_chunks + answer.call_chunks <= output_tokens
                rulers.whole_chunks = whole and rulers.whole_chunks is not False
                for read, ruler in rulers._rulers.items():
                    ruler.learn(read(answer), output_tokens, rulers._priors[read])
