"""The three calls: what the caller says, what the model answers, and what must come of it.

A conversation is played by a `Caller`, in a real room or without one. What each side says is
told to the provider simulators beforehand, which neither hear nor think.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from examples.demo.caller import Caller
from tests.simulators.script import Reply, ToolCall

_MENU: Final = (
    "Tonight we begin with a warm bean soup, or with grilled artichokes and mint, whichever you"
    " like better. Then there are tagliatelle with a slow ragu of wild boar, and for those who eat"
    " no meat, ravioli filled with pumpkin and sage butter. After that the kitchen has a sea bass"
    " baked in salt, a rabbit with olives, and aubergines from our own garden. For the end of the"
    " evening my grandmother makes a lemon cake, and there is always a little grappa on the house."
)
_STORY: Final = (
    "Oh, that is a long story! My great-grandmother opened this house when there was one road in"
    " the valley and no bridge across the river. She cooked for the men who built the bridge, and"
    " when the bridge was ready, they carried her kitchen stove across it, still warm. Since then"
    " every daughter of the family has stood at that same stove, and nobody has ever cleaned the"
    " bottom of the soup pot, because they say that this is where the taste lives."
)


@dataclass(frozen=True)
class Conversation:
    """One call.

    Attributes:
        name: One word, also the room's name.
        title: What happens in it.
        said: What the speech recognition will understand, utterance by utterance.
        replies: What the model answers.
        play: The caller's part up to the point where the call ends.
        budget_usd: The call's budget; None for none.
        wrap_up_text: What the agent says when the budget is used up.
    """

    name: str
    title: str
    said: list[str]
    replies: list[Reply]
    play: Callable[[Caller], Awaitable[None]]
    budget_usd: str | None = None
    wrap_up_text: str | None = None


async def _book_a_table(caller: Caller) -> None:
    await _hears_a_sentence(caller)  # the greeting
    await caller.speak(1.6)
    await _hears_a_sentence(caller)  # after the agent has used its tool
    await caller.speak(1.2)
    await caller.hears_start()
    await caller.hears_for(2.0)
    await caller.speak(1.0)  # in the middle of the menu
    await caller.hears_end()
    await _hears_a_sentence(caller)  # the answer to that
    await caller.hang_up()


async def _ask_too_much(caller: Caller) -> None:
    await _hears_a_sentence(caller)
    await caller.speak(1.2)
    await caller.hears_start()


async def _ask_for_a_story(caller: Caller) -> None:
    await _hears_a_sentence(caller)
    await caller.speak(1.2)
    await caller.hears_start()
    await caller.hears_for(2.0)


async def _hears_a_sentence(caller: Caller) -> None:
    await caller.hears_start()
    await caller.hears_end()


BOOKING: Final = Conversation(
    name="booking",
    title="a table for two: a tool call, an interruption, a hang-up",
    said=[
        "Do you have a table for two tonight at eight?",
        "Yes please. What is on the menu?",
        "Thank you, that sounds lovely. Good bye!",
    ],
    replies=[
        Reply(
            match="table for two",
            text="Yes, the table by the window is free at eight. Shall I keep it for you?",
            tool_call=ToolCall(name="find_table", arguments={"guest_count": 2, "time": "20:00"}),
        ),
        Reply(match="menu", text=_MENU),
        Reply(match="good bye", text="Until tonight, then. Good bye!"),
    ],
    play=_book_a_table,
)

TOO_DEAR: Final = Conversation(
    name="too-dear",
    title="a budget that the menu alone uses up",
    said=["What is on the menu tonight?"],
    replies=[Reply(match="menu", text=_MENU)],
    play=_ask_too_much,
    budget_usd="0.01",
    wrap_up_text="I am sorry, I have to go back to my guests. Good bye!",
)

KILLED: Final = Conversation(
    name="killed",
    title="the agent's process is killed in mid-sentence",
    said=["How old is this house?"],
    replies=[Reply(match="house", text=_STORY)],
    play=_ask_for_a_story,
)
