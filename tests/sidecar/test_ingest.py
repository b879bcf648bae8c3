"""Agents report over a socket or by POST; who they are, and that an answer means durable."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import CloseCode

from tests.sidecar.running import (
    TOKEN,
    RunningSidecar,
    a_call,
    agent_token,
    batch,
    hello,
    running_sidecar,
    until,
)
from voicecost_ledger.money import NANO_USD_PER_USD
from voicecost_ledger.protocol import (
    PROTOCOL_VERSION,
    Ack,
    Command,
    Grant,
    Hello,
    MeterHeld,
    Reject,
    Renew,
    ServerMessage,
    Welcome,
    WrappedUp,
    encode_message,
)
from voicecost_sidecar.ingest import MESSAGE_BYTES_MAX, InFlight

NOVA_MINUTE_NANO_USD = 4_800_000  # $0.0048


def test_a_call_is_acknowledged_priced_and_read_back(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.send(hello("M_1"))
        assert agent.hear_a(Welcome).durable_seqs == {"M_1": 0}
        agent.send(batch(a_call("M_1")))
        assert agent.hear_a(Ack).committed == {"M_1": 4}
    (call,) = sidecar.get("/v1/calls")["calls"]
    assert (call["project"], call["state"]) == ("shop", "settled")
    assert call["total_nano_usd"] == str(NOVA_MINUTE_NANO_USD)
    detail = sidecar.get(f"/v1/calls/{call['call_id']}")
    assert detail["legs"][0]["amount_nano_usd"] == str(NOVA_MINUTE_NANO_USD)
    assert detail["entries"][0]["usage"]["audio_ms"] == 60_000


def test_the_same_records_twice_cost_once(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        for _ in range(2):
            agent.send(batch(a_call()))
            assert agent.hear_a(Ack).committed == {"M_1": 4}
    assert sidecar.get("/v1/costs")["total_nano_usd"] == str(NOVA_MINUTE_NANO_USD)


def test_grants_go_to_the_socket_that_serves_the_meter(sidecar: RunningSidecar) -> None:
    budget = NANO_USD_PER_USD
    with sidecar.agent() as one, sidecar.agent() as two:
        one.send(batch(a_call("M_1", budget_nano_usd=budget)[:1]))
        two.send(batch(a_call("M_2", budget_nano_usd=budget)[:1]))
        two.send(Renew("M_2", 7, 0))
        one.send(Renew("M_1", 3, 0))
        first, second = one.hear_a(Grant), two.hear_a(Grant)
    assert (first.meter_id, first.renewal) == ("M_1", 3)
    assert (second.meter_id, second.renewal) == ("M_2", 7)


def test_a_refused_message_takes_over_no_meter(sidecar: RunningSidecar) -> None:
    budget = NANO_USD_PER_USD
    with sidecar.agent() as owner, sidecar.agent() as other:
        owner.send(batch(a_call("M_1", budget_nano_usd=budget)[:1]))
        owner.hear_a(Ack)
        other.send(batch(a_call("M_1")[2:3]))  # after a hole
        assert other.hear_a(Reject).code == "gap"
        other.send(Hello(99, "P_future", [MeterHeld("M_1", 1, 1)]))
        assert other.hear_a(Reject).code == "version"
        other.send(WrappedUp("M_1"))  # not for it to say anything about whom grants go to
        other.send(hello())
        other.hear_a(Welcome)
        posted = sidecar.http.post(
            "/v1/records", content=msgspec.msgpack.encode([Renew("M_1", 1, 0)])
        )
        assert msgspec.msgpack.decode(posted.content, type=list[ServerMessage]) == []
        assert owner.hear_a(Grant).renewal == 1


def test_a_meter_that_says_hello_on_a_new_socket_is_served_there(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as before, sidecar.agent() as after:
        before.send(batch(a_call("M_1", budget_nano_usd=NANO_USD_PER_USD)[:1]))
        before.hear_a(Ack)
        after.send(hello("M_1"))
        after.hear_a(Welcome)
        sidecar.http.post("/v1/records", content=msgspec.msgpack.encode([Renew("M_1", 1, 0)]))
        assert after.hear_a(Grant).renewal == 1


def test_a_meter_whose_socket_is_gone_is_served_by_none(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.send(batch(a_call("M_1")[:1]))
        agent.hear_a(Ack)
        assert served(sidecar) == 1
    assert until(lambda: served(sidecar) == 0)


def test_what_is_committed_after_its_socket_went_is_served_by_none(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        other = apsw.Connection(str(tmp_path / "ledger.db"))
        other.execute("BEGIN IMMEDIATE")
        with sidecar.agent() as agent:
            agent.send(batch(a_call("M_1")[:1]))
        other.execute("ROLLBACK")
        other.close()
        assert until(lambda: sidecar.get("/v1/calls")["calls"])
        assert until(lambda: served(sidecar) == 0)


def served(sidecar: RunningSidecar) -> int:
    text = sidecar.http.get("/v1/metrics").text
    (line,) = [x for x in text.splitlines() if x.startswith("voicecost_ingest_served_meters ")]
    return int(float(line.split()[1]))


def test_a_used_up_budget_commands_the_meter_to_wrap_up(sidecar: RunningSidecar) -> None:
    records = a_call("M_1", budget_nano_usd=1_000_000)
    with sidecar.agent() as agent:
        agent.send(batch(records[:1]))
        agent.send(Renew("M_1", 1, 0))
        agent.send(batch(records[1:3]))
        told = [agent.hear_a(Command), agent.hear_a(Command)]
    assert [command.action.value for command in told] == ["warn", "wrap_up"]
    assert {command.limit_nano_usd for command in told} == {1_000_000}


def test_a_hole_in_the_records_is_rejected_with_what_is_durable(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.send(batch(a_call()[2:]))
        reject = agent.hear_a(Reject)
    assert (reject.code, reject.meter_id, reject.durable_seq) == ("gap", "M_1", 0)


def test_what_is_no_message_is_rejected_and_the_socket_stays(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.socket.send(b"\xc1 no MessagePack")
        assert agent.hear_a(Reject).code == "malformed"
        agent.socket.send("text")
        assert agent.hear_a(Reject).code == "malformed"
        agent.send(hello())
        assert agent.hear_a(Welcome).version == PROTOCOL_VERSION


def test_another_protocol_version_is_rejected(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.send(Hello(99, "P_future", []))
        assert agent.hear_a(Reject).code == "version"


def test_nothing_is_acknowledged_that_could_not_be_committed(tmp_path: Path) -> None:
    with running_sidecar(tmp_path, busy_timeout_ms=50) as sidecar, sidecar.agent() as agent:
        other = apsw.Connection(str(tmp_path / "ledger.db"))
        other.execute("BEGIN IMMEDIATE")
        agent.send(batch(a_call()))
        reject = agent.hear()
        posted = sidecar.http.post("/v1/records", content=msgspec.msgpack.encode([batch(a_call())]))
        other.execute("ROLLBACK")
        other.close()
        assert isinstance(reject, Reject)
        assert (reject.code, reject.meter_id) == ("unavailable", "M_1")
        assert posted.status_code == 503
        assert sidecar.get("/v1/calls")["calls"] == []
        agent.send(batch(a_call()))
        assert agent.hear_a(Ack).committed == {"M_1": 4}


@pytest.mark.parametrize("kind", ["application/msgpack", "application/json"])
def test_records_may_be_posted(sidecar: RunningSidecar, kind: str) -> None:
    encoding = msgspec.json if kind == "application/json" else msgspec.msgpack
    records = a_call(budget_nano_usd=NANO_USD_PER_USD)
    messages = [hello("M_1"), batch(records[:3]), Renew("M_1", 1, 0)]
    answer = sidecar.http.post(
        "/v1/records", content=encoding.encode(messages), headers={"Content-Type": kind}
    )
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(kind)
    told = encoding.decode(answer.content, type=list[ServerMessage])
    assert {type(message) for message in told} == {Welcome, Ack, Grant}
    assert sidecar.get("/v1/costs")["total_nano_usd"] == str(NOVA_MINUTE_NANO_USD)


def test_a_body_that_is_no_list_of_messages_is_refused(sidecar: RunningSidecar) -> None:
    answer = sidecar.http.post("/v1/records", json={"hello": 1})
    assert answer.status_code == 400
    assert "list of client messages" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["application/msgpack", "application/json"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 200_000, id="deep JSON"),
        pytest.param(b"\x91" * 200_000, id="deep MessagePack"),
        pytest.param(b'[["records","\xff",0,0,[]]]', id="JSON that is no UTF-8"),
        pytest.param(b"\x91\x95\xa7records\xa1\xff\x00\x00\x90", id="MessagePack, no UTF-8"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused(
    sidecar: RunningSidecar, body: bytes, kind: str
) -> None:
    answer = sidecar.http.post("/v1/records", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert "not understood" in answer.json()["detail"]


def test_a_body_that_is_too_large_is_refused(sidecar: RunningSidecar) -> None:
    body = bytes(MESSAGE_BYTES_MAX + 1)
    said = sidecar.http.post("/v1/records", content=body)
    unsaid = sidecar.http.post("/v1/records", content=iter([body]))  # no Content-Length
    assert (said.status_code, unsaid.status_code) == (413, 413)


def test_a_message_that_is_too_large_ends_the_socket(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.socket.send(bytes(MESSAGE_BYTES_MAX + 1))
        with pytest.raises(ConnectionClosed) as closed:
            agent.hear()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == CloseCode.MESSAGE_TOO_BIG


def test_a_message_that_is_no_utf_8_is_rejected_and_the_socket_stays(
    sidecar: RunningSidecar,
) -> None:
    with sidecar.agent() as agent:
        agent.socket.send(b"\x95\xa7records\xa1\xff\x00\x00\x90")
        assert agent.hear_a(Reject).code == "malformed"
        agent.send(hello())
        assert agent.hear_a(Welcome)


def test_what_one_socket_has_under_way_is_bounded_by_its_bytes() -> None:
    asyncio.run(_fill_a_window())


async def _fill_a_window() -> None:
    window = InFlight(1000)
    await window.enter(600)
    await window.enter(400)
    third = asyncio.create_task(window.enter(500))
    await asyncio.sleep(0)
    assert not third.done()
    window.leave(400)
    await asyncio.sleep(0)
    assert not third.done()
    window.leave(600)
    await third
    window.leave(500)
    await window.enter(5000)  # alone it goes, or it never would


def test_an_agents_own_token_is_enough(sidecar: RunningSidecar) -> None:
    with sidecar.agent(token=agent_token()) as agent:
        agent.send(hello())
        assert agent.hear_a(Welcome)


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        pytest.param({"video": {"roomJoin": True}}, "`video` claim", id="video claim"),
        pytest.param({"video": {}}, "`video` claim", id="empty video claim"),
        pytest.param({"sip": {"call": True}}, "`sip` claim", id="sip claim"),
        pytest.param({"aud": "livekit"}, "Audience", id="another audience"),
        pytest.param({"aud": None}, '"aud"', id="no audience"),
        pytest.param({"iss": "APIother"}, "issuer", id="unknown key"),
        pytest.param({"secret": "y" * 40}, "Signature", id="wrong secret"),
        pytest.param({"lives_s": 3600}, "lives longer", id="lives an hour"),
        pytest.param({"lives_s": -120}, "expired", id="stale"),
        pytest.param({"exp": None}, '"exp"', id="never expires"),
        pytest.param({"exp": str(int(time.time()) + 36_000)}, "`exp`", id="exp is text"),
        pytest.param({"exp": float("inf")}, "exp", id="exp is infinite"),
        pytest.param({"exp": [1]}, "refused", id="exp is a list"),
        pytest.param({"iat": {"at": 1}}, "refused", id="iat is an object"),
        pytest.param({"nbf": [0]}, "refused", id="nbf is a list"),
        pytest.param({"nbf": True}, "`nbf`", id="nbf is a truth value"),
    ],
)
def test_other_tokens_are_refused(
    sidecar: RunningSidecar, claims: dict[str, Any], why: str
) -> None:
    # Made here: a suite that runs for ten minutes outlives a token made when it was collected.
    assert_refused(sidecar, agent_token(**claims), why)


def test_a_guessed_token_is_refused(sidecar: RunningSidecar) -> None:
    assert_refused(sidecar, "guessed", "wrong token")


def assert_refused(sidecar: RunningSidecar, token: str, why: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    answer = sidecar.http.post(
        "/v1/records", content=msgspec.msgpack.encode([batch(a_call())]), headers=headers
    )
    assert answer.status_code == 401
    assert why in answer.json()["detail"]
    with pytest.raises(InvalidStatus) as refused, sidecar.agent(token=token):
        pass
    assert refused.value.response.status_code in (401, 403)
    assert sidecar.get("/v1/calls")["calls"] == []


@pytest.mark.parametrize("path", ["/v1/calls", "/v1/calls/CA_1", "/v1/costs", "/v1/metrics"])
def test_reading_needs_the_operators_token(sidecar: RunningSidecar, path: str) -> None:
    for authorization in ("", "Bearer wrong", TOKEN, f"Bearer {agent_token()}"):
        answer = sidecar.http.get(path, headers={"Authorization": authorization})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_health_and_the_openapi_document_are_for_everybody(sidecar: RunningSidecar) -> None:
    for path in ("/health", "/openapi.json"):
        assert sidecar.http.get(path, headers={"Authorization": ""}).status_code == 200


def test_a_socket_that_goes_closes_no_meter(sidecar: RunningSidecar) -> None:
    with sidecar.agent() as agent:
        agent.send(batch(a_call()[:2]))
        agent.hear_a(Ack)
    assert sidecar.get("/v1/calls")["calls"][0]["state"] == "open"
    with sidecar.agent() as agent:
        agent.socket.send(encode_message(batch(a_call()[2:])))
        assert agent.hear_a(Ack).committed == {"M_1": 4}
    assert sidecar.get("/v1/calls")["calls"][0]["state"] == "settled"
