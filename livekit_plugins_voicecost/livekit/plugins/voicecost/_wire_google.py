"""Google's google-genai client: generated content that streams, of Gemini and of Vertex AI.

Every chunk tells what was used so far. Thoughts are counted beside the candidates' tokens, and
what tools of Google's brought is input beside the prompt's.
https://ai.google.dev/api/generate-content#UsageMetadata
https://ai.google.dev/gemini-api/docs/thinking#pricing
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from . import _faults
from ._wire import observer
from ._wire_answers import AnswerObserver, ObservedEvents, Undo, count, field, replace_method, show


def observe_google_clients() -> Undo:
    """Show the answers that Google's client receives to their attempt; returns the undo."""
    from google.genai.models import AsyncModels

    # The private ones make one request each; the public ones may make several.
    streams = "_generate_content_stream"
    whole = "_generate_content"
    undos = [
        replace_method(AsyncModels, streams, _observed_stream),
        replace_method(AsyncModels, whole, _observed_content),
    ]

    def undo() -> None:
        for each in undos:
            each()

    return undo


def _observed_stream(generate: Callable[..., Any]) -> Callable[..., Any]:
    async def generate_observed(self: Any, *args: Any, **kwargs: Any) -> Any:
        chunks = await generate(self, *args, **kwargs)
        seen_by = observer()
        try:
            answer = seen_by.answer_observed() if seen_by is not None else None
            if answer is not None:
                return ObservedEvents(chunks, ContentReader(), answer)
        except Exception as error:
            _faults.count("llm_stream", error)
        return chunks

    return generate_observed


def _observed_content(generate: Callable[..., Any]) -> Callable[..., Any]:
    async def generate_observed(self: Any, *args: Any, **kwargs: Any) -> Any:
        content = await generate(self, *args, **kwargs)
        seen_by = observer()
        try:
            answer = seen_by.answer_observed() if seen_by is not None else None
            if answer is not None:
                show(content, ContentReader(), answer)
        except Exception as error:
            _faults.count("llm_stream", error)
        return content

    return generate_observed


class ContentReader:
    """Reads the chunks of one answer."""

    def __init__(self) -> None:
        self._search_count = 0
        self._model = ""

    def __call__(self, chunk: Any, answer: AnswerObserver) -> None:
        """Read one chunk."""
        ended = chunk.prompt_feedback is not None
        self._model = chunk.model_version or self._model
        for candidate in chunk.candidates or ():
            ended = ended or candidate.finish_reason is not None
            self._count_searches(candidate)
            content = candidate.content
            for part in (content.parts if content is not None else None) or ():
                _read_part(part, answer)
        usage = chunk.usage_metadata
        answer.served_by(self._model, _tier(field(usage, "traffic_type")))
        if usage is not None:
            units = _usage(usage)
            units["requests"] = self._search_count
            answer.report(units, final=ended)

    def _count_searches(self, candidate: Any) -> None:
        """Searches are billed one by one from Gemini 3 on, before that by the answer.

        https://ai.google.dev/gemini-api/docs/google-search#pricing
        """
        queries = field(field(candidate, "grounding_metadata"), "web_search_queries")
        if queries:
            by_answer = _BILLED_BY_ANSWER.search(self._model)
            self._search_count = max(self._search_count, 1 if by_answer else len(queries))


_BILLED_BY_ANSWER: Final = re.compile(r"gemini-[12](\.\d+)?-")


def _read_part(part: Any, answer: AnswerObserver) -> None:
    call = part.function_call
    if call is not None:
        # As JSON: the shape in which tool calls are counted everywhere.
        arguments = msgspec.json.encode(call.args or {}, enc_hook=str)
        answer.call(call.name or "", arguments.decode())
    elif part.text:
        if part.thought:
            answer.thought(part.text)
        else:
            answer.prose(part.text)


def _usage(usage: Any) -> dict[str, int]:
    input_tokens = count(usage.prompt_token_count) + count(usage.tool_use_prompt_token_count)
    thoughts = count(usage.thoughts_token_count)
    answered = count(usage.candidates_token_count)
    cached_of, said_in = usage.cache_tokens_details, usage.candidates_tokens_details
    read = usage.prompt_tokens_details
    return {
        "input_tokens": input_tokens,
        "cached_input_tokens": count(usage.cached_content_token_count),
        # The first chunks may tell the total and not yet the candidates'.
        "output_tokens": max(answered + thoughts, count(usage.total_token_count) - input_tokens),
        "reasoning_tokens": thoughts,
        "input_audio_tokens": _of(read, "AUDIO"),
        "cached_input_audio_tokens": _of(cached_of, "AUDIO"),
        "input_image_tokens": _of(read, "IMAGE") + _of(read, "VIDEO"),
        "cached_input_image_tokens": _of(cached_of, "IMAGE") + _of(cached_of, "VIDEO"),
        "output_audio_tokens": _of(said_in, "AUDIO"),
    }


def _of(details: Any, modality: str) -> int:
    """Tokens of one modality, named by an enum or by its word."""
    return sum(
        count(each.token_count)
        for each in details or ()
        if getattr(each.modality, "value", each.modality) == modality
    )


def _tier(traffic_type: Any) -> str:
    """Vertex AI's word for how the request was served, as a service tier; empty where plain."""
    word = str(getattr(traffic_type, "value", traffic_type) or "").lower()
    return word.removeprefix("on_demand").removeprefix("_")
