"""OpenAI's Realtime protocol, as LiveKit's plugins and those derived from them speak it.

Every raw event is seen, so also the reports that LiveKit drops: of responses that it discarded, of
those it had forgotten when an interruption raced with their end, and of those that end while the
session closes.

https://platform.openai.com/docs/api-reference/realtime-server-events
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from voicecost_ledger.records import Basis, Modality, Outcome

from ._instrument_attempts import Tally
from ._realtime_prompt import IMAGE_TOKENS, ITEM_TOKENS, Prompt, Scale, Size, text_tokens
from ._realtime_session import Response, SessionLegs, settle
from ._reports import believed
from ._text_weight import TOKEN, RunningWeight

USER_TOKEN_MS: Final = 100
ASSISTANT_TOKEN_MS: Final = 50
"""https://developers.openai.com/api/docs/guides/realtime-costs"""
_BYTES_PER_MS: Final = 48  # 16-bit mono at 24 kHz, which is all that the plugin asks for
_DELTAS_AT_ONCE: Final = 4  # of an answer are estimated together while every limit is far
_SPOKEN_TOKENS_PER_S: Final = 3  # of a transcript that nobody has seen
_AHEAD_S: Final = 0.5  # generated, and perhaps billed, before a disconnect is noticed
_OUTPUT_OFF: Final = 0.1


class _OpenAIResponse(Response):
    """A response, and what was seen of it."""

    __slots__ = (
        "audio_bytes",
        "client_event_id",
        "deltas",
        "item_ids",
        "prompt",
        "prompt_margins",
        "scale",
        "snapshot",
        "started_ns",
        "surfaced",
        "text",
    )

    def __init__(
        self, response_id: str, client_event_id: str | None, prompt: Prompt, scale: Scale
    ) -> None:
        super().__init__(response_id)
        self.scale = scale
        self.client_event_id = client_event_id
        self.prompt = prompt.estimate()
        self.prompt_margins = prompt.margins()
        self.snapshot = prompt.snapshot()
        self.item_ids: list[str] = []
        self.audio_bytes = 0
        self.text = RunningWeight()
        self.deltas = 0
        self.surfaced = False  # whether LiveKit passed it on; it discards some
        self.started_ns = time.monotonic_ns()

    def guess(self) -> Size:
        """Its output so far, counted as the guide says."""
        audio_ms = self.audio_bytes // _BYTES_PER_MS
        return Size(text=-(-self.text.value // TOKEN), audio=-(-audio_ms // ASSISTANT_TOKEN_MS))

    def said(self) -> Size:
        """The same as this model counts, as far as its reports have shown that."""
        return self.scale.apply(self.guess())

    def usage(self) -> dict[str, int]:
        """All of it so far, as estimated."""
        said = self.said()
        return self.prompt | {"output_tokens": said.total, "output_audio_tokens": said.audio}


class OpenAIRealtime:
    """Follows one session's events."""

    def __init__(self, legs: SessionLegs) -> None:
        self._legs = legs
        self._prompt = Prompt()
        self._scale = Scale()
        self._open: dict[str, _OpenAIResponse] = {}
        self._output_items: set[str] = set()  # of the responses that are open
        self._asked: dict[str, Any] = {}  # client event id to SpeechHandle
        self._last: _OpenAIResponse | None = None
        self._buffer_ms = 0
        self._commits_ms: deque[int] = deque()  # asked for, and not confirmed yet
        self._speech_from_ms: dict[str, int] = {}
        self._speech_ms: dict[str, int] = {}
        self._transcription_model = ""
        self._transcriptions: dict[str, Tally] = {}
        self._on_client: dict[str, Callable[[dict[str, Any]], None]] = {
            "session.update": self._session_update,
            "input_audio_buffer.append": self._audio_appended,
            "input_audio_buffer.clear": self._buffer_cleared,
            "input_audio_buffer.commit": self._commit_asked,
        }
        deltas: dict[str, Callable[[dict[str, Any]], None]] = {}
        for name, take in (
            ("audio", self._audio_delta),
            ("audio_transcript", self._text_delta),
            ("text", self._text_delta),
        ):
            deltas[f"response.output_{name}.delta"] = take
            deltas[f"response.{name}.delta"] = take  # before general availability
        self._on_server: dict[str, Callable[[dict[str, Any]], None]] = deltas | {
            "response.function_call_arguments.delta": self._text_delta,
            "session.created": self._session_updated,
            "session.updated": self._session_updated,
            "input_audio_buffer.speech_started": self._speech_started,
            "input_audio_buffer.speech_stopped": self._speech_stopped,
            "input_audio_buffer.committed": self._committed,
            "error": self._refused,
            "conversation.item.added": self._item_added,
            "conversation.item.created": self._item_added,  # before general availability
            "conversation.item.deleted": self._item_deleted,
            "conversation.item.truncated": self._item_truncated,
            "response.created": self._response_created,
            "response.output_item.added": self._output_item_added,
            "response.done": self._response_done,
            f"{_TRANSCRIPTION}.delta": self._transcript_delta,
            f"{_TRANSCRIPTION}.completed": self._transcript_completed,
            f"{_TRANSCRIPTION}.failed": self._transcript_failed,
        }

    # ---- what is seen ----------------------------------------------------------------------------

    def sent(self, event: dict[str, Any]) -> None:
        """The plugin is about to send this."""
        take = self._on_client.get(event.get("type", ""))
        if take is not None:
            take(event)

    def received(self, event: dict[str, Any]) -> None:
        """The provider sent this."""
        kind = event.get("type", "")
        if self._waiting is not None and kind != "response.created":
            self._begin(self._waiting, None)  # LiveKit did not pass it on: it is discarded
        take = self._on_server.get(kind)
        if take is not None:
            take(event)

    def response_created(self, response_id: str, speech: Any) -> None:
        """See `WireProtocol`."""
        response = self._open.get(response_id)
        if response is not None:
            response.surfaced = True
            if response is self._waiting:
                asked = self._asked.pop(response.client_event_id or "", None)
                self._begin(response, asked or speech)

    def reply_asked(self, future: asyncio.Future[Any], speech: Any) -> None:
        """See `WireProtocol`."""
        pending: Mapping[str, Any] = getattr(self._legs.session, _PENDING, {})
        for event_id, waiting in pending.items():
            if waiting is future:
                self._asked[event_id] = speech
                future.add_done_callback(functools.partial(self._no_longer_asked, event_id))
                return

    def _no_longer_asked(self, event_id: str, _: asyncio.Future[Any]) -> None:
        self._asked.pop(event_id, None)

    def estimate(self) -> dict[str, int]:
        """See `WireProtocol`."""
        return self._prompt.estimate() | {"output_tokens": 0}

    def closed(self) -> None:
        """See `WireProtocol`."""
        self.disconnected(Outcome.INTERRUPTED)

    def disconnected(self, outcome: Outcome) -> None:
        """The connection is gone, and every report that had not come by now."""
        if self._waiting is not None:
            self._begin(self._waiting, None)
        for response in tuple(self._open.values()):
            ended = outcome if response.surfaced else Outcome.DISCARDED
            margins = self._margins(response)
            self._legs.settle(response, ended, response.usage(), Basis.ESTIMATED, margins)
        for tally in tuple(self._transcriptions.values()):
            tally.stop(outcome)  # the provider has the sound, and does the work
        self._open.clear()
        self._output_items.clear()
        self._transcriptions.clear()
        self._speech_from_ms.clear()
        self._speech_ms.clear()
        self._commits_ms.clear()
        self._buffer_ms = 0
        self._prompt.restart()

    # ---- responses -------------------------------------------------------------------------------

    _waiting: _OpenAIResponse | None = None
    """Created, and its leg not opened: LiveKit is about to say whose speech it is."""

    def _response_created(self, event: dict[str, Any]) -> None:
        if self._waiting is not None:
            self._begin(self._waiting, None)
        made = event["response"]
        client_event_id = _part(made, "metadata").get("client_event_id")
        response = _OpenAIResponse(str(made["id"]), client_event_id, self._prompt, self._scale)
        self._open[response.id] = self._waiting = response

    def _begin(self, response: _OpenAIResponse, speech: Any) -> None:
        self._waiting = None
        self._legs.begin(response, speech, response.usage(), self._margins(response))

    def _response_of(self, event: dict[str, Any]) -> _OpenAIResponse | None:
        return self._open.get(event.get("response_id", ""))

    def _output_item_added(self, event: dict[str, Any]) -> None:
        response = self._response_of(event)
        if response is None:
            return
        item = event["item"]
        response.item_ids.append(item["id"])
        self._output_items.add(item["id"])
        if item.get("name"):
            response.text.add(item["name"])

    def _audio_delta(self, event: dict[str, Any]) -> None:
        response = self._response_of(event)
        if response is not None:
            response.audio_bytes += len(event["delta"]) * 3 // 4  # base64
            self._grown(response)

    def _text_delta(self, event: dict[str, Any]) -> None:
        response = self._response_of(event)
        if response is not None:
            response.text.add(event["delta"])
            self._grown(response)

    def _grown(self, response: _OpenAIResponse) -> None:
        tally = response.tally
        if tally is None:
            return
        tally.first_answer()
        response.deltas += 1
        if response.deltas % _DELTAS_AT_ONCE and tally.leg is not None and tally.leg.may_lag():
            return
        self._legs.grow(response, response.usage(), self._margins(response))

    def _response_done(self, event: dict[str, Any]) -> None:
        done = event["response"]
        response = self._open.pop(str(done["id"]), None)
        if response is None and self._last is not None and self._last.id == done["id"]:
            response = self._last  # said again
        if response is None:  # its creation was not seen
            response = _OpenAIResponse(str(done["id"]), None, self._prompt, self._scale)
            response.surfaced = True
        self._last = response
        self._output_items.difference_update(response.item_ids)
        outcome = _OUTCOMES.get(done.get("status"), Outcome.SERVED)
        if not response.surfaced and outcome is not Outcome.FAILED:
            outcome = Outcome.DISCARDED
        units = _units(_part(done, "usage"))
        if units is not None:
            self._legs.settle(response, outcome, units, Basis.REPORTED)
            said = Size(
                units["output_tokens"] - units["output_audio_tokens"],
                units["output_audio_tokens"],
            )
            read = _read(units)
            if outcome is Outcome.SERVED and response.tally is not None:
                self._scale.learn(response.guess(), said)
            self._prompt.reported(response.snapshot, read, units["cached_input_tokens"], said)
            for item_id in response.item_ids[::-1]:  # the last one counts for all of them
                self._prompt.knew(item_id, said)
                said = Size()
        elif outcome is Outcome.FAILED:  # by the provider's own fault, and it counts nothing
            nothing = dict.fromkeys(response.usage(), 0)
            self._legs.settle(response, outcome, nothing, Basis.OBSERVED)
        else:
            margins = self._margins(response)
            self._legs.settle(response, outcome, response.usage(), Basis.ESTIMATED, margins)

    def _margins(self, response: _OpenAIResponse) -> dict[str, int]:
        said = response.said()
        elapsed_s = max(0.1, (time.monotonic_ns() - response.started_ns) / 1e9)
        ahead = _AHEAD_S / elapsed_s + _OUTPUT_OFF
        return response.prompt_margins | {
            "output_tokens": 2 + int(said.total * ahead),
            "output_audio_tokens": 1 + int(said.audio * ahead) if said.audio else 0,
        }

    # ---- the conversation ------------------------------------------------------------------------

    def _session_update(self, event: dict[str, Any]) -> None:
        session = event["session"]
        if session.get("instructions") is not None:
            self._prompt.instruct(session["instructions"])
        if session.get("tools") is not None:
            self._prompt.offer(session["tools"])

    def _session_updated(self, event: dict[str, Any]) -> None:
        session = event["session"]
        transcription = _part(_part(_part(session, "audio"), "input"), "transcription")
        # Before general availability it was elsewhere.
        transcription = transcription or _part(session, "input_audio_transcription")
        self._transcription_model = str(transcription.get("model") or "")

    def _item_added(self, event: dict[str, Any]) -> None:
        item = event["item"]
        item_id = item["id"]
        if item_id in self._output_items or self._prompt.knows(item_id):
            return
        if item.get("role") == "assistant" and self._open and item.get("status") == "in_progress":
            return  # of a response: part of its output
        size = Size(text=ITEM_TOKENS)
        for part in item.get("content") or ():
            text = part.get("text") or part.get("transcript")
            if text:
                size = size.plus(Size(text=text_tokens(text)))
            elif part.get("type") == "input_image":
                size = size.plus(Size(image=IMAGE_TOKENS))
        if item.get("type") == "message" and item.get("role") == "user":
            audio_ms = self._speech_ms.pop(item_id, 0)
            size = size.plus(Size(audio=-(-audio_ms // USER_TOKEN_MS)))
        for key in ("name", "arguments", "output"):
            if item.get(key):
                size = size.plus(Size(text=text_tokens(str(item[key]))))
        self._prompt.put(item_id, size)

    def _item_deleted(self, event: dict[str, Any]) -> None:
        self._prompt.drop(event["item_id"])

    def _item_truncated(self, event: dict[str, Any]) -> None:
        """What the caller did not hear goes, and the whole transcript with it."""
        item_id = event["item_id"]
        if self._prompt.knows(item_id):
            audio = -(-int(event.get("audio_end_ms", 0)) // ASSISTANT_TOKEN_MS)
            self._prompt.put(item_id, Size(text=ITEM_TOKENS, audio=audio))

    # ---- what the user says ----------------------------------------------------------------------

    def _audio_appended(self, event: dict[str, Any]) -> None:
        self._buffer_ms += len(event["audio"]) * 3 // 4 // _BYTES_PER_MS

    def _buffer_cleared(self, event: dict[str, Any]) -> None:
        self._buffer_ms = 0

    def _commit_asked(self, event: dict[str, Any]) -> None:
        self._commits_ms.append(self._buffer_ms)
        self._buffer_ms = 0

    def _refused(self, event: dict[str, Any]) -> None:
        if _part(event, "error").get("code") == _COMMIT_EMPTY and self._commits_ms:
            self._buffer_ms += self._commits_ms.popleft()

    def _speech_started(self, event: dict[str, Any]) -> None:
        self._speech_from_ms[event["item_id"]] = int(event["audio_start_ms"])

    def _speech_stopped(self, event: dict[str, Any]) -> None:
        from_ms = self._speech_from_ms.pop(event["item_id"], None)
        if from_ms is not None:
            self._speech_ms[event["item_id"]] = max(0, int(event["audio_end_ms"]) - from_ms)

    def _committed(self, event: dict[str, Any]) -> None:
        item_id = event["item_id"]
        if item_id not in self._speech_ms and self._commits_ms:
            self._speech_ms[item_id] = self._commits_ms.popleft()
        else:  # the provider's own commit, where it heard a pause
            self._speech_ms.setdefault(item_id, self._buffer_ms)
            self._buffer_ms = 0
        audio_ms = self._speech_ms[item_id]
        if not self._transcription_model:
            return
        attributes = self._legs.describe(Modality.STT, self._transcription_model)
        tally = self._legs.tally(attributes)
        audio = -(-audio_ms // USER_TOKEN_MS)
        usage = {
            "audio_ms": audio_ms,
            "input_tokens": audio,
            "input_audio_tokens": audio,
            "output_tokens": audio_ms * _SPOKEN_TOKENS_PER_S // 1000,
        }
        tally.margins = {
            "audio_ms": USER_TOKEN_MS,
            "input_tokens": 2 + audio // 10,
            "input_audio_tokens": 2 + audio // 10,
            "output_tokens": 2 + usage["output_tokens"],
        }
        tally.owe(usage, Basis.ESTIMATED)
        self._transcriptions[item_id] = tally

    def _transcript_delta(self, event: dict[str, Any]) -> None:
        tally = self._transcriptions.get(event["item_id"])
        if tally is not None:
            tally.first_answer()

    def _transcript_completed(self, event: dict[str, Any]) -> None:
        if event.get("status") == "in_progress":  # xAI sends what it has so far as completed
            return
        tally = self._transcriptions.pop(event["item_id"], None)
        usage = _part(event, "usage")
        if tally is None:
            if not usage:
                return
            model = self._transcription_model or self._asked_transcription_model()
            tally = self._legs.tally(self._legs.describe(Modality.STT, model))
        tally.first_answer()
        units = _transcription_units(usage)
        if units is None:
            tally.stop(Outcome.SERVED)
        elif "audio_ms" in tally.usage:
            observed = {"audio_ms": tally.usage["audio_ms"]}
            tally.stop(Outcome.SERVED, observed | units, Basis.REPORTED)
        else:
            tally.stop(Outcome.SERVED, units, Basis.REPORTED)

    def _asked_transcription_model(self) -> str:
        """What the plugin was told to ask for, where the provider did not confirm it."""
        options = getattr(self._legs.session, "_opts", None)
        model = getattr(getattr(options, "input_audio_transcription", None), "model", None)
        return model if isinstance(model, str) else ""

    def _transcript_failed(self, event: dict[str, Any]) -> None:
        tally = self._transcriptions.pop(event["item_id"], None)
        if tally is not None:
            settle(tally, Outcome.FAILED, dict.fromkeys(tally.usage, 0), Basis.OBSERVED)


_PENDING: Final = "_response_created_futures"  # the plugin's, by client event id
_COMMIT_EMPTY: Final = "input_audio_buffer_commit_empty"
_TRANSCRIPTION: Final = "conversation.item.input_audio_transcription"
_OUTCOMES: Final = {"cancelled": Outcome.INTERRUPTED, "failed": Outcome.FAILED}


def _units(usage: Mapping[str, Any]) -> dict[str, int] | None:
    """The units of a `response.done`'s usage: totals include what is cached, audio and images.

    None where it says nothing, or nothing that can be believed.
    """
    read = _part(usage, "input_token_details")
    said = _part(usage, "output_token_details")
    cached = _part(read, "cached_tokens_details")
    return believed({
        "input_tokens": _int(usage, "input_tokens"),
        "cached_input_tokens": _int(read, "cached_tokens"),
        "input_audio_tokens": _int(read, "audio_tokens"),
        "cached_input_audio_tokens": _int(cached, "audio_tokens"),
        "input_image_tokens": _int(read, "image_tokens"),
        "cached_input_image_tokens": _int(cached, "image_tokens"),
        "output_tokens": _int(usage, "output_tokens"),
        "output_audio_tokens": _int(said, "audio_tokens"),
    })  # fmt: skip


def _read(units: Mapping[str, int]) -> Size:
    audio, image = units["input_audio_tokens"], units["input_image_tokens"]
    return Size(max(0, units["input_tokens"] - audio - image), audio, image)


def _transcription_units(usage: Mapping[str, Any]) -> dict[str, int] | None:
    """The units of a transcription's usage, by time or by token; None where it says neither."""
    seconds = usage.get("seconds")
    if usage.get("type") == "duration" or (seconds is not None and "input_tokens" not in usage):
        return believed({"audio_ms": round(float(seconds or 0) * 1000)})
    return believed({
        "input_tokens": _int(usage, "input_tokens"),
        "input_audio_tokens": _int(_part(usage, "input_token_details"), "audio_tokens"),
        "output_tokens": _int(usage, "output_tokens"),
    })  # fmt: skip


def _part(whole: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object within an event; empty where it is missing or null."""
    part = whole.get(name)
    return cast("dict[str, Any]", part) if isinstance(part, dict) else {}


def _int(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return int(value) if isinstance(value, int | float) else 0
