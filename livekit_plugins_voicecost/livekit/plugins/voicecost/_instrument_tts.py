"""TTS legs: one per attempt that was given text, exact where the wire protocol is known.

What a streaming provider was given is counted from the best source there is:

1. the messages on the wire, of a protocol that `_wire_text` knows;
2. the words or sentences that the plugin takes out of LiveKit's tokenizers: it sends what it takes
   there, with a blank after each, and nothing of what still waits for the end of a sentence;
3. the text that the plugin takes from its input.

The last two are estimates, which say by how much they may be off.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, Final

from voicecost_ledger.records import Basis, Outcome

from . import _faults, _speech_tokens, _wire
from ._attributes import option_text
from ._instrument_attempts import Tally, was_refused
from ._instrument_speech import SpeechAttempt
from ._instrument_tokenizers import TokenObserver
from ._text_units import TextUnits
from ._wire_text import BODY_PROTOCOLS, TEXT_PROTOCOLS, TextProtocol, known_by

_SENTENCE_ENDS: Final = ".!?\u3002\uff01\uff1f\n"
_OPENAI: Final = frozenset({"livekit.plugins.openai.tts"})
_TOKEN_MODELS: Final = "gpt-"
"""OpenAI bills tts-1 and tts-1-hd by characters, and all later voices by tokens:
https://platform.openai.com/docs/pricing. Other servers that speak its protocol report or do not."""
_tokenizing: weakref.WeakSet[type[Any]] = weakref.WeakSet()
"""Classes of streams that were seen to take what they send from a tokenizer."""


class SynthesizeAttempt(SpeechAttempt, TokenObserver):
    """One attempt of a stream that is given text bit by bit.

    The leg opens with the first text, before that is handed over.
    """

    _withheld: dict[str, int] | None = None

    def begin(self, *args: Any) -> None:
        """Watch what is taken, sent and received. A retry has another input: read here."""
        stream = self.stream
        self._tally_made: Tally | None = None
        self._taken = TextUnits()
        self._tokens = TextUnits()
        self._sent = TextUnits()
        self._protocol: TextProtocol | None = (
            known_by(stream._tts, TEXT_PROTOCOLS) if _wire.websockets_observed() else None
        )
        # What the provider was given, as well as we know.
        self._text = self._sent if self._protocol is not None else self._unsent()
        self._tokenizes = False
        self._token_count = 0
        self._unsure = 0  # characters that may wait in the plugin
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

    def named(self, context_id: str) -> None:
        """Messages that name this id are ours, also where another's task sends them."""
        if self._protocol is not None and self._protocol.is_shared:
            _wire.claim(context_id, self)

    def text_sending(self, connection: object, payload: str) -> None:
        """Count the text of a known protocol, recorded before it is sent."""
        if self._protocol is None:
            return
        text = self._protocol.text_of(payload)
        if text:
            self.requests_itself()
            self._given(self._sent, text)

    def text_unsent(self, connection: object, payload: str) -> None:
        """The connection was gone: the provider has not seen it."""
        if self._protocol is not None and not self._finished:
            self._sent.take_back(self._protocol.text_of(payload))
            self._record()

    def tokenizing(self) -> None:
        """The plugin asks a tokenizer for what to send next."""
        if not self._tokenizes:
            self._tokenizes = True
            self._unsure = 0  # what was taken waits in the tokenizer
            stream: Any = self.stream
            _tokenizing.add(stream.__class__)
            if self._text is self._taken:
                self._text = self._tokens
                self._record()

    def token_taken(self, token: str) -> None:
        """The plugin took this from its tokenizer, to send it."""
        self._token_count += 1
        self._unsure = len(token) + 1
        self._given(self._tokens, f"{token} ")

    def audio_received(self) -> None:
        """Count audio; audio without text on the wire means that the protocol has changed."""
        if self._text is not self._taken and not self._text.characters and self._taken.characters:
            if self._text is self._sent:
                _faults.count("tts_protocol_unknown")
            self._protocol = None
            self._text = self._tokens if self._tokens.characters else self._taken
        if self._something:
            self._tally.first_answer()
        self._record()

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg; an attempt that was never given text has none."""
        source: Any = getattr(self, "_input", None)
        if source is not None:
            source.__dict__.pop("recv_nowait", None)
        self._stop_observing_token_reports()
        self._finished = True
        self._ended = outcome
        served = outcome is Outcome.SERVED  # then nothing of it can be queued any more
        if self._protocol is not None and self._protocol.is_shared and not served:
            _wire.await_queued(self)
        text = self._text
        had_text = self._taken.characters or getattr(self.stream, "_pushed_text", "")
        is_open = self._tally_made is not None  # by text that was not sent after all
        if not text.characters and not is_open and not (had_text and outcome is Outcome.FAILED):
            return  # the provider was given nothing, and did not fail at it either
        tally = self._tally
        usage, basis, margins = self._usage(), self._basis, {}
        if basis is Basis.ESTIMATED:
            if outcome is Outcome.SERVED and not self._tokenizes:
                basis = Basis.OBSERVED  # it ran to its end: whatever it took, it sent
            else:
                margins = self._text_margins(outcome)
        tokens = self.tokens()
        if tokens:
            usage, basis, margins = usage | tokens, Basis.REPORTED, {}
        elif text is not self._sent and was_refused(error) and not self._something:
            usage, basis, margins = TextUnits().usage(), Basis.OBSERVED, {}
        elif outcome is Outcome.SERVED:
            self.learn(text)
        elif self.goes_on(outcome, error):
            margins |= self.generates_on(usage, text.characters)
            basis = Basis.ESTIMATED
        tally.margins = margins
        tally.stop(self.outcome_of(outcome, tally), usage, basis)
        self._compare(tally)

    def _compare(self, tally: Tally) -> None:
        asked = len(getattr(self.stream, "_pushed_text", ""))
        self.compare(tally, self._ended, self._text, self._taken, asked)

    def settle(self) -> None:
        """Text left for the provider, or audio was decoded, after the run had ended."""
        if not self._finished:
            return
        tally = self._tally_made
        if tally is not None:
            tally.usage = tally.usage | self._usage()
            if tally.leg is not None:
                tally.leg.correct(tally.usage)
            self._compare(tally)
        elif self._text.characters:  # until now it had been given nothing
            tally = self._tally
            tally.margins = self._text_margins(self._ended)
            tally.stop(self.outcome_of(self._ended, tally), self._usage(), self._basis)
            self._compare(tally)

    def _unsent(self) -> TextUnits:
        """Where nobody sees what is sent: what a plugin takes from its tokenizer, if it has one."""
        return self._tokens if type(self.stream) in _tokenizing else self._taken

    @property
    def _basis(self) -> Basis:
        return Basis.OBSERVED if self._text is self._sent else Basis.ESTIMATED

    def _text_margins(self, outcome: Outcome) -> dict[str, int]:
        """By how much the text may be off that nobody saw being sent."""
        # A blank that is not added, or one more, for each piece; and the last one may not be sent.
        margin = self._token_count + (0 if outcome is Outcome.SERVED else self._unsure)
        return {"characters": margin, "utf8_bytes": margin}

    def _text_taken(self, text: str) -> None:
        if not self._tokenizes:
            end = max(map(text.rfind, _SENTENCE_ENDS))
            self._unsure = len(text) - 1 - end if end >= 0 else self._unsure + len(text)
        self._given(self._taken, text)

    def _given(self, source: TextUnits, text: str) -> None:
        """Count text by one source; the best one is what the leg has."""
        if source is not self._text:
            source.add(text)
            return
        if self.cut:
            raise asyncio.CancelledError("voicecost: nothing more leaves for the provider")
        source.add(text)
        if self._finished:  # the plugin still had it queued for a connection that streams share
            self.settle()
            return
        tally, basis = self._tally, self._basis
        if basis is Basis.ESTIMATED:
            tally.margins = self._text_margins(Outcome.INTERRUPTED)
        if not tally.spend(self._usage(), basis, ahead=True):
            # It is not handed over, so it is not counted.
            self._withheld = tally.usage or TextUnits().usage()
            self.end_for_budget()

    @property
    def _tally(self) -> Tally:
        if self._tally_made is None:
            self._tally_made = self.describe(streaming=True)
        return self._tally_made

    def _record(self) -> None:
        if self._text.characters or self._tally_made is not None:
            self._tally.owe(self._usage(), self._basis)

    def _usage(self) -> dict[str, int]:
        return self.with_audio(
            self._text.usage() if self._withheld is None else dict(self._withheld)
        )


class ChunkedAttempt(SpeechAttempt):
    """One attempt of a request that sends its whole text at once."""

    _began = False
    _refused_by_us = False
    _tally_made: Tally | None = None

    def begin(self, *args: Any) -> None:
        """Open the leg with the whole text, before the request goes out."""
        self._text = TextUnits()
        self._text.add(self.stream._input_text)
        component = self.stream._tts
        self._body_text: Callable[[str], str] | None = known_by(component, BODY_PROTOCOLS)
        # A voice that is billed by tokens reads how it shall speak, too.
        manner = option_text(self.stream, component, "instructions")
        self._prompt = f"{manner}\n{self.stream._input_text}" if manner else self.stream._input_text
        self._read: _speech_tokens.Estimate | None = None  # weighing a text takes its time
        super().begin(*args)
        self._bills_tokens = _speech_tokens.reports_tokens(self._voice) or (
            known_by(component, _OPENAI) is not None and self._voice[1].startswith(_TOKEN_MODELS)
        )
        self._tally_made = self.describe(streaming=False)
        self._began = True
        self._spend()

    def request_sending(self, url: str, body: str) -> None:
        """What is billed of a request that is more than its text."""
        if self._body_text is not None and body:
            self.requests_itself()
            self._text = TextUnits()
            self._text.add(self._body_text(body))
            self._spend()

    def audio_received(self) -> None:
        """Count audio."""
        if self._something:
            self._tally.first_answer()
        usage, margins = self._estimated()
        basis = Basis.ESTIMATED if margins else Basis.OBSERVED
        self._tally.margins = margins
        if self._bills_tokens and not self.cut and not self._tally.spend(usage, basis):
            self._tally.owe(usage, basis)  # this much has been made
            self.end_for_budget()
        self._tally.owe(usage, basis)

    def finish(self, outcome: Outcome, error: BaseException | None) -> None:
        """Settle the leg; a refused request cost nothing."""
        self._stop_observing_token_reports()
        if not self._began:
            return
        self._finished = True
        tally = self._tally
        if self._refused_by_us:  # never sent, and said so
            tally.stop(outcome, TextUnits().usage(), Basis.OBSERVED)
            self._compare(outcome)
            return
        usage, margins = self._estimated()
        basis = Basis.ESTIMATED if margins else Basis.OBSERVED
        tokens = self.tokens()
        if tokens:
            usage |= tokens
            margins = {unit: margins[unit] for unit in margins.keys() - tokens.keys()}
            basis = Basis.ESTIMATED if margins else Basis.REPORTED
            if outcome is Outcome.SERVED and "output_tokens" in tokens:
                _speech_tokens.learn_tokens(
                    self._voice,
                    self._prompt,
                    self._received.audio_ms,
                    input_tokens=tokens.get("input_tokens", 0),
                    output_tokens=tokens["output_tokens"],
                )
        elif not self._something and was_refused(error):  # or was never sent
            usage, basis, margins = TextUnits().usage(), Basis.OBSERVED, {}
        elif outcome is Outcome.FAILED and not self._something:
            basis = Basis.ESTIMATED  # nobody said whether it arrived
            margins |= self._text.usage()
        elif self._bills_audio:
            if outcome is Outcome.SERVED:
                self.learn(self._text)
            else:
                margins |= self.generates_on(usage, self._text.characters)
                basis = Basis.ESTIMATED
        tally.margins = margins
        tally.stop(self.outcome_of(outcome, tally), usage, basis)
        self._compare(outcome)

    def _compare(self, outcome: Outcome) -> None:
        asked = TextUnits()
        asked.add(self.stream._input_text)
        self.compare(self._tally, outcome, self._text, asked, asked.characters)

    def settle(self) -> None:
        """The audio was decoded after the run had ended."""
        if self._finished and self._received.audio_ms and not self._refused_by_us:
            tally = self._tally
            tally.usage = self.with_audio(dict(tally.usage))
            if tally.leg is not None:
                tally.leg.correct(tally.usage)

    def _spend(self) -> None:
        usage, margins = self._estimated()
        self._tally.margins = margins
        if not self._tally.spend(usage, Basis.ESTIMATED if margins else Basis.OBSERVED):
            self._refused_by_us = True
            self.end_for_budget()

    def _estimated(self) -> tuple[dict[str, int], dict[str, int]]:
        """What was used so far, and by how much the tokens in it may be off, where it has some."""
        usage = self.with_audio(self._text.usage())
        if not self._bills_tokens:
            return usage, {}
        if self._read is None:
            self._read = _speech_tokens.input_tokens_of(self._voice, self._prompt)
        made = _speech_tokens.output_tokens_of(self._voice, self._received.audio_ms)
        usage["input_tokens"] = self._read.quantity
        usage["output_tokens"] = usage["output_audio_tokens"] = made.quantity
        return usage, {
            "input_tokens": self._read.margin,
            "output_tokens": made.margin,
            "output_audio_tokens": made.margin,
        }

    @property
    def _tally(self) -> Tally:
        assert self._tally_made is not None, "it is made before the request is"
        return self._tally_made
