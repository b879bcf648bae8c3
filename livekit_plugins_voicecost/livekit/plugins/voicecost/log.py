"""The plugin's logger. Messages name kinds and counts: agent logs are uploaded with recordings."""

from __future__ import annotations

import logging

logger = logging.getLogger("livekit.plugins.voicecost")
