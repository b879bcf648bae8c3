"""What runs beside the agent, through the plugins people use for it: a known zero, not unpriced."""

from __future__ import annotations

from typing import Any

import pytest
from livekit.plugins.openai import LLM, STT, TTS

from livekit.plugins.voicecost._attributes import describe
from voicecost_catalog import open_price_book
from voicecost_ledger.records import Modality

BOOK = open_price_book()
BESIDE: dict[str, Any] = {"base_url": "http://localhost:8000/v1", "api_key": "none"}
USAGE = {"input_tokens": 500, "output_tokens": 40, "audio_ms": 9_000, "characters": 120}


@pytest.mark.parametrize(
    ("component", "modality"),
    [
        pytest.param(LLM.with_ollama(model="qwen2.5:7b"), Modality.LLM, id="ollama"),
        pytest.param(
            STT(model="Systran/faster-whisper-small", **BESIDE), Modality.STT, id="faster-whisper"
        ),
        pytest.param(TTS(model="kokoro", voice="af_sky", **BESIDE), Modality.TTS, id="kokoro"),
        pytest.param(TTS(model="piper", voice="amy", **BESIDE), Modality.TTS, id="piper"),
    ],
)
async def test_an_open_model_beside_the_agent_costs_nothing(
    component: Any, modality: Modality
) -> None:
    price = BOOK.price_for(describe(None, component, modality), 0)
    assert price is not None
    assert price.rate(USAGE) == 0


@pytest.mark.parametrize(
    ("component", "modality"),
    [
        pytest.param(LLM.with_ollama(model="gpt-oss:120b-cloud"), Modality.LLM, id="in its cloud"),
        pytest.param(LLM(model="gpt-4o-mini", **BESIDE), Modality.LLM, id="a gateway"),
        pytest.param(STT(model="whisper-1", **BESIDE), Modality.STT, id="a gateway that listens"),
        pytest.param(LLM(model="", api_key="none"), Modality.LLM, id="no model"),
        pytest.param(LLM(model="gpt-of-tomorrow", api_key="none"), Modality.LLM, id="unknown"),
    ],
)
async def test_what_somebody_may_bill_for_stays_unpriced(
    component: Any, modality: Modality
) -> None:
    assert BOOK.price_for(describe(None, component, modality), 0) is None


@pytest.mark.parametrize(
    "model", ["gpt-4o-mini", "gpt-4o-mini-2024-07-18"], ids=["the model", "a dated snapshot"]
)
async def test_a_model_is_known_by_its_aliases(model: str) -> None:
    leg = describe(None, LLM(model=model, api_key="none"), Modality.LLM)
    price = BOOK.price_for(leg, 1_795_000_000_000)
    assert price is not None
    assert price.rate({"input_tokens": 1_000_000, "output_tokens": 0}) == 150_000_000
