"""Names of one model: a short one that people use, a dated one that the provider answers with."""

from __future__ import annotations

import re
from typing import Final

_VENDORS: Final = {"xai": "x-ai"}  # what people and LiveKit call them, where we do not
# Names that people use and no provider's API knows.
_SHORT_NAMES: Final = {("groq", "llama-3.3-70b"): "llama-3.3-70b-versatile"}
_SNAPSHOT: Final = re.compile(r"[-@.:](?:20\d{2}-?[01]\d-?[0-3]\d|v?\d{3,4}|latest|preview)$")


def vendor_id(name: str) -> str:
    """Our id of a vendor by the name that people have for it."""
    return _VENDORS.get(name.lower(), name.lower())


def vendor_and_models(name: str) -> tuple[str, tuple[str, ...]]:
    """The vendor of a model as people name it, and the model: what follows a colon may be a voice.

    `deepgram/nova-3`, `ollama/qwen2.5:7b`; the whole name comes first.
    """
    vendor, _, model = name.strip().partition("/")
    return vendor_id(vendor), tuple(dict.fromkeys(filter(None, (model, model.partition(":")[0]))))


def full_name(provider: str, model: str) -> str:
    """The provider's own name of a model that people call by a shorter one."""
    return _SHORT_NAMES.get((provider, model.lower()), model)


def same_model(asked: str, served: str) -> bool:
    """Whether both name one model: one may name the host's path to it, or its dated snapshot.

    "gpt-4o-mini" is served as "gpt-4o-mini-2024-07-18", "openai/gpt-4o" as "gpt-4o".
    """
    one, other = _bare(asked), _bare(served)
    return one == other or not other


def _bare(model: str) -> str:
    return _SNAPSHOT.sub("", model.lower().rpartition("/")[2])
