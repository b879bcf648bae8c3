"""One stage for all room tests: a real livekit-server, simulated providers, a real worker."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from examples.demo.stage import Stage
from scripts.tools import find_livekit_server


@pytest.fixture(scope="session")
def livekit_server_binary() -> Path:
    """The livekit-server program; `make test` builds it beforehand."""
    binary = find_livekit_server()
    if binary is None:
        reason = "no livekit-server: put it on PATH, or run `python scripts/tools.py` (needs Go)"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"{reason} (with CI=true this is a failure)")
        pytest.skip(reason)
    return binary


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stage(
    tmp_path_factory: pytest.TempPathFactory, livekit_server_binary: Path
) -> AsyncGenerator[Stage]:
    """Everything a call needs, shared by all tests: each plays in a room of its own."""
    async with Stage(tmp_path_factory.mktemp("stage"), livekit_server_binary) as stage:
        yield stage
