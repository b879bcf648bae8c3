"""Who bills for a request: the host it went to, not the name of the client library.

Many services speak OpenAI's protocol, and every provider plugin can be pointed at a gateway, a
self-hosted server or a simulator. So a request is priced as a provider's only when it went to a
host of that provider (or when the plugin states no host). A request to any other host, private
addresses included, is *unpriced* until the operator says who bills for it; on loopback only what
is known to run there (`data/ollama.yaml`, `data/loopback.yaml`) is known to cost nothing:

    open_price_book(host_aliases={"127.0.0.1:4010": "openai", "llm.internal": "groq"})

The same setting is `host_aliases:` in `voicecost.yaml`, and `VOICECOST_HOST_ALIASES` in the
environment (`127.0.0.1:4010=openai,llm.internal=groq`). A key with a port stands for
that port alone, one without stands for every port. An alias is the last word: it also overrides
the host's own name.
"""

from __future__ import annotations

from collections.abc import Mapping

from voicecost_ledger.records import LegAttributes


def parse_host_aliases(text: str) -> dict[str, str]:
    """Read `HOST=PROVIDER` pairs separated by commas, as in `VOICECOST_HOST_ALIASES`.

    Args:
        text: For example `"127.0.0.1:4010=openai, llm.internal=groq"`; empty means none.

    Returns:
        Host, with or without port, to provider; ready for `open_price_book`.

    Raises:
        ValueError: A part is no such pair, or names a host twice.
    """
    aliases: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        host, _, provider = part.partition("=")
        key, value = _alias(host, provider)
        if key in aliases:
            raise ValueError(f"host alias {key!r} is given twice: keep one")
        aliases[key] = value
    return aliases


def check_host_aliases(aliases: Mapping[str, str]) -> dict[str, str]:
    """The same aliases with hosts and providers in lower case.

    Raises:
        ValueError: A host or a provider is empty, or a host is a URL.
    """
    return dict(_alias(host, provider) for host, provider in aliases.items())


def _alias(host: str, provider: str) -> tuple[str, str]:
    key, value = host.strip().lower(), provider.strip().lower()
    if not key or not value or "/" in key or "=" in value:
        raise ValueError(
            f"host alias {host!r} = {provider!r} is not understood: expected a host, with or "
            'without port, and a provider, for example "127.0.0.1:4010=openai" (no scheme, no path)'
        )
    return key, value


def request_host(leg: LegAttributes) -> str:
    """The host (perhaps with a port) that served the leg, in lower case; "" when not stated.

    LiveKit's OpenAI-compatible plugins report the host of their base URL as `provider`.
    """
    if leg.host:
        return leg.host.strip().lower()
    provider = leg.provider.strip().lower()
    return provider if looks_like_host(provider) else ""


def looks_like_host(name: str) -> bool:
    """True for `api.openai.com` or `localhost:4010`, not for `Deepgram` or `Azure TTS`."""
    return " " not in name and ("." in name or ":" in name or name == "localhost")


def hostname(host: str) -> str:
    """`host` without its port: `127.0.0.1:4010` gives `127.0.0.1`, `[::1]:80` gives `[::1]`."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and (":" not in name or name.endswith("]")) else host


def aliased_provider(aliases: Mapping[str, str], leg: LegAttributes) -> str | None:
    """The provider the operator named for this leg's host; the key with the port wins."""
    if not aliases:
        return None
    host, provider = request_host(leg), leg.provider.strip().lower()
    # Some plugins give the port in `provider` alone.
    hosts = [provider, host] if hostname(provider) == host else [host]
    for key in (*hosts, hostname(host)):
        if key and key in aliases:
            return aliases[key]
    return None
