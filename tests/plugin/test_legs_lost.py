"""A process that is killed: each leg says how far it may have gone on after its last record."""

from __future__ import annotations

from tests.ledger.desk import Desk
from tests.plugin.metered_session import RecordingMeter, metered_call, simulated_providers
from tests.simulators import LONG_ANSWER, Reply
from voicecost_ledger.records import LegStart, LegStop, Modality, Outcome
from voicecost_ledger.stores import CallDetail


def killed(meter: RecordingMeter) -> CallDetail:
    """The call as the books have it when its process is killed now, and its spool adopted."""
    desk = Desk()
    records = desk.meter()
    for make, fields in meter.records:
        records.write(make, **fields)
    records.adopt()
    desk.check()
    return desk.call()


async def test_every_leg_of_a_killed_call_knows_how_far_it_may_be_off() -> None:
    async with (
        simulated_providers(Reply(text=LONG_ANSWER), token_delay_ms=20, speed=2) as providers,
        metered_call(providers, hears=True) as call,
    ):
        call.session.generate_reply(user_input="Please explain everything to me.")
        await call.meter.until(lambda: call.meter.total(Modality.LLM, "completion_chunks") >= 8)
        await call.meter.until(lambda: call.meter.total(Modality.TTS, "audio_ms") > 0)
        await call.meter.until(lambda: call.meter.total(Modality.STT, "audio_ms") > 0)
        found = killed(call.meter)
        await call.close()
    assert {leg.modality for leg in found.legs} == {Modality.LLM, Modality.TTS, Modality.STT}
    assert {leg.outcome for leg in found.legs} == {Outcome.LOST}
    assert found.summary.unknown_uncertainty_leg_count == 0
    margins = {leg.modality: leg.margins for leg in found.legs}
    assert margins[Modality.LLM]["output_tokens"] >= 16  # chunks that wait to be recorded
    assert margins[Modality.STT]["audio_ms"] > 0
    assert margins[Modality.TTS].get("characters", 0) == 0  # recorded before it is sent
    assert margins[Modality.TTS]["audio_ms"] > 0


async def test_a_leg_that_is_killed_with_its_first_record_has_margins_too() -> None:
    async with (
        simulated_providers(first_token_delay_ms=60_000) as providers,
        metered_call(providers) as call,
    ):
        call.session.generate_reply(user_input="Hello?")
        await call.meter.until(lambda: call.meter.of(Modality.LLM))
        make, fields = call.meter.records[-1]
        legs = {leg.modality: leg for leg in killed(call.meter).legs}
        await call.close()
    assert (make, fields["attributes"].modality) == (LegStart, Modality.LLM)
    assert 0 < fields["margins"]["input_tokens"] < fields["usage"]["input_tokens"]
    assert legs[Modality.LLM].outcome is Outcome.LOST
    assert legs[Modality.LLM].margins == fields["margins"]


async def test_what_was_counted_to_its_end_has_no_margins() -> None:
    async with (
        simulated_providers(Reply(text="It is noon.")) as providers,
        metered_call(providers) as call,
    ):
        await call.session.generate_reply(user_input="What time is it?")
        await call.close()
    stops = [fields for make, fields in call.meter.records if make is LegStop]
    assert len(stops) == 3
    assert all(fields["margins"] == {} for fields in stops)
