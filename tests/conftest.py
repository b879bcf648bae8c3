"""What every test gets: nothing of the developer's machine, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A slow machine is no failure, and a run can be repeated: the same examples every time.
settings.register_profile(
    "voicecost", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("voicecost")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The room tests share one stage, so one process runs them all."""
    for item in items:
        if item.get_closest_marker("room") is not None:
            item.add_marker(pytest.mark.xdist_group("room"))


@pytest.fixture(autouse=True)
def own_environment(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """No setting of the person who runs the tests reaches them, and no test reaches their ledger.

    Returns:
        The empty folder under which platformdirs now finds its state, data and config folders.
    """
    for name in list(os.environ):
        if name.startswith(("VOICECOST_", "LIVEKIT_")):
            monkeypatch.delenv(name)
    # What is contained in a live call fails a test; a test of the containing takes this away.
    monkeypatch.setenv("VOICECOST_RAISE_FAULTS", "1")
    home = tmp_path_factory.mktemp("home")
    for variable, folder in (
        ("XDG_STATE_HOME", "state"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_CONFIG_HOME", "config"),
    ):
        monkeypatch.setenv(variable, str(home / folder))
    return home
