"""Names of one model: a short one that people use, a dated one that the provider answers with."""

from __future__ import annotations

import re
from typing import Final

# Names that people use and no provider's API knows.
_SHORT_NAMES: Final = {("groq", "llama-3.3-70b"): "llama-3.3-70b-versatile"}
_SNAPSHOT: Final = re.compile(r"[-@.:](?:20\d{2}-?[01]\d-?[0-3]\d|v?\d{3,4}|latest|preview)$")


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
