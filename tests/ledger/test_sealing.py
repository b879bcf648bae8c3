"""A sealed checkpoint opens for the same key, room and job, and for nothing else."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voicecost_ledger.checkpoints import Checkpoint, CheckpointTotal
from voicecost_ledger.records import MAX_QUANTITY, LegAttributes, MeterOpen, Modality
from voicecost_ledger.sealing import SEALED_CHARACTERS_MAX, CheckpointSeal, SealError

SEAL = CheckpointSeal("APIkey", "secret-of-at-least-32-characters!")
CALL = {"room_name": "support-17", "job_id": "AJ_x1"}
OPENED = MeterOpen(meter_id="MT_" + "a" * 32, seq=1, at_unix_ms=1_795_348_800_000, project="shop")


def total(model: str, **usage: int) -> CheckpointTotal:
    attributes = LegAttributes(modality=Modality.LLM, provider="api.openai.com", model=model)
    return CheckpointTotal(attributes, usage)


CHECKPOINT = Checkpoint(OPENED, 812, 1_795_348_860_000, [total("gpt-4o-mini", input_tokens=90_000)])


def test_what_was_sealed_is_opened() -> None:
    assert SEAL.open(SEAL.seal(CHECKPOINT, **CALL), **CALL) == CHECKPOINT


def test_two_seals_of_the_same_look_different() -> None:
    assert SEAL.seal(CHECKPOINT, **CALL) != SEAL.seal(CHECKPOINT, **CALL)


@pytest.mark.parametrize(
    ("seal", "call"),
    [
        pytest.param(CheckpointSeal("other", "secret-of-at-least-32-characters!"), CALL, id="key"),
        pytest.param(CheckpointSeal("APIkey", "another secret"), CALL, id="secret"),
        pytest.param(SEAL, CALL | {"room_name": "support-18"}, id="room"),
        pytest.param(SEAL, CALL | {"job_id": "AJ_x2"}, id="job"),
        # The boundary between both is sealed too.
        pytest.param(SEAL, {"room_name": "support-17A", "job_id": "J_x1"}, id="boundary"),
    ],
)
def test_another_keys_or_calls_checkpoint_stays_closed(
    seal: CheckpointSeal, call: dict[str, str]
) -> None:
    with pytest.raises(SealError):
        seal.open(SEAL.seal(CHECKPOINT, **CALL), **call)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_bit_changed_anywhere_is_noticed(at: int, bit: int) -> None:
    data = bytearray(base64.urlsafe_b64decode(SEAL.seal(CHECKPOINT, **CALL)))
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(SealError):
        SEAL.open(base64.urlsafe_b64encode(data).decode(), **CALL)


@given(st.text(max_size=2_000))
def test_what_is_no_checkpoint_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(SealError, match=r"."):
        SEAL.open(text, **CALL)


def test_a_call_of_four_providers_fits_whole() -> None:
    attributes = [
        LegAttributes(Modality.STT, "Deepgram", "nova-3", "livekit.plugins.deepgram.stt.STT",
                      "api.deepgram.com", "multi"),
        LegAttributes(Modality.LLM, "api.openai.com", "gpt-4.1-mini",
                      "livekit.plugins.openai.llm.LLM", "api.openai.com"),
        LegAttributes(Modality.TTS, "Cartesia", "sonic-3", "livekit.plugins.cartesia.tts.TTS",
                      "api.cartesia.ai", "de", "f786b574-daa5-4673-aa0c-cbe3e8534c02"),
        LegAttributes(Modality.LLM, "anthropic", "claude-haiku-4-5",
                      "livekit.plugins.anthropic.llm.LLM", "api.anthropic.com"),
    ]  # fmt: skip
    speech = {"characters": 81_233, "utf8_bytes": 82_001, "double_width_characters": 0,
              "markup_characters": 117, "audio_ms": 5_234_120}  # fmt: skip
    tokens = {"input_tokens": 1_923_441, "cached_input_tokens": 1_511_168, "output_tokens": 81_223,
              "prompt_characters": 7_923_114, "completion_characters": 300_912,
              "completion_chunks": 80_122}  # fmt: skip
    usages = [{"audio_ms": 3_599_840, "connected_ms": 3_600_412}, tokens, speech, tokens]
    opened = MeterOpen(
        meter_id="MT_0f8fad5bd9cb469fa16570867728950e", seq=1, at_unix_ms=1_795_348_800_000,
        project="customer-support", agent="receptionist", tenant="ACME Corporation",
        livekit_url="wss://voice-x7k2p9.livekit.cloud", room_name="call-_4915112345678_hT7dK2",
        room_sid="RM_kXTn5xgKYbWw", job_id="AJ_8Jq3pWd7vRzK", budget_nano_usd=500_000_000,
    )  # fmt: skip
    checkpoint = Checkpoint(
        opened, 14_002, 1_795_352_400_000,
        [CheckpointTotal(*each) for each in zip(attributes, usages, strict=True)],
    )  # fmt: skip

    sealed = SEAL.seal(checkpoint, **CALL)

    assert len(sealed) <= SEALED_CHARACTERS_MAX
    assert SEAL.open(sealed, **CALL) == checkpoint


@given(
    st.lists(st.text(max_size=30), max_size=64),
    st.dictionaries(
        st.sampled_from(["input_tokens", "output_tokens", "prompt_characters"]),
        st.integers(0, MAX_QUANTITY),
    ),
)
def test_it_always_fits_and_the_first_totals_stay_longest(
    models: list[str], usage: dict[str, int]
) -> None:
    checkpoint = Checkpoint(OPENED, 5, 7, [total(model, **usage) for model in models])

    sealed = SEAL.seal(checkpoint, **CALL)

    assert len(sealed) <= SEALED_CHARACTERS_MAX
    opened = SEAL.open(sealed, **CALL)
    assert [each.attributes.model for each in opened.totals] == models[: len(opened.totals)]


@pytest.mark.parametrize(
    "attributes",
    [
        pytest.param(
            [LegAttributes(Modality.TTS, "Cartesia", "sonic-3", voice=f"v{n}") for n in range(80)],
            id="more kinds of legs than are read",
        ),
        pytest.param(
            [LegAttributes(Modality.TTS, "Cartesia", "sonic-3", label="x" * 400)] * 60,
            id="more text than is unpacked",
        ),
    ],
)
def test_what_is_sealed_can_always_be_opened(attributes: list[LegAttributes]) -> None:
    """The same again and again is made very small."""
    totals = [CheckpointTotal(each, {"characters": 100}) for each in attributes]
    sealed = SEAL.seal(Checkpoint(OPENED, 5, 1_795_348_860_000, totals), **CALL)
    opened = SEAL.open(sealed, **CALL)
    assert opened.totals == totals[: len(opened.totals)]
    assert len(opened.totals) > 30
