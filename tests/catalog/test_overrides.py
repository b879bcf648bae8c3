"""What the operator's contracts say: prices of their own, discounts, plans, credits."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from voicecost_catalog import ModelPrice, open_price_book
from voicecost_catalog.override_file import (
    PriceSettings,
    parse_prices,
)
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
FILE = Path("voicecost.yaml")
MINUTE = {"audio_ms": 60_000, "connected_ms": 60_000}


def prices(text: str, **environ: str) -> PriceSettings:
    return parse_prices(f"prices:\n{text}", FILE, environ)


def price_of(
    leg: LegAttributes, section: PriceSettings, at_unix_ms: int = NOW_UNIX_MS
) -> ModelPrice:
    book = open_price_book(overrides=section.overrides)
    price = book.price_for(leg, at_unix_ms)
    assert price is not None
    assert book.restore(price.document()) == price
    return price


def stt(model: str, provider: str = "Deepgram", host: str = "") -> LegAttributes:
    return LegAttributes(modality=Modality.STT, provider=provider, model=model, host=host)


def llm(model: str, host: str, provider: str = "") -> LegAttributes:
    return LegAttributes(modality=Modality.LLM, provider=provider or host, model=model, host=host)


ARKENOS = """
  rows:
    - provider: assemblyai
      model: universal-streaming
      modality: stt
      rule: audio
      rates: {audio_ms: {usd: 0.0078, per: minute}}
    - provider: google
      model: gemini-2.5-flash
      modality: llm
      rule: tokens
      rates:
        input_tokens: {usd: 0.85, per: million}
        output_tokens: {usd: 0.85, per: million}
    - provider: resemble
      model: chatterbox
      modality: tts
      rule: characters
      rates: {characters: {usd: 0.00004, per: character}}
"""


def test_the_breakdown_of_arkenos_with_its_own_rates() -> None:
    """2.5 min of AssemblyAI, 1,250 blended tokens of Gemini at (3 x 0.30 + 2.50) / 4, 450 letters.

    Source of the figures: Arkenos' page on cost tracking.
    """
    section = prices(ARKENOS)
    heard = price_of(stt("universal-streaming", "AssemblyAI"), section).rate({"audio_ms": 150_000})
    thought = price_of(llm("gemini-2.5-flash", "generativelanguage.googleapis.com"), section).rate(
        {"input_tokens": 1_250, "output_tokens": 0}
    )
    said = price_of(
        LegAttributes(modality=Modality.TTS, provider="Resemble", model="chatterbox"), section
    ).rate({"characters": 450})
    assert (heard, thought, said) == (19_500_000, 1_062_500, 18_000_000)
    parts = [heard or 0, thought or 0, said or 0]
    assert [f"{part / 10**9:.4f}" for part in parts] == ["0.0195", "0.0011", "0.0180"]
    assert f"{sum(parts) / 10**9:.4f}" == "0.0386"


def test_a_price_by_contract_says_so_and_which_words_it_was() -> None:
    price = price_of(stt("universal-streaming", "AssemblyAI"), prices(ARKENOS))
    assert price.pricing_source == prices(ARKENOS).overrides.pricing_source
    assert price.pricing_source.startswith("config@")
    dearer = prices(ARKENOS.replace("0.0078", "0.0079")).overrides
    assert price.pricing_source != dearer.pricing_source
    assert price.plan == "contract"
    listed = price_of(stt("nova-3"), prices(ARKENOS))
    assert listed.pricing_source.startswith("voicecost-catalog@")


def test_a_price_by_contract_holds_on_its_days_only() -> None:
    text = ARKENOS.replace("rule: audio", "rule: audio\n      valid_from: 2026-11-22", 1)
    leg = stt("universal-streaming", "AssemblyAI")
    book = open_price_book(overrides=prices(text).overrides)
    for _ in range(2):  # what is remembered of one day is not used for another
        before, after = book.price_for(leg, NOW_UNIX_MS - 1), book.price_for(leg, NOW_UNIX_MS)
        assert before is not None
        assert after is not None
        assert before.pricing_source.startswith("voicecost-catalog@")
        assert after.pricing_source.startswith("config@")


@pytest.mark.parametrize(
    ("leg", "usage", "listed", "paid"),
    [
        pytest.param(stt("nova-3"), MINUTE, 4_800_000, 4_200_000, id="12.5 % off a minute"),
        pytest.param(
            stt("nova-3", "livekit"), MINUTE, None, None, id="not what LiveKit Inference sells"
        ),
        pytest.param(
            stt("deepgram/nova-3", "livekit"), MINUTE, 4_800_000, 4_800_000,
            id="LiveKit's own rate for it",
        ),
        pytest.param(
            llm("claude-sonnet-4-6", "api.anthropic.com"),
            {"input_tokens": 1_000_000, "output_tokens": 0}, 3_000_000_000, 2_700_000_000,
            id="10 % off genai-prices",
        ),
        pytest.param(
            llm("gpt-4o-mini", "llm.internal", "openai"),
            {"input_tokens": 1, "output_tokens": 0}, None, None, id="a host nobody spoke for",
        ),
    ],
)  # fmt: skip
def test_a_discount_is_off_every_rate_of_whoever_bills(
    leg: LegAttributes, usage: dict[str, int], listed: int | None, paid: int | None
) -> None:
    section = prices("  discounts: {deepgram: 12.5, anthropic: 10%}")
    for book, expected in (
        (open_price_book(), listed),
        (open_price_book(overrides=section.overrides), paid),
    ):
        price = book.price_for(leg, NOW_UNIX_MS)
        assert (price and price.rate(usage)) == expected


def test_a_discounted_price_keeps_its_source_and_names_its_list() -> None:
    price = price_of(stt("nova-3"), prices("  discounts: {deepgram: 33.333333}"))
    assert price.pricing_source.startswith("config@")
    assert "voicecost-catalog@" in price.note
    assert price.rates["audio_ms"].source_url == "https://deepgram.com/pricing"
    assert price.rates["audio_ms"].per % 60_000 == 0  # still by the minute, as the list words it
    # 66.666667 % of $0.0048 a minute, exact: rounded once, at the end of a leg
    assert price.rate({"audio_ms": 60_000 * 10**6}) == 3_200_000_016_000


def test_a_credit_by_contract_and_a_discount_on_top() -> None:
    sonic = LegAttributes(modality=Modality.TTS, provider="Cartesia", model="sonic-3")
    section = prices("  credit_usd: {cartesia: 0.00003}\n  discounts: {Cartesia: 50}")
    assert price_of(sonic, section).rate({"characters": 1_000}) == 15_000_000
    scale = prices("  plans: {cartesia: scale}")
    assert price_of(sonic, scale).rate({"characters": 1_000}) == 37_400_000


FLASH = LegAttributes(modality=Modality.TTS, provider="ElevenLabs", model="eleven_flash_v2_5")
SPOKEN = {"characters": 1_800_000}


@pytest.mark.parametrize(
    ("text", "nano_usd", "plan"),
    [
        pytest.param("{}", 72_000_000_000, "api", id="dollars, where nothing is said"),
        pytest.param("{plans: {elevenlabs: pro}}", 148_500_000_000, "pro",
                     id="900,000 credits at $99 for 600,000"),
        pytest.param("{plans: {elevenlabs: scale}}", 149_500_000_000, "scale",
                     id="half of what $299 buys, to the last digit"),
        pytest.param("{credit_usd: {elevenlabs: 0.0001}}", 90_000_000_000, "contract",
                     id="what a credit costs by contract"),
        pytest.param("{credit_usd: {elevenlabs: 0.0001}, plans: {elevenlabs: business}}",
                     90_000_000_000, "contract", id="on whatever plan"),
        pytest.param("{credit_usd: {elevenlabs: 0.0001}, discounts: {elevenlabs: 10}}",
                     81_000_000_000, "contract", id="and the discount"),
        pytest.param(
            "{credit_usd: {elevenlabs: 0.0001}, rows: [{provider: elevenlabs, modality: tts, "
            "model: eleven_flash_v2_5, rule: characters, "
            "rates: {characters: {credits: 0.3, per: character}}}]}",
            54_000_000_000, "contract", id="a row of one's own in credits",
        ),
    ],
)  # fmt: skip
def test_a_credit_of_elevenlabs_costs_what_the_plan_or_the_contract_says(
    text: str, nano_usd: int, plan: str
) -> None:
    price = price_of(FLASH, parse_prices(f"prices: {text}", FILE, {}))
    assert (price.rate(SPOKEN), price.plan) == (nano_usd, plan)


def test_what_elevenlabs_bills_in_dollars_costs_the_same_on_every_plan() -> None:
    for text in ("  plans: {elevenlabs: scale}", "  credit_usd: {elevenlabs: 0.0001}"):
        scribe = price_of(stt("scribe_v2_realtime", "ElevenLabs"), prices(text))
        assert scribe.rate({"audio_ms": 3_600_000}) == 390_000_000


def test_a_provider_of_one_s_own_may_price_in_credits() -> None:
    section = prices(
        """
  credit_usd: {acme: 0.01}
  rows:
    - provider: acme
      model: sing
      modality: tts
      rule: characters
      rates: {characters: {credits: 2, per: thousand}}
"""
    )
    sing = LegAttributes(modality=Modality.TTS, provider="acme", model="sing")
    assert price_of(sing, section).rate({"characters": 1_000}) == 20_000_000


@pytest.mark.parametrize(
    ("rule", "rates", "usage", "amount_nano_usd"),
    [
        ("requests", "requests: {usd: 0.008, per: request}", {"requests": 3}, 24_000_000),
        ("session", "connected_ms: {usd: 0.06, per: minute}", {"connected_ms": 90_000}, 90_000_000),
        ("characters", "characters: {usd: 20, per: million}", {"characters": 450}, 9_000_000),
    ],
)
def test_a_tool_costs_what_the_operator_says(
    rule: str, rates: str, usage: dict[str, int], amount_nano_usd: int
) -> None:
    section = prices(
        f"""
  rows:
    - provider: Tavily
      model: Search
      modality: other
      hosts: [API.tavily.com]
      rule: {rule}
      rates: {{{rates}}}
"""
    )
    for host in ("", "api.tavily.com"):
        leg = LegAttributes(modality=Modality.OTHER, provider="tavily", model="search", host=host)
        assert price_of(leg, section).rate(usage) == amount_nano_usd
    elsewhere = LegAttributes(
        modality=Modality.OTHER, provider="tavily", model="search", host="tavily.example.com"
    )
    book = open_price_book(overrides=section.overrides)
    assert book.price_for(elsewhere, NOW_UNIX_MS) is None


def test_a_snapshot_with_a_price_of_its_own_has_that_one_only() -> None:
    section = prices(
        """
  rows:
    - &row
      provider: deepgram
      model: nova-9
      modality: stt
      rule: audio
      rates: {audio_ms: {usd: 0.06, per: minute}}
    - <<: *row
      model: nova-9-2026-10-01
      valid_until: 2026-11-01
      rates: {audio_ms: {usd: 0.03, per: minute}}
"""
    )
    assert price_of(stt("nova-9-2026-11-01"), section).rate(MINUTE) == 60_000_000
    october_unix_ms = NOW_UNIX_MS - 30 * 86_400_000
    assert price_of(stt("nova-9-2026-10-01"), section, october_unix_ms).rate(MINUTE) == 30_000_000
    book = open_price_book(overrides=section.overrides)
    assert book.price_for(stt("nova-9-2026-10-01"), NOW_UNIX_MS) is None  # not what nova-9 costs


def test_a_carrier_without_a_source_is_priced_by_its_prefixes_and_increments() -> None:
    section = prices(
        """
  rows:
    - &plivo
      provider: plivo
      model: de-mobile-outbound
      modality: telephony
      direction: outbound
      prefixes: ["+4915", "+4916", "+4917"]
      rule: session
      minimum_ms: 6000
      step_ms: 6000
      rates: {connected_ms: {usd: 0.06, per: minute}}
    - <<: *plivo
      model: de-outbound
      prefixes: ["+49"]
      minimum_ms: 0
      step_ms: 1000
"""
    )
    book = open_price_book(genai=False, overrides=section.overrides)

    def cost(number: str, seconds: int) -> int | None:
        leg = book.phone_leg("plivo", direction="outbound", number=number)
        price = book.price_for(leg, NOW_UNIX_MS)
        return price and price.rate({"connected_ms": seconds * 1_000 + 1})

    assert cost("+4915112345678", 61) == 66_000_000  # 6/6
    assert cost("+493012345678", 61) == 62_000_000  # 1/1
    assert cost("+33123456789", 61) is None


@pytest.mark.parametrize("named", ["llama-3.3-70b", "llama-3.3-70b-versatile"])
def test_a_contract_for_either_name_of_a_model_holds_for_the_short_one(named: str) -> None:
    section = prices(
        f"""
  rows:
    - provider: groq
      model: {named}
      modality: llm
      rule: tokens
      rates: {{input_tokens: {{usd: 1, per: million}}, output_tokens: {{usd: 1, per: million}}}}
"""
    )
    price = price_of(llm("llama-3.3-70b", "api.groq.com"), section)
    assert price.rate({"input_tokens": 5, "output_tokens": 0}) == 5_000


TIERS = """
  rows:
    - &mini
      provider: openai
      model: gpt-4o-mini
      modality: llm
      rule: tokens
      rates: {input_tokens: {usd: 0.05, per: million}, output_tokens: {usd: 0.1, per: million}}
    - <<: *mini
      service_tier: flex
      rates: {input_tokens: {usd: 0.02, per: million}, output_tokens: {usd: 0.1, per: million}}
"""


@pytest.mark.parametrize(
    ("tier", "nano_usd", "source", "model"),
    [
        pytest.param("", 50_000, "config@", "gpt-4o-mini", id="the standard tier"),
        pytest.param("Default", 50_000, "config@", "gpt-4o-mini", id="by another name"),
        pytest.param("flex", 20_000, "config@", "gpt-4o-mini (flex)", id="a row names it"),
        pytest.param(
            "priority", 250_000, "genai-prices@", "gpt-4o-mini (priority)", id="as listed"
        ),
        pytest.param("rush", None, "", "", id="a tier that nobody knows"),
    ],
)
def test_a_contract_holds_for_the_tier_it_names_and_else_for_the_standard_ones(
    tier: str, nano_usd: int | None, source: str, model: str
) -> None:
    leg = LegAttributes(Modality.LLM, "openai", "gpt-4o-mini", service_tier=tier)
    price = open_price_book(overrides=prices(TIERS).overrides).price_for(leg, NOW_UNIX_MS)
    assert (price and price.rate({"input_tokens": 1_000, "output_tokens": 0})) == nano_usd
    assert (price.model if price else "") == model
    assert price is None or price.pricing_source.startswith(source)


GPT_4O = """
  rows:
    - &contract
      provider: openai
      model: gpt-4o
      modality: llm
      rule: tokens
      rates: {input_tokens: {usd: 1, per: million}, output_tokens: {usd: 4, per: million}}
    - <<: *contract
      model: our-deployment
    - <<: *contract
      model: o3
      rates: {input_tokens: {usd: 1.5, per: million}, output_tokens: {usd: 4, per: million}}
  discounts: {openai: 10}
"""


@pytest.mark.parametrize(
    ("asked", "served", "tier", "nano_usd"),
    [
        pytest.param("gpt-4o", "gpt-4o-2024-08-06", "", 1_000, id="its snapshot"),
        pytest.param("gpt-4o", "gpt-4o-2024-05-13", "", 1_000, id="one that is listed apart"),
        pytest.param("gpt-4o", "openai/gpt-4o", "default", 1_000, id="the path to it"),
        pytest.param("our-deployment", "gpt-4o-2024-08-06", "", 1_000, id="a deployment"),
        pytest.param("gpt-4o", "o3", "", 1_500, id="another model by contract"),
        pytest.param("gpt-4o", "gpt-4o-mini", "", 135, id="another model, as listed"),
        pytest.param("gpt-4o", "gpt-4o-2024-08-06", "priority", 3_825, id="another tier"),
        pytest.param("gpt-4o", "nobody-knows", "", None, id="nothing that has a price"),
        pytest.param("gpt-4.1", "gpt-4.1-2025-04-14", "", 1_800, id="no contract"),
    ],
)
def test_a_contract_is_kept_by_every_name_of_its_model_and_by_no_other(
    asked: str, served: str, tier: str, nano_usd: int | None
) -> None:
    book = open_price_book(overrides=prices(GPT_4O).overrides)
    asked_for = llm(asked, "api.openai.com")
    as_served = msgspec.structs.replace(asked_for, model=served, service_tier=tier)
    price = book.price_as_served(asked_for, as_served, NOW_UNIX_MS)
    assert (price and price.rate({"input_tokens": 1, "output_tokens": 0})) == nano_usd


def test_digits_and_the_environment_are_kept_as_they_are_written() -> None:
    section = prices(
        """
  rows:
    - provider: deepgram
      model: ${MODEL}
      modality: stt
      match: ["${MODEL}*"]
      rule: audio
      rates: {audio_ms: {usd: 0.10000000000000001, per: hour}}
  display_currency: {code: EUR, per_usd: 0.9201}
""",
        MODEL="nova-9",
    )
    price = price_of(stt("nova-9-medical"), section)
    assert price.rate({"audio_ms": 3_600_000 * 10**8}) == 10_000_000_000_000_001
    assert section.display_currency is not None
    assert section.display_currency.per_usd == "0.9201"
