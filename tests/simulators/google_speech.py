"""Simulates Google Cloud Speech-to-Text's streaming recognition over gRPC, and its bill.

Wire: `google.cloud.speech.v2.Speech/StreamingRecognize` and `google.cloud.speech.v1.Speech/
StreamingRecognize`, https://cloud.google.com/speech-to-text/v2/docs/reference/rpc/google.cloud.speech.v2
(the first request has the configuration, the others audio; a response has results or a speech
event). Served by a real gRPC server on loopback; a client library takes a channel to it.

Billing rule: the audio received, silence included, per channel, in steps of a second
(https://cloud.google.com/speech-to-text/pricing), here to the millisecond: `audio_ms`. What is
charged for a stream that is cancelled or dies is not said; we assume what was received.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import grpc
from google.cloud.speech_v1.types import cloud_speech as v1
from google.cloud.speech_v2.types import cloud_speech as v2

from .bill import Bill, BillRow, Ending
from .hearing import Heard, Hearing
from .script import Faults

_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GoogleSpeechSimulator:
    """Google Cloud Speech, both versions of its API.

    Args:
        transcripts: What the caller's stretches of speech mean, in order, over all streams.
        bill: Where to keep the bill; its own by default.
        pause_ms: Shortest silence that ends a stretch of speech.
    """

    def __init__(
        self, *, transcripts: Iterable[str] = (), bill: Bill | None = None, pause_ms: int = 300
    ) -> None:
        self.bill = bill or Bill()
        self.transcripts = deque(transcripts)
        self.pause_ms = pause_ms
        self.faults = Faults()
        self.target = ""
        """Where it listens, `127.0.0.1:PORT`, for a channel without TLS."""
        self._server: Any = None

    async def __aenter__(self) -> Self:
        """Serve on a free port."""
        self._server = server = grpc.aio.server()
        for name, types in (("v1", v1), ("v2", v2)):
            handler = grpc.stream_stream_rpc_method_handler(
                self._recognize,
                request_deserializer=types.StreamingRecognizeRequest.deserialize,
                response_serializer=types.StreamingRecognizeResponse.serialize,
            )
            methods = {"StreamingRecognize": handler}
            service = grpc.method_handlers_generic_handler(
                f"google.cloud.speech.{name}.Speech", methods
            )
            server.add_generic_rpc_handlers((service,))
        self.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; the bill stays readable."""
        await self._server.stop(None)

    async def _recognize(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        first = await anext(requests)
        is_v2 = isinstance(first, v2.StreamingRecognizeRequest)
        types: Any = v2 if is_v2 else v1
        config = first.streaming_config.config
        decoding = config.explicit_decoding_config if is_v2 else config
        fault = self.faults.take()
        row = self.bill.open(
            provider="google",
            service="stt",
            model=config.model,
            request_id=str(uuid.uuid4()),
            units={"audio_ms": 0},
            attributes={"channels": decoding.audio_channel_count or 1},
        )
        if fault is not None and fault.status is not None:
            self.bill.close(row, "refused")
            await context.abort(_STATUS[fault.status], "The provider was told to refuse this.")
        hearing = Hearing(
            self.transcripts, sample_rate=decoding.sample_rate_hertz, pause_ms=self.pause_ms
        )
        opened_ns = time.monotonic_ns()
        ended: Ending = "cancelled"
        byte_count = 0
        try:
            async for request in requests:
                audio = request.audio if is_v2 else request.audio_content
                byte_count += len(audio)
                row.units["audio_ms"] = byte_count // 2 * 1000 // decoding.sample_rate_hertz
                if fault is not None and fault.silent:
                    continue
                if fault is not None and row.units["audio_ms"] >= (fault.dies_after or 0):
                    ended = "died"
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "The service went away.")
                for heard in hearing.hear(audio):
                    for response in _responses(types, heard, row):
                        yield response
            heard = hearing.finish()
            if heard is not None:
                for response in _responses(types, heard, row):
                    yield response
            ended = "completed"
        finally:
            row.connected_ms = (time.monotonic_ns() - opened_ns) // 1_000_000
            self.bill.close(row, ended)


def _responses(types: Any, heard: Heard, row: BillRow) -> Iterable[Any]:
    response, is_v2 = types.StreamingRecognizeResponse, types is v2
    events = response.SpeechEventType
    if heard.kind == "began":
        return [response(speech_event_type=events.SPEECH_ACTIVITY_BEGIN)]
    words: list[Any] = []
    for word, from_ms, until_ms in heard.timed_words():
        start, end = timedelta(milliseconds=from_ms), timedelta(milliseconds=until_ms)
        times = (
            {"start_offset": start, "end_offset": end}
            if is_v2
            else {"start_time": start, "end_time": end}
        )
        words.append(types.WordInfo(word=word, confidence=0.97, **times))
    alternative = types.SpeechRecognitionAlternative(
        transcript=heard.text, confidence=0.97, words=words
    )
    end_offset = timedelta(milliseconds=heard.until_ms)
    time = {"result_end_offset": end_offset} if is_v2 else {"result_end_time": end_offset}
    result = types.StreamingRecognitionResult(
        alternatives=[alternative], is_final=heard.kind == "ended", language_code="en-US", **time
    )
    answers = [response(results=[result])]
    if heard.kind == "ended":
        answers.append(response(speech_event_type=events.SPEECH_ACTIVITY_END))
    return answers
