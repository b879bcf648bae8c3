"""Where the `voicecost.yaml` of an agent, a sidecar or a command is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DEFAULT_CONFIG_FILE: Final = Path("voicecost.yaml")


def config_file(environ: Mapping[str, str] | None = None) -> Path | None:
    """The file that `VOICECOST_CONFIG` names, there or not; else the one in the working directory.

    None where there is none: that is found out in microseconds, for every agent asks.
    """
    environ = os.environ if environ is None else environ
    named = environ.get("VOICECOST_CONFIG", "").strip()
    if named:
        return Path(named)
    return DEFAULT_CONFIG_FILE if os.path.isfile(DEFAULT_CONFIG_FILE) else None
