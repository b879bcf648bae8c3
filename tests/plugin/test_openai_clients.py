"""When the OpenAI client is touched: not before a program uses it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from livekit.plugins.voicecost import _instrument
from openai import AsyncOpenAI

_instrument.instrument()
assert "openai.resources.chat.completions.completions" not in sys.modules
AsyncOpenAI(api_key="x").chat
from openai.resources.chat.completions import AsyncCompletions
observed = AsyncCompletions.create
_instrument.uninstrument()
assert AsyncCompletions.create is not observed
assert AsyncCompletions.create is observed.__wrapped__
"""


def test_the_chat_api_is_observed_when_it_is_first_used_and_not_loaded_before() -> None:
    """Loading it takes 30 ms that a process without an OpenAI-compatible LLM need not spend."""
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
