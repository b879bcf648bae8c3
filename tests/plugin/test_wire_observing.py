"""Whoever observes a run is let go of with it, though a timer or a connection keeps its context."""

from __future__ import annotations

import contextvars
import gc
import weakref

from livekit.plugins.voicecost import _wire


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
