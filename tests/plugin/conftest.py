"""What every test of the plugin leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from livekit.plugins.voicecost import _attribution


@pytest.fixture(autouse=True)
def no_meter_of_another_test() -> Iterator[None]:
    """The meter of a session that a test left open would be one more that a request may be of."""
    yield
    for session in list(_attribution._registry.meters):
        _attribution.unregister(session)
