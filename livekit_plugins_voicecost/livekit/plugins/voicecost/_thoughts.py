"""What a model thinks before it answers: generated and billed, and mostly seen by nobody.

A request that comes to its end reports it; one that is interrupted does not. So it is taken from
the model's other requests, and its margin is as wide as these differ. While nothing of the answer
has come, the thinking may still be going on: then it is what the time so far was enough for.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from ._latest import Latest
from ._text_weight import TOKEN

_REQUESTS_MAX: Final = 12
_MARGIN_MIN: Final = 2  # tokens
_TOKENS_PER_S: Final = 60  # of a model of which nothing is known yet


class Thinking(NamedTuple):
    """What was seen of one request's thoughts.

    Attributes:
        weight: Of the thoughts that were shown: all of them, or a summary.
        answered: Whether the answer itself has begun, so that the thinking is over.
        waited_ms: From the request to the answer's beginning, or to the end without one.
    """

    weight: int
    answered: bool
    waited_ms: int
    asked: bool = False
    """Whether thoughts were asked for, or are the model's habit."""


class _Known(NamedTuple):
    tokens: int
    thinking: Thinking


class Thoughts:
    """The hidden tokens of one model's requests.

    Args:
        process: What other calls of this process have learned of the model; asked while nothing
            was learned here.
    """

    __slots__ = ("_known", "_process", "thinks")

    def __init__(self, process: Thoughts | None = None) -> None:
        self._process = process
        self._known: Latest[_Known] = Latest(_REQUESTS_MAX)
        self.thinks = False
        """Whether any request ever reported some: most models report none, and cost nothing."""

    @property
    def learned(self) -> bool:
        """Whether any request has told how much it thought, none included."""
        return bool(self._known) or (self._process is not None and self._process.learned)

    def learn(self, tokens: int, thinking: Thinking) -> None:
        """Take what a provider reported of a request that came to its end."""
        for thoughts in (self, self._process):
            if thoughts is not None:
                thoughts.thinks = thoughts.thinks or tokens > 0
                thoughts._known.add(_Known(tokens, thinking))

    def estimate(self, thinking: Thinking) -> tuple[int, int]:
        """Hidden tokens of a request that did not report them, and by how much that may be off.

        Returns:
            Tokens, and what has to be added or taken away to be right 19 times of 20.
        """
        known = self._known
        if not known and self._process is not None:
            known = self._process._known
        shown = thinking.weight // TOKEN
        if not known:
            if thinking.asked:  # it had the time for so many, or for twice as many, or for none
                shown = max(shown, thinking.waited_ms * _TOKENS_PER_S // 1000)
            return shown, shown
        tokens = [each.tokens for each in known]
        shown_weight = sum(each.thinking.weight for each in known)
        if shown_weight and thinking.weight:  # a summary is shorter than what is billed
            mean = sum(tokens) * thinking.weight // shown_weight
            return mean, max(_MARGIN_MIN, mean // 2)
        mean = (sum(tokens) + len(tokens) // 2) // len(tokens)
        if len(tokens) == 1:
            margin = mean
        else:
            variance = sum((each - mean) ** 2 for each in tokens) // (len(tokens) - 1)
            margin = max(2 * math.isqrt(variance), mean // 10)
        if thinking.answered:
            return max(mean, shown), max(_MARGIN_MIN, margin)
        # At the pace of each; a pause of the network's or the provider's own spoils but some.
        paces = sorted(
            min(each.tokens * thinking.waited_ms // max(1, each.thinking.waited_ms), max(tokens))
            for each in known
        )
        so_far = max(paces[len(paces) // 2], shown)
        # The wait holds the network's time too, and nobody knows how much of it.
        return so_far, max(_MARGIN_MIN, margin, so_far, paces[-1] - so_far)
