"""The demo's exit code: what was broken counts, and what was skipped counts in CI."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from examples.demo.promises import Promises
from scripts import tools


@pytest.fixture
def promises() -> Promises:
    return Promises(Console(file=io.StringIO()))


def test_all_kept_is_success(promises: Promises) -> None:
    promises.check("the caller heard the agent", True)

    assert promises.exit_code == 0


def test_one_broken_is_failure(promises: Promises) -> None:
    promises.check("the caller heard the agent", True)
    promises.check("the room is gone", False)

    assert promises.exit_code == 1
    assert promises.broken == ["the room is gone"]


@pytest.mark.parametrize(("ci", "exit_code"), [("true", 1), ("", 0)])
def test_what_was_skipped_fails_in_ci_alone(
    promises: Promises, monkeypatch: pytest.MonkeyPatch, ci: str, exit_code: int
) -> None:
    monkeypatch.setenv("CI", ci)
    promises.skip("the room is gone", "no livekit-server")

    assert promises.exit_code == exit_code


def test_a_missing_tool_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither livekit-server nor Go is there: the remedy names both ways out."""
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(tools, "TOOLS", empty)

    assert tools.find_livekit_server() is None
    with pytest.raises(tools.ToolMissingError, match=r"no Go to build it.*on PATH.*install Go"):
        tools.livekit_server()


def test_a_failed_build_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, built = tmp_path_factory.mktemp("path"), tmp_path_factory.mktemp("tools")
    go = path / "go"
    go.write_text("#!/bin/sh\necho 'no route to host' >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(tools, "TOOLS", built)
    said: list[str] = []

    with pytest.raises(tools.ToolMissingError, match="no route to host"):
        tools.livekit_server(said.append)

    assert len(said) == 1
    assert list(built.iterdir()) == []
