"""Find or build the tools that pip cannot install: today that is `livekit-server`.

    python scripts/tools.py            # find it, build it if need be, print its path
    python scripts/tools.py --find     # never build; exit 1 when there is none

`make demo` and `make test` both come here, so one build serves both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
TOOLS: Final = ROOT / ".tools"
LIVEKIT_SERVER_VERSION: Final = "v1.13.5"
_LIVEKIT_SERVER_PACKAGE: Final = (
    f"github.com/livekit/livekit-server/cmd/server@{LIVEKIT_SERVER_VERSION}"
)
_REMEDY: Final = (
    f"put livekit-server {LIVEKIT_SERVER_VERSION} on PATH (https://docs.livekit.io/home/self-hosting/),"
    " or install Go (https://go.dev/dl/) and run this again"
)


class ToolMissingError(Exception):
    """A tool is not there and could not be built.

    Attributes:
        tool: Its name.
        reason: Why it is not there.
        remedy: What to do about it.
    """

    def __init__(self, tool: str, reason: str, remedy: str) -> None:
        super().__init__(f"{tool}: {reason}; {remedy}")
        self.tool = tool
        self.reason = reason
        self.remedy = remedy


def find_livekit_server() -> Path | None:
    """The `livekit-server` on PATH, else the one built earlier into `.tools`, else None."""
    on_path = shutil.which("livekit-server")
    if on_path:
        return Path(on_path)
    built = TOOLS / "livekit-server"
    return built if os.access(built, os.X_OK) else None


def livekit_server(say: Callable[[str], None] = lambda line: None) -> Path:
    """The path of a `livekit-server`, building the pinned version when there is none.

    Args:
        say: Is told, once, that a build of some minutes begins.

    Raises:
        ToolMissingError: It is not on PATH, and there is no Go or the build failed.
    """
    found = find_livekit_server()
    if found is not None:
        return found
    go = shutil.which("go")
    if go is None:
        raise ToolMissingError(
            "livekit-server", "it is not on PATH, and there is no Go to build it with", _REMEDY
        )
    say(f"building livekit-server {LIVEKIT_SERVER_VERSION} into .tools: some minutes, once")
    TOOLS.mkdir(exist_ok=True)
    # Its own folder, then a rename: a build that is broken off leaves nothing that looks whole,
    # and two builds at once do not meet.
    with tempfile.TemporaryDirectory(dir=TOOLS, prefix="build-") as folder:
        build = subprocess.run(
            [go, "install", _LIVEKIT_SERVER_PACKAGE],
            env=os.environ | {"GOBIN": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        if build.returncode != 0:
            last = (build.stderr.strip().splitlines() or ["no output"])[-1]
            raise ToolMissingError(
                "livekit-server", f"`go install` of it failed with {last!r}", _REMEDY
            )
        built = TOOLS / "livekit-server"
        (Path(folder) / "server").replace(built)
    return built


def main() -> int:
    """Print the path of `livekit-server`; the exit code says whether there is one."""
    parser = argparse.ArgumentParser(description="Find livekit-server, or build it.")
    parser.add_argument("--find", action="store_true", help="never build")
    if parser.parse_args().find:
        found = find_livekit_server()
        sys.stdout.write(f"{found}\n" if found else "")
        return 0 if found else 1
    try:
        path = livekit_server(say=lambda line: print(line, file=sys.stderr, flush=True))
    except ToolMissingError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
