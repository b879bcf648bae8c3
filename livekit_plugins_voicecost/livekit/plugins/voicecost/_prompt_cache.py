"""How much of a prompt its provider had read before: the part that is billed as cached.

Providers keep the beginnings of prompts, in steps, from some length on: OpenAI from 1024 tokens on
in steps of 128 (https://platform.openai.com/docs/guides/prompt-caching), DeepSeek in steps of 64
(https://api-docs.deepseek.com/guides/kv_cache), Anthropic to the token, up to where it was told
to. So the longest beginning that was asked before is cut down to the provider's steps, which its
own reports show: what is cached is a multiple of them. Not every beginning is still there: how
many were is learned too.
"""

from __future__ import annotations

import math
from typing import Final

_STEP: Final = 128
_STEP_MIN: Final = 8  # no provider's: what looks like smaller steps has none
_TOKENS_MIN: Final = 1024
_COUNTED_OFF: Final = 16  # tokens that our own count of a beginning may be off


class PromptCache:
    """One model's cache of prompts, as its reports show it."""

    __slots__ = ("_foretold", "_found", "_step", "_tokens_min", "asked")

    def __init__(self) -> None:
        self._step = _STEP
        self._tokens_min = _TOKENS_MIN
        self._foretold = self._found = 0
        self.asked = False
        """Whether any report has told whether there is a cache at all."""

    def cut(self, shared_tokens: int) -> int:
        """As much of a beginning that was asked before as a provider keeps."""
        if shared_tokens < self._tokens_min:
            return 0
        return shared_tokens - shared_tokens % self._step

    def expected(self, shared_tokens: int) -> int:
        """How much of it is billed as cached, as far as reports have shown."""
        cached = self.cut(shared_tokens)
        return cached * self._found // self._foretold if self._foretold else cached

    @property
    def reliable(self) -> bool:
        """Whether all that was to be expected was there so far."""
        return 0 < self._foretold == self._found

    def learn(self, shared_tokens: int, cached_tokens: int) -> bool:
        """Take what a provider reported of a prompt.

        Args:
            shared_tokens: The longest beginning that we know was asked before.
            cached_tokens: What was reported.

        Returns:
            Whether this is more than we know of: somebody else asked for it.
        """
        self.asked = True
        if cached_tokens > 0:
            step = math.gcd(self._step, cached_tokens)
            self._step = step if step >= _STEP_MIN else 1
            self._tokens_min = min(self._tokens_min, cached_tokens)
        foretold = self.cut(shared_tokens)
        off = max(self._step, _COUNTED_OFF)
        if cached_tokens > foretold + off:
            return True
        if foretold > 0:
            found = foretold if cached_tokens + off >= foretold else cached_tokens
            # The newest count most: a cache is emptied, and filled again.
            self._foretold += foretold - self._foretold // 8
            self._found += found - self._found // 8
        return False
