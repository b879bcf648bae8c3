"""Prices to reckon with, one for each way of billing, and usages whose parts fit their wholes."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from voicecost_catalog import ModelPrice, Rate, Rule, Tier
from voicecost_catalog.rates import Derived, restore_price
from voicecost_ledger.records import LegAttributes, Modality


def price(rule: Rule, rates: dict[str, Rate], **kwargs: Any) -> ModelPrice:
    modality = {Rule.CHARACTERS: Modality.TTS, Rule.BYTES: Modality.TTS, Rule.TOKENS: Modality.LLM}
    return ModelPrice(
        provider="example",
        model="example",
        modality=kwargs.pop("modality", modality.get(rule, Modality.STT)),
        rule=rule,
        pricing_source="test@1",
        rates=rates,
        **kwargs,
    )


def usd_per_million(usd: str) -> Rate:
    return Rate(nano_usd=int(Fraction(usd) * 10**9), per=1_000_000)


NOVA_3 = price(Rule.AUDIO, {"audio_ms": Rate(nano_usd=4_800_000, per=60_000)})
NOVA_3_STEREO = price(
    Rule.AUDIO, {"audio_ms": Rate(nano_usd=4_800_000, per=60_000)}, channel_count=2
)
NOVA_2 = price(Rule.AUDIO, {"audio_ms": Rate(nano_usd=350_000_000, per=3_600_000)})
AURA_2 = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=30_000_000, per=1_000)})
MINI = price(
    Rule.TOKENS,
    {
        "input_tokens": usd_per_million("0.15"),
        "cached_input_tokens": usd_per_million("0.075"),
        "output_tokens": usd_per_million("0.6"),
    },
)
UNCACHED = price(
    Rule.TOKENS,
    {"input_tokens": usd_per_million("2.5"), "output_tokens": usd_per_million("10")},
)
LONG_CONTEXT = price(
    Rule.TOKENS,
    {"input_tokens": usd_per_million("3"), "output_tokens": usd_per_million("15")},
    tiers=(
        Tier(
            above_input_tokens=200_000,
            rates={"input_tokens": usd_per_million("6"), "output_tokens": usd_per_million("22.5")},
        ),
    ),
)
PER_MINUTE = Rate(nano_usd=60_000_000, per=60_000)  # $0.06 a minute: a thousand nano-USD per ms
GROQ = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, minimum_ms=10_000)
GROQ_STEREO = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, minimum_ms=10_000, channel_count=2)
BY_THE_MINUTE = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, step_ms=60_000)
SIX_SECONDS = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, step_ms=6_000, minimum_ms=6_000)
FIFTEEN_SECONDS = price(Rule.AUDIO, {"audio_ms": PER_MINUTE}, step_ms=15_000)
SOCKET = price(Rule.SESSION, {"connected_ms": PER_MINUTE})
INFERENCE = price(Rule.SESSION, {"connected_ms": PER_MINUTE}, minimum_ms=1_000, step_ms=1_000)
AZURE = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=1_000, per=1)}, double_width_weight=2)
POLLY = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=1_000, per=1)}, free_markup=True)
FISH = price(Rule.BYTES, {"utf8_bytes": Rate(nano_usd=15, per=1)})
RESEMBLE = price(
    Rule.AUDIO,
    {"audio_ms": PER_MINUTE},
    modality=Modality.TTS,
    derived={"audio_ms": Derived(of="characters", count=80, per=1)},
)
TRANSCRIBE = price(
    Rule.TOKENS,
    {
        "input_audio_tokens": usd_per_million("6"),
        "input_tokens": usd_per_million("2.5"),
        "output_tokens": usd_per_million("10"),
        "audio_ms": Rate(nano_usd=6_000_000, per=60_000),
    },
    modality=Modality.STT,
)
MINI_TTS = price(
    Rule.TOKENS,
    {
        "input_tokens": usd_per_million("0.6"),
        "output_audio_tokens": usd_per_million("12"),
        "audio_ms": Rate(nano_usd=15_000_000, per=60_000),
    },
    modality=Modality.TTS,
)
SONIOX = price(
    Rule.TOKENS,
    {
        "input_audio_tokens": usd_per_million("2"),
        "input_tokens": usd_per_million("4"),
        "output_tokens": usd_per_million("4"),
    },
    modality=Modality.STT,
    derived={
        "input_audio_tokens": Derived(of="audio_ms", count=30_000, per=3_600_000),
        "output_tokens": Derived(of="audio_ms", count=15_000, per=3_600_000),
    },
)
GEMINI_LIVE = price(
    Rule.TOKENS,
    {
        "input_audio_tokens": usd_per_million("3.5"),
        "input_tokens": usd_per_million("3.5"),
        "output_tokens": usd_per_million("21"),
    },
    modality=Modality.STT,
    derived={"input_audio_tokens": Derived(of="audio_ms", count=25, per=1_000)},
)
GEMINI_TTS = price(
    Rule.TOKENS,
    {"input_tokens": usd_per_million("0.5"), "output_audio_tokens": usd_per_million("10")},
    modality=Modality.TTS,
    derived={
        "input_tokens": Derived(of="characters", count=1, per=4),
        "output_audio_tokens": Derived(of="audio_ms", count=25, per=1_000),
    },
)
REALTIME = price(
    Rule.TOKENS,
    {
        "input_tokens": usd_per_million("4"),
        "cached_input_tokens": usd_per_million("0.4"),
        "input_audio_tokens": usd_per_million("32"),
        "output_tokens": usd_per_million("16"),
        "output_audio_tokens": usd_per_million("64"),
    },
)
TEXT = {"characters": 10, "utf8_bytes": 22, "double_width_characters": 6, "markup_characters": 3}
FREE = price(Rule.CHARACTERS, {"characters": Rate(nano_usd=0, per=1)})

UNITS_OF_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "input_tokens": ("text", "cached", "written", "heard", "cached_heard", "seen", "cached_seen"),
    "cached_input_tokens": ("cached", "cached_heard", "cached_seen"),
    "cache_write_tokens": ("written",),
    "input_audio_tokens": ("heard", "cached_heard"),
    "cached_input_audio_tokens": ("cached_heard",),
    "input_image_tokens": ("seen", "cached_seen"),
    "cached_input_image_tokens": ("cached_seen",),
    "output_tokens": ("said", "spoken"),
    "output_audio_tokens": ("spoken",),
    "characters": ("plain", "wide", "markup"),
    "double_width_characters": ("wide",),
    "markup_characters": ("markup",),
    "utf8_bytes": ("utf8_bytes",),
    "audio_ms": ("audio_ms",),
    "connected_ms": ("connected_ms",),
    "requests": ("requests",),
    "downstream_bytes": ("downstream_bytes",),
    "months": ("months",),
}
"""What each unit counts, in kinds of which none is a part of another."""


def usage_of(kinds: Mapping[str, int]) -> dict[str, int]:
    """The usage that counts these kinds; a unit none of whose kinds is there was not counted."""
    return {
        unit: sum(kinds.get(kind, 0) for kind in counted)
        for unit, counted in UNITS_OF_KINDS.items()
        if not kinds.keys().isdisjoint(counted)
    }


class TheOnlyPrice:
    """A price book of one price."""

    def __init__(self, of: ModelPrice) -> None:
        self._price = of

    def price_for(self, leg: LegAttributes, at_unix_ms: int) -> ModelPrice:
        return self._price

    def price_as_served(
        self, asked: LegAttributes, served: LegAttributes, at_unix_ms: int
    ) -> ModelPrice:
        return self._price

    def restore(self, document: bytes) -> ModelPrice:
        return restore_price(document)
