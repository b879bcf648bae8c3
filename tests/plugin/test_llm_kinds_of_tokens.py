"""Tokens that are sound or pictures, which cost other than text, through the real plugins."""

from __future__ import annotations

import base64
import struct
import time
import zlib
from collections.abc import Iterator

import pytest
from livekit.agents import Agent
from livekit.agents.llm import ChatContext, ImageContent

from livekit.plugins.voicecost import _attribution, _estimates
from tests.plugin.llm_providers import BY_NAME, assert_exact, served
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.realtime_call import realtime_call, simulated_openai
from tests.simulators import LONG_ANSWER, Reply
from voicecost_catalog import CatalogPriceBook, open_price_book
from voicecost_ledger.records import Basis, LegAttributes, Modality

# Google's client subclasses aiohttp's session, which aiohttp advises against.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
)
SOUND = (120, 7)


@pytest.fixture(autouse=True)
def faults_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    monkeypatch.setattr(_estimates, "_process", {})


@pytest.fixture
def meter() -> Iterator[RecordingMeter]:
    meter = RecordingMeter()
    with _attribution.scoped(meter):
        yield meter


@pytest.fixture(scope="module")
def book() -> CatalogPriceBook:
    book = open_price_book()
    book.warm()
    return book


@pytest.mark.parametrize("name", ["openai", "google"])
async def test_sound_in_a_prompt_and_in_an_answer_is_counted_apart(
    name: str, meter: RecordingMeter
) -> None:
    async with served(BY_NAME[name], meter, Reply(text=LONG_ANSWER)) as service:
        service.simulator.sound_tokens = SOUND
        leg = await service.answer("What did I say?")
        (row,) = service.bill.rows
    assert (row.units["input_audio_tokens"], row.units["output_audio_tokens"]) == SOUND
    assert_exact(leg, row)


def _picture() -> ImageContent:
    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")
    return ImageContent(image=f"data:image/png;base64,{base64.b64encode(png).decode()}")


async def test_a_picture_in_a_realtime_conversation_is_counted_apart(
    book: CatalogPriceBook,
) -> None:
    shown = ChatContext.empty()
    shown.add_message(role="user", content=["This is what I see.", _picture()])
    agent = Agent(instructions="You describe pictures.", chat_ctx=shown)
    async with simulated_openai(replies=[Reply(text="It is a black dot.")]) as openai:
        async with realtime_call(openai.model(), agent=agent) as call:
            for question in ("What is it?", "And now?"):
                await call.session.generate_reply(user_input=question)
            await call.close()
        first, second = openai.rows()

    assert first["input_image_tokens"] > 0
    assert second["cached_input_image_tokens"] > 0
    price = book.price_for(
        LegAttributes(Modality.REALTIME, "openai", "gpt-realtime"), time.time_ns() // 1_000_000
    )
    assert price is not None
    for leg, row in zip(call.responses, (first, second), strict=True):
        assert leg.basis is Basis.REPORTED
        assert {unit: leg.usage.get(unit, 0) for unit in row} == row
        as_text = leg.usage | {"input_image_tokens": 0, "cached_input_image_tokens": 0}
        assert price.rate(leg.usage) != price.rate(as_text)
