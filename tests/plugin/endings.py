"""Every way a request can end, where each is tested, and how legs are held against the bill.

test_endings_turns.py
- test_a_clean_turn: clean turn
- test_a_barge_in_while_the_llm_writes: barge-in while the LLM writes
- test_a_barge_in_while_only_the_tts_speaks: barge-in while only the TTS speaks
- test_a_barge_in_when_all_is_generated: barge-in when all is generated
- test_an_interruption_before_the_first_token: interruption before the first token
- test_an_interruption_before_the_first_audio: interruption before the first audio
- test_a_preemptive_generation_that_is_used: preemptive generation used
- test_a_preemptive_generation_that_is_thrown_away: preemptive generation thrown away
- test_a_text_only_session: text-only session
- test_say_is_a_voice_without_an_llm: `session.say`
- test_an_interrupted_say: `session.say` interrupted
- test_say_with_cached_audio_costs_nothing: `session.say` with cached audio

test_endings_tools.py
- test_tool_calls_in_a_row: tool calls in a row
- test_tool_calls_in_parallel: tool calls in parallel
- test_a_tool_call_cancelled_with_its_arguments_half_written: tool call cancelled in its arguments
- test_a_hand_off_and_back: hand-off to own STT, LLM, TTS, and back
- test_an_agent_task: AgentTask

test_endings_failures.py
- test_a_refused_request_costs_nothing_and_its_retry_is_a_leg: retry after 429 and 500
- test_a_refused_stt_connection_costs_nothing_and_its_retry_is_a_leg: the same, STT
- test_an_llm_stream_that_dies_after_some_tokens: stream dies after k tokens
- test_a_tts_socket_that_dies_in_mid_audio: TTS socket dies mid-audio
- test_a_hang_until_the_timeout: hang until timeout, LLM
- test_a_voice_that_hangs_until_the_timeout: hang until timeout, TTS
- test_an_stt_connection_that_dies_is_followed_by_another: STT connection dies, reconnect
- test_an_llm_that_fails_over_and_comes_back: FallbackAdapter, LLM: switch, probe, return
- test_an_llm_whose_probe_fails_too: FallbackAdapter, LLM: failed probe
- test_an_llm_probe_that_is_open_when_the_session_closes: FallbackAdapter, LLM: probe open at close
- test_a_voice_that_fails_over_and_comes_back: FallbackAdapter, TTS: switch, probe, return
- test_a_voice_probe_that_is_open_when_the_session_closes: FallbackAdapter, TTS: probe open at close
- test_an_stt_that_fails_over_and_is_probed_until_the_end:
  FallbackAdapter, STT: switch, probe open at close
- test_an_stt_probe_ends_with_what_it_understands: FallbackAdapter, STT: probe that succeeds
- test_an_stt_that_fails_over_and_comes_back: FallbackAdapter, STT: switch, probe, return

test_endings_sessions.py
- test_say_from_another_sessions_task: `session.say` from another session
- test_a_reconnect_is_another_leg: STT reconnect by an option
- test_a_session_that_ends_in_mid_speech: session closed in mid-speech, caller hangs up, job ends
- test_a_job_that_is_drained_says_what_it_has_begun: job drained
- test_two_sessions_that_share_all_plugins: two sessions sharing plugins
- test_a_session_that_is_started_twice: session started twice
- test_a_muted_microphone: muted microphone
- test_a_long_silence: long silence
- test_what_was_used_before_a_meter_was_attached: attached late

test_endings_jobs.py
- test_a_job_that_is_shut_down_in_mid_speech: job shut down in mid-speech, in the ledger
- test_a_session_started_again_without_a_new_meter: session started twice, not attached again
- test_two_jobs_of_the_thread_executor: thread executor
- test_a_call_in_the_console: console

test_legs_budget.py
- test_an_llm_stream_is_cut_without_retry_failover_or_probe: cut by a budget, LLM
- test_a_voice_is_given_no_word_more_than_the_budget_allows: cut by a budget, TTS
- test_recognition_ends_with_its_call_and_does_not_connect_again: cut by a budget, STT

../room/test_endings.py
- test_a_caller_who_hangs_up_in_mid_speech: the same in a real room
- test_a_worker_that_is_told_to_go_ends_its_call_first: job drained on worker shutdown
- test_a_silence_in_which_the_socket_and_the_connections_cost: long silence, LiveKit's time too

../room/test_calls.py
- test_a_killed_agent_loses_nothing: SIGKILL

../room/test_host_lost.py
- test_lost_hosts_are_settled_from_their_last_checkpoints: host lost (spool gone)

test_realtime_openai.py
- test_each_response_is_a_leg_with_what_it_reports: realtime without separate TTS
- test_an_interrupted_response_costs_what_its_report_says: realtime, barge-in

test_realtime_endings.py
- test_a_model_that_writes_and_a_voice_that_speaks: realtime with separate TTS
- test_a_session_closed_in_mid_speech_is_billed_what_its_last_report_says: realtime, closed

test_faults_cancellation.py
- test_an_llm_request: cancelled wherever it waits

test_faults_cancellation_services.py
- test_a_recording_in_parts: the same of recordings, decisions, realtime sessions, avatars
"""

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
