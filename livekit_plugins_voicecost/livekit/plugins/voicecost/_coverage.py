"""Turns that cost something no leg shows: a custom `llm_node`, a speech model without legs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from livekit.agents import AgentSession, ConversationItemAddedEvent
from livekit.agents.llm import ChatMessage

from voicecost_ledger.records import Modality

TURN_WITHOUT_LLM: Final = "turn_without_llm"
AUDIO_WITHOUT_TTS: Final = "audio_without_tts"
TRANSCRIPT_WITHOUT_STT: Final = "transcript_without_stt"


_SPEECHES_MAX: Final = 16
"""Speeches that have had a turn, and may have another: a call may have thousands."""
_QUEUED_MAX: Final = 64
"""Speeches whose turn may still come: an agent may be given a list of things to say at once."""


class _Seen(msgspec.Struct):
    """Legs of one modality: those of a known speech, and how many others await their turn."""

    speech_ids: dict[str, bool] = msgspec.field(default_factory=dict[str, bool])
    """The latest last; whether their turn has come."""
    unclaimed: int = 0

    def note(self, speech_id: str) -> None:
        """A leg of this speech was opened."""
        known = self.speech_ids
        known.pop(speech_id, None)
        known[speech_id] = False
        if len(known) > _SPEECHES_MAX:
            had_its_turn = next((each for each, had in known.items() if had), None)
            if had_its_turn is not None:
                del known[had_its_turn]
            elif len(known) > _QUEUED_MAX:
                del known[next(iter(known))]

    def claim(self, speech_id: str | None) -> bool:
        """Whether a leg explains the turn of this speech."""
        if speech_id is not None and speech_id in self.speech_ids:
            self.speech_ids[speech_id] = True
            return True
        if self.unclaimed == 0:
            return False
        self.unclaimed -= 1
        return True


class Turns:
    """Compares LiveKit's own account of each assistant message with the legs that were seen.

    A message's metrics say whether an LLM node and a TTS node produced it (`session.say` has no
    LLM, audio that the application plays has no TTS), so either without a leg is a gap.
    """

    def __init__(self) -> None:
        kinds = (Modality.LLM, Modality.REALTIME, Modality.TTS)
        self._seen = {each: _Seen() for each in kinds}
        self._connected = False  # to a realtime model: a duplex one's turns are no legs
        self._recordings = 0  # of STT legs that no transcript has come from yet

    def leg_opened(self, modality: Modality, speech_id: str | None) -> None:
        """Note a leg; `speech_id` None when it was opened outside of a speech's own tasks."""
        if modality is Modality.STT:
            self._recordings += 1
        seen = self._seen.get(modality)
        if seen is None:
            return
        if speech_id is None:
            seen.unclaimed += 1
            self._connected |= modality is Modality.REALTIME
        else:
            seen.note(speech_id)

    def transcript_gaps(self, *, heard: bool) -> Iterable[tuple[str, Modality]]:
        """The (reason, modality) of a final transcript.

        Args:
            heard: Whether a connection is open that may have heard it. A whole recording's leg is
                over before its transcript is told.
        """
        if not heard and self._recordings == 0:
            yield TRANSCRIPT_WITHOUT_STT, Modality.STT
        self._recordings = 0

    def gaps(
        self, session: AgentSession[Any], event: ConversationItemAddedEvent
    ) -> Iterable[tuple[str, Modality]]:
        """The (reason, modality) of each service that this message used unseen."""
        message = event.item
        if not isinstance(message, ChatMessage) or message.role != "assistant":
            return
        speech = session.current_speech
        speech_id = None if speech is None else speech.id
        # A realtime model's turns report no LLM node; they name the response they were.
        if "llm_node_ttft" in message.metrics:
            if not self._seen[Modality.LLM].claim(speech_id):
                yield TURN_WITHOUT_LLM, Modality.LLM
        elif "provider_request_ids" in message.metrics:
            duplex = _is_duplex(session) and self._connected
            if not duplex and not self._seen[Modality.REALTIME].claim(speech_id):
                yield TURN_WITHOUT_LLM, Modality.REALTIME
        if "tts_node_ttfb" in message.metrics and not self._seen[Modality.TTS].claim(speech_id):
            yield AUDIO_WITHOUT_TTS, Modality.TTS


def _is_duplex(session: AgentSession[Any]) -> bool:
    """Whether the speaking agent's model listens and speaks at once, in no turns of its own."""
    typed_in_part: Any = session
    try:
        own = typed_in_part.current_agent.llm  # "not given" is falsy: then the session's is used
    except RuntimeError:
        own = None
    return hasattr(own or typed_in_part.llm, "duplex_model")
