"""What LiveKit calls differently in the versions we know, from the oldest supported one on."""

from __future__ import annotations

import inspect
from typing import Final

from livekit.agents import JobContext, get_job_context
from livekit.agents.voice import SpeechHandle

_MAY_BE_ASKED_ANYWHERE: Final = "required" in inspect.signature(get_job_context).parameters


def running_job() -> JobContext | None:
    """The job around the running code, or None outside of one."""
    if _MAY_BE_ASKED_ANYWHERE:
        return get_job_context(required=False)
    try:
        return get_job_context()  # 1.5 knows no other way
    except RuntimeError:
        return None


def failed(speech: SpeechHandle) -> bool:
    """Whether a speech that is over failed. LiveKit 1.5 does not tell: then it did not."""
    error = getattr(speech, "exception", None)
    return error is not None and error() is not None
