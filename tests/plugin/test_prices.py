"""The prices of an agent's process: by its contracts, and none of it loaded on an event loop."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import AgentSession

from livekit.plugins.voicecost import Budget, VoiceCost, _prices
from livekit.plugins.voicecost.log import logger
from tests.plugin.voicecost_sessions import Host, forget_process, ledger, providers, say_hello
from voicecost_catalog import override_file
from voicecost_catalog.genai import GenaiPrices
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
NOVA = LegAttributes(Modality.STT, "Deepgram", "nova-3")
MINUTE = {"audio_ms": 60_000}
LISTED_NANO_USD, HALF_NANO_USD = 4_800_000, 2_400_000
HALF_OFF = "prices: {discounts: {deepgram: 50}}\n"
CONTRACT = """
prices:
  rows:
    - {provider: openai, model: gpt-4o-mini, modality: llm, rule: tokens, rates: {
        input_tokens: {usd: 10, per: thousand}, output_tokens: {usd: 10, per: thousand}}}
    - {provider: deepgram, model: aura-2, match: [aura-*], modality: tts, rule: characters,
       rates: {characters: {usd: 0.001, per: character}}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the agent runs: a process that has not metered anything yet."""
    monkeypatch.chdir(tmp_path)
    forget_process()
    yield tmp_path
    forget_process()


def warnings_of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What our own logger has said that somebody should look at."""
    ours = [line for line in caplog.records if line.name == logger.name]
    return [line.getMessage() for line in ours if line.levelno >= logging.WARNING]


def a_minute_costs() -> int | None:
    """By the whole book, as the ledger has it, and by the meter's, which is the same."""
    whole = _prices.prices().book.price_for(NOVA, NOW_UNIX_MS)
    assert whole is not None
    assert _prices.prices().price_for(NOVA, NOW_UNIX_MS) == whole
    return whole.rate(MINUTE)


@pytest.mark.parametrize("named", [False, True], ids=["in the working directory", "named"])
async def test_a_call_is_metered_budgeted_and_kept_at_the_contracts_prices(
    folder: Path, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cent a token, a tenth of one a character: far above what the price lists say."""
    file = folder / ("contracts.yaml" if named else "voicecost.yaml")
    file.write_text(CONTRACT)
    if named:
        monkeypatch.setenv("VOICECOST_CONFIG", str(file))
    async with providers(monkeypatch) as world:
        session = world.session()
        meter = VoiceCost(budget=Budget("10", warn_at_percent=1)).attach(session)
        heard: list[str] = []
        meter.on("budget", lambda event: heard.append(event.kind))
        await session.start(Host())
        await say_hello(session)
        await session.aclose()

        asked, spoken = world.openai.bill.rows[0].units, world.deepgram.bill.rows[0].units
        tokens = asked["input_tokens"] + asked["output_tokens"]
        assert meter.cost.by_modality["llm"] == tokens * 10_000_000
        assert meter.cost.by_modality["tts"] == spoken["characters"] * 1_000_000
        (call,) = await ledger()
        assert call.summary.total_nano_usd == meter.cost.total_nano_usd
        assert {str(leg.pricing_source).partition("@")[0] for leg in call.legs} == {"config"}
        assert heard == ["warn"]


def test_the_files_host_aliases_hold_and_the_environments_win(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "voicecost.yaml").write_text("host_aliases: {one: deepgram, two: openai}\n")
    monkeypatch.setenv("VOICECOST_HOST_ALIASES", "two=deepgram")
    for host in ("one", "two"):
        leg = LegAttributes(Modality.STT, "Deepgram", "nova-3", host=host)
        price = _prices.prices().book.price_for(leg, NOW_UNIX_MS)
        assert price is not None
        assert price.rate(MINUTE) == LISTED_NANO_USD


def test_the_file_is_read_off_the_event_loop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile nothing has a price: a list price would be another one than the ledger's."""
    (folder / "voicecost.yaml").write_text(HALF_OFF)
    may_read = threading.Event()
    readers: list[threading.Thread] = []
    read = override_file.read_prices

    def slowly(*args: Any) -> Any:
        readers.append(threading.current_thread())
        may_read.wait()
        return read(*args)

    monkeypatch.setattr(override_file, "read_prices", slowly)
    prices = _prices.prices()
    assert prices.price_for(NOVA, NOW_UNIX_MS) is None
    assert prices.price_as_served(NOVA, NOVA, NOW_UNIX_MS) is None
    assert threading.main_thread() not in readers
    may_read.set()
    assert a_minute_costs() == HALF_NANO_USD


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(
            "prices:\n  discounts: {deepgrm: 5}\n",
            "voicecost.yaml:2: prices.discounts.deepgrm: no prices of that provider",
            id="a mistake",
        ),
        pytest.param("prices: {", "voicecost.yaml:1: yaml:", id="no YAML"),
        pytest.param(None, "contracts.yaml:0: file: cannot be read: No such file", id="no file"),
        pytest.param(
            "host_aliases: {one: deepgrm}\n", "names the provider 'deepgrm'", id="a wrong alias"
        ),
    ],
)
def test_a_wrong_file_is_told_once_and_the_price_list_holds(
    folder: Path,
    text: str | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if text is None:
        monkeypatch.setenv("VOICECOST_CONFIG", "contracts.yaml")
    else:
        (folder / "voicecost.yaml").write_text(text)
    for _ in range(2):
        _prices.prices().warm()
        assert a_minute_costs() == LISTED_NANO_USD
    (told,) = warnings_of_ours(caplog)
    assert says in told


async def test_an_alias_for_a_provider_without_prices_keeps_no_call_out_of_the_ledger(
    folder: Path,
) -> None:
    (folder / "voicecost.yaml").write_text("host_aliases: {one: deepgrm}\n")
    session: AgentSession[None] = AgentSession(vad=None, turn_handling={"turn_detection": "manual"})
    VoiceCost().attach(session)
    await session.start(Host())
    await session.aclose()
    assert len(await ledger()) == 1


def test_without_the_yaml_reader_what_to_install_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "voicecost.yaml").write_text(HALF_OFF)
    for name in ("voicecost_catalog.override_file", "voicecost_catalog.compile"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    assert a_minute_costs() == LISTED_NANO_USD
    (told,) = warnings_of_ours(caplog)
    assert "pip install 'livekit-plugins-voicecost[sidecar]'" in told


def test_no_leg_waits_for_genai_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it takes a second, and whoever speaks would hear that."""
    may_load = threading.Event()
    loading: set[threading.Thread] = set()
    load = GenaiPrices.load

    def slowly(book: GenaiPrices) -> Any:
        loading.add(threading.current_thread())
        if threading.current_thread() is not threading.main_thread():
            may_load.wait()
        return load(book)

    monkeypatch.setattr(GenaiPrices, "load", slowly)
    prices = _prices.prices()
    realtime = LegAttributes(Modality.REALTIME, "openai", "gpt-realtime", host="api.openai.com")
    assert prices.price_for(realtime, NOW_UNIX_MS) is None
    for modality in Modality:
        for host in ("", "api.openai.com", "somewhere.example"):
            leg = LegAttributes(modality, "somebody", "some-model", host=host)
            prices.price_for(leg, NOW_UNIX_MS)
            prices.price_as_served(leg, leg, NOW_UNIX_MS)
    assert threading.main_thread() not in loading
    may_load.set()
    prices.book.warm()
    assert prices.price_for(realtime, NOW_UNIX_MS) is not None
