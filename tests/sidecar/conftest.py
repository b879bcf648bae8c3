"""A sidecar for a test, and a LiveKit beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sidecar.running import RunningSidecar, running_sidecar
from tests.sidecar.simulated_livekit import SimulatedLiveKit, simulated_livekit


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[RunningSidecar]:
    """A sidecar that only webhooks and agents tell anything."""
    with running_sidecar(tmp_path) as running:
        yield running


@pytest.fixture
def livekit() -> Iterator[SimulatedLiveKit]:
    """A room service that does what the test says."""
    with simulated_livekit() as simulated:
        yield simulated
