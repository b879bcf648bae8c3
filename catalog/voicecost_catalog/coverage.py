"""Which of the models that LiveKit's plugins name have a price: those that have none are listed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from voicecost_catalog.book import CatalogPriceBook
from voicecost_ledger.records import LegAttributes, Modality

_STRINGS_PATH: Final = Path(__file__).with_name("livekit_strings.json")


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


def livekit_strings() -> list[LiveKitString]:
    """Every string that was met."""
    return msgspec.json.decode(_STRINGS_PATH.read_bytes(), type=list[LiveKitString])


def without_price(book: CatalogPriceBook, at_unix_ms: int) -> list[LiveKitString]:
    """Those of LiveKit's own that have no price then. Loads genai-prices."""
    return [one for one in livekit_strings() if book.price_for(one.leg(), at_unix_ms) is None]
