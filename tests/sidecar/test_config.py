"""voicecost.yaml: what it says is taken exactly, what is wrong in it is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from voicecost_ledger.billing import Billing, BillingTerms
from voicecost_ledger.money import NANO_USD_PER_USD
from voicecost_ledger.policy import BudgetAction, ProjectPolicy
from voicecost_sidecar.config import Config, ConfigError, LiveKitConfig, load_config

ROOT = Path(__file__).parents[2]
LIVEKIT_ENVIRONMENT = {
    "LIVEKIT_URL": "wss://my-app.livekit.cloud",
    "LIVEKIT_API_KEY": "APIenv",
    "LIVEKIT_API_SECRET": "secret of the environment",
}


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "voicecost.yaml"
    file.write_text(text)
    return load_config(file, environ=environ)


def test_a_whole_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """\
        livekit: {url: "ws://LiveKit.internal:7880", api_key: APIfile, api_secret: "${SECRET}"}
        projects:
          shop: {name: Web shop, daily_budget: 5.00, budget_action: end}
          lab: {}
        database: sqlite:///data/ledger.db
        time_zone: Europe/Berlin
        host_aliases: {"LLM.internal:4000": openai}
        """,
        SECRET="from the environment",
    )
    assert config.livekit == LiveKitConfig(
        url="ws://LiveKit.internal:7880", api_key="APIfile", api_secret="from the environment"
    )
    assert config.livekit_project == "livekit.internal:7880"
    assert config.projects == {
        "shop": ProjectPolicy(
            name="Web shop",
            daily_budget_nano_usd=5 * NANO_USD_PER_USD,
            budget_action=BudgetAction.END,
        ),
        "lab": ProjectPolicy(name="lab"),
    }
    assert config.database_path == tmp_path / "data" / "ledger.db"
    assert config.time_zone == "Europe/Berlin"
    assert config.host_aliases == {"llm.internal:4000": "openai"}


@pytest.mark.parametrize(
    ("written", "nano_usd"),
    [
        ("5.00", 5_000_000_000),
        ('"5.00"', 5_000_000_000),
        ("5", 5_000_000_000),
        ("0", 0),
        ("0.1", 100_000_000),  # as a float it would be 0.1000000000000000055
        ("123456789.123456789", 123_456_789_123_456_789),  # a float has no room for it
    ],
)
def test_a_budget_is_exactly_what_is_written(tmp_path: Path, written: str, nano_usd: int) -> None:
    config = load(tmp_path, f"projects:\n  shop:\n    daily_budget: {written}\n")
    assert config.projects["shop"].daily_budget_nano_usd == nano_usd


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        pytest.param("budgets: {}\n", 1, "budgets", "livekit, projects", id="section"),
        pytest.param("\nprojects:\n  shop:\n    daily_bugdet: 5\n", 4, "projects.shop.daily_bugdet",
                     "name, daily_budget, budget_action", id="misspelt budget"),
        pytest.param("projects:\n  shop: {daily_budget: five}\n", 2, "projects.shop.daily_budget",
                     "'five'", id="no number"),
        pytest.param("projects:\n  shop: {daily_budget: -1}\n", 2, "projects.shop.daily_budget",
                     "'-1'", id="negative"),
        pytest.param("projects:\n  shop: {daily_budget: .inf}\n", 2, "projects.shop.daily_budget",
                     "'.inf'", id="infinite"),
        pytest.param("projects:\n  shop: {daily_budget: 1e999999999}\n", 2,
                     "projects.shop.daily_budget", "'1e999999999'", id="huge"),
        pytest.param("projects:\n  shop: {daily_budget: 1e-999999999}\n", 2,
                     "projects.shop.daily_budget", "'1e-999999999'", id="tiny, not 0"),
        pytest.param("projects:\n  shop: {daily_budget: 1.0000000000000000000000000000001}\n", 2,
                     "projects.shop.daily_budget", "9 decimal places", id="too exact"),
        pytest.param("projects:\n  shop:\n    daily_budget:\n", 3, "projects.shop.daily_budget",
                     "leave the key out", id="nothing"),
        pytest.param("projects:\n  shop: {budget_action: stop}\n", 2, "projects.shop.budget_action",
                     "warn or end", id="action"),
        pytest.param("projects: [shop]\n", 1, "projects", "keys and their values", id="list"),
        pytest.param("projects:\n  a: {}\n  a: {}\n", 3, "projects.a", "twice", id="twice"),
        pytest.param("time_zone: Mars/Base\n", 1, "time_zone", "IANA", id="time zone"),
        pytest.param("database: postgresql://db\n", 1, "database", "sqlite:///PATH", id="database"),
        pytest.param("livekit:\n  url: my-app\n", 2, "livekit.url", "wss://", id="url"),
        pytest.param("livekit:\n  secret: x\n", 2, "livekit.secret", "api_secret", id="livekit"),
        pytest.param("livekit: {url: 'ws://x', api_key: '${NOT_SET}'}\n", 1, "livekit.api_key",
                     "NOT_SET is not set", id="environment"),
        pytest.param("billing:\n  markup: 5\n", 2, "billing.markup",
                     "markup_percent, flat_fee, projects, tenants", id="misspelt markup"),
        pytest.param("billing:\n  markup_percent: 5 %\n", 2, "billing.markup_percent",
                     "'5 %' is no markup", id="markup"),
        pytest.param("billing:\n  tenants:\n    acme: {flat_fee: -1}\n", 3,
                     "billing.tenants.acme.flat_fee", "'-1'", id="fee"),
        pytest.param("billing:\n  projects: {shop: {projects: {}}}\n", 2,
                     "billing.projects.shop.projects", "markup_percent, flat_fee", id="nested"),
        pytest.param("host_aliases: {'http://x/': openai}\n", 1, "host_aliases.http://x/",
                     "no scheme", id="alias"),
        pytest.param("projects: {shop: {daily_budget: 5}\n", 2, "", "is not YAML", id="no YAML"),
        pytest.param("projects:\n  shop: {name: '\x07'}\n", 2, "", "'\\x07' is no character",
                     id="a bell"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, line: int, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    error = refused.value
    assert (error.line, error.key) == (line, key)
    assert f"voicecost.yaml:{line}: {key}" in str(error)
    assert says in str(error)


def test_billing_is_taken_exactly(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """\
        billing:
          markup_percent: 12.5
          flat_fee: 0.01
          projects: {shop: {markup_percent: 0.0001}, lab: {}}
          tenants: {acme: {flat_fee: 0}}
        """,
    )
    billing = config.policy().billing
    assert billing == Billing(
        everybody=BillingTerms(markup_ppm=125_000, flat_fee_nano_usd=10_000_000),
        projects={"shop": BillingTerms(markup_ppm=1), "lab": BillingTerms()},
        tenants={"acme": BillingTerms(flat_fee_nano_usd=0)},
    )


def test_half_a_livekit_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"api_secret missing.*LIVEKIT_API_SECRET"):
        load(tmp_path, "livekit: {url: 'ws://x', api_key: k}\n")


def test_the_environment_completes_and_overrides_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "livekit: {url: 'ws://x:1', api_key: k, api_secret: s}\ndatabase: sqlite:///file.db\n"
        "host_aliases: {a: groq, b: groq}\n",
        LIVEKIT_API_SECRET="of the environment",
        VOICECOST_DATABASE_URL="sqlite:////env/ledger.db",
        VOICECOST_HOST_ALIASES="b=openai",
    )
    assert config.livekit == LiveKitConfig(
        url="ws://x:1", api_key="k", api_secret="of the environment"
    )
    assert config.database_path == Path("/env/ledger.db")
    assert config.host_aliases == {"a": "groq", "b": "openai"}


def test_no_file_is_needed(own_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_environment)
    config = load_config(environ=LIVEKIT_ENVIRONMENT)
    assert config.livekit_project == "my-app.livekit.cloud"
    assert config.database_path == own_environment / "data" / "voicecost" / "ledger.db"
    assert load_config(environ={}).livekit is None


def test_whether_agents_without_a_sidecar_write_the_same_file_is_known(tmp_path: Path) -> None:
    assert load(tmp_path, "time_zone: UTC\n").keeps_embedded_ledger
    assert load(tmp_path, "", VOICECOST_DATABASE_URL="sqlite:///x.db").keeps_embedded_ledger
    assert not load(tmp_path, "database: sqlite:///x.db\n").keeps_embedded_ledger


def test_a_wrong_environment_is_named() -> None:
    with pytest.raises(ConfigError, match="environment: VOICECOST_DATABASE_URL: mysql:") as refused:
        load_config(environ={"VOICECOST_DATABASE_URL": "mysql://me:password@db"})
    assert "password" not in str(refused.value)
    with pytest.raises(ConfigError, match="environment: LIVEKIT_URL: 'nowhere'"):
        load_config(environ=LIVEKIT_ENVIRONMENT | {"LIVEKIT_URL": "nowhere"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="voicecost init"):
        load_config(tmp_path / "none.yaml", environ={})


def test_a_secret_is_in_no_repr() -> None:
    livekit = LiveKitConfig(url="ws://x", api_key="k", api_secret="very secret")
    assert "very secret" not in repr(livekit)
    assert "very secret" not in repr(Config(database_path=Path("x"), livekit=livekit))


def test_the_example_says_nothing_and_everything(tmp_path: Path) -> None:
    """As written it changes nothing; with its comments taken away every line is understood."""
    example = (ROOT / "voicecost.example.yaml").read_text()
    packaged = ROOT / "sidecar" / "voicecost_sidecar" / "voicecost.example.yaml"
    assert packaged.read_text() == example
    assert load(tmp_path, example).projects == {}
    settings = [
        line.removeprefix("# ")
        for line in example.splitlines()
        if line.startswith("#  ")
        or line.rstrip().endswith(":")
        or line.removeprefix("# ").startswith(("database: ", "time_zone: "))
    ]
    uncommented = load(tmp_path, "\n".join(settings), LIVEKIT_API_KEY="k", LIVEKIT_API_SECRET="s")
    assert uncommented.livekit_project == "my-app.livekit.cloud"
    assert uncommented.projects["shop"].budget_action is BudgetAction.END
    assert uncommented.billing.markup_ppm("shop", "acme") == 125_000
    assert uncommented.billing.flat_fee_nano_usd("shop", "acme") == 0
    assert uncommented.billing.flat_fee_nano_usd("shop", None) == 10_000_000
    assert uncommented.host_aliases == {"llm.internal": "openai", "127.0.0.1:4010": "groq"}
