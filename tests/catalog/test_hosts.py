"""Who bills for a request: the host, then what the operator says of it."""

from __future__ import annotations

import pytest

from voicecost_catalog import open_price_book, parse_host_aliases
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22


def nova(host: str, provider: str = "Deepgram") -> LegAttributes:
    return LegAttributes(modality=Modality.STT, provider=provider, model="nova-3", host=host)


def priced(leg: LegAttributes, aliases: dict[str, str] | None = None) -> bool:
    book = open_price_book(genai=False, host_aliases=aliases)
    return book.price_for(leg, NOW_UNIX_MS) is not None


@pytest.mark.parametrize(
    "host", ["", "api.deepgram.com", "api.deepgram.com:443", "API.Deepgram.com"]
)
def test_a_request_to_the_provider_is_the_providers(host: str) -> None:
    assert priced(nova(host))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:4011",
        "localhost",
        "10.0.0.8",
        "[::1]:4011",
        "deepgram.internal",
        "api.deepgram.com.evil.example",
        "acme.us-east-1.api.deepgram.com",
    ],
)
def test_a_request_to_any_other_host_is_unpriced_until_someone_says_who_bills(host: str) -> None:
    """A simulator, a gateway and a self-hosted Deepgram cost something else, or nothing."""
    assert not priced(nova(host))
    assert priced(nova(host), {host: "deepgram"})
    assert not priced(nova(host), {host: "cartesia"})


@pytest.mark.parametrize(
    ("aliases", "host", "provider", "expected"),
    [
        ({"127.0.0.1": "deepgram"}, "127.0.0.1:4011", "Deepgram", True),
        ({"127.0.0.1:4011": "deepgram"}, "127.0.0.1:4011", "Deepgram", True),
        ({"127.0.0.1:4011": "deepgram"}, "127.0.0.1:9", "Deepgram", False),
        ({"127.0.0.1:4011": "deepgram"}, "127.0.0.1", "Deepgram", False),
        ({"127.0.0.1:4011": "deepgram"}, "127.0.0.1", "127.0.0.1:4011", True),
        ({"127.0.0.1:4011": "deepgram"}, "", "127.0.0.1:4011", True),
        ({"127.0.0.1": "cartesia", "127.0.0.1:4": "deepgram"}, "127.0.0.1:4", "Deepgram", True),
        ({"[::1]": "deepgram"}, "[::1]:4011", "Deepgram", True),
        ({"LLM.Internal": "Deepgram"}, "llm.internal", "whatever", True),
        ({"api.deepgram.com": "cartesia"}, "api.deepgram.com", "Deepgram", False),
    ],
    ids=[
        "any port",
        "that port",
        "another port",
        "the port is not known",
        "the port stands in the provider",
        "no host but a provider that is one",
        "the port wins",
        "IPv6",
        "case does not matter",
        "an alias is the last word",
    ],
)
def test_an_alias_says_who_bills_for_a_host(
    aliases: dict[str, str], host: str, provider: str, expected: bool
) -> None:
    assert priced(nova(host, provider), aliases) is expected


def test_a_plugin_of_another_name_at_the_providers_host_is_priced() -> None:
    assert priced(nova("api.deepgram.com", provider="my-own-client"))


def test_aliases_are_read_from_one_line_of_environment() -> None:
    assert parse_host_aliases(" 127.0.0.1:4010=OpenAI, llm.internal = groq ,") == {
        "127.0.0.1:4010": "openai",
        "llm.internal": "groq",
    }
    assert parse_host_aliases("") == {}


@pytest.mark.parametrize(
    "text", ["openai", "=openai", "host=", "http://host=openai", "a=b=c", "a=openai,a=groq"]
)
def test_a_line_that_is_not_understood_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(ValueError, match="host alias"):
        parse_host_aliases(text)


def test_a_url_as_alias_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"'http://127.0.0.1:4010/v1' = 'openai' is not understood"
    ):
        open_price_book(host_aliases={"http://127.0.0.1:4010/v1": "openai"})


def test_an_alias_for_a_provider_without_prices_is_refused_at_start() -> None:
    book = open_price_book(genai=False, host_aliases={"127.0.0.1": "deepgrm"})
    with pytest.raises(
        ValueError, match="'deepgrm', which has no prices: expected one of assemblyai"
    ):
        book.warm()
    assert book.price_for(nova("127.0.0.1"), NOW_UNIX_MS) is None
