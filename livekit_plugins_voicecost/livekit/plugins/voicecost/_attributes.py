"""What a leg says of itself, read off a plugin: provider, model, host, options that cost more.

Plugins name these alike, but no base class holds them to it. What a plugin's own code raises when
it is asked is not known of the leg; the request is metered all the same.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from voicecost_ledger.records import LegAttributes, Modality


def option(stream: Any, component: Any, name: str) -> Any:
    """A plugin's option by its usual name: the stream's own copy, else the component's."""
    for holder in (stream, component):
        value = _read(_read(holder, "_opts"), name)
        if value is not None:
            return value
    return None


def _read(holder: Any, name: str) -> Any:
    """An attribute of a plugin's, or None: a property runs the plugin's code, which may raise."""
    try:
        return getattr(holder, name, None)
    except Exception:
        return None


def option_text(stream: Any, component: Any, name: str) -> str:
    """The same as text; empty where it is not given or no text."""
    return plain(option(stream, component, name))


def plain(value: Any) -> str:
    """A text as a `str` itself, whichever subclass or enum it is of; empty where it is no text.

    A record takes no other, and an enum's `str()` is its name.
    """
    return str.__str__(value) if isinstance(value, str) else ""


CLONED_VOICE: Final = "cloned"
"""What a leg says of a voice that has no name but a key."""


def voice_of(stream: Any, component: Any) -> str:
    """The voice that speaks: its name or id, empty where the plugin states none.

    Google's plugin keeps the message that it sends, which has the name in it, or the key of a
    cloned voice, which is a secret.
    """
    for name in ("voice", "voice_id", "voice_uuid"):
        voice = option(stream, component, name)
        said = plain(voice) or plain(_read(voice, "name"))
        if said:
            return said
        if _read(_read(voice, "voice_clone"), "voice_cloning_key"):
            return CLONED_VOICE
    return ""


_HOST_OPTIONS: Final = ("endpoint_url", "base_url", "ws_url", "api_url", "url")


def host_of(stream: Any, component: Any) -> str:
    """The host a plugin's requests go to, from its options or its client; empty when unknown."""
    for name in _HOST_OPTIONS:
        value = option_text(stream, component, name)
        if value:
            return _host(value)
    for holder in (stream, component):
        for value in (_read(_read(holder, "_client"), "base_url"), _read(holder, "_base_url")):
            if value is not None:
                return _host(str(value))
    return ""


def _host(url: str) -> str:
    """Host and, where it is stated, port: two gateways of one host may bill as two providers."""
    try:
        return urlsplit(url if "//" in url else f"//{url}").netloc.rpartition("@")[2].lower()
    except ValueError:  # no address at all: the plugin will be told so by its client
        return ""


def describe(
    stream: Any,
    component: Any,
    modality: Modality,
    *,
    model: str = "",
    language: str = "",
    voice: str = "",
    channel_count: int = 1,
    streaming: bool = True,
    service_tier: str = "",
) -> LegAttributes:
    """The attributes of a leg of this stream; `component` is the plugin's LLM, TTS or STT.

    What a plugin's own code raises here is not known of the leg; the request is metered all the
    same.
    """
    return LegAttributes(
        modality=modality,
        provider=name_of(component, "provider"),
        model=model or option_text(stream, component, "model") or name_of(component, "model"),
        label=name_of(component, "label"),
        host=host_of(stream, component),
        language=language,
        voice=voice,
        channel_count=channel_count,
        streaming=streaming,
        service_tier=service_tier,
        addons=_addons(stream, component) if modality is Modality.STT else (),
    )


_ADDONS: Final = {
    "keyterms": ("keyterm", "keyterms"),
    "redaction": ("redact",),
    "diarization": ("enable_diarization", "speaker_labels", "diarize"),
}
"""Options of recognition that providers bill apart, by the names that plugins have for them."""


def _addons(stream: Any, component: Any) -> tuple[str, ...]:
    """Which of them are on; LiveKit's session may switch key terms on by itself."""
    return tuple(
        addon
        for addon, names in _ADDONS.items()
        if any(option(stream, component, name) for name in names)
    )


def name_of(component: Any, name: str) -> str:
    """What a component calls its `provider`, `model` or `label`; empty where it says nothing."""
    return plain(_read(component, name))
