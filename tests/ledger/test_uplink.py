"""The client's protocol: whatever the network does, everything arrives, once, and nothing else."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voicecost_ledger.protocol import (
    METERS_MAX,
    PROTOCOL_VERSION,
    Ack,
    ClientMessage,
    Grant,
    Hello,
    MeterHeld,
    Records,
    Reject,
    Renew,
    ServerMessage,
    Welcome,
    WrappedUp,
)
from voicecost_ledger.records import (
    Basis,
    Coverage,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    Outcome,
    Record,
    encode_record,
)
from voicecost_ledger.uplink import Uplink


def opened(meter: str = "M") -> MeterOpen:
    return MeterOpen(meter, 1, 0)


def interim(seq: int, leg: int = 1, meter: str = "M") -> LegInterim:
    return LegInterim(meter, seq, 0, leg, {"characters": seq}, Basis.OBSERVED)


def stop(seq: int, leg: int = 1, meter: str = "M") -> LegStop:
    return LegStop(meter, seq, 0, leg, {"characters": seq}, Basis.OBSERVED, Outcome.SERVED)


def closed(seq: int, meter: str = "M") -> MeterClose:
    return MeterClose(meter, seq, 0, Coverage.COMPLETE)


def grant(ceiling: int | None, *, epoch: int = 1, renewal: int = 1, final: bool = False) -> Grant:
    return Grant("M", epoch, renewal, ceiling, ceiling, 100, 30_000, final)


class Ledger:
    """The authority's side of sequencing, as `Books` keeps it: a watermark and totals per leg."""

    def __init__(self, generation: int = 1) -> None:
        self.generation = generation
        self.durable: dict[str, int] = {}
        self.totals: dict[tuple[str, int], dict[str, int]] = {}
        self.closed: set[str] = set()
        self.renewals: list[Renew] = []

    def receive(self, message: ClientMessage) -> list[ServerMessage]:
        match message:
            case Hello():
                known = {
                    held.meter_id: self.durable.get(held.meter_id, 0) for held in message.meters
                }
                return [Welcome(PROTOCOL_VERSION, "L", self.generation, known)]
            case Records():
                return [self._records(message)]
            case Renew():
                self.renewals.append(message)
                if message.meter_id not in self.durable:
                    return []
                epoch = len(self.renewals)
                return [Grant(message.meter_id, epoch, message.renewal, None, None, 0, 30_000)]
            case WrappedUp():
                return []

    def _records(self, batch: Records) -> ServerMessage:
        durable = self.durable.get(batch.meter_id, 0)
        if batch.after_seq > durable:
            return Reject("gap", "resend", batch.meter_id, durable)
        seqs = [record.seq for record in batch.records]
        assert seqs == sorted(set(seqs))
        assert all(batch.after_seq < seq <= batch.through_seq for seq in seqs)
        for record in batch.records:
            if record.seq > durable:
                self._apply(record)
        self.durable[batch.meter_id] = max(durable, batch.through_seq)
        return Ack({batch.meter_id: self.durable[batch.meter_id]}, {})

    def _apply(self, record: Record) -> None:
        match record:
            case LegStart() | LegInterim() | LegStop():
                self.totals[record.meter_id, record.leg] = record.usage
            case MeterClose():
                self.closed.add(record.meter_id)
            case _:
                pass


def talk(uplink: Uplink, ledger: Ledger, messages: list[ClientMessage], now_ms: int = 0) -> None:
    """A perfect network, until both are silent."""
    while messages:
        answers = [answer for message in messages for answer in ledger.receive(message)]
        messages = [m for answer in answers for m in uplink.receive(answer, now_ms)]


def connected(ledger: Ledger | None = None) -> tuple[Uplink, Ledger]:
    uplink, ledger = Uplink("P"), ledger or Ledger()
    talk(uplink, ledger, uplink.connected(0))
    return uplink, ledger


def test_nothing_but_hello_goes_out_before_the_welcome() -> None:
    uplink = Uplink("P")
    assert uplink.recorded(opened(), 0) == []
    [hello] = uplink.connected(0)
    assert isinstance(hello, Hello)
    assert [(m.meter_id, m.first_seq_held, m.last_seq) for m in hello.meters] == [("M", 1, 1)]
    assert uplink.recorded(stop(2), 100) == []
    sent = uplink.receive(Welcome(PROTOCOL_VERSION, "L", 1, {"M": 0}), 200)
    assert sent == [
        Records("M", 0, 2, [opened(), stop(2)]),
        Renew("M", 1, 0),
    ]


def test_a_meter_opened_on_a_standing_connection_needs_no_round_trip() -> None:
    uplink, _ = connected()
    hello, records, renew = uplink.recorded(opened(), 5)
    assert isinstance(hello, Hello)
    assert records == Records("M", 0, 1, [opened()])
    assert renew == Renew("M", 1, 0)


def test_records_linger_and_superseded_interims_are_left_out() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.receive(grant(1_000), 0)
    for seq in (2, 3, 4):
        assert uplink.recorded(interim(seq), 10) == []
    assert uplink.recorded(stop(5, leg=2), 20) == []
    assert uplink.next_tick_ms() == 70
    assert uplink.tick(69) == []
    assert uplink.tick(70) == [Records("M", 1, 5, [interim(4), stop(5, leg=2)])]


def test_interims_alone_wait_half_a_second_away_from_the_end_of_a_grant() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.receive(grant(1_000, epoch=7), 0)
    uplink.recorded(interim(2), 0)
    assert uplink.tick(499) == []
    assert uplink.tick(500) == [Records("M", 1, 2, [interim(2)])]
    uplink.spent("M", 600)
    uplink.recorded(interim(3), 1_000)
    assert Records("M", 2, 3, [interim(3)]) in uplink.tick(1_050)


def test_a_flush_sends_at_once() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.recorded(stop(2), 0)
    assert uplink.flush(1) == [Records("M", 1, 2, [stop(2)])]
    assert uplink.flush(2) == []


def test_credit_is_renewed_at_half_of_a_grant_and_every_ten_seconds() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.receive(grant(1_000, epoch=7), 0)
    uplink.spent("M", 499)
    assert uplink.tick(1) == []
    uplink.spent("M", 500)
    assert uplink.tick(2) == [Renew("M", 2, 500)]
    uplink.spent("M", 501)
    assert uplink.tick(3) == []  # asked once
    uplink.receive(grant(1_500, epoch=8, renewal=2), 4)
    assert uplink.tick(10_001) == []
    assert uplink.tick(10_002) == [Renew("M", 3, 501)]
    assert uplink.tick(12_001) == []
    assert uplink.tick(12_002) == [Renew("M", 4, 501)]  # unanswered


def test_an_exhausted_meter_reports_everything_and_asks_at_once() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.receive(grant(100, epoch=7), 0)
    uplink.recorded(interim(2), 1)
    assert uplink.exhausted("M", 100, 2) == [
        Records("M", 1, 2, [interim(2)]),
        Renew("M", 2, 100, True),
    ]


def test_a_meter_that_goes_on_asks_at_once_and_does_not_say_that_it_has_stopped() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.receive(grant(100, epoch=7), 0)
    uplink.recorded(interim(2), 1)
    assert uplink.renew("M", 110, 2) == [Records("M", 1, 2, [interim(2)]), Renew("M", 2, 110)]


def test_the_wrap_up_is_said_again_after_a_reconnect() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    assert WrappedUp("M") in uplink.wrapped_up("M", 1)
    uplink.disconnected(2)
    [hello] = uplink.connected(3)
    [welcome] = ledger.receive(hello)
    assert WrappedUp("M") in uplink.receive(welcome, 4)


def test_what_was_in_flight_is_sent_again_after_a_reconnect() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.recorded(stop(2), 0)
    lost = uplink.flush(1)
    assert lost == [Records("M", 1, 2, [stop(2)])]
    uplink.disconnected(2)
    talk(uplink, ledger, uplink.connected(3), 4)
    assert ledger.durable == {"M": 2}
    assert uplink.settled
    assert uplink.take_acked() == {"M": 2}
    assert uplink.take_acked() == {}


def test_an_unanswered_batch_is_sent_again_with_growing_pauses() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.recorded(stop(2), 0)
    batch = uplink.flush(0)
    sent_at: list[int] = []
    for now_ms in range(0, 60_000, 100):
        if any(message in batch for message in uplink.tick(now_ms)):
            sent_at.append(now_ms)
    assert sent_at == [5_000, 15_000, 35_000]


def test_unacknowledged_bytes_are_bounded() -> None:
    uplink = Uplink("P", unacked_bytes_max=1_000, batch_bytes_max=300)
    ledger = Ledger()
    for seq in range(1, 200):
        uplink.recorded(opened() if seq == 1 else stop(seq, leg=seq), 0)
    [hello] = uplink.connected(0)
    [welcome] = ledger.receive(hello)
    sent = [m for m in uplink.receive(welcome, 0) if isinstance(m, Records)]
    assert 1 < len(sent) < 8
    [first] = ledger.receive(sent[0])
    more = [m for m in uplink.receive(first, 1) if isinstance(m, Records)]
    assert [m.after_seq for m in more] == [sent[-1].through_seq]
    talk(uplink, ledger, [*sent[1:], *more], 2)
    assert ledger.durable == {"M": 199}


def test_a_store_that_cannot_commit_is_given_a_second() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.recorded(stop(2), 0)
    uplink.flush(0)
    assert uplink.receive(Reject("unavailable", "locked", "M"), 10) == []
    assert uplink.tick(1_009) == []
    talk(uplink, ledger, uplink.tick(1_010), 1_010)
    assert ledger.durable == {"M": 2}


def test_a_lower_generation_is_a_split_brain_and_refused() -> None:
    uplink, ledger = connected(Ledger(generation=2))
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    uplink.disconnected(1)
    uplink.recorded(stop(2), 2)
    [hello] = uplink.connected(3)
    [welcome] = Ledger(generation=1).receive(hello)
    assert uplink.receive(welcome, 4) == []
    assert uplink.refusal is not None
    assert "generation 1" in uplink.refusal
    assert uplink.flush(5) == []
    uplink.disconnected(6)
    talk(uplink, ledger, uplink.connected(7), 8)
    assert ledger.durable == {"M": 2}


@pytest.mark.parametrize("code", ["version", "forbidden"])
def test_a_refused_client_says_nothing_more_on_that_connection(code: str) -> None:
    uplink, _ = connected()
    uplink.recorded(opened(), 0)
    assert uplink.receive(Reject(code, "no"), 1) == []
    assert uplink.refusal == "no"
    assert uplink.next_tick_ms() is None


def test_a_restored_ledger_is_told_what_is_still_held() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    talk(uplink, ledger, uplink.recorded(stop(2), 0))
    talk(uplink, ledger, uplink.flush(1))
    uplink.disconnected(2)
    uplink.recorded(stop(3, leg=2), 3)
    restored = Ledger(generation=2)
    restored.durable = {"M": 1}
    [hello] = uplink.connected(4)
    assert isinstance(hello, Hello)
    assert (hello.meters[0].first_seq_held, hello.meters[0].last_seq) == (3, 3)
    talk(uplink, restored, [hello], 5)
    assert restored.durable == {"M": 3}
    assert uplink.generation == 2


def test_every_hello_says_whose_its_meters_are() -> None:
    """A ledger that is new to it has nothing else to know its project by: all is acknowledged."""
    uplink, ledger = connected()
    [hello, *rest] = uplink.recorded(opened(), 0)
    assert isinstance(hello, Hello)
    assert hello.meters[0].opened == opened()
    talk(uplink, ledger, rest)
    uplink.disconnected(1)
    [hello] = uplink.connected(2)
    assert isinstance(hello, Hello)
    assert hello.meters == [MeterHeld("M", 0, 1, opened())]
    uplink.recorded(closed(2), 3)
    [hello] = uplink.connected(4)
    assert isinstance(hello, Hello)
    assert hello.meters == [MeterHeld("M", 2, 2, opened())]


def test_more_meters_than_one_hello_may_name_are_said_in_several() -> None:
    uplink, ledger = Uplink("P", batch_bytes_max=10**6, unacked_bytes_max=10**6), Ledger()
    for number in range(METERS_MAX + 1):
        uplink.recorded(opened(f"M{number}"), 0)
    hellos = uplink.connected(0)
    assert [len(hello.meters) for hello in hellos if isinstance(hello, Hello)] == [METERS_MAX, 1]
    talk(uplink, ledger, hellos)
    assert uplink.settled


def test_a_hello_is_no_larger_than_a_batch_of_records() -> None:
    """A server ends a connection that sends it too much: a hello too large would do so for ever."""
    size = len(encode_record(opened()))
    uplink = Uplink("P", batch_bytes_max=2 * size)
    for name in "ABCDE":
        uplink.recorded(opened(name), 0)
    hellos = [hello for hello in uplink.connected(0) if isinstance(hello, Hello)]
    assert [[held.meter_id for held in hello.meters] for hello in hellos] == [
        ["A", "B"], ["C", "D"], ["E"],
    ]  # fmt: skip


def test_a_finished_meter_is_forgotten_and_a_late_correction_still_arrives() -> None:
    uplink, ledger = connected()
    talk(uplink, ledger, uplink.recorded(opened(), 0))
    talk(uplink, ledger, uplink.recorded(closed(2), 0))
    assert ledger.closed == {"M"}
    assert uplink.next_tick_ms() is None
    talk(uplink, ledger, uplink.recorded(stop(3), 1), 1)
    talk(uplink, ledger, uplink.flush(2), 2)
    assert ledger.durable == {"M": 3}


def test_an_adopted_meter_asks_for_no_credit() -> None:
    uplink, ledger = connected()
    for record in (opened(), stop(2)):
        talk(uplink, ledger, uplink.recorded(record, 0, adopted=True))
    talk(uplink, ledger, uplink.flush(1), 1)
    assert ledger.durable == {"M": 2}
    assert ledger.renewals == []


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32), st.integers(20, 150))
def test_loss_repeats_reordering_and_reconnects_converge(seed: int, steps: int) -> None:
    """A hostile network for a while, then a fair one: the ledger has each leg's last totals."""
    chance = random.Random(seed)
    uplink, ledger = Uplink("P", unacked_bytes_max=600, batch_bytes_max=200), Ledger()
    meters = ["A", "B"]
    seqs = dict.fromkeys(meters, 0)
    truth: dict[tuple[str, int], dict[str, int]] = {}
    up: list[ClientMessage] = []
    down: list[ServerMessage] = []
    now_ms = 0
    online = False

    def record(meter: str) -> None:
        seqs[meter] = seq = seqs[meter] + 1
        leg = chance.randrange(1, 4)
        if seq == 1:
            up.extend(uplink.recorded(opened(meter), now_ms))
            return
        make = chance.choice([interim, interim, interim, stop])
        truth[meter, leg] = {"characters": seq}
        up.extend(uplink.recorded(make(seq, leg, meter), now_ms))

    for _ in range(steps):
        now_ms += chance.choice([0, 1, 30, 600, 6_000])
        match chance.randrange(8):
            case 0 | 1 | 2:
                record(chance.choice(meters))
            case 3 if online:
                uplink.disconnected(now_ms)
                online = False
                up.clear()
                down.clear()
            case 3 | 4:
                online = True
                up.clear()
                down.clear()
                up.extend(uplink.connected(now_ms))
            case 5 if up:
                message = up.pop(chance.randrange(len(up)))
                if chance.random() < 0.7:
                    down.extend(ledger.receive(message))
                if chance.random() < 0.2:
                    up.append(message)
            case 6 if down:
                answer = down.pop(chance.randrange(len(down)))
                if chance.random() < 0.2:
                    down.append(answer)
                up.extend(uplink.receive(answer, now_ms))
            case _:
                up.extend(uplink.tick(now_ms))
    for meter in meters:
        if seqs[meter] == 0:
            record(meter)
    up = list(uplink.connected(now_ms))
    for _ in range(40):  # a minute and more of a network that only delays
        talk(uplink, ledger, up, now_ms)
        now_ms = max(now_ms + 1, uplink.next_tick_ms() or 0)
        up = uplink.tick(now_ms)
    assert uplink.settled
    assert ledger.durable == seqs
    assert ledger.totals == truth
