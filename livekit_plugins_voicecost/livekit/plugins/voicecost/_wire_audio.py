"""Where the messages of an STT protocol carry billed audio."""

from __future__ import annotations

from typing import Final

# By the module of the plugin's STT: binary messages are 16-bit linear PCM at the stream's rate.
PCM_PROTOCOLS: Final = frozenset(
    {"livekit.plugins.deepgram.stt", "livekit.plugins.deepgram.stt_v2"}
)
