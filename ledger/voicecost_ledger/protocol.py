"""Messages between an agent process and the authority (the sidecar, or the embedded ledger).

MessagePack, array-like, one WebSocket per agent process at `/v1/ingest`; the same client messages
as a body of `POST /v1/records` (MessagePack, or JSON by Content-Type).

    client -> hello, records, renew, wrapped_up
    server -> welcome, ack, grant, command, reject

A meter's close is its `MeterClose` record: durable, replayable, and so there is no "bye" message
that could be lost. Acknowledgements are cumulative and only ever given for what is committed.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

import msgspec

from voicecost_ledger.records import Id, MeterOpen, Record

PROTOCOL_VERSION: Final = 1
METERS_MAX: Final = 1_000
"""Meters one Hello may name: a process with more says hello again."""
RECORDS_MAX: Final = 10_000


class MeterHeld(msgspec.Struct, frozen=True, array_like=True):
    """What a client's spool still holds of one meter; `first_seq_held` is 0 when nothing."""

    meter_id: Id
    first_seq_held: int
    last_seq: int
    # So that a ledger which is new to the meter (restored, replaced) knows whose it is.
    opened: MeterOpen | None = None


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First message on a connection, and again whenever a meter opens."""

    version: int
    process_id: str  # random id of the agent process, for logs and enforcement routing
    meters: Annotated[list[MeterHeld], msgspec.Meta(max_length=METERS_MAX)]
    # The ledger last spoken to: a lower generation than seen means a split brain.
    ledger_id: str | None = None
    generation: int = 0


class Records(msgspec.Struct, frozen=True, array_like=True, tag="records"):
    """Everything of one meter with `after_seq < seq <= through_seq`.

    Superseded interims may be left out; that is why the range is stated. A server whose durable
    seq is below `after_seq` applies nothing and answers `reject` with what it has.
    """

    meter_id: str
    after_seq: int
    through_seq: int
    records: Annotated[list[Record], msgspec.Meta(max_length=RECORDS_MAX)]
    # The sender's wall clock when it sent this; 0: not said. The difference to ours is taken off
    # the records' times, or a wrong clock would book to another day.
    sent_at_unix_ms: int = 0

    def problem(self) -> str | None:
        """Why this cannot be a batch of one meter's records, or None."""
        last = self.after_seq
        for record in self.records:
            if record.meter_id != self.meter_id:
                return f"a batch of meter {self.meter_id} holds a record of meter {record.meter_id}"
            if not last < record.seq <= self.through_seq:
                return (
                    f"record {record.seq} of meter {self.meter_id} is out of order or outside "
                    f"{self.after_seq + 1} to {self.through_seq}"
                )
            last = record.seq
        if self.through_seq < self.after_seq:
            return f"a batch from {self.after_seq} through {self.through_seq} is no range"
        return None


class WrappedUp(msgspec.Struct, frozen=True, array_like=True, tag="wrapped_up"):
    """The agent has spoken its wrap-up sentence (or gave up on it): the room may go now."""

    meter_id: str


class Renew(msgspec.Struct, frozen=True, array_like=True, tag="renew"):
    """Ask for credit. Sent at attach, at half of a grant, and when it is used up (`exhausted`)."""

    meter_id: str
    renewal: int  # counts up; the grant names it, so that the meter can time its lease
    total_nano_usd: int  # the meter's own rated total, for comparison; never trusted
    exhausted: bool = False  # the meter has stopped spending for want of credit


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """Answer to hello: the ledger's identity and what is durable of each meter named."""

    version: int
    ledger_id: str
    generation: int
    durable_seqs: dict[str, int]


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """Highest durable seq per meter; cumulative."""

    committed: dict[str, int]
    replicated: dict[str, int]


class Grant(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    """Credit for one meter; cumulative, so a resent or reordered grant is harmless.

    `ceiling_nano_usd` None means no budget applies. The meter spends only while its total is at
    most the ceiling and total minus acknowledged is at most `unreported_max_nano_usd`, within
    `lease_ms` of the moment it *sent* the renewal. `soft_nano_usd` is where it starts to wrap up.
    """

    meter_id: str
    epoch: int  # counts up with every change; a lower one is stale
    renewal: int  # the Renew this answers; 0 when unasked
    ceiling_nano_usd: int | None
    soft_nano_usd: int | None
    unreported_max_nano_usd: int
    lease_ms: int
    final: bool = False  # no more will come: a budget that applies is used up


class Action(StrEnum):
    """What the authority tells a meter to do."""

    WARN = "warn"
    WRAP_UP = "wrap_up"
    END = "end"


class Command(msgspec.Struct, frozen=True, array_like=True, tag="command"):
    """Do this now. `budget` names the budget that decided, e.g. `call` or `project:shop`."""

    meter_id: str
    action: Action
    budget: str
    limit_nano_usd: int
    spent_nano_usd: int


class Reject(msgspec.Struct, frozen=True, array_like=True, tag="reject"):
    """A message was not applied. `code` is for programs, `message` says what to do."""

    code: str  # "gap", "version", "forbidden", "unavailable", "malformed"
    message: str
    meter_id: str | None = None
    durable_seq: int | None = None  # with "gap": resend from here


ClientMessage = Hello | Records | Renew | WrappedUp
ServerMessage = Welcome | Ack | Grant | Command | Reject

_encoder = msgspec.msgpack.Encoder()
_client_decoder = msgspec.msgpack.Decoder(ClientMessage)
_server_decoder = msgspec.msgpack.Decoder(ServerMessage)


def encode_message(message: ClientMessage | ServerMessage) -> bytes:
    """One message as MessagePack."""
    return _encoder.encode(message)


def decode_client_message(data: bytes) -> ClientMessage:
    """A client's message; raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return _client_decoder.decode(data)


def decode_server_message(data: bytes) -> ServerMessage:
    """A server's message; raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return _server_decoder.decode(data)
