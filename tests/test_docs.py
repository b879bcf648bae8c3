"""The documents are true: what can be set, called or asked is in them, and nothing else is."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer.core
import typer.main

import livekit.plugins.voicecost as plugin
from voicecost_ledger import protocol
from voicecost_sidecar import cli
from voicecost_sidecar.config import Config, ConfigError, load_config
from voicecost_sidecar.server import Sidecar

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = ("livekit_plugins_voicecost", "ledger", "catalog", "sidecar")
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("catalog/*.md"),
        *ROOT.glob("tests/**/*.md"),
    )
)
REFERENCE = ROOT / "docs" / "reference"


def text_of(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(language: str) -> Iterator[Any]:
    """The code blocks in that language, as pytest parameters named after page and line."""
    for page in PAGES:
        text = text_of(page)
        for block in re.finditer(rf"```{language}\n(.*?)```", text, re.DOTALL):
            line = text.count("\n", 0, block.start()) + 1
            yield pytest.param(block[1], id=f"{page}:{line}")


def first_cells(page: Path) -> set[str]:
    """What stands in backticks in the first column of the page's tables."""
    rows = [line.split("|")[1] for line in text_of(page).splitlines() if line.startswith("|")]
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


# ---- settings ----------------------------------------------------------------------------------


def test_every_environment_variable_is_documented_and_every_documented_one_is_read() -> None:
    pattern = re.compile(r"\bVOICECOST_[A-Z][A-Z_]*[A-Z]\b")
    read = {
        name
        for root in SOURCE_ROOTS
        for file in (ROOT / root).rglob("*.py")
        for name in pattern.findall(file.read_text(encoding="utf-8"))
    }
    documented = {
        name for name in first_cells(REFERENCE / "configuration.md") if name.startswith("VOICECOST")
    }
    assert documented == read


def test_every_key_of_the_configuration_file_is_documented(tmp_path: Path) -> None:
    """The keys are asked of the configuration itself: what it allows is what it tells."""

    def allowed(path: str, file_text: str) -> set[str]:
        file = tmp_path / "voicecost.yaml"
        file.write_text(file_text)
        with pytest.raises(ConfigError, match="unknown key: allowed here are") as caught:
            load_config(file, environ={})
        return {path + key for key in str(caught.value).rpartition(" are ")[2].split(", ")}

    keys = allowed("", "no_such_key: 1")
    keys |= allowed("livekit.", "livekit: {no_such_key: 1}")
    keys |= allowed("projects.ID.", "projects: {shop: {no_such_key: 1}}")
    keys |= allowed("prices.", "prices: {no_such_key: 1}")
    currency = "prices: {display_currency: {no_such_key: 1}}"
    keys |= allowed("prices.display_currency.", currency)
    keys |= allowed("billing.", "billing: {no_such_key: 1}")
    keys |= allowed("billing.projects.ID.", "billing: {projects: {shop: {no_such_key: 1}}}")
    keys |= allowed("billing.tenants.ID.", "billing: {tenants: {acme: {no_such_key: 1}}}")
    documented = {
        name
        for name in first_cells(REFERENCE / "configuration.md")
        if name.islower() or "." in name
    }
    assert documented == keys


@pytest.mark.parametrize("block", [p for p in blocks("yaml") if "webhook:" not in p.values[0]])
def test_a_documented_configuration_is_accepted(block: str, tmp_path: Path) -> None:
    file = tmp_path / "voicecost.yaml"
    file.write_text(block)
    environ = {
        "LIVEKIT_URL": "ws://127.0.0.1:7880",
        "LIVEKIT_API_KEY": "key",
        "LIVEKIT_API_SECRET": "secret",
    }
    assert load_config(file, environ=environ).projects


# ---- Python ------------------------------------------------------------------------------------


def test_every_public_name_has_its_section() -> None:
    sections = set(re.findall(r"^## (\w+)$", text_of("docs/reference/python.md"), re.MULTILINE))
    assert {name for name in plugin.__all__ if not name.startswith("_")} <= sections
    assert "__version__" in text_of("docs/reference/python.md")


def test_every_argument_of_voicecost_is_in_its_table() -> None:
    arguments = set(inspect.signature(plugin.VoiceCost).parameters)
    assert arguments <= first_cells(REFERENCE / "python.md")


@pytest.mark.parametrize("name", ["Budget", "BudgetEvent", "Cost"])
def test_every_public_member_is_mentioned(name: str) -> None:
    section = (
        text_of("docs/reference/python.md").partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    )
    kind = getattr(plugin, name)
    members = {member for member in (*vars(kind), *kind.__annotations__) if member[0] != "_"}
    assert {member for member in members if f"`{member}" not in section} == set()


@pytest.mark.parametrize("block", list(blocks("python")))
def test_a_python_example_compiles_and_its_imports_exist(block: str) -> None:
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            exec(ast.unparse(node), {})


# ---- command line, HTTP, protocols -------------------------------------------------------------


def test_every_command_and_option_is_documented_and_every_documented_one_exists() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    commands = [group, *group.commands.values()]
    for command in group.commands.values():
        commands += getattr(command, "commands", {}).values()
    options = {
        option
        for command in commands
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option != "--help"
    }
    documented = first_cells(REFERENCE / "command-line.md")
    spoken = {entry.split()[1] for entry in documented if entry.startswith("voicecost ")}
    assert {word for word in spoken if not word.startswith("--")} == set(group.commands)
    mentioned = {word for entry in documented for word in entry.split() if word.startswith("--")}
    assert mentioned == options


def test_every_route_is_documented_and_every_documented_one_exists(tmp_path: Path) -> None:
    from voicecost_ledger.stores.sqlite import SqliteStore

    store = SqliteStore.open(tmp_path / "ledger.db")
    try:
        sidecar = Sidecar(
            Config(database_path=tmp_path / "ledger.db"), store, token="t", spool_root=tmp_path
        )
        served = {route.path_format for route in sidecar.app.routes}
    finally:
        store.close()
    documented = {entry.split()[-1] for entry in first_cells(REFERENCE / "http.md") if "/" in entry}
    own_to_litestar = {"/", "/{path}"}  # where it looks for renderers of the OpenAPI document
    assert documented == served - own_to_litestar


def test_every_message_and_record_is_documented_with_its_fields_in_order() -> None:
    page = text_of("docs/protocol.md")
    kinds = [
        *protocol.ClientMessage.__args__,
        *protocol.ServerMessage.__args__,
        *protocol.Record.__args__,
    ]
    for kind in kinds:
        name = kind.__struct_config__.tag
        (row,) = (
            line for line in page.splitlines() if re.match(rf"\|( \w+ \|)? `{name}` \|", line)
        )
        cell = row.partition(f"`{name}` |")[2].partition(" |")[0]
        documented = [entry.partition(":")[0] for entry in re.findall(r"`([^`]+)`", cell)]
        assert [field for field in documented if field in kind.__struct_fields__] == list(
            kind.__struct_fields__
        ), f"the row of `{name}` in docs/protocol.md"


@pytest.mark.parametrize("block", [p for p in blocks("json") if "records" in p.values[0]])
def test_a_documented_body_is_understood(block: str) -> None:
    messages = msgspec.json.decode(block.encode(), type=list[protocol.ClientMessage])
    assert messages


# ---- pages -------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(linked.relative_to(ROOT) if path == "" else linked), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        waiting += [page.parent / link for link in links if "://" not in link]
    assert {ROOT / page for page in PAGES if page.parts[0] == "docs"} <= reached


def test_the_code_and_tests_that_hold_the_invariants_exist() -> None:
    """`path::name` in docs/invariants.md names a function or class, `path` a file or folder."""
    named = re.findall(r"`([\w./]+/[\w./]*)(?:::(\w+(?:\.\w+)?))?`", text_of("docs/invariants.md"))
    assert named
    for path, name in named:
        assert (ROOT / path).exists(), f"docs/invariants.md names {path}"
        for part in filter(None, name.split(".")):
            assert re.search(
                rf"^\s*(async def|def|class) {part}\b|^{part}\b", text_of(path), re.MULTILINE
            ), f"docs/invariants.md names {name} in {path}"
