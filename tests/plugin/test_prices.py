"""The prices of an agent's process: none of it is loaded on the thread that asks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from livekit.plugins.voicecost import _prices
from tests.plugin.voicecost_sessions import forget_process
from voicecost_catalog.genai import GenaiPrices
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22


@pytest.fixture(autouse=True)
def new_process() -> Iterator[None]:
    forget_process()
    yield
    forget_process()


def test_no_leg_waits_for_genai_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it takes a second, and whoever speaks would hear that."""
    may_load = threading.Event()
    loading: set[threading.Thread] = set()
    load = GenaiPrices.load

    def slowly(book: GenaiPrices) -> Any:
        loading.add(threading.current_thread())
        if threading.current_thread() is not threading.main_thread():
            may_load.wait()
        return load(book)

    monkeypatch.setattr(GenaiPrices, "load", slowly)
    prices = _prices.prices()
    realtime = LegAttributes(Modality.REALTIME, "openai", "gpt-realtime", host="api.openai.com")
    assert prices.price_for(realtime, NOW_UNIX_MS) is None
    for modality in Modality:
        for host in ("", "api.openai.com", "somewhere.example"):
            leg = LegAttributes(modality, "somebody", "some-model", host=host)
            prices.price_for(leg, NOW_UNIX_MS)
            prices.price_as_served(leg, leg, NOW_UNIX_MS)
    assert threading.main_thread() not in loading
    may_load.set()
    prices.book.warm()
    assert prices.price_for(realtime, NOW_UNIX_MS) is not None
