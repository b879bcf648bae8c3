"""What the simulated providers are told to hear, to answer and to get wrong.

A script is plain data, so that a demo can keep it in a JSON file:

    {"transcripts": ["Hello, who is there?", "What is the weather in Paris?"],
     "replies": [{"match": "weather", "text": "It is sunny in Paris.",
                  "tool_call": {"name": "get_weather", "arguments": {"city": "Paris"}}}]}
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .tokens import message_text

LONG_ANSWER = (
    "Thank you for asking, I am happy to help you with that. Let me go through it step by step, "
    "so that nothing important is forgotten. First, I look at your account and check which "
    "options are available today. Second, I compare them with what you told me before, because "
    "the cheapest one is not always the right one for you. Third, I write down what we agreed on "
    "and send it to you as a message, so that you can read it again in the evening. If anything "
    "in there looks wrong to you, please call us back, and we will change it without any charge. "
    "Most people need less than ten minutes for all of this, and you can interrupt me whenever "
    "you like. Shall we begin with the first step now, or would you rather hear the summary?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A function the model calls before it answers; skipped where the request does not offer it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model says to a user message that contains `match` (any case; "" fits all).

    `tool_call` and those of `parallel` are called in one message, before the text. With `then`,
    their results are answered by that reply instead, which may call again: calls in a row.
    `thoughts` are generated before all of it, and billed whether the protocol shows them or not.
    `refused` says the text as the model's refusal, where the protocol knows one.
    """

    text: str = LONG_ANSWER
    match: str = ""
    tool_call: ToolCall | None = None
    parallel: tuple[ToolCall, ...] = ()
    then: Reply | None = None
    thoughts: str = ""
    refused: bool = False

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """All functions that are called at once; none: it is said."""
        return (self.tool_call, *self.parallel) if self.tool_call is not None else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How the provider fails one request; exactly one field is set.

    `status` refuses with that HTTP status. `dies_after` breaks the connection after so many
    units: output tokens (LLM), milliseconds of audio sent (TTS) or received (STT). `silent`
    accepts the request and never says a word.
    """

    status: int | None = None
    dies_after: int | None = None
    silent: bool = False

    def __post_init__(self) -> None:
        """Refuse a fault that says nothing or two things."""
        if (self.status is not None) + (self.dies_after is not None) + self.silent != 1:
            raise ValueError(f"{self} must set exactly one of status, dies_after and silent")


class Faults:
    """The faults to come; each request takes one, the rest are served well."""

    def __init__(self) -> None:
        self._next: deque[Fault] = deque()

    def add(self, *faults: Fault) -> None:
        """Fail the next `len(faults)` requests, in this order."""
        self._next.extend(faults)

    def take(self) -> Fault | None:
        """The fault of the request that begins now, if any."""
        return self._next.popleft() if self._next else None


def choose_reply(
    replies: Iterable[Reply], messages: Sequence[dict[str, Any]], tool_names: set[str]
) -> Reply:
    """The first reply that fits the last thing said to the model.

    A reply with a tool call calls it at the user's question and says its text once the tool's
    result is in, or what comes `then`; without such a tool on offer it just says its text.
    """
    said = next(
        (m for m in reversed(messages) if m["role"] in ("user", "developer", "system")), None
    )
    question = message_text(said).lower() if said else ""
    reply = next((r for r in replies if r.match.lower() in question), Reply())
    answered = False
    for _ in range(_rounds_answered(messages)):
        if reply.then is None:
            answered = True
            break
        reply = reply.then
    if reply.tool_call and (answered or reply.tool_call.name not in tool_names):
        return replace(reply, tool_call=None, parallel=(), then=None)
    return reply


def _rounds_answered(messages: Sequence[dict[str, Any]]) -> int:
    """How often the model got the results of what it called since something was last said to it."""
    rounds, before = 0, ""
    for message in messages:
        role = message["role"]
        if role in ("user", "developer", "system"):
            rounds = 0
        elif role == "tool" and before != "tool":
            rounds += 1
        before = role
    return rounds


def reply_from_json(value: dict[str, Any]) -> Reply:
    """A reply as a script file writes it."""
    call = value.get("tool_call")
    return Reply(
        text=value.get("text", LONG_ANSWER),
        match=value.get("match", ""),
        tool_call=ToolCall(**call) if call else None,
    )
