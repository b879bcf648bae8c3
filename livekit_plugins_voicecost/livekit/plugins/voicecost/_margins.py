"""By how much an estimate may be off: learned from what the same rule foretold and was then told.

Every completed prompt is foretold before its report is learned, and every completed answer from
the reports on all the others: so the model's own misses say how far off the next estimate may be.
A miss is judged by how much text had to be guessed: chance makes it grow with the root of that.
"""

from __future__ import annotations

import math
from typing import Final

_QUANTILE_PERCENT: Final = 200
"""Deviations, in hundredths, that 19 of 20 misses stay within; the misses are not quite normal."""
_PRIOR_COUNT: Final = 2  # misses that the prior counts as
_KEPT: Final = 4  # so much of a miss's weight is lost with each later one: 1/4
_Q: Final = 1 << 16


def square(missed_tokens: int, guessed_tokens: int) -> int:
    """What a miss counts as, for each token that had to be guessed; in 2**-16ths."""
    return missed_tokens * missed_tokens * _Q // max(1, guessed_tokens)


class Spread:
    """How far estimates of one kind scatter.

    Args:
        deviation_percent: Before any miss is known, in percent of a token for one guessed token.
        process: What other calls have seen of the model.
    """

    __slots__ = ("_count", "_prior", "_process", "_squares")

    def __init__(self, deviation_percent: int, process: Spread | None = None) -> None:
        self._prior = deviation_percent * deviation_percent * _Q // 10_000
        self._process = process
        self._squares = self._count = 0  # in 2**-16ths; older ones fade

    def learn(self, missed_tokens: int, guessed_tokens: int) -> None:
        """Take one miss, of an estimate that had so many tokens to guess."""
        for spread in (self, self._process):
            if spread is not None:
                squared = square(missed_tokens, guessed_tokens)
                spread._squares += squared - spread._squares // _KEPT
                spread._count += _Q - spread._count // _KEPT

    def judge(self, squares: int, count: int) -> None:
        """Take all misses of a rule, in place of those before: the sum of their `square`s."""
        self._squares = squares
        self._count = count * _Q

    def margin(self, guessed_tokens: int) -> int:
        """Tokens that 19 of 20 estimates are not further off."""
        variance = self._variance() * max(0, guessed_tokens)
        deviation = math.isqrt(variance * _QUANTILE_PERCENT * _QUANTILE_PERCENT // _Q)
        return -(-deviation // 100)

    def _variance(self) -> int:
        """Of one guessed token, in 2**-16ths."""
        prior = self._prior if self._process is None else self._process._variance()
        weight = _PRIOR_COUNT * _Q
        return (prior * weight + self._squares * _Q) // (weight + self._count)
