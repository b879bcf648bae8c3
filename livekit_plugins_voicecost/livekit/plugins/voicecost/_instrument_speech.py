"""What all TTS attempts share: the audio that comes back, and the tokens that are reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from livekit.agents import APITimeoutError

from voicecost_ledger.records import Modality, Outcome

from . import _faults, _speech_tokens, _wire
from ._attributes import describe, name_of, option_text, voice_of
from ._audio_length import AudioLength, length_of
from ._instrument_attempts import Attempt, Tally
from ._reports import believed
from ._text_units import TextUnits
from ._wire_text import BILLED_BY_AUDIO, known_by


class AudioReceived:
    """How much audio was pushed to LiveKit's emitter."""

    __slots__ = (
        "_frame_samples",
        "_length",
        "_sample_rate",
        "decoded_ms",
        "is_decoded",
    )

    def __init__(self) -> None:
        self._length: AudioLength | None = None
        self._frame_samples = 0
        self._sample_rate = 0
        self.is_decoded = False
        self.decoded_ms = 0  # where only LiveKit's decoder can tell

    def initialized(self, *, sample_rate: int, num_channels: int, mime_type: str) -> None:
        self._length = length_of(mime_type, sample_rate, num_channels)
        self.is_decoded = self._length is None

    def pushed(self, data: bytes) -> None:
        if self._length is not None:
            self._length.push(data)

    def pushed_frame(self, frame: Any) -> None:
        self._sample_rate = frame.sample_rate
        self._frame_samples += frame.samples_per_channel

    @property
    def audio_ms(self) -> int:
        """Milliseconds so far; of audio that only a decoder can measure, once it is through."""
        if self._frame_samples:
            return self._frame_samples * 1000 // self._sample_rate
        if self._length is not None:
            return self._length.audio_ms
        return self.decoded_ms


_OBSERVED: Final = ("initialize", "push", "aclose", "start_segment", "push_frame")
"""What is observed of LiveKit's emitter of audio, as long as it is open."""


class SpeechAttempt(Attempt, _wire.TextObserver):
    """What streamed and whole-text TTS requests share: the audio that comes back."""

    modality = Modality.TTS
    _something = False
    _finished = False
    _tokens_reported: dict[str, int] | None = None

    def begin(self, *args: Any) -> None:
        self._received = AudioReceived()
        stream = self.stream
        self._voice = (name_of(stream._tts, "provider"), name_of(stream._tts, "model"))
        self._bills_audio = known_by(stream._tts, BILLED_BY_AUDIO) is not None
        self._observe_token_reports()
        self._emitter: Any = args[0] if args else None
        if self._emitter is not None:
            self._observe_emitter(self._emitter)

    def audio_received(self) -> None:
        """More audio came back from the provider."""
        raise NotImplementedError

    def named(self, context_id: str) -> None:
        """The plugin told LiveKit the id of its request or segment. Nothing by default."""

    def settle(self) -> None:
        """Something became known after the run had ended. Nothing is settled by default."""

    def _observe_token_reports(self) -> None:
        """See what this attempt reports: the stream keeps what an earlier one did."""
        stream = self.stream
        report: Callable[..., None] | None = getattr(stream, "_set_token_usage", None)
        if report is None:
            return

        def observed_report(*args: Any, **kwargs: Any) -> None:
            report(*args, **kwargs)
            with _faults.contained("tts_tokens"):
                told = {name: kwargs.get(name) or 0 for name in ("input_tokens", "output_tokens")}
                self._tokens_reported = believed(told) or self._tokens_reported

        stream.__dict__["_set_token_usage"] = observed_report

    def _stop_observing_token_reports(self) -> None:
        self.stream.__dict__.pop("_set_token_usage", None)

    def _observe_emitter(self, emitter: Any) -> None:
        initialize: Callable[..., None] = emitter.initialize
        start_segment: Callable[..., None] | None = getattr(emitter, "start_segment", None)
        push: Callable[[bytes], None] = emitter.push
        push_frame: Callable[[Any], None] | None = getattr(emitter, "push_frame", None)
        aclose: Callable[[], Any] | None = getattr(emitter, "aclose", None)

        def observed_initialize(*args: Any, **kwargs: Any) -> None:
            initialize(*args, **kwargs)
            try:
                self._received.initialized(
                    sample_rate=kwargs["sample_rate"],
                    num_channels=kwargs["num_channels"],
                    mime_type=kwargs["mime_type"],
                )
                self.named(str(kwargs.get("request_id") or ""))
            except Exception as error:
                _faults.count("tts_audio", error)

        def observed_push(data: bytes) -> None:
            push(data)
            try:
                self._received.pushed(data)
                self._something = self._something or bool(data)
                self.audio_received()
            except Exception as error:
                _faults.count("tts_audio", error)

        emitter.initialize = observed_initialize
        emitter.push = observed_push
        if aclose is not None:

            async def observed_aclose() -> None:
                try:
                    await aclose()
                finally:  # what it was given holds it
                    for name in _OBSERVED:
                        emitter.__dict__.pop(name, None)
                try:
                    if self._received.is_decoded:
                        durations_s: list[float] = getattr(emitter, "_audio_durations", [])
                        self._received.decoded_ms = round(sum(durations_s) * 1000)
                        self.settle()
                except Exception as error:
                    _faults.count("tts_audio", error)

            emitter.aclose = observed_aclose
        if start_segment is not None:

            def observed_start_segment(*args: Any, **kwargs: Any) -> None:
                start_segment(*args, **kwargs)
                try:
                    self.named(str(kwargs.get("segment_id") or (args[0] if args else "")))
                except Exception as error:
                    _faults.count("tts_text", error)

            emitter.start_segment = observed_start_segment
        if push_frame is not None:

            def observed_push_frame(frame: Any) -> None:
                push_frame(frame)
                try:
                    self._received.pushed_frame(frame)
                    self._something = True
                    self.audio_received()
                except Exception as error:
                    _faults.count("tts_audio", error)

            emitter.push_frame = observed_push_frame

    def describe(self, *, streaming: bool) -> Tally:
        """The leg's tally, with what is known of it now."""
        stream, component = self.stream, self.stream._tts
        return self.tally(
            describe(
                stream,
                component,
                Modality.TTS,
                language=option_text(stream, component, "language"),
                voice=voice_of(stream, component),
                streaming=streaming,
            )
        )

    def tokens(self) -> dict[str, int]:
        """Tokens the provider reported for this attempt; none by most."""
        reported = {unit: count for unit, count in (self._tokens_reported or {}).items() if count}
        if "output_tokens" in reported:
            reported["output_audio_tokens"] = reported["output_tokens"]  # it only ever speaks
        return reported

    def compare(
        self, tally: Tally, outcome: Outcome, sent: TextUnits, given: TextUnits, asked: int
    ) -> None:
        """Say what LiveKit counts of it: all that it asked for, or nothing.

        Args:
            tally: The leg's, which has stopped.
            outcome: How it ended.
            sent: What the provider was given.
            given: What the plugin was given to send: it may add and drop blanks, and add markup.
            asked: Characters of what LiveKit asked for: not all of it may have come to be given.
        """
        if not tally.usage:  # another's, who was asked to speak
            return
        characters = tally.usage["characters"] - sent.blanks + given.blanks
        characters -= sent.markup - given.markup
        if outcome is not Outcome.SERVED:
            characters = max(characters, asked)  # the rest was never sent
        told = self.tokens()
        tokens = {unit: told.get(unit, 0) for unit in ("input_tokens", "output_tokens")}
        tally.livekit_counts({"characters": characters} | tokens)
        self.overheard(tally.attributes, {"characters": characters} | tokens)

    def goes_on(self, outcome: Outcome, error: BaseException | None) -> bool:
        """Whether a provider that is billed by its sound makes more of it than we have received."""
        if not self._bills_audio or outcome is Outcome.SERVED:
            return False
        # A connection that died has ended what it was asked for; a silent one has not.
        return outcome is not Outcome.FAILED or isinstance(error, APITimeoutError)

    def with_audio(self, usage: dict[str, int]) -> dict[str, int]:
        """Add `audio_ms`, where it is known: how much has come, or that none has.

        Of a voice that is billed by its sound, none yet is not none: its text tells what is due.
        """
        audio_ms = self._received.audio_ms
        if audio_ms or not (self._something or self._bills_audio):
            usage["audio_ms"] = audio_ms
        return usage

    def learn(self, text: TextUnits) -> None:
        """Take a request that was served to its end as a measure of those that are not."""
        if self._bills_audio:
            _speech_tokens.learn_duration(self._voice, text.characters, self._received.audio_ms)

    def generates_on(self, usage: dict[str, int], characters: int) -> dict[str, int]:
        """Nobody cancels a request that is billed by the sound it makes: estimate all of it.

        LiveKit closes an interrupted socket when it needs the next one. Until then the provider
        goes on, faster than it plays.

        Returns:
            The margins of what was added to `usage`.
        """
        estimate = _speech_tokens.audio_ms_of(self._voice, characters)
        received_ms = usage.get("audio_ms", 0)
        usage["audio_ms"] = max(received_ms, estimate.quantity)
        return {"audio_ms": estimate.margin}
