"""What every room test is marked with."""

from __future__ import annotations

import pytest

ROOM = [
    pytest.mark.room,
    # One loop for all: the stage lives in it.
    pytest.mark.asyncio(loop_scope="session"),
    # LiveKit's client drops a native handle twice when it reconnects, and asserts in __del__.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <function FfiHandle:pytest.PytestUnraisableExceptionWarning"
    ),
]
