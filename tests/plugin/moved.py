"""A LiveKit that is laid out in another way than voicecost knows."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from livekit.plugins.voicecost import _instrument
from voicecost_ledger.records import Coverage

MISSED: Final = "metered by LiveKit's metric events, which miss interrupted requests"


def move(patched: pytest.MonkeyPatch, moved_class: type[Any]) -> None:
    """Let its `__init__` set none of the names that we know, as far as can be seen."""
    init = moved_class.__init__

    def moved_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)

    patched.setattr(moved_class, "__init__", moved_init)


def rename(patched: pytest.MonkeyPatch, holder: type[Any], caller: str) -> None:
    """Let one of its methods call another than the one that we know, as far as can be seen."""
    method = getattr(holder, caller)

    async def moved_method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await method(self, *args, **kwargs)

    patched.setattr(holder, caller, moved_method)


@contextmanager
def instrumented(
    caplog: pytest.LogCaptureFixture, *, gone: str, coverage: Coverage, says: str
) -> Generator[None]:
    """It is instrumented meanwhile: what is gone is said once, with what that means."""
    _instrument.uninstrument()
    _instrument.instrument()
    try:
        (warning,) = [r.getMessage() for r in caplog.records if r.name.endswith("voicecost")]
        assert f"(gone: {gone})" in warning
        assert says in warning
        assert f"coverage={coverage.value};" in warning
        assert _instrument.coverage() is coverage
        yield
    finally:
        _instrument.uninstrument()
