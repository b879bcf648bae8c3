"""What a metering process needs, imported ahead of time: modules only, nothing is started.

LiveKit's forkserver imports the package that a registered plugin names, and every job process
forks from there. Ours names this module, so that a job neither pays for these imports in its first
moments nor keeps a copy of the prices of its own; `import livekit.plugins.voicecost` stays quick.
"""

from __future__ import annotations

import importlib
from typing import Final

_MODULES: Final = (
    "genai_prices.data",
    "livekit.plugins.voicecost",
    "livekit.plugins.voicecost._embedded",
)

for _name in _MODULES:
    importlib.import_module(_name)
