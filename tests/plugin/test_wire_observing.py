"""Whoever observes a run is let go of with it, though a timer or a connection keeps its context."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from typing import Any

from livekit.agents.llm import ChatContext

from livekit.plugins.voicecost import _attribution, _wire
from tests.plugin.metered_session import RecordingMeter, simulated_providers
from tests.simulators import Reply
from voicecost_ledger.records import Modality


def test_a_context_that_is_kept_does_not_keep_the_run() -> None:
    class Run(_wire.TextObserver):
        """Stands for an attempt, which holds a stream with all its sound."""

    run = Run()
    kept = weakref.ref(run)
    with _wire.observing(run):  # pyright: ignore[reportArgumentType]  # it observes nothing
        context = contextvars.copy_context()
        assert context.run(_wire.observer) is run
    del run
    gc.collect()
    assert context.run(_wire.observer) is None
    assert kept() is None


async def test_a_stream_that_is_over_waits_for_no_garbage_collector() -> None:
    """A turn's streams hold its tasks and its sound; LiveKit lets go of them at once."""
    kept: list[weakref.ref[Any]] = []
    meter = RecordingMeter()
    async with simulated_providers(Reply(text="Here I am.")) as providers:
        gc.collect()
        gc.disable()
        try:
            with _attribution.scoped(meter):
                async with providers.llm().chat(chat_ctx=ChatContext.empty()) as answer:
                    kept.append(weakref.ref(answer))
                    assert [each async for each in answer]
                async with providers.tts().synthesize("Here I am.") as voice:
                    kept.append(weakref.ref(voice))
                    assert [each async for each in voice]
            del answer, voice
            await asyncio.sleep(0)
            assert [each() for each in kept] == [None, None]
        finally:
            gc.enable()
    assert meter.of(Modality.LLM)
    assert meter.of(Modality.TTS)
