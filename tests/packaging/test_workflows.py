"""What runs on GitHub: each workflow is one that can run, and its commands are ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

ROOT: Final = Path(__file__).resolve().parents[2]
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
STALE: Final = ".venv/bin/voicecost prices --stale --strict"


def workflow(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load(ROOT / ".github" / "workflows" / name)


def steps(of: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in of["jobs"].values() for step in job["steps"]]


def commands(of: dict[str, Any]) -> list[str]:
    return [step["run"] for step in steps(of) if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_asks_for_little_and_says_which_actions_it_takes(path: Path) -> None:
    of = workflow(path.name)
    assert of["permissions"] == {"contents": "read"}
    for job in of["jobs"].values():
        assert job["timeout-minutes"] <= 60
        assert job.get("permissions", {}) in ({}, {"id-token": "write"})
    for step in steps(of):
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v[0-9]+", step["uses"])
    assert "secrets." not in path.read_text()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_a_workflow_runs_is_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(workflow(path.name)):
        program, *arguments = command.split()
        if program == "make":
            assert set(arguments) <= targets
        elif program.startswith(".ci/"):
            assert (ROOT / program).stat().st_mode & 0o100
        else:
            assert program in ("test", ".venv/bin/voicecost", ".venv/bin/python")


def test_stale_prices_fail_every_week_and_before_a_release() -> None:
    prices, release = workflow("prices.yml"), workflow("release.yml")
    assert re.fullmatch(r"\d+ \d+ \* \* [0-7]", prices["on"]["schedule"][0]["cron"])
    assert "workflow_dispatch" in prices["on"]
    assert release["on"] == {"push": {"tags": ["v*"]}}
    assert STALE in commands(prices)
    build = [step["run"] for step in release["jobs"]["build"]["steps"] if "run" in step]
    assert build.index(STALE) < build.index(".venv/bin/python -m build")
    assert release["jobs"]["publish"]["needs"] == "build"


def test_the_command_that_they_run_tells_stale_prices_from_a_mistake(tmp_path: Path) -> None:
    """1 where a price is stale, as on most days; 2 would be a command that is none of ours."""
    program = [str(Path(sys.executable).with_name("voicecost")), *STALE.split()[1:]]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    stale = re.search(r"^[0-9]+ rates on .*, ([0-9]+) of them not checked", done.stdout, re.M)
    assert stale is not None, done.stderr
    assert done.returncode == (1 if int(stale[1]) else 0)
