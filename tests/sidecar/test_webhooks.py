"""LiveKit's webhooks: only its own are believed, and none is answered before it is kept."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from tests.sidecar.running import RunningSidecar, recorded, running_sidecar, sign
from voicecost_sidecar.app import WEBHOOK_BYTES_MAX

FIXTURES = sorted(path.stem for path in (Path(__file__).parent / "fixtures").glob("*.json"))
STARTED = recorded("call_hangup")[0]


def stored_webhooks(sidecar: RunningSidecar) -> int:
    return sidecar.store.counters()["webhooks"]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        pytest.param({"secret": "x" * 40}, "Signature", id="another secret"),
        pytest.param({"key": "APIother"}, "issuer", id="another key"),
        pytest.param({"age_s": 3600}, "expired", id="stale"),
        pytest.param({"signed_body": b"{}"}, "another body", id="another body"),
        pytest.param({"exp": "soon"}, "refused", id="expires at a word"),
        pytest.param({"exp": str(2**40)}, "`exp`", id="expires at a text"),
        pytest.param({"sha256": None}, "another body", id="a caller's own token"),
    ],
)
def test_what_livekit_did_not_sign_just_now_is_refused_and_not_stored(
    sidecar: RunningSidecar, how: dict[str, object], why: str
) -> None:
    answer = sidecar.webhook(STARTED, **how)
    assert answer.status_code == 401
    assert why in answer.json()["detail"]
    assert stored_webhooks(sidecar) == 0
    assert sidecar.get("/v1/calls")["calls"] == []


def test_a_webhook_without_a_signature_is_refused(sidecar: RunningSidecar) -> None:
    headers = {"Authorization": ""}
    assert sidecar.http.post("/livekit/webhook", json=STARTED, headers=headers).status_code == 401
    assert stored_webhooks(sidecar) == 0


def test_the_operators_token_signs_no_webhook(sidecar: RunningSidecar) -> None:
    assert sidecar.http.post("/livekit/webhook", json=STARTED).status_code == 401
    assert stored_webhooks(sidecar) == 0


def test_a_body_is_not_parsed_before_its_signature_is_checked(sidecar: RunningSidecar) -> None:
    unsigned = sidecar.http.post("/livekit/webhook", content=b"no json")
    signed = sidecar.http.post(
        "/livekit/webhook", content=b"no json", headers={"Authorization": sign(b"no json")}
    )
    assert (unsigned.status_code, signed.status_code) == (401, 400)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"event":"a","id":"b","x":' + b"[" * 200_000, id="deep"),
        pytest.param(b'{"event":"a","id":"\xff"}', id="no UTF-8"),
    ],
)
def test_a_signed_body_that_cannot_be_read_is_refused(sidecar: RunningSidecar, body: bytes) -> None:
    headers = {"Authorization": sign(body)}
    answer = sidecar.http.post("/livekit/webhook", content=body, headers=headers)
    assert answer.status_code == 400
    assert "no LiveKit webhook" in answer.json()["detail"]


def test_a_body_that_no_webhook_has_is_not_read(sidecar: RunningSidecar) -> None:
    body = bytes(WEBHOOK_BYTES_MAX + 1)
    headers = {"Authorization": sign(body)}
    answer = sidecar.http.post("/livekit/webhook", content=body, headers=headers)
    assert answer.status_code == 413


def test_a_webhook_with_all_the_metadata_livekit_allows_is_taken(sidecar: RunningSidecar) -> None:
    room = STARTED["room"] | {"metadata": '"' * 512_000}  # each is two bytes of JSON
    assert sidecar.webhook(STARTED | {"room": room}).status_code == 200


def test_what_cannot_be_stored_is_answered_503_so_that_livekit_sends_it_again(
    tmp_path: Path,
) -> None:
    """LiveKit takes a 4xx for delivered; only a 5xx is tried again."""
    with running_sidecar(tmp_path, busy_timeout_ms=50) as sidecar:
        other = apsw.Connection(str(tmp_path / "ledger.db"))
        other.execute("BEGIN IMMEDIATE")
        answer = sidecar.webhook(STARTED)
        health = sidecar.get("/health")
        other.execute("ROLLBACK")
        other.close()
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert str(tmp_path) not in answer.text
        assert health == {"status": "degraded", "version": health["version"], "reason": "locked"}
        assert stored_webhooks(sidecar) == 0
        assert sidecar.webhook(STARTED).status_code == 200
        assert stored_webhooks(sidecar) == 1
        assert sidecar.get("/health")["status"] == "ok"


def test_an_unknown_event_and_one_without_a_room_are_kept_and_answered(
    sidecar: RunningSidecar,
) -> None:
    unknown = STARTED | {"event": "room_dreamt", "id": "EV_unknown"}
    roomless = {"event": "egress_started", "id": "EV_egress", "egressInfo": {"egressId": "EG_1"}}
    assert sidecar.webhook(unknown).status_code == 200
    assert sidecar.webhook(roomless).status_code == 200
    assert stored_webhooks(sidecar) == 2


@pytest.mark.parametrize("fixture", FIXTURES)
def test_every_recorded_sequence_is_taken(sidecar: RunningSidecar, fixture: str) -> None:
    sidecar.replay(fixture)
    ended = any(event["event"] == "room_finished" for event in recorded(fixture)[-1:])
    calls = sidecar.get("/v1/calls")["calls"]
    assert calls
    if ended:
        assert {call["state"] for call in calls} <= {"ended", "settled"}


def test_webhooks_delivered_twice_and_late_change_nothing(sidecar: RunningSidecar) -> None:
    sidecar.replay("call_hangup")
    once = sidecar.get("/v1/calls")
    late = recorded("call_hangup")
    random.Random(1).shuffle(late)
    for event in late:
        assert sidecar.webhook(event).status_code == 200
    assert sidecar.get("/v1/calls") == once
    assert len(once["calls"]) == 1


def test_a_rooms_turn_password_is_nowhere(tmp_path: Path) -> None:
    with running_sidecar(tmp_path) as sidecar:
        secret = STARTED["room"]["turnPassword"]
        sidecar.replay("call_hangup")
        assert secret not in sidecar.http.get("/v1/calls").text
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
    assert b"call_hangup" in kept
    assert secret.encode() not in kept
