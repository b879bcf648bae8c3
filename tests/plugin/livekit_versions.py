"""What LiveKit 1.5 does in another way than a test's story has it: no matter of metering."""

from __future__ import annotations

from typing import Final

import livekit.agents
import pytest

LIVEKIT_1_5: Final = livekit.agents.__version__.startswith("1.5.")


def not_on_1_5(why: str) -> pytest.MarkDecorator:
    """Skip a test on the oldest LiveKit that is supported, which does `why`."""
    return pytest.mark.skipif(LIVEKIT_1_5, reason=f"LiveKit 1.5 {why}")
