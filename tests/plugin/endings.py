"""How the legs of a call are held against the provider's bill."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from livekit import rtc

from tests.plugin.metered_session import Call, Microphone, RecordingMeter, SeenLeg
from tests.simulators import Bill, BillRow
from voicecost_ledger.records import Basis, LegAttributes, Outcome
from voicecost_ledger.stores import CallDetail

INPUT_TOKENS_OFF_MAX: Final = 4
OUTPUT_TOKENS_OFF_MAX: Final = 8
"""How far an estimated LLM leg may be off: a few deltas are on their way when it ends."""

_UNITS: Final = {
    "llm": ("input_tokens", "cached_input_tokens", "output_tokens"),
    "tts": ("characters",),
    "stt": ("audio_ms",),
}


def held_against_the_bill(call: Call, *, input_tokens_off_max: int = INPUT_TOKENS_OFF_MAX) -> str:
    """See `meter_held_against`, for a call that has ended."""
    return meter_held_against(
        call.meter, call.providers.bill, input_tokens_off_max=input_tokens_off_max
    )


def calls_held_against(
    calls: Iterable[CallDetail], *bills: Bill, input_tokens_off_max: int = INPUT_TOKENS_OFF_MAX
) -> str:
    """See `meter_held_against`, for all legs that the ledger has of these calls."""
    legs = [
        SeenLeg(
            LegAttributes(leg.modality, leg.provider, leg.model),
            leg.usage,
            leg.basis,
            leg.speech_id,
            leg.outcome,
        )
        for call in calls
        for leg in call.legs
    ]
    rows = [row for bill in bills for row in bill.rows]
    return _held_against(legs, rows, input_tokens_off_max, sort=True)


def meter_held_against(
    *meters_and_bill: RecordingMeter | Bill, input_tokens_off_max: int = INPUT_TOKENS_OFF_MAX
) -> str:
    """Compare every leg with its row of the bill: none missing, none invented, all units right.

    A leg that is reported or observed is exact to the unit, an estimated one within
    `input_tokens_off_max` and `OUTPUT_TOKENS_OFF_MAX`. What the provider refused costs nothing,
    here as there, and is paired by number only where LiveKit connects for nobody beforehand.

    Returns:
        What became of each leg, by service and in order of their start:
        `"stt served, llm served interrupted, tts served"`; `refused` is a failed one that the
        provider did not accept.
    """
    # Requests of several meters come in any order: the smaller ones first, here and there.
    meters = [each for each in meters_and_bill if isinstance(each, RecordingMeter)]
    (bill,) = (each for each in meters_and_bill if isinstance(each, Bill))
    legs = [leg for meter in meters for leg in meter.legs.values()]
    return _held_against(legs, bill.rows, input_tokens_off_max, sort=len(meters) > 1)


def _held_against(
    all_legs: list[SeenLeg], all_rows: list[BillRow], input_tokens_off_max: int, *, sort: bool
) -> str:
    said: list[str] = []
    for service in ("stt", "llm", "tts"):
        legs = [leg for leg in all_legs if leg.attributes.modality.value == service]
        rows = [row for row in all_rows if row.service == service]
        if sort:
            unit = _UNITS[service][-1]
            legs.sort(key=lambda leg: leg.usage.get(unit, 0))
            rows.sort(key=lambda row: row.units[unit])
        endings = _pair(service, legs, rows, input_tokens_off_max)
        if endings:
            said.append(f"{service} {' '.join(endings)}")
    return ", ".join(said)


def _pair(
    service: str, legs: list[SeenLeg], rows: list[BillRow], input_tokens_off_max: int
) -> list[str]:
    refused_rows = [row for row in rows if row.ended == "refused"]
    refused_legs = [
        leg
        for leg in legs
        if leg.outcome in (Outcome.FAILED, Outcome.PROBE)
        and not any(leg.usage.get(unit) for unit in _UNITS[service])
    ]
    if service == "llm":
        assert len(refused_legs) == len(refused_rows)
    by_model: dict[str, list[BillRow]] = defaultdict(list)
    for row in rows:
        if row not in refused_rows:
            by_model[row.model].append(row)
    told = f"legs {[_told(leg) for leg in legs]}, bill {rows}"
    assert len(legs) - len(refused_legs) == len(rows) - len(refused_rows), told
    endings: list[str] = []
    for leg in legs:
        assert leg.outcome is not None, told
        if leg in refused_legs:
            endings.append("refused" if leg.outcome is Outcome.FAILED else leg.outcome.value)
            continue
        row = by_model[leg.attributes.model].pop(0)
        for unit in _UNITS[service]:
            ours, theirs = leg.usage.get(unit, 0), row.units[unit]
            off_max = 0
            if leg.basis is Basis.ESTIMATED:
                off_max = OUTPUT_TOKENS_OFF_MAX if unit == "output_tokens" else input_tokens_off_max
            assert abs(ours - theirs) <= off_max, f"{unit}: {ours} for {theirs}; {told}"
        assert row.ended is not None, told
        endings.append(leg.outcome.value)
    return endings


def _told(leg: SeenLeg) -> str:
    return f"{leg.attributes.model} {leg.outcome} {leg.basis} {leg.usage}"


def of_outcome(legs: Iterable[SeenLeg], outcome: Outcome) -> list[SeenLeg]:
    """Those that ended so."""
    return [leg for leg in legs if leg.outcome is outcome]


class Caller(Microphone):
    """A caller who is silent until `says` something: a hum, which the simulated Deepgram hears."""

    def __init__(self) -> None:
        super().__init__()
        hum = array("h", (int(8_000 * math.sin(i * math.tau * 200 / 24_000)) for i in range(480)))
        self._hum = rtc.AudioFrame(hum.tobytes(), 24_000, 1, 480)
        self._hums_left = 0
        self._muted = False
        self._unmuted = asyncio.Event()
        self._unmuted.set()

    def says(self, *, ms: int = 600) -> None:
        """Hum for so long, at four times the speed of speech."""
        self._hums_left = ms // 20

    def mute(self, muted: bool = True) -> None:
        """Send nothing at all, as a browser does whose microphone is muted."""
        self._unmuted.clear() if muted else self._unmuted.set()

    async def __anext__(self) -> rtc.AudioFrame:
        await self._unmuted.wait()
        silence = await super().__anext__()
        if self._hums_left == 0:
            return silence
        self._hums_left -= 1
        return self._hum
