"""The faults that were contained, where whoever runs the agents looks: at LiveKit's own metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from livekit.agents.telemetry.http_server import HttpServer
from prometheus_client import REGISTRY

from livekit.plugins.voicecost import _faults

METRIC = "voicecost_meter_faults_total"


async def scraped() -> dict[str, float]:
    """What LiveKit's worker answers at its `prometheus_port`: our faults, by kind."""
    server = HttpServer("127.0.0.1", 0)
    await server.start()
    try:
        url = f"http://127.0.0.1:{server.port}/metrics"
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            lines = (await response.text()).splitlines()
    finally:
        await server.aclose()
    rows = [line.rpartition(" ") for line in lines if line.startswith(f"{METRIC}{{")]
    return {name.removeprefix(f'{METRIC}{{kind="')[:-2]: float(value) for name, _, value in rows}


async def test_a_fault_is_counted_by_its_kind_in_livekits_metrics() -> None:
    before = REGISTRY.get_sample_value(METRIC, {"kind": "llm_chunk"}) or 0
    _faults.count("llm_chunk")
    _faults.count("llm_chunk")
    assert (await scraped())["llm_chunk"] == before + 2


def a_job_has_a_fault(multiproc_dir: Path) -> None:
    fault = "from livekit.plugins.voicecost import _faults; _faults.count('tts_text')"
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(multiproc_dir)}
    subprocess.run([sys.executable, "-c", fault], env=environment, check=True)


async def test_the_faults_of_job_processes_are_summed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with LiveKit's `prometheus_multiproc_dir`: jobs run in processes of their own."""
    for _ in range(2):
        a_job_has_a_fault(tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    assert await scraped() == {"tts_text": 2}


def test_a_metric_that_cannot_be_kept_does_not_keep_a_fault_from_being_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_faults, "_expose", full)
    before = _faults.counts().get("checkpoint", 0)
    _faults.count("checkpoint")
    assert _faults.counts()["checkpoint"] == before + 1
