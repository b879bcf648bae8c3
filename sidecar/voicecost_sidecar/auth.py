"""Who may ask: the operator's token, an agent's short-lived JWT, LiveKit's signature on a webhook.

The trust boundary, said plainly: whoever holds a LiveKit API secret is that LiveKit project. Every
caller's own token is signed with the same secret, so a signature alone proves nothing here: an
agent's token must be made for us (`aud`), be short-lived, and open no room (no `video`, no `sip`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jwt

from voicecost_sidecar.config import LiveKitConfig

AUDIENCE: Final = "voicecost"
AGENT_TOKEN_MAX_S: Final = 600
CLOCK_SKEW_S: Final = 60  # what LiveKit's own verifiers allow
_ROOM_CLAIMS: Final = ("video", "sip")
_TIME_CLAIMS: Final = ("exp", "iat", "nbf")


class AuthError(Exception):
    """A request is not authenticated; the text says which proof was missing, never a secret."""


class TokenFileError(Exception):
    """The token file cannot be used."""


class Authenticator:
    """Checks `Authorization` headers.

    Args:
        token: The operator's token.
        livekit: Whose key pair signs webhooks and agents' tokens; None accepts neither.
        now_s: Unix seconds, for a token's longest life.
    """

    def __init__(
        self,
        token: str,
        livekit: LiveKitConfig | None = None,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._token = token.encode()
        self._livekit = livekit
        self._now_s = now_s

    def check_operator(self, authorization: str | None) -> None:
        """Require `Bearer VOICECOST_TOKEN`.

        Raises:
            AuthError: It is missing or wrong.
        """
        if not self._is_operator(_bearer(authorization)):
            raise AuthError("wrong token: send `Authorization: Bearer VOICECOST_TOKEN`")

    def check_agent(self, authorization: str | None) -> None:
        """Require the operator's token or an agent's JWT; enough to report usage, no more.

        Raises:
            AuthError: Neither is given, or the JWT is for something else.
        """
        credential = _bearer(authorization)
        if self._is_operator(credential):
            return
        if credential.count(".") != 2:
            raise AuthError("wrong token: send VOICECOST_TOKEN, or a JWT made for voicecost")
        claims = self._claims(credential, audience=AUDIENCE)
        for claim in _ROOM_CLAIMS:
            if claim in claims:
                raise AuthError(
                    f"the JWT has a `{claim}` claim: a token that opens rooms is for callers, "
                    "make one without it"
                )
        if claims["exp"] > self._now_s() + AGENT_TOKEN_MAX_S + CLOCK_SKEW_S:
            raise AuthError(f"the JWT lives longer than {AGENT_TOKEN_MAX_S} s: make a shorter one")

    def check_webhook(self, authorization: str | None, body: bytes) -> None:
        """Require LiveKit's signature over the raw body; call it before parsing anything.

        Raises:
            AuthError: The signature, its key, its age or the body's hash is wrong.
        """
        if not authorization:
            raise AuthError("no `Authorization` header: LiveKit signs its webhooks there")
        claims = self._claims(authorization.removeprefix("Bearer ").strip())
        expected = base64.b64encode(hashlib.sha256(body).digest())
        # A caller's own token passes the signature; only a webhook's names the body's hash.
        if not hmac.compare_digest(str(claims.get("sha256", "")).encode(), expected):
            raise AuthError("the signature is for another body")

    def _is_operator(self, credential: str) -> bool:
        return hmac.compare_digest(credential.encode(), self._token)

    def _claims(self, token: str, *, audience: str | None = None) -> dict[str, Any]:
        livekit = self._livekit
        if livekit is None:
            raise AuthError("no LiveKit key is configured here: set `livekit` in voicecost.yaml")
        required = ["exp", "iss"] + (["aud"] if audience else [])
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key=livekit.api_secret,
                algorithms=["HS256"],
                issuer=livekit.api_key,
                audience=audience,
                leeway=CLOCK_SKEW_S,
                options={"require": required},
            )
        except (jwt.InvalidTokenError, TypeError, OverflowError, RecursionError) as error:
            # PyJWT's sentences name claims, never keys or the token. Older versions stumble
            # over claims of a wrong type.
            raise AuthError(f"the JWT is refused: {error}") from None
        for claim in _TIME_CLAIMS:
            # PyJWT takes "1795334400" and true for times; we count with them.
            if type(claims.get(claim, 0)) not in (int, float):
                raise AuthError(f"the JWT is refused: its `{claim}` is no number")
        return claims


def _bearer(authorization: str | None) -> str:
    scheme, _, credential = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise AuthError("no token: send `Authorization: Bearer VOICECOST_TOKEN`")
    return credential.strip()


def token_file(database_path: Path) -> Path:
    """Where the operator's token lives when nobody set one: beside the database."""
    return database_path.with_suffix(".token")


def read_or_make_token(file: Path) -> tuple[str, bool]:
    """The token in `file`; made there, mode 0600, by whoever comes first.

    Returns:
        The token, and whether it was made by this call.

    Raises:
        TokenFileError: Others may read the file, or it is empty.
    """
    made = False
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Complete before it has its name: a second process sees all of it or nothing.
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as opened:
                opened.write(secrets.token_urlsafe(32) + "\n")
            os.link(temporary, file)
            made = True
        except FileExistsError:
            pass  # another process was faster: its token counts
        finally:
            os.unlink(temporary)
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise TokenFileError(
            f"{file} may be read by others: chmod 600 it, or delete it and a new token is made"
        )
    token = file.read_text(encoding="ascii").strip()
    if not token:
        raise TokenFileError(f"{file} is empty: delete it and a new token is made")
    return token, made
