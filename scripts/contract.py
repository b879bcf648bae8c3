"""Hold the plugin against the oldest and the newest livekit-agents that it claims to work with.

    python scripts/contract.py                  # the oldest supported version, then the newest
    python scripts/contract.py 1.6.0 newest     # these

The metering reads private names of LiveKit's. For each version an environment is kept in
`.venv-contract/`, with the provider plugins of the same version, and the tests run in it that
break first when such a name moves. The lower bound in `pyproject.toml` is the oldest one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENTS: Final = ROOT / ".venv-contract"
PLUGINS: Final = ("livekit-plugins-openai", "livekit-plugins-deepgram")
# httpx: LiveKit 1.5 took it for granted that OpenAI's client brings it.
TOOLS: Final = ("httpx", "hypothesis", "pytest>=9", "pytest-asyncio>=1.2", "pytest-xdist>=3.8")
TESTS: Final = tuple(
    f"tests/plugin/test_{name}.py"
    for name in (
        "attribution",
        "endings_sessions",
        "endings_tools",
        "endings_turns",
        "faults_reports",
        "legs_budget",
        "legs_delegating",
        "legs_session",
        "legs_streams",
        "moved_names",
        "user_code_nodes",
        "user_code_record_usage",
        "user_code_wrappers",
        "voicecost_budget",
        "voicecost_jobs",
        "voicecost_session",
    )
)
_TURNS: Final = "tests/plugin/test_endings_turns.py"
# What an older LiveKit does in another way than the test's story has it: no matter of metering.
OTHER_STORIES: Final = {
    # 1.5 begins to speak a preemptive generation before it throws it away.
    "1.5.": (
        "tests/plugin/test_endings_turns.py::test_a_preemptive_generation_that_is_thrown_away",
    ),
}
NEWEST: Final = "newest"


def oldest_supported() -> str:
    """The version that `livekit-agents>=` names in `pyproject.toml`."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies: list[str] = tomllib.load(file)["project"]["dependencies"]
    for dependency in dependencies:
        found = re.match(r"livekit-agents>=([\w.]+)", dependency)
        if found:
            return found[1]
    raise SystemExit("contract: pyproject.toml names no livekit-agents>= among its dependencies")


def environment(version: str) -> Path:
    """The Python of an environment with that version installed, made or brought up to date.

    Raises:
        CalledProcessError: pip could not install it; it has said why.
    """
    folder = ENVIRONMENTS / version
    python, stamp = folder / "bin" / "python", folder / ".installed"
    pin = "" if version == NEWEST else f"=={version}"
    wanted = [*(f"{name}{pin}" for name in ("livekit-agents", *PLUGINS)), *TOOLS]
    needed = (ROOT / "pyproject.toml").read_bytes() + " ".join(wanted).encode()
    digest = hashlib.sha256(needed).hexdigest()
    if version != NEWEST and stamp.exists() and stamp.read_text() == digest:
        return python
    if not python.exists():
        print(f"contract: a new environment in {folder.relative_to(ROOT)}: a minute or two")
        venv.create(folder, with_pip=True)
    # All at once: what pip installs is what a user of that version gets.
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--upgrade", *wanted, "-e", ROOT],
        check=True,
    )
    stamp.write_text(digest)
    return python


def run(version: str, arguments: Sequence[str]) -> bool:
    """Run the contract tests on a version; whether they passed."""
    python = environment(version)
    show = "import livekit.agents as a; print(a.__version__)"
    installed = subprocess.run(
        [python, "-c", show], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    print(f"contract: livekit-agents {installed} ({version})", flush=True)
    stories = [
        f"--deselect={test}"
        for beginning, tests in OTHER_STORIES.items()
        if installed.startswith(beginning)
        for test in tests
    ]
    options = ["--quiet", "-p", "no:cacheprovider", *stories, *arguments]
    passed = True
    for test in TESTS:  # each in a process of its own: an old LiveKit leaves sockets behind
        command = [python, "-m", "pytest", *options, test]
        passed &= subprocess.run(command, cwd=ROOT, env=os.environ | {"CI": "1"}).returncode == 0
    return passed


def main() -> int:
    """Run the contract on the versions asked for."""
    parser = argparse.ArgumentParser(description="Contract tests against livekit-agents.")
    parser.add_argument(
        "versions", nargs="*", help=f"versions, or {NEWEST!r}; default: the oldest and the newest"
    )
    known, for_pytest = parser.parse_known_args()
    versions = known.versions or [oldest_supported(), NEWEST]
    failed = [version for version in versions if not run(version, for_pytest)]
    if failed:
        print(f"contract: failed on {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
