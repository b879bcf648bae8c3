"""Where the ledger is: one default for the plugin's embedded ledger, the sidecar and the CLI."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from platformdirs import user_data_path

DEFAULT_DATABASE_NAME: Final = "ledger.db"
_SCHEME: Final = "sqlite:///"


class DatabaseUrlError(ValueError):
    """A database URL this version cannot open."""


def default_database_path() -> Path:
    """`voicecost/ledger.db` in the platform's data directory."""
    return user_data_path("voicecost", appauthor=False) / DEFAULT_DATABASE_NAME


def sqlite_path(url: str | None, *, base: Path | None = None) -> Path:
    """The file a `sqlite:///PATH` URL names.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, or None for the default file.
        base: What a relative path is relative to; None leaves it to the working directory.

    Raises:
        DatabaseUrlError: Another scheme, or no path.
    """
    if url is None:
        return default_database_path()
    path = url.removeprefix(_SCHEME)
    if path == url or not path:
        # Another scheme's URL may hold a password: the scheme shows what was meant.
        raise DatabaseUrlError(
            f"{url.partition(':')[0]}:... is no ledger this version can open: expected "
            "sqlite:///PATH, for example sqlite:////var/lib/voicecost/ledger.db"
        )
    return (base or Path()) / Path(path).expanduser()
