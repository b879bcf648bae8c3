"""Our account beside LiveKit's own: every difference has a cause, and only what is wrong has none.

LiveKit's side is its real `ModelUsageCollector`, fed with the metrics that its components emit.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livekit.agents import AgentSession
from livekit.agents.metrics import AgentSessionUsage, LLMMetrics, STTMetrics, TTSMetrics
from livekit.agents.metrics.base import Metadata
from livekit.agents.metrics.usage import ModelUsageCollector
from livekit.agents.voice.speech_handle import SpeechHandle

from livekit.plugins.voicecost import VoiceCost, _control, _faults
from livekit.plugins.voicecost._control import ControlTotals, Difference
from livekit.plugins.voicecost._register import Register
from livekit.plugins.voicecost.legs import Leg
from tests.plugin.metered_session import RecordingMeter
from tests.plugin.voicecost_sessions import Host, ledger, providers, say_hello
from voicecost_ledger.records import Basis, LegAttributes, Modality, Outcome

LLM = LegAttributes(Modality.LLM, "openai", "gpt-4o-mini")
TTS = LegAttributes(Modality.TTS, "Deepgram", "aura-2")
STT = LegAttributes(Modality.STT, "Deepgram", "nova-3")
TEXT = {"characters": 74}  # as a plugin reports it; on the wire there is a blank more


_said: list[SpeechHandle] = []


class Account:
    """A meter's legs and LiveKit's collector, told of the same requests or not."""

    def __init__(self, *, summing: bool = False) -> None:
        """With `summing`, as in a meter: legs that are over are summed up."""
        self.legs: list[Leg] = []
        self.control = ControlTotals()
        self.held = Register(self.control.sum_up)
        self._meter = RecordingMeter()
        if summing:
            setattr(self._meter, "charge_changed", self.held.charge)  # noqa: B010 (a method of the class)
        self._collector = ModelUsageCollector()

    def leg(
        self,
        attributes: LegAttributes,
        outcome: Outcome,
        *,
        heard: bool = True,
        livekit_counts: dict[str, int] | None = None,
        **usage: int,
    ) -> Leg:
        leg = self.open(attributes, **usage)
        leg.heard_by_livekit = heard
        leg.livekit_counts = livekit_counts or {}
        leg.stop(outcome, usage, Basis.OBSERVED)
        return leg

    def open(self, attributes: LegAttributes, **usage: int) -> Leg:
        leg = Leg(self._meter, self._meter, attributes, usage)
        self.control.opened(leg)
        leg.heard_by_livekit = True
        self.legs.append(leg)
        return leg

    def livekit(self, metrics: LLMMetrics | TTSMetrics | STTMetrics) -> None:
        self._collector.collect(metrics)
        self.control.updated(self.usage)

    def livekit_before(self, *metrics: LLMMetrics | TTSMetrics | STTMetrics, saw_all: bool) -> None:
        """What it had counted when the session was attached."""
        for each in metrics:
            self._collector.collect(each)
        self.control.attached(self.usage, saw_all=saw_all)

    @property
    def usage(self) -> AgentSessionUsage:
        return AgentSessionUsage(model_usage=self._collector.flatten())

    def causes(self, unit: str) -> dict[str, int]:
        (found,) = [each for each in self.control.differences() if each.unit == unit]
        return found.causes


@contextmanager
def counted_fault() -> Generator[None]:
    before = _faults.counts().get("control_total", 0)
    yield
    assert _faults.counts().get("control_total", 0) == before + 1


def answered(prompt_tokens: int, completion_tokens: int) -> LLMMetrics:
    return LLMMetrics(
        label="", request_id="", timestamp=0, duration=0, ttft=0, cancelled=False,
        prompt_tokens=prompt_tokens, prompt_cached_tokens=0, completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens, tokens_per_second=0,
        metadata=Metadata(model_provider=LLM.provider, model_name=LLM.model),
    )  # fmt: skip


def spoke(characters: int) -> TTSMetrics:
    return TTSMetrics(
        label="", request_id="", timestamp=0, ttfb=0, duration=0, audio_duration=0,
        cancelled=False, characters_count=characters, streamed=True,
        metadata=Metadata(model_provider=TTS.provider, model_name=TTS.model),
    )  # fmt: skip


def interrupted(leg: Leg) -> None:
    """Its speech is, though all of its sound was made."""
    speech = SpeechHandle.create()
    _said.append(speech)  # as LiveKit does, with the session's events
    leg.speech = weakref.ref(speech)
    speech.interrupt()
    speech._mark_done()


def heard(seconds: float) -> STTMetrics:
    return STTMetrics(
        label="", request_id="", timestamp=0, duration=0, audio_duration=seconds, streamed=True,
        metadata=Metadata(model_provider=STT.provider, model_name=STT.model),
    )  # fmt: skip


def test_what_both_counted_has_no_difference() -> None:
    account = Account()
    account.leg(LLM, Outcome.SERVED, input_tokens=900, output_tokens=40)
    account.livekit(answered(900, 40))
    assert account.control.differences() == [
        Difference(Modality.LLM, "openai", "gpt-4o-mini", "input_tokens", 900, 900, {}),
        Difference(Modality.LLM, "openai", "gpt-4o-mini", "output_tokens", 40, 40, {}),
    ]


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (Outcome.INTERRUPTED, "interrupted"),
        (Outcome.CUT, "interrupted"),
        (Outcome.LOST, "interrupted"),
        (Outcome.FAILED, "failed_attempt"),
        (Outcome.DISCARDED, "discarded"),
        (Outcome.PROBE, "probe"),
    ],
)
def test_what_livekit_reports_as_nothing_is_explained_by_its_end(
    outcome: Outcome, cause: str
) -> None:
    account = Account()
    account.leg(LLM, Outcome.SERVED, input_tokens=900, output_tokens=40)
    account.livekit(answered(900, 40))
    account.leg(LLM, outcome, input_tokens=950, output_tokens=11)
    account.livekit(answered(0, 0))
    assert account.causes("input_tokens") == {cause: 950}
    assert account.causes("output_tokens") == {cause: 11}


def test_an_interrupted_request_that_livekit_did_count_makes_no_difference() -> None:
    """Some plugins report what was interrupted, in full."""
    account = Account()
    account.leg(TTS, Outcome.INTERRUPTED, characters=400)
    account.livekit(spoke(400))
    assert account.causes("characters") == {}


async def test_a_text_whose_sound_was_all_made_may_be_interrupted_before_livekit_counts_it() -> (
    None
):
    account = Account()
    account.leg(TTS, Outcome.SERVED, characters=60)
    account.livekit(spoke(60))
    interrupted(account.leg(TTS, Outcome.SERVED, characters=71))
    assert account.causes("characters") == {"interrupted": 71}


async def test_of_texts_as_long_as_each_other_each_is_counted_or_not_as_it_was() -> None:
    """LiveKit reports a text before it is over, and has left out one that was as long."""
    account = Account()
    for _ in range(3):
        interrupted(account.leg(TTS, Outcome.SERVED, livekit_counts=TEXT, characters=75))
        leg = account.open(TTS, characters=75)
        account.livekit(spoke(74))
        leg.livekit_counts = TEXT
        leg.stop(Outcome.SERVED)
    assert account.causes("characters") == {"interrupted": 3 * 75, "not_in_usage": 3}


_TEXTS = st.lists(
    st.tuples(
        st.sampled_from(["counted", "interrupted, counted", "interrupted, left out"]),
        st.booleans(),  # LiveKit reports it before it is over
        st.integers(0, 3),  # so many are begun before it is over
        st.integers(0, 2),  # and so many more before it is interrupted
    ),
    max_size=40,
)


@given(_TEXTS, st.booleans())
async def test_texts_as_long_as_each_other_are_told_apart_in_every_order(
    texts: list[tuple[str, bool, int, int]], summing: bool
) -> None:
    """What is said in a dozen calls a day, and in one call twice."""
    account = Account(summing=summing)
    to_come: list[list[Callable[[], object]]] = [[] for _ in range(len(texts) + 6)]
    left_out = 0
    for turn, (kind, early, overlap, later) in enumerate(texts):
        leg = account.open(TTS, characters=75)
        leg.livekit_counts = TEXT
        over = to_come[turn + overlap]
        steps: list[Callable[[], object]] = [partial(leg.stop, Outcome.SERVED)]
        if kind != "interrupted, left out":
            steps.insert(0 if early else 1, lambda: account.livekit(spoke(74)))
        else:
            left_out += 1
        over.extend(steps)
        if kind != "counted":
            to_come[turn + overlap + later].append(partial(interrupted, leg))
        for step in to_come[turn]:
            step()
    for steps in to_come[len(texts) :]:
        for step in steps:
            step()
    if texts:
        causes = {"interrupted": left_out * 75, "not_in_usage": len(texts) - left_out}
        assert account.causes("characters") == {name: n for name, n in causes.items() if n}


async def test_a_text_that_is_missing_is_not_made_up_for_by_one_that_was_interrupted() -> None:
    """LiveKit had counted that one before the other began."""
    account = Account()
    interrupted(account.leg(TTS, Outcome.SERVED, characters=74))
    account.livekit(spoke(74))
    account.leg(TTS, Outcome.SERVED, characters=74)
    with counted_fault():
        assert account.causes("characters") == {"unexplained": 74}


def test_a_text_that_we_missed_is_not_taken_for_one_that_is_interrupted_later() -> None:
    account = Account()
    account.livekit(spoke(74))
    account.leg(TTS, Outcome.INTERRUPTED, characters=74)
    with counted_fault():
        assert account.causes("characters") == {"interrupted": 74, "unexplained": -74}


def test_the_spaces_a_plugin_adds_are_a_part_that_livekit_does_not_count() -> None:
    account = Account()
    account.leg(TTS, Outcome.SERVED, livekit_counts={"characters": 26}, characters=27)
    account.livekit(spoke(26))
    assert account.causes("characters") == {"not_in_usage": 1}


def test_a_leg_may_say_what_livekit_counts_after_livekit_has() -> None:
    account = Account()
    legs = [account.leg(TTS, Outcome.SERVED, characters=26 + n) for n in (1, 2)]
    account.livekit(spoke(26))
    account.livekit(spoke(27))
    for leg, count in zip(legs, (26, 27), strict=True):
        leg.livekit_counts = {"characters": count}
    assert account.causes("characters") == {"not_in_usage": 2}


def test_a_text_that_we_counted_twice_is_a_counted_fault() -> None:
    account = Account()
    account.leg(TTS, Outcome.SERVED, livekit_counts={"characters": 1_998}, characters=2_000)
    account.livekit(spoke(1_000))
    with counted_fault():
        assert account.causes("characters") == {"not_in_usage": 2, "unexplained": 998}


def test_an_interrupted_text_does_not_stand_in_for_one_that_we_missed() -> None:
    account = Account()
    account.leg(TTS, Outcome.INTERRUPTED, livekit_counts={"characters": 1_100}, characters=1_000)
    account.livekit(spoke(300))
    with counted_fault():
        assert account.causes("characters") == {"interrupted": 1_000, "unexplained": -300}


def test_a_text_that_was_not_sent_to_its_end_may_be_counted_whole() -> None:
    """ElevenLabs' plugin ends a segment however it ends."""
    account = Account()
    account.leg(TTS, Outcome.INTERRUPTED, livekit_counts={"characters": 1_100}, characters=1_000)
    account.livekit(spoke(1_100))
    assert account.causes("characters") == {"not_in_usage": -100}


def test_a_host_that_reports_nothing_is_not_in_usage() -> None:
    account = Account()
    told = {"input_tokens": 0, "output_tokens": 0}
    leg = account.leg(LLM, Outcome.SERVED, livekit_counts=told, input_tokens=900, output_tokens=40)
    account.livekit(answered(0, 0))
    leg.correct({"input_tokens": 905, "output_tokens": 41}, Basis.ESTIMATED)
    assert account.causes("input_tokens") == {"not_in_usage": 905}
    assert account.causes("output_tokens") == {"not_in_usage": 41}


def test_a_model_that_nobody_listens_to_is_outside_the_session() -> None:
    account = Account()
    account.leg(LLM, Outcome.SERVED, input_tokens=900, output_tokens=40)
    account.livekit(answered(900, 40))
    account.leg(LLM, Outcome.SERVED, heard=False, input_tokens=5_000, output_tokens=9)
    assert account.causes("input_tokens") == {"outside_session": 5_000}


def test_audio_after_livekits_last_report_is_the_tail() -> None:
    account = Account()
    leg = account.leg(STT, Outcome.SERVED, audio_ms=10_000, connected_ms=10_050)
    account.livekit(heard(9.95))  # one frame was on its way
    leg.correct({"audio_ms": 16_000, "connected_ms": 16_080}, Basis.OBSERVED)
    assert account.causes("audio_ms") == {"stt_tail": 6_050}


def test_a_recogniser_that_reports_nothing_is_not_in_usage() -> None:
    account = Account()
    account.leg(STT, Outcome.SERVED, audio_ms=16_000, connected_ms=16_000)
    assert account.causes("audio_ms") == {"not_in_usage": 16_000}


def test_an_open_socket_that_a_plugin_counts_as_audio_is_known() -> None:
    """Deepgram's plugin adds at the close what the socket was silent for."""
    account = Account()
    told = {"audio_ms": 60_000}
    account.leg(STT, Outcome.SERVED, livekit_counts=told, audio_ms=20_000, connected_ms=60_000)
    account.livekit(heard(60.0))
    assert account.causes("audio_ms") == {"not_in_usage": -40_000}


@pytest.mark.parametrize("audio_ms", [120_000, 30_000])
def test_audio_that_we_counted_twice_or_half_is_a_counted_fault(audio_ms: int) -> None:
    account = Account()
    account.leg(STT, Outcome.SERVED, audio_ms=audio_ms, connected_ms=60_000)
    account.livekit(heard(60.0))
    with counted_fault():
        assert account.causes("audio_ms") == {"unexplained": audio_ms - 60_000}


def test_a_recogniser_that_is_closed_unheard_has_a_tail_and_silence() -> None:
    """What the plugin reported at its close LiveKit did not hear any more."""
    account = Account()
    leg = account.leg(STT, Outcome.SERVED, audio_ms=10_000, connected_ms=10_050)
    account.livekit(heard(10.0))
    leg.correct({"audio_ms": 16_000, "connected_ms": 19_080}, Basis.OBSERVED)
    leg.livekit_counts = {"audio_ms": 19_080}
    assert account.causes("audio_ms") == {"stt_tail": 6_000}


def test_what_ran_before_we_looked_is_no_fault_of_ours() -> None:
    account = Account()
    account.livekit_before(answered(900, 40), heard(12.0), saw_all=False)
    account.livekit(answered(500, 20))  # asked for before, answered after
    account.livekit(heard(5.0))  # of a connection that was open already
    account.leg(LLM, Outcome.SERVED, input_tokens=910, output_tokens=41)
    account.livekit(answered(910, 41))
    assert account.causes("input_tokens") == {"attached_late": -1_400}
    assert account.causes("output_tokens") == {"attached_late": -60}
    assert account.causes("audio_ms") == {"attached_late": -17_000}


def test_another_sessions_requests_through_a_shared_component_are_outside() -> None:
    """LiveKit counts them for both: each session listens to the component."""
    account = Account()
    account.leg(LLM, Outcome.SERVED, input_tokens=900, output_tokens=40)
    account.leg(STT, Outcome.SERVED, audio_ms=10_000, connected_ms=10_050)
    account.control.overheard(LLM, {"input_tokens": 910, "output_tokens": 41})
    account.control.overheard(LLM, {"input_tokens": 0, "output_tokens": 0})  # interrupted
    account.control.overheard(STT, {"audio_ms": 30_000})
    account.livekit(answered(910, 41))
    account.livekit(answered(900, 40))
    for seconds in (10.0, 30.0):
        account.livekit(heard(seconds))
    assert account.causes("input_tokens") == {"outside_session": -910}
    assert account.causes("output_tokens") == {"outside_session": -41}
    assert account.causes("audio_ms") == {"outside_session": -30_000}


def test_what_we_missed_after_a_late_attach_is_a_counted_fault() -> None:
    account = Account()
    account.livekit_before(answered(900, 40), saw_all=False)
    account.leg(LLM, Outcome.SERVED, input_tokens=910, output_tokens=41)
    account.livekit(answered(910, 41))
    account.livekit(answered(300, 9))
    with counted_fault():
        assert account.causes("input_tokens") == {"attached_late": -900, "unexplained": -300}


def test_what_was_seen_before_the_session_was_attached_is_compared_with_it() -> None:
    account = Account()
    account.leg(LLM, Outcome.SERVED, input_tokens=900, output_tokens=40)
    account.leg(LLM, Outcome.INTERRUPTED, input_tokens=950, output_tokens=7)
    account.leg(TTS, Outcome.SERVED, livekit_counts={"characters": 26}, characters=27)
    account.leg(STT, Outcome.SERVED, audio_ms=10_000, connected_ms=10_050)
    account.leg(LLM, Outcome.SERVED, input_tokens=960, output_tokens=30)
    account.livekit_before(
        answered(900, 40), answered(960, 30), spoke(26), heard(10.0), saw_all=True
    )
    assert account.causes("input_tokens") == {"interrupted": 950}
    assert account.causes("characters") == {"not_in_usage": 1}
    assert account.causes("audio_ms") == {}


@pytest.mark.parametrize("saw_all", [True, False])
def test_a_long_call_that_is_attached_late_is_compared_with_all_of_it(*, saw_all: bool) -> None:
    """Half of it LiveKit has counted; more of it is over than is followed on its own."""
    account = Account(summing=True)
    turns = [900 + turn for turn in range(100)]
    counted = [answered(prompt, 40) for prompt in turns[::2]]
    with account.control.attaching():
        for turn, prompt in enumerate(turns):
            outcome = Outcome.INTERRUPTED if turn % 2 else Outcome.SERVED
            account.leg(LLM, outcome, input_tokens=prompt, output_tokens=40)
        before = [] if saw_all else [answered(700, 30)]
        account.livekit_before(*before, *counted, saw_all=saw_all)
    account.held.sum_up()
    causes = {"interrupted": sum(turns[1::2])}
    assert account.causes("input_tokens") == causes | ({} if saw_all else {"attached_late": -700})
    assert len(list(account.held)) <= 16


def test_a_long_call_is_not_gone_through_with_every_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 legs took a tenth of a second of the event loop each time."""
    sorted_by_model: list[LegAttributes] = []
    model_of = _control._model_of

    def counted(attributes: LegAttributes) -> Any:
        sorted_by_model.append(attributes)
        return model_of(attributes)

    monkeypatch.setattr(_control, "_model_of", counted)
    account = Account()
    for turn in range(20):
        account.leg(LLM, Outcome.SERVED, input_tokens=900 + turn, output_tokens=40)
        account.livekit(answered(900 + turn, 40))
        account.leg(TTS, Outcome.SERVED, characters=200)
        account.livekit(spoke(200))
    assert not any(each.causes for each in account.control.differences())
    assert len(sorted_by_model) == len(account.legs)


def test_what_livekit_counted_and_we_did_not_see_is_a_counted_fault() -> None:
    account = Account()
    account.leg(LLM, Outcome.SERVED, input_tokens=900, output_tokens=40)
    account.livekit(answered(900, 40))
    account.livekit(answered(700, 30))
    with counted_fault():
        assert account.causes("input_tokens") == {"unexplained": -700}


def test_a_leg_that_livekit_should_have_counted_is_a_counted_fault() -> None:
    account = Account()
    account.leg(LLM, Outcome.SERVED, input_tokens=900, output_tokens=40)
    assert account.causes("input_tokens") == {"unexplained": 900}


_LEGS = st.lists(
    st.tuples(
        st.sampled_from([LLM, TTS]),
        st.sampled_from(list(Outcome)),
        st.booleans(),  # LiveKit listens
        st.integers(1, 3_000),
        st.booleans(),  # LiveKit counted it
    ),
    max_size=12,
)


@given(_LEGS)
def test_the_causes_always_add_up_and_what_is_right_is_explained(
    legs: list[tuple[LegAttributes, Outcome, bool, int, bool]],
) -> None:
    account = Account()
    wrong = False
    for attributes, outcome, listening, count, counted in legs:
        unit = "input_tokens" if attributes is LLM else "characters"
        leg = account.leg(attributes, outcome, heard=listening)
        leg.correct({unit: count})
        if counted:
            account.livekit(answered(count, 0) if attributes is LLM else spoke(count))
        else:
            wrong = wrong or (outcome is Outcome.SERVED and listening)
    found = account.control.differences()
    for each in found:
        assert each.metered - each.livekit == sum(each.causes.values())
    if not wrong:
        assert not any("unexplained" in each.causes for each in found)


async def test_a_calls_control_total_is_in_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole turn, and one interrupted while the voice still reads."""
    async with providers(monkeypatch) as simulated:
        session: AgentSession[None] = simulated.session()
        meter = VoiceCost().attach(session)
        await session.start(Host())
        await say_hello(session)
        speech = session.say("This goes on for longer than anybody would listen to. " * 40)
        async with asyncio.timeout(20):
            while simulated.deepgram.bill.total("characters") < 1_500:  # noqa: ASYNC110 (a bill tells nobody)
                await asyncio.sleep(0.005)
        speech.interrupt()
        await speech
        await session.aclose()
        await meter.wait_closed()
        (call,) = await ledger()

    totals = {(each.modality, each.unit): each for each in call.control}
    tokens = totals[Modality.LLM, "input_tokens"]
    spoken = totals[Modality.TTS, "characters"]
    assert (tokens.metered, tokens.causes) == (tokens.livekit, {})
    assert set(spoken.causes) == {"interrupted", "not_in_usage"}
    assert spoken.metered - spoken.livekit == sum(spoken.causes.values())
    assert spoken.causes["interrupted"] > 1_000


async def test_a_session_of_which_livekit_counted_nothing_has_its_total_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closed in its first sentence: no event comes, and all of it is what LiveKit missed."""
    async with providers(monkeypatch) as simulated:
        session: AgentSession[None] = simulated.session()
        meter = VoiceCost().attach(session)
        await session.start(Host())
        session.say("This goes on for longer than anybody would listen to. " * 40)
        async with asyncio.timeout(20):
            while simulated.deepgram.bill.total("characters") < 100:  # noqa: ASYNC110 (a bill tells nobody)
                await asyncio.sleep(0.005)
        await session.aclose()
        await meter.wait_closed()
        (call,) = await ledger()
    (spoken,) = call.control
    (leg,) = call.legs
    assert (spoken.modality, spoken.unit, spoken.livekit) == (Modality.TTS, "characters", 0)
    assert spoken.metered == leg.usage["characters"] > 100
    assert spoken.causes == {"interrupted": spoken.metered}


async def test_an_account_of_livekits_that_cannot_be_read_is_no_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def moved(_: AgentSession[None]) -> Any:
        raise AttributeError("usage")

    before = _faults.counts().get("control_total", 0)
    async with providers(monkeypatch) as simulated:
        session: AgentSession[None] = simulated.session()
        meter = VoiceCost().attach(session)
        await session.start(Host())
        monkeypatch.setattr(AgentSession, "usage", property(moved))
        monkeypatch.delenv("VOICECOST_RAISE_FAULTS", raising=False)
        session.say("Hello.").interrupt()
        await session.aclose()
        await meter.wait_closed()
        (call,) = await ledger()
    assert call.control == []
    assert _faults.counts()["control_total"] == before + 1


async def test_a_session_that_ran_before_the_first_voicecost_has_no_fault_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = _faults.counts()
    async with providers(monkeypatch) as simulated:
        session: AgentSession[None] = simulated.session()
        await session.start(Host())
        await say_hello(session)
        meter = VoiceCost().attach(session)
        await say_hello(session)
        await session.aclose()
        await meter.wait_closed()
        (call,) = await ledger()
    assert [gap.reason for gap in call.gaps] == ["attached_late"]
    assert _faults.counts() == before
    for each in call.control:
        missing = each.causes.pop("attached_late")
        assert missing < 0 < each.metered
        assert set(each.causes) <= {"not_in_usage"}


async def test_a_session_that_was_seen_from_its_start_may_be_attached_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = _faults.counts()
    async with providers(monkeypatch) as simulated:
        voicecost = VoiceCost()
        session: AgentSession[None] = simulated.session()
        await session.start(Host())
        for _ in range(2):
            await say_hello(session)
        meter = voicecost.attach(session)
        await say_hello(session)
        await session.aclose()
        await meter.wait_closed()
        (call,) = await ledger()
    assert (call.gaps, _faults.counts()) == ([], before)
    totals = {(each.modality, each.unit): each for each in call.control}
    assert totals[Modality.LLM, "input_tokens"].causes == {}
    assert set(totals[Modality.TTS, "characters"].causes) == {"not_in_usage"}


async def test_a_speech_that_livekit_forgets_meanwhile_was_interrupted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It holds the speeches of a session, and nobody else may: the session is dropped."""
    async with providers(monkeypatch) as simulated:
        session: AgentSession[None] = simulated.session()
        meter = VoiceCost().attach(session)
        await session.start(Host())
        speech = session.say("Hello.").interrupt()
        await speech
        spoken = meter.open_leg(TTS, {"characters": 71})  # LiveKit left it before it counted it
        spoken.heard_by_livekit = True
        spoken.speech = weakref.ref(speech)
        spoken.stop(Outcome.SERVED)
        question = meter.open_leg(LLM, {"input_tokens": 900})
        await session.aclose()
        session._recorded_events.clear()
        del speech
        gc.collect()
        assert not meter.closed
        question.stop(Outcome.SERVED)
        await meter.wait_closed()
        (call,) = await ledger()
    (missing,) = [each for each in call.control if each.model == TTS.model]
    assert missing.causes == {"interrupted": 71}
