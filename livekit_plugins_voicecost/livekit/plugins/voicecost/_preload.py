"""What a metering process needs, loaded ahead of time: modules and prices, nothing is started.

LiveKit's forkserver imports the package that a registered plugin names, and every job process
forks from there. Ours names this module, so that a job neither pays for these imports in its first
moments nor keeps a copy of the prices of its own; `import livekit.plugins.voicecost` stays quick.
"""

from __future__ import annotations

import importlib
from typing import Final

from voicecost_catalog.rows import load_rows

_MODULES: Final = (
    "genai_prices.data",
    "livekit.plugins.voicecost",
    "livekit.plugins.voicecost._embedded",
)

for _name in _MODULES:
    importlib.import_module(_name)
load_rows()
