"""What a user gets from `pip install livekit-plugins-voicecost`, installed for real."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment that holds the base distribution, and one provider plugin of LiveKit's."""

    bin: Path
    site_packages: Path
    elsewhere: Path  # a folder from which nothing of the source tree can be imported

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / program, *arguments],
            cwd=self.elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )

    def evaluate(self, code: str) -> object:
        """What `code` prints as JSON."""
        done = self.run("python", "-W", "error", "-c", code)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment that was empty; the versions are those of constraints.txt."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [environment / "bin" / "python", *install, str(wheel), "livekit-plugins-deepgram"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"pip could not install into an empty environment:\n{done.stderr}"
    (site_packages,) = environment.glob("lib/python*/site-packages")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Installed(environment / "bin", site_packages, elsewhere)


def test_importing_the_plugin_registers_it_with_livekit(installed: Installed) -> None:
    code = """
import json
import livekit.plugins.voicecost
from livekit.agents import Plugin
print(json.dumps([p.title for p in Plugin.registered_plugins]))
"""
    assert installed.evaluate(code) == ["livekit.plugins.voicecost"]


def test_livekits_own_namespaces_stay_importable(installed: Installed) -> None:
    """We put modules under `livekit.plugins`; LiveKit's and the providers' live there too."""
    code = """
import json
import livekit.plugins.voicecost
import livekit.agents, livekit.rtc, livekit.api
from livekit.plugins import deepgram
from livekit.plugins.deepgram import STT
print(json.dumps(STT.__module__.split(".")[:3]))
"""
    assert installed.evaluate(code) == ["livekit", "plugins", "deepgram"]
    for namespace in ("livekit", "livekit/plugins"):
        assert not (installed.site_packages / namespace / "__init__.py").exists()


def test_the_plugin_does_not_bring_the_web_stack(installed: Installed) -> None:
    """An agent process pays for metering only; the sidecar's extra is not its business."""
    code = """
import importlib.util, json
print(json.dumps([n for n in ("litestar", "uvicorn") if importlib.util.find_spec(n)]))
"""
    assert installed.evaluate(code) == []


def test_the_command_line_works_without_the_sidecar_extra(installed: Installed) -> None:
    done = installed.run("voicecost", "--help")
    assert done.returncode == 0, done.stderr
    for command in ("serve", "calls", "call", "costs", "init"):
        assert command in done.stdout


def test_the_ledger_can_be_read_without_the_sidecar_extra(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent's embedded ledger needs no more than the agent has."""
    code = """
import json, pathlib, sys
from voicecost_ledger.stores.sqlite import SqliteStore
SqliteStore.open(pathlib.Path(sys.argv[1])).close()
print(json.dumps("made"))
"""
    ledger = tmp_path / "ledger.db"
    made = installed.run("python", "-W", "error", "-c", code, str(ledger))
    assert made.returncode == 0, made.stderr
    monkeypatch.setenv("VOICECOST_DATABASE_URL", f"sqlite:///{ledger}")
    done = installed.run("voicecost", "calls", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["calls"] == []


def test_serve_without_its_extra_says_what_to_install(installed: Installed) -> None:
    done = installed.run("voicecost", "serve")
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert "livekit-plugins-voicecost[sidecar]" in said
    assert "Traceback" not in said


def test_the_wheel_holds_what_the_source_tree_holds(wheel: Path) -> None:
    """Data files and `py.typed` too, and nothing of the tests; the price book works installed."""
    shipped = set(zipfile.ZipFile(wheel).namelist())
    roots = ("livekit_plugins_voicecost", "ledger", "catalog", "sidecar")
    tracked = subprocess.run(
        ["git", "ls-files", "--", *roots], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    assert tracked, "this test compares the wheel with what git tracks: run it in a clone"
    sources = {path.partition("/")[2] for path in tracked}
    assert {path for path in sources if "/" in path} <= shipped  # a root's own README stays
    for package in ("livekit/plugins/voicecost", *(f"voicecost_{root}" for root in roots[1:])):
        assert f"{package}/py.typed" in shipped
    assert not [name for name in shipped if name.startswith(("tests", "examples"))]
    assert not shipped & {"livekit/__init__.py", "livekit/plugins/__init__.py"}


def test_the_wheel_names_its_licence_and_its_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "License-Expression: Apache-2.0" in metadata
    for line in ("Provides-Extra: sidecar", "Provides-Extra: all"):
        assert line in metadata.splitlines()


def test_the_sdist_holds_licence_and_changelog(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "README.md", "pyproject.toml"} <= names
