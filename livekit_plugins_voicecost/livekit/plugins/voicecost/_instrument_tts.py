"""TTS legs: one per attempt that was given text, exact where the wire protocol is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voicecost_ledger.records import Basis, Modality, Outcome

from . import _faults
from ._instrument_attempts import Attempt, Tally, describe, option_text, was_refused
from ._text_units import TextUnits
from ._wire_text import TEXT_PROTOCOLS


class _AudioReceived:
    """Milliseconds of raw PCM pushed to LiveKit's emitter; compressed audio is not counted."""

    __slots__ = ("_bytes", "_bytes_per_second", "_frame_samples", "_sample_rate")

    def __init__(self) -> None:
        self._bytes = 0
        self._bytes_per_second = 0
        self._frame_samples = 0
        self._sample_rate = 0

    def initialized(self, *, sample_rate: int, num_channels: int, mime_type: str) -> None:
        if mime_type.lower().strip().startswith(("audio/pcm", "audio/raw")):
            self._bytes_per_second = 2 * sample_rate * num_channels

    def pushed(self, data: bytes) -> None:
        self._bytes += len(data)

    def pushed_frame(self, frame: Any) -> None:
        self._sample_rate = frame.sample_rate
        self._frame_samples += frame.samples_per_channel

    def add_to(self, usage: dict[str, int]) -> dict[str, int]:
        """Add `audio_ms` to `usage`, where audio has come and its length is known."""
        if self._bytes and self._bytes_per_second:
            usage["audio_ms"] = self._bytes * 1000 // self._bytes_per_second
        elif self._frame_samples:
            usage["audio_ms"] = self._frame_samples * 1000 // self._sample_rate
        return usage

    @property
    def something(self) -> bool:
        """Whether any audio has come."""
        return bool(self._bytes or self._frame_samples)


class _TTSAttempt(Attempt):
    """What streamed and whole-text TTS requests share: the audio that comes back."""

    modality = Modality.TTS

    def begin(self, *args: Any) -> None:
        self._received = _AudioReceived()
        self._emitter: Any = args[0] if args else None
        if self._emitter is not None:
            self._observe_emitter(self._emitter)

    def audio_received(self) -> None:
        """More audio came back from the provider."""
        raise NotImplementedError

    def _observe_emitter(self, emitter: Any) -> None:
        initialize: Callable[..., None] = emitter.initialize
        push: Callable[[bytes], None] = emitter.push
        push_frame: Callable[[Any], None] | None = getattr(emitter, "push_frame", None)

        def observed_initialize(*args: Any, **kwargs: Any) -> None:
            initialize(*args, **kwargs)
            try:
                self._received.initialized(
                    sample_rate=kwargs["sample_rate"],
                    num_channels=kwargs["num_channels"],
                    mime_type=kwargs["mime_type"],
                )
            except Exception as error:
                _faults.count("tts_audio", error)

        def observed_push(data: bytes) -> None:
            push(data)
            try:
                self._received.pushed(data)
                self.audio_received()
            except Exception as error:
                _faults.count("tts_audio", error)

        emitter.initialize = observed_initialize
        emitter.push = observed_push
        if push_frame is not None:

            def observed_push_frame(frame: Any) -> None:
                push_frame(frame)
                try:
                    self._received.pushed_frame(frame)
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
                voice=option_text(stream, component, "voice"),
                streaming=streaming,
            )
        )

    def tokens(self) -> dict[str, int]:
        """Tokens the provider reported for this request; none by most."""
        reported: dict[str, int] = {}
        for unit, name in (("input_tokens", "_input_tokens"), ("output_tokens", "_output_tokens")):
            count = getattr(self.stream, name, 0)
            if isinstance(count, int) and count > 0:
                reported[unit] = count
        return reported


class SynthesizeAttempt(_TTSAttempt):
    """One attempt of a stream that is given text bit by bit.

    The leg opens with the first text, before that is handed over: on the wire where the protocol
    is known, else as the plugin takes it from its input.
    """

    _withheld: dict[str, int] | None = None

    def begin(self, *args: Any) -> None:
        """Watch what is taken, sent and received. A retry has another input: read here."""
        stream = self.stream
        self._text = TextUnits()  # what the provider was given, as well as we know
        self._taken = TextUnits()
        self._protocol = TEXT_PROTOCOLS.get(type(stream._tts).__module__)
        self._basis = Basis.OBSERVED if self._protocol is not None else Basis.ESTIMATED
        self._tally_made: Tally | None = None
        super().begin(*args)
        self._input: Any = stream._input_ch
        take: Callable[[], Any] = self._input.recv_nowait

        def observed_take() -> Any:
            item = take()
            if isinstance(item, str):
                try:
                    self._text_taken(item)
                except Exception as error:
                    _faults.count("tts_text", error)
            return item

        self._input.recv_nowait = observed_take

    def text_sending(self, connection: object, payload: str) -> None:
        """Count the text of a known protocol, recorded before it is sent."""
        if self._protocol is None:
            return
        text = self._protocol(payload)
        if text:
            self._given(text)

    def audio_received(self) -> None:
        """Count audio; audio without text on the wire means that the protocol has changed."""
        if self._text.characters == 0 and self._taken.characters > 0:
            self._protocol = None
            self._basis = Basis.ESTIMATED
            self._text, self._taken = self._taken, self._text
            _faults.count("tts_protocol_unknown")
        self._record()

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg; an attempt that was never given text has none."""
        source: Any = getattr(self, "_input", None)
        if source is not None:
            source.__dict__.pop("recv_nowait", None)
        if self._text.characters == 0 and not (
            self._taken.characters > 0 and outcome is Outcome.FAILED
        ):
            return  # the provider was given nothing, and did not fail at it either
        if self._protocol is None and outcome is Outcome.SERVED:
            self._basis = Basis.OBSERVED  # it ran to its end: whatever it took, it sent
        tally = self._tally
        usage, basis = self._usage(), self._basis
        tokens = self.tokens()
        if tokens:
            usage, basis = usage | tokens, Basis.REPORTED
        elif self._protocol is None and was_refused(error) and not self._received.something:
            usage, basis = TextUnits().usage(), Basis.OBSERVED
        tally.stop(self.outcome_of(outcome, tally), usage, basis)

    def _text_taken(self, text: str) -> None:
        self._taken.add(text)
        if self._protocol is None:
            self._given(text)

    def _given(self, text: str) -> None:
        tally = self._tally_made or self._tally
        self._text.add(text)
        if not tally.spend(self._usage(), self._basis, ahead=True):
            # It is not handed over, so it is not counted.
            self._withheld = tally.usage or TextUnits().usage()
            self.end_for_budget()

    @property
    def _tally(self) -> Tally:
        if self._tally_made is None:
            self._tally_made = self.describe(streaming=True)
        return self._tally_made

    def _record(self) -> None:
        if self._text.characters:
            self._tally.owe(self._usage(), self._basis)

    def _usage(self) -> dict[str, int]:
        text = self._text.usage() if self._withheld is None else dict(self._withheld)
        return self._received.add_to(text)


class ChunkedAttempt(_TTSAttempt):
    """One attempt of a request that sends its whole text at once."""

    _began = False
    _refused_by_us = False

    def begin(self, *args: Any) -> None:
        """Open the leg with the whole text, before the request goes out."""
        text = TextUnits()
        text.add(self.stream._input_text)
        self._usage = text.usage()
        self._tally = self.describe(streaming=False)
        self._began = True
        if not self._tally.spend(self._usage, Basis.OBSERVED):
            self._refused_by_us = True
            self.end_for_budget()
        super().begin(*args)

    def audio_received(self) -> None:
        """Count audio."""
        self._tally.owe(self._received.add_to(dict(self._usage)), Basis.OBSERVED)

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg; a refused request cost nothing."""
        if not self._began:
            return
        if self._refused_by_us:  # never sent, and said so
            self._tally.stop(outcome, TextUnits().usage(), Basis.OBSERVED)
            return
        usage, basis = self._received.add_to(dict(self._usage)), Basis.OBSERVED
        tokens = self.tokens()
        if tokens:
            usage, basis = usage | tokens, Basis.REPORTED
        elif outcome is Outcome.FAILED and not self._received.something:
            if was_refused(error):
                usage = TextUnits().usage()
            else:
                basis = Basis.ESTIMATED  # nobody said whether it arrived
        self._tally.stop(self.outcome_of(outcome, self._tally), usage, basis)
