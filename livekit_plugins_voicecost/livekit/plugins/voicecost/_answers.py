"""One answer of a language model, as it is seen while it comes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final, Protocol

from voicecost_catalog.rows import tier_name

from ._counts import Counts, llm_usage
from ._reports import believed

if TYPE_CHECKING:
    from ._estimates import Estimates


class AnswerOwner(Protocol):
    """The attempt that an answer belongs to."""

    def answer_received(self, answer: Answer) -> None:
        """More of it came, or of its thoughts; raises CancelledError to end the stream."""
        ...

    def answer_reported(self, answer: Answer) -> None:
        """The provider said what it has used so far; raises CancelledError to end the stream."""
        ...

    def answer_served_by(self, model: str, service_tier: str) -> None:
        """The provider said who serves it; empty where it did not."""
        ...


class Answer:
    """Takes what a client's events or LiveKit's chunks tell; see `_wire_answers.AnswerObserver`.

    Args:
        owner: Told once per event.
        counts: What is seen of the request; filled here.

    Attributes:
        final: Whether `counts.reported` is what is billed: nothing more is generated.
        refused: Whether the provider said no after all, before it began.
        foretold: Output tokens that its beginning was said to have.
    """

    __slots__ = (
        "_came", "_owner", "_served", "_thought", "_told", "counts", "final", "foretold", "refused",
    )  # fmt: skip

    def __init__(self, owner: AnswerOwner, counts: Counts) -> None:
        self.counts = counts
        self.final = False
        self.refused = False
        self.foretold = 0
        # Weakly: it holds its answers; neither they nor its stream wait for the collector.
        self._owner = weakref.ref(owner)
        self._served: tuple[str, str] | None = None
        # What the event that is being read has brought.
        self._came = False
        self._thought = False
        self._told: dict[str, int] | None = None

    def prose(self, text: str) -> None:
        """More of what the model says."""
        if text:
            self.counts.prose(text)
            self._came = True

    def call(self, name: str, arguments: str) -> None:
        """More of a tool call; one with a name begins another call."""
        if name or arguments:
            self.counts.call(name, arguments)
            self._came = True

    def thought(self, text: str) -> None:
        """More of the model's thoughts, or that there are some."""
        self.counts.thought(text)
        self._thought = True

    def report(self, usage: dict[str, int], *, final: bool) -> None:
        """Units as the provider counts them, of all that came so far.

        No prompt, or no answer after one was seen, is not believed of that unit, which stays an
        estimate.
        """
        units = believed(usage)
        if units is None:
            return
        answered = self._came or self.counts.completion_chunks > 0
        unbelievable: set[str] = set()
        if not units.get("input_tokens"):
            unbelievable |= {"input_tokens", "cached_input_tokens"}
        if answered and not units.get("output_tokens"):
            unbelievable |= {"output_tokens", "reasoning_tokens"}
        # That there were no thoughts, or searches, is a report; 0/0 is none.
        told = {
            unit: quantity
            for unit, quantity in units.items()
            if unit not in unbelievable and (quantity or unit in _ALWAYS)
        }
        if any(told.values()):
            self._told = told
            self.final = self.final or (final and not unbelievable)

    def foretell(self, output_tokens: int) -> None:
        """So many tokens the beginning has: no promise, and no report."""
        self.foretold = output_tokens

    def served_by(self, model: str, service_tier: str) -> None:
        """What the answer says of who serves it; an event that names nobody takes nothing back.

        Such are Azure's, with what its content filter found when the answer is already there:
        https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-streaming
        """
        known_model, known_tier = self._served or ("", "")
        served = model or known_model, service_tier or known_tier
        if served != self._served:
            self._served = served
            owner = self._owner()
            if owner is not None:
                owner.answer_served_by(*served)

    def refuse(self) -> None:
        """The provider would not serve it after all, unless it had begun."""
        self.refused = self._served is None

    def read(self) -> None:
        """An event was told; raises CancelledError to end the stream."""
        came, thought, told = self._came, self._thought, self._told
        counts, owner = self.counts, self._owner()
        if owner is None:
            return
        if came or thought:
            self._came = self._thought = False
            if came:
                counts.completion_chunks += 1
            if told is None:
                owner.answer_received(self)
                return
        if told is not None:
            self._told = None
            counts.report(told)  # the report counts the text that it came with
            owner.answer_reported(self)

    def came_to_its_end(self) -> None:
        """Nothing more is to come: what was told of all that came is what is billed."""
        told = self.counts.reported
        self.final = self.final or ("output_tokens" in told and "input_tokens" in told)

    def usage(self, estimates: Estimates) -> dict[str, int]:
        """Its totals: as reported, as far as they were, else as estimated."""
        if not self.final:
            return estimates.usage(self.counts)
        told = self.counts.reported
        usage = llm_usage(
            self.counts,
            told.get("input_tokens", 0),
            told.get("cached_input_tokens", 0),
            told.get("output_tokens", 0),
        )
        # A fee for each request would be charged where nothing is said of how many there were.
        more = {unit: told[unit] for unit in told if told[unit] or unit == "requests"}
        return more | usage

    def learned(self) -> dict[str, int]:
        """What the provider's report says of its encoder: of the prompt alone while it goes on."""
        told = self.counts.reported
        return told if self.final else told | {"output_tokens": 0, "reasoning_tokens": 0}


_ALWAYS: Final = frozenset(
    {"input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "requests"}
)


_MAKERS: Final = {
    "gpt": "openai", "chatgpt": "openai", "gemini": "google", "kimi": "moonshotai",
    "deepseek": "deepseek-ai", "grok": "xai", "glm": "zai",
}  # fmt: skip


def with_maker(model: str) -> str:
    """A model as LiveKit Inference names it, where its maker's own name for it is given.

    `livekit.agents.inference.llm` lists the names: "openai/gpt-4o-mini", "google/gemini-2.5-flash".
    """
    maker = _MAKERS.get(model.partition("-")[0].lower())
    return model if maker is None or "/" in model else f"{maker}/{model}"


def same_tier(asked: str, served: str) -> bool:
    """Whether both name one service tier; providers have several words for the plain one."""
    return not served or tier_name(asked) == tier_name(served)
