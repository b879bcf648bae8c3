"""Hold the plugin against the oldest and the newest livekit-agents that it claims to work with.

    python scripts/contract.py                  # the oldest supported version, then the newest
    python scripts/contract.py 1.6.0 newest     # these

The metering reads private names of LiveKit's. For each version an environment is kept in
`.venv-contract/`, with the provider plugins of the same version, and the tests run in it that
break first when such a name moves. The lower bound in `pyproject.toml` is the oldest one. A test
whose story an older LiveKit does not tell is skipped there, with the reason beside it.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
ENVIRONMENTS: Final = ROOT / ".venv-contract"
PLUGINS: Final = tuple(
    f"livekit-plugins-{name}"
    for name in (
        "anthropic",
        "assemblyai",
        "azure",
        "cartesia",
        "deepgram",
        "elevenlabs",
        "google",
        "groq",
        "openai",
        "resemble",
        "silero",
        "speechmatics",
        "turn-detector",
    )
)
# httpx: LiveKit 1.5 took it for granted that OpenAI's client brings it.
TOOLS: Final = ("httpx", "hypothesis", "pytest>=9", "pytest-asyncio>=1.2", "pytest-xdist>=3.8")
# What the plugins of an older LiveKit allow, and do not work with.
OLDER: Final = {"1.5.": ("anthropic<1",)}
# The longest first: two run at a time.
TESTS: Final = tuple(
    f"tests/plugin/test_{name}.py"
    for name in (
        "attribution",
        "endings_failures",
        "endings_turns",
        "tts_streaming",
        "tts_batch",
        "stt_streaming",
        "stt_recordings",
        "stt_unreported",
        "realtime_endings",
        "realtime_google",
        "moved_streams",
        "llm_providers",
        "llm_own",
        "legs_streams",
        "legs_budget",
        "legs_delegating",
        "legs_session",
        "endings_jobs",
        "endings_sessions",
        "endings_tools",
        "faults_reports",
        "moved_names",
        "moved_requests",
        "moved_services",
        "realtime_control",
        "realtime_estimates",
        "realtime_openai",
        "realtime_user_code",
        "realtime_voicecost",
        "services_local_calls",
        "user_code_nodes",
        "user_code_record_usage",
        "user_code_wrappers",
        "voicecost_budget",
        "voicecost_jobs",
        "voicecost_session",
    )
)
AT_A_TIME: Final = 2
# What an older LiveKit has nothing of: decisions, duplex models, avatars, detectors that hear.
LATER: Final = {"1.5.": ("tests/plugin/test_moved_services.py",)}
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


def _of(version: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What a table by the beginnings of versions has for this one."""
    return next((those for start, those in table.items() if version.startswith(start)), ())


def environment(version: str) -> Path:
    """The Python of an environment with that version installed, made or brought up to date.

    Raises:
        CalledProcessError: pip could not install it; it has said why.
    """
    folder = ENVIRONMENTS / version
    python, stamp = folder / "bin" / "python", folder / ".installed"
    pin = "" if version == NEWEST else f"=={version}"
    plugins = [f"{name}{pin}" for name in ("livekit-agents", *PLUGINS)]
    wanted = [*plugins, *_of(version, OLDER), *TOOLS]
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
    options = [
        "--quiet",
        "-p",
        "no:cacheprovider",
        # Google says of the Python that runs this how long it will support it.
        "-W",
        "ignore:You are using a Python version:FutureWarning",
        *arguments,
    ]

    def run_one(test: str) -> bool:
        """Run a file in a process of its own: an old LiveKit leaves sockets behind."""
        done = subprocess.run(
            [python, "-m", "pytest", *options, test],
            cwd=ROOT,
            env=os.environ | {"CI": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        summary = re.findall(r"^\d+ (?:passed|skipped).*$", done.stdout, re.MULTILINE)
        print(f"{test}: {done.stdout if done.returncode else summary[-1]}", flush=True)
        return done.returncode == 0

    later = _of(installed, LATER)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        return all(list(pool.map(run_one, [test for test in TESTS if test not in later])))


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
