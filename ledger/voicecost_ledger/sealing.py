"""Seals a checkpoint so that it may ride in public: only who has the LiveKit secret can read it.

A sealed checkpoint is ASCII, at most 1 KB, and holds, in base64url:

    1 byte    version, 1
    8 bytes   key id: which API key's secret it was sealed with
    12 bytes  nonce, random
    the rest  AES-256-GCM of the deflated MessagePack of a `Checkpoint`

The key is HKDF-SHA256 of the LiveKit API secret under a label of its own, so what it seals says
nothing about tokens signed with the same secret. Authenticated with it are the header, the room's
name and the job's id: the checkpoint of one call opens in no other. (The room's name, not its
SID: a restarted server gives a live call a new one.)
"""

from __future__ import annotations

import base64
import hashlib
import os
import zlib
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from voicecost_ledger.checkpoints import TOTALS_MAX, Checkpoint, CheckpointTotal

ATTRIBUTE_PREFIX: Final = "voicecost.checkpoint."
"""Of the participant attributes that hold checkpoints; what follows tells the meters of a job
apart."""
SEALED_CHARACTERS_MAX: Final = 1024

_VERSION: Final = 1
_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_HEADER_BYTES: Final = 1 + _KEY_ID_BYTES
_LABEL: Final = b"voicecost checkpoint 1"
_PLAIN_BYTES_MAX: Final = 16_384  # of what is opened: deflate must not be made to fill memory
_NEVER_PRICED: Final = ("prompt_characters", "completion_characters", "completion_chunks")

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Checkpoint)


class SealError(ValueError):
    """A checkpoint that cannot be sealed or opened: too long, another's, or tampered with."""


class CheckpointSeal:
    """Seals and opens checkpoints with one LiveKit API key.

    Args:
        api_key: The LiveKit API key; only its digest goes into what is sealed.
        api_secret: Its secret.

    Raises:
        ValueError: One of them is empty.
    """

    def __init__(self, api_key: str, api_secret: str) -> None:
        if not api_key or not api_secret:
            raise ValueError(
                "a checkpoint is sealed with a LiveKit API key and secret: one is empty"
            )
        self._key_id = hashlib.sha256(_LABEL + api_key.encode()).digest()[:_KEY_ID_BYTES]
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_LABEL)
        self._cipher = AESGCM(derived.derive(api_secret.encode()))

    def seal(self, checkpoint: Checkpoint, *, room_name: str, job_id: str) -> str:
        """The checkpoint as an attribute's value.

        What is too long for `SEALED_CHARACTERS_MAX` is left out, the least useful first: raw counts
        that no price knows, then whole totals from the end of the list. Put the dearest first.

        Args:
            checkpoint: What to seal.
            room_name: The LiveKit room of the call.
            job_id: The LiveKit job of the agent.

        Raises:
            SealError: Its names alone are too long.
        """
        plain = self._fitting(checkpoint)
        header = bytes([_VERSION]) + self._key_id
        nonce = os.urandom(_NONCE_BYTES)
        bound = _bound(header, room_name, job_id)
        sealed = self._cipher.encrypt(nonce, plain, bound)
        return base64.urlsafe_b64encode(header + nonce + sealed).decode()

    def open(self, sealed: str, *, room_name: str, job_id: str) -> Checkpoint:
        """The checkpoint in an attribute's value.

        Raises:
            SealError: It was sealed with another key or for another call, was altered, or is none.
        """
        if len(sealed) > SEALED_CHARACTERS_MAX:
            raise SealError(f"{len(sealed)} characters are no checkpoint: expected at most 1,024")
        try:
            data = base64.b64decode(sealed, altchars=b"-_", validate=True)
        except ValueError:
            raise SealError("not base64url: no checkpoint") from None
        header, nonce = data[:_HEADER_BYTES], data[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES]
        if len(nonce) < _NONCE_BYTES or header[0] != _VERSION:
            raise SealError(f"no checkpoint of version {_VERSION}")
        if header[1:] != self._key_id:
            raise SealError("sealed with another LiveKit API key than the configured one")
        try:
            plain = self._cipher.decrypt(
                nonce, data[_HEADER_BYTES + _NONCE_BYTES :], _bound(header, room_name, job_id)
            )
        except InvalidTag:
            raise SealError("altered, or sealed for another call or with another secret") from None
        try:
            inflating = zlib.decompressobj()
            unpacked = inflating.decompress(plain, _PLAIN_BYTES_MAX)
            return _decoder.decode(unpacked)
        except (zlib.error, msgspec.DecodeError) as error:
            raise SealError(f"sealed by another version: {error}") from None

    def _fitting(self, checkpoint: Checkpoint) -> bytes:
        totals = checkpoint.totals[:TOTALS_MAX]
        plain = _packed(msgspec.structs.replace(checkpoint, totals=totals))
        if plain is not None:
            return plain
        totals = [CheckpointTotal(each.attributes, _priceable(each.usage)) for each in totals]
        while True:
            plain = _packed(msgspec.structs.replace(checkpoint, totals=totals))
            if plain is not None:
                return plain
            if not totals:
                raise SealError("the names of a meter's project, agent and tenant fill it alone")
            totals.pop()


def _packed(checkpoint: Checkpoint) -> bytes | None:
    """A checkpoint made small; None where that is not small enough to be opened again."""
    unpacked = _encoder.encode(checkpoint)
    plain = zlib.compress(unpacked, 9)
    fits = _sealed_size(plain) <= SEALED_CHARACTERS_MAX and len(unpacked) <= _PLAIN_BYTES_MAX
    return plain if fits else None


def _sealed_size(plain: bytes) -> int:
    raw = _HEADER_BYTES + _NONCE_BYTES + len(plain) + 16  # the tag of GCM
    return (raw + 2) // 3 * 4


def _priceable(usage: dict[str, int]) -> dict[str, int]:
    return {unit: count for unit, count in usage.items() if unit not in _NEVER_PRICED}


def _bound(header: bytes, room_name: str, job_id: str) -> bytes:
    room = room_name.encode()
    return header + len(room).to_bytes(4, "big") + room + job_id.encode()
