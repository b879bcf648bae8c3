"""The end of the money: what the caller hears, and how the call is brought to its end.

`wrap_up` says a last sentence first, `hang_up` does not. Both are bounded, and both go to the end
whatever fails on the way: a call whose money is gone must not go on because a TTS was down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from livekit.agents import AgentSession, JobContext

from ._faults import contained
from ._job import room_of
from ._livekit import failed
from .log import logger

WRAP_UP_TEXT: Final = (
    "I am sorry, but I have to end our call here. Thank you for calling, and goodbye."
)
INTERRUPT_MAX_S: Final = 2.0
WRAP_UP_MAX_S: Final = 12.0  # the authority waits 15 s before it deletes the room
SIDECAR_MAX_S: Final = 5.0  # for the sidecar to delete the room, before the plugin does it itself
HANG_UP_MAX_S: Final = 5.0  # each for the room to be deleted and for the session to close
SHUTDOWN_REASON: Final = "voicecost: budget used up"


async def wrap_up(session: AgentSession[Any], text: str) -> bool:
    """Stop listening, interrupt what is being said, and say the last sentence.

    Returns:
        Whether the sentence was said to its end.
    """
    # What the caller says from here on would only make another answer, and be billed.
    session.input.set_audio_enabled(False)
    try:
        await asyncio.wait_for(asyncio.shield(session.interrupt(force=True)), INTERRUPT_MAX_S)
        speech = session.say(text, allow_interruptions=False, add_to_chat_ctx=False)
        await asyncio.wait_for(speech.wait_for_playout(), WRAP_UP_MAX_S)
    except Exception as error:  # closed already, no TTS, or it did not finish: the end comes now
        logger.warning("wrap-up sentence not said: %s", type(error).__name__)
        return False
    return not speech.interrupted and not failed(speech)


async def wait_for_sidecar(closed: Callable[[], Awaitable[None]]) -> bool:
    """Give the sidecar time to delete the room, which closes the session; whether it did."""
    try:
        await asyncio.wait_for(closed(), SIDECAR_MAX_S)
    except TimeoutError:
        return False
    return True


def fall_silent(session: AgentSession[Any]) -> None:
    """Stop what is being said, and what is about to be."""
    with contextlib.suppress(RuntimeError):  # not running any more
        session.interrupt(force=True)


async def hang_up(session: AgentSession[Any], job: JobContext | None) -> None:
    """Close the session, delete the room through the job's API, and shut the job down.

    Closing waits up to 2 s for a last transcript, so the room is deleted beside it: the caller is
    disconnected at once. Outside a LiveKit job only the session is closed; its room, if it has
    one, belongs to the application.
    """
    try:
        with contained("ending"):
            fall_silent(session)
        closing = asyncio.ensure_future(session.aclose())
        closing.add_done_callback(_seen)
        with contained("ending"):
            if job is not None and room_of(job) is not None:
                # Connected, so the name still means this very room and nobody's next call.
                deleting = asyncio.ensure_future(job.delete_room())
                deleting.add_done_callback(_seen)
                await asyncio.wait([deleting], timeout=HANG_UP_MAX_S)
        await asyncio.wait([closing], timeout=HANG_UP_MAX_S)
    finally:
        if job is not None:
            job.shutdown(SHUTDOWN_REASON)


def _seen(ended: asyncio.Future[Any]) -> None:
    """What LiveKit's own tasks fail of, LiveKit has logged; the job has to end all the same."""
    if not ended.cancelled():
        ended.exception()
