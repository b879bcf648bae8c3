"""Which of the models that LiveKit's plugins name have a price: those that have none are listed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from voicecost_catalog.book import CatalogPriceBook
from voicecost_ledger.records import LegAttributes, Modality

_STRINGS_PATH: Final = Path(__file__).with_name("livekit_strings.json")
UNKNOWN: Final = "no public price of it is known to us"
_RUPEES: Final = "listed in rupees: https://docs.sarvam.ai/api/getting-started/pricing"
NO_PRICE: Final = {
    # By the plugin's class, which is one for all its models, or by a model.
    "auto": "LiveKit chooses the model, and does not say which",
    **dict.fromkeys(("sarvam.LLM", "sarvam.STT", "sarvam.STTRealtime", "sarvam.TTS"), _RUPEES),
    "speechify.TTS": "bills no blanks, which no leg counts apart: https://speechify.ai/pricing",
    **dict.fromkeys(
        (
            "assemblyai.TTS", "asyncai.TTS", "baseten.LLM", "baseten.STT", "baseten.TTS",
            "cambai.TTS", "clova.STT", "fal.STT", "fireworksai.STT", "gnani.STT", "gnani.TTS",
            "neuphonic.TTS", "nvidia.STT", "nvidia.TTS", "phonic.realtime.RealtimeModel",
            "playai.TTS", "respeecher.TTS", "rtzr.STT", "simplismart.STT", "simplismart.TTS",
            "slng.STT", "spitch.STT", "spitch.TTS", "upliftai.TTS",
        ),
        UNKNOWN,
    ),
}  # fmt: skip
"""What has no public price that a leg could be rated by, and why."""
NOT_FOUND: Final = {"aws.LLM": "priced by region, which the model's name leaves out"}
"""What has one that is not found, and why."""


class LiveKitString(msgspec.Struct, frozen=True, kw_only=True):
    """What one component of one plugin says of itself (livekit-agents 1.8.9, each made once)."""

    kind: Modality
    cls: str  # "deepgram.STT"
    provider: str
    model: str
    label: str | None
    streaming: bool | None

    def leg(self) -> LegAttributes:
        """The leg that it would make."""
        return LegAttributes(
            modality=self.kind,
            provider=self.provider,
            model=self.model,
            label=self.label or "",
            streaming=self.streaming is not False,
        )

    @property
    def why_no_price(self) -> str:
        """Why it has none, where it has none."""
        reasons = NOT_FOUND | NO_PRICE
        return reasons.get(self.cls) or reasons.get(self.model) or UNKNOWN


def livekit_strings() -> list[LiveKitString]:
    """Every string that was met."""
    return msgspec.json.decode(_STRINGS_PATH.read_bytes(), type=list[LiveKitString])


def without_price(book: CatalogPriceBook, at_unix_ms: int) -> list[LiveKitString]:
    """Those of LiveKit's own that have no price then. Loads genai-prices."""
    return [one for one in livekit_strings() if book.price_for(one.leg(), at_unix_ms) is None]
