"""Our own rows: which one a leg falls under, and what it then costs, against the price lists."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from voicecost_catalog import compile as catalog_compile
from voicecost_catalog import open_price_book
from voicecost_ledger.records import LegAttributes, Modality

BOOK = open_price_book(genai=False)
NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22


def stt(model: str, **kwargs: Any) -> LegAttributes:
    kwargs.setdefault("provider", "Deepgram")
    return LegAttributes(modality=Modality.STT, model=model, **kwargs)


def tts(model: str, **kwargs: Any) -> LegAttributes:
    kwargs.setdefault("provider", "Deepgram")
    return LegAttributes(modality=Modality.TTS, model=model, **kwargs)


MINUTE = {"audio_ms": 60_000, "connected_ms": 61_000}
THOUSAND = {"characters": 1_000, "utf8_bytes": 1_010, "audio_ms": 55_000}


@pytest.mark.parametrize(
    ("leg", "usage", "amount_nano_usd"),
    [
        # https://deepgram.com/pricing, 2026-08-20 (Flux multilingual 2026-11-04, Aura 2026-05-27)
        pytest.param(stt("nova-3", language="en-US"), MINUTE, 4_800_000, id="nova-3 English"),
        pytest.param(stt("nova-3"), MINUTE, 4_800_000, id="nova-3, no language: theirs is English"),
        pytest.param(stt("nova-3", language="multi"), MINUTE, 5_800_000, id="nova-3 multilingual"),
        pytest.param(stt("nova-3-multilingual"), MINUTE, 5_800_000, id="nova-3 the same by name"),
        pytest.param(
            stt("nova-3", language="de", channel_count=2), MINUTE, 9_600_000, id="two channels"
        ),
        pytest.param(stt("nova-3", streaming=False), MINUTE, 4_300_000, id="nova-3 pre-recorded"),
        pytest.param(stt("nova-2-phonecall"), MINUTE, 5_833_333, id="nova-2 any flavour"),
        pytest.param(stt("enhanced-general"), MINUTE, 16_500_000, id="enhanced"),
        pytest.param(stt("phonecall"), MINUTE, 14_500_000, id="base by its use"),
        pytest.param(stt("flux-general-en"), MINUTE, 6_500_000, id="flux English"),
        pytest.param(stt("flux-general-multi"), MINUTE, 7_800_000, id="flux multilingual"),
        pytest.param(tts("aura-2-andromeda-en"), THOUSAND, 30_000_000, id="aura-2"),
        pytest.param(
            tts("aura-2-thalia-en", streaming=False), THOUSAND, 30_000_000, id="aura-2 in one piece"
        ),
        pytest.param(tts("aura-asteria-en"), THOUSAND, 15_000_000, id="aura-1"),
        # https://docs.cartesia.ai/pricing, 2026-08-21, at $0.00005 a credit (plan Pro)
        pytest.param(stt("ink-2", provider="Cartesia"), MINUTE, 9_000_000, id="ink-2: 3 credits"),
        pytest.param(stt("ink-whisper", provider="Cartesia"), MINUTE, 3_000_000, id="ink-whisper"),
        pytest.param(tts("sonic-3", provider="Cartesia"), THOUSAND, 50_000_000, id="sonic"),
    ],
)
def test_worked_examples_from_the_price_lists(
    leg: LegAttributes, usage: dict[str, int], amount_nano_usd: int
) -> None:
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.rate(usage) == amount_nano_usd
    assert all(rate.source_url and rate.source_date for rate in price.rates.values())


@pytest.mark.parametrize(
    "leg",
    [
        pytest.param(stt("nova-4"), id="a model nobody priced"),
        pytest.param(stt(""), id="no model"),
        pytest.param(stt("nova-3-medical"), id="a model whose own price nobody saw"),
        pytest.param(stt("nova-3", language="multi", streaming=False), id="a mode without a price"),
        pytest.param(stt("whisper-large", streaming=True), id="pre-recorded only"),
        pytest.param(tts("aura-3-andromeda-en"), id="the next generation is not the first"),
        pytest.param(stt("aura-2-andromeda-en"), id="speech synthesis asked to listen"),
        pytest.param(stt("nova-3", provider="Gladia"), id="another provider's model of that name"),
        pytest.param(stt("nova-3", channel_count=0), id="no channel"),
        pytest.param(stt("nova-3", channel_count=10**9), id="a billion channels"),
    ],
)
def test_what_has_no_row_has_no_price(leg: LegAttributes) -> None:
    assert BOOK.price_for(leg, NOW_UNIX_MS) is None


def test_a_price_holds_from_its_day_on_and_not_before() -> None:
    leg = stt("flux-general-multi")
    first_day = datetime(2026, 11, 4, tzinfo=UTC)
    first_unix_ms = int(first_day.timestamp()) * 1000
    # Back and forth, so that what is remembered of one day is not used for another.
    for _ in range(2):
        assert BOOK.price_for(leg, first_unix_ms - 1) is None
        price = BOOK.price_for(leg, first_unix_ms)
        assert price is not None
        assert price.valid_from == "2026-11-04"


@pytest.mark.parametrize("at_unix_ms", [-1, 0, 2**62, -(2**62)])
def test_an_instant_out_of_any_calendar_has_no_price(at_unix_ms: int) -> None:
    assert BOOK.price_for(stt("nova-3"), at_unix_ms) is None


def test_the_source_names_the_newest_row() -> None:
    price = BOOK.price_for(stt("nova-3"), NOW_UNIX_MS)
    assert price is not None
    assert price.pricing_source == "voicecost-catalog@2026-11-04"


def test_the_same_leg_gets_the_same_price_object() -> None:
    """Looking up is a dictionary access after the first time."""
    first = BOOK.price_for(stt("nova-3"), NOW_UNIX_MS)
    assert BOOK.price_for(stt("nova-3"), NOW_UNIX_MS + 1_000) is first


def test_a_book_gives_back_what_it_gave_out() -> None:
    price = BOOK.price_for(tts("aura-2-andromeda-en"), NOW_UNIX_MS)
    assert price is not None
    assert BOOK.restore(price.document()) == price


def test_every_model_is_named_to_be_found() -> None:
    """A row that no leg can reach would be a price nobody is told about."""
    rows = catalog_compile.compile_rows()
    for provider in rows.providers:
        for row in provider.prices:
            at_unix_ms = int(
                (datetime.combine(row.valid_from, datetime.min.time(), tzinfo=UTC)
                 + timedelta(hours=1)).timestamp()
            ) * 1000  # fmt: skip
            leg = LegAttributes(
                modality=row.modality,
                provider=provider.plugin_names[0],
                model=row.match[0].replace("*", "anything"),
                language=row.languages[0] if row.languages else "en",
                streaming=row.streaming is not False,
            )
            price = BOOK.price_for(leg, at_unix_ms)
            assert price is not None, row.model
            assert price.model == row.model


def test_the_packaged_prices_are_the_ones_in_the_data_files() -> None:
    """If this fails: `python -m voicecost_catalog.compile`, and read the difference."""
    packaged = catalog_compile.COMPILED_PATH.read_bytes()
    assert packaged == catalog_compile.encode_rows(catalog_compile.compile_rows())


def test_no_price_is_stored_as_a_float() -> None:
    def values(node: Any) -> list[Any]:
        if isinstance(node, dict):
            return [leaf for child in node.values() for leaf in values(child)]
        if isinstance(node, list):
            return [leaf for child in node for leaf in values(child)]
        return [node]

    packaged = msgspec.json.decode(catalog_compile.COMPILED_PATH.read_bytes())
    assert not any(type(value) is float for value in values(packaged))
