"""Agents, network, sidecar and LiveKit in virtual time, with seeded faults (design: Proof).

The parts under test are the real ones: `Uplink` and `Allowance` in the agent, `Books` over a real
`SqliteStore` in the sidecar. Around them stand models: a network that drops, repeats, reorders and
partitions; processes that are killed, frozen or lose their host; a disk that is full; a LiveKit
whose webhooks get lost and which restarts. Everything is driven by one queue of events and one
seed, so a failing seed is a test.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tests.ledger.desk import LLM, STT, TTS, SumBook
from voicecost_ledger.billing import Billing, BillingTerms
from voicecost_ledger.books import Books
from voicecost_ledger.checkpoints import Checkpoint, CheckpointTotal
from voicecost_ledger.events import (
    Adjust,
    CheckpointSeen,
    Effect,
    EndRoom,
    Order,
    Rerate,
    RoomVerifiedGone,
    Tick,
)
from voicecost_ledger.grants import Allowance, FailureHandling
from voicecost_ledger.policy import BudgetAction, Policy, ProjectPolicy
from voicecost_ledger.protocol import (
    Action,
    ClientMessage,
    Command,
    Grant,
    Records,
    Reject,
    Renew,
    ServerMessage,
    decode_client_message,
    decode_server_message,
    encode_message,
)
from voicecost_ledger.records import (
    ADOPTED,
    Basis,
    Coverage,
    LegAttributes,
    LegInterim,
    LegStart,
    LegStop,
    MeterClose,
    MeterOpen,
    OnBudget,
    Outcome,
    Record,
)
from voicecost_ledger.rooms import (
    ListedRoom,
    ParticipantKind,
    RoomEvent,
    RoomListing,
    RoomParticipant,
)
from voicecost_ledger.stores import CallQuery, StoreUnavailable
from voicecost_ledger.stores.sqlite import SqliteStore
from voicecost_ledger.uplink import Uplink

NOON = 1_795_348_800_000
BEFORE_MIDNIGHT = NOON + 12 * 3_600_000 - 60_000
WEBHOOK_TRIES_MS = (0, 1_000, 3_000, 7_000, 15_000)  # as livekit-server retries


class World:
    """Virtual time and everything in it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0  # ms on the steady clock
        self.began = self.random.choice([NOON, NOON, BEFORE_MIDNIGHT])  # by the wall clock
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self.limit_cut = False
        self.calm = False  # at the end every fault is healed
        limit = self.random.choice([None, 0, 30_000_000, 300_000_000])
        action = self.random.choice([BudgetAction.END, BudgetAction.WARN])
        project = ProjectPolicy(name="Shop", daily_budget_nano_usd=limit, budget_action=action)
        terms = BillingTerms(markup_ppm=123_457, flat_fee_nano_usd=7)
        self.policy = Policy(
            livekit_project="LK", projects={"shop": project}, billing=Billing(everybody=terms)
        )
        # With no credit in an outage nothing may ever be overshot.
        self.strict = self.random.random() < 0.5
        self.livekit = LiveKit(self)
        self.sidecar = Sidecar(self)
        self.agents = [Agent(self, n) for n in range(self.random.randint(1, 4))]
        if not self.strict and self.random.random() < 0.3:
            # A second agent in the first one's room: what a shared budget's meters spend while
            # they are told to share is overshoot.
            self.agents.append(Agent(self, len(self.agents), beside=self.agents[0]))
        if self.random.random() < 0.2:
            self.later(60_000, self._cut_limit)
        if not self.strict and self.seed % 3 == 0:  # what an adjustment adds is overshoot
            self.later(70_000, self._correct)

    def later(self, delay_ms: int, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._count, do))

    @property
    def wall_clock(self) -> int:
        return self.began + self.now

    def _cut_limit(self) -> None:
        """The operator lowers the project's budget in the middle of it all."""
        self.limit_cut = True
        shop = self.policy.projects["shop"]
        limit = (shop.daily_budget_nano_usd or 0) // 3
        lowered = msgspec.structs.replace(shop, daily_budget_nano_usd=limit)
        self.policy = msgspec.structs.replace(self.policy, projects={"shop": lowered})
        self.sidecar.books = Books(self.sidecar.prices, self.policy)

    def _correct(self) -> None:
        """The operator finds a wrong price, and refunds something of each call."""
        self.sidecar.prices.known["aura-2"] = 3
        orders: list[Order] = [
            Rerate(from_unix_ms=self.began, until_unix_ms=self.wall_clock, apply=True)
        ]
        for call in self.sidecar.store.calls(CallQuery(limit=1000)):
            order = Adjust(
                adjustment_id="A", call_id=call.call_id, amount_nano_usd=-5, reason="x", by="op"
            )
            orders += [order, order]
        for order in orders:
            if self.sidecar.up and not self.sidecar.disk_full:
                with self.sidecar.store.transaction() as tx:
                    self.sidecar.books.order(tx, order, self.wall_clock)

    def chance(self, probability: float) -> bool:
        return not self.calm and self.random.random() < probability

    def run(self, until_ms: int) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            self.now, _, do = heapq.heappop(self._queue)
            do()
        self.now = until_ms

    def play(self) -> None:
        """Two minutes of trouble, then peace until everything is settled."""
        self.run(120_000)
        self.calm = True
        self.sidecar.start()
        for agent in self.agents:
            agent.heal()
        self.run(120_000 + 240_000)


class LiveKit:
    """Rooms, participants, webhooks with LiveKit's five tries, and a server that may restart."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rooms: dict[str, str] = {}  # name -> sid
        self.inside: dict[str, dict[str, RoomParticipant]] = {}  # sid -> participant sid -> who
        self.bill: dict[int, int | None] = {}  # each connection's joining -> its leaving
        self._ids = 0

    def new_id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}_{self._ids}"

    def join(self, name: str, identity: str, job_id: str | None) -> str:
        sid = self.rooms.get(name)
        if sid is None:
            sid = self.rooms[name] = self.new_id("RM")
            self.inside[sid] = {}
            self._tell("room_started", sid, name, None)
        kind = ParticipantKind.AGENT if job_id else ParticipantKind.STANDARD
        joined = self.world.wall_clock
        while joined in self.bill:  # each is known by its time
            joined -= 1
        self.bill[joined] = None
        participant = RoomParticipant(
            sid=self.new_id("PA"),
            identity=identity,
            kind=kind,
            joined_at_unix_ms=joined,
            job_id=job_id,
        )
        self.inside[sid][participant.sid] = participant
        self._tell("participant_joined", sid, name, participant)
        return sid

    def leave(self, name: str, identity: str) -> None:
        sid = self.rooms.get(name)
        if sid is None:
            return
        for who in [p for p in self.inside[sid].values() if p.identity == identity]:
            del self.inside[sid][who.sid]
            self._left(who)
            self._tell("participant_left", sid, name, who)
        people = [p for p in self.inside[sid].values() if p.kind is ParticipantKind.STANDARD]
        if not people:
            # departure_timeout
            self.world.later(20_000, lambda: self._close_if_deserted(name, sid))

    def _close_if_deserted(self, name: str, sid: str) -> None:
        inside = self.inside.get(sid, {}).values()
        if self.rooms.get(name) == sid and not any(
            p.kind is ParticipantKind.STANDARD for p in inside
        ):
            self.delete(name)

    def delete(self, name: str) -> None:
        sid = self.rooms.pop(name, None)
        if sid is None:
            return
        for who in self.inside.pop(sid).values():
            self._left(who)
            self._tell("participant_left", sid, name, who)
        self._tell("room_finished", sid, name, None)
        for agent in self.world.agents:
            if agent.room_name == name:
                self.world.later(40, agent.room_gone)

    def _left(self, who: RoomParticipant) -> None:
        assert who.joined_at_unix_ms is not None
        self.bill[who.joined_at_unix_ms] = self.world.wall_clock

    def restart(self) -> None:
        """SIGKILL and back: every live call comes in again under a new SID, nothing is said."""
        for inside in self.inside.values():
            for who in inside.values():
                self._left(who)
        rooms, self.rooms, self.inside = self.rooms, {}, {}
        for name in rooms:
            for agent in self.world.agents:
                if agent.room_name == name and agent.in_room:
                    self.world.later(2_700, agent.rejoin)

    def listing(self) -> RoomListing:
        return RoomListing(
            livekit_project="LK",
            requested_at_unix_ms=self.world.wall_clock,
            rooms=[
                ListedRoom(sid=sid, name=name, participants=list(self.inside[sid].values()))
                for name, sid in self.rooms.items()
            ],
        )

    def _tell(self, event: str, sid: str, name: str, participant: RoomParticipant | None) -> None:
        webhook = RoomEvent(
            event_id=self.new_id("EV"),
            event=event,
            livekit_project="LK",
            room_sid=sid,
            room_name=name,
            created_at_unix_ms=self.world.wall_clock,
            participant=participant,
        )
        left = participant if event == "participant_left" else None
        seen = self.checkpoint_of(left)  # LiveKit gives the attributes as they were
        delay = self.world.random.randint(5, 60)
        self.world.later(delay, lambda: self._deliver(webhook, seen, 0))

    def checkpoint_of(self, participant: RoomParticipant | None) -> CheckpointSeen | None:
        """What an agent left in its participant's attributes."""
        for agent in self.world.agents:
            if participant is not None and participant.job_id == agent.job_id:
                return agent.checkpoint
        return None

    def _deliver(self, webhook: RoomEvent, seen: CheckpointSeen | None, attempt: int) -> None:
        world = self.world
        if world.chance(0.05):
            return  # dropped for age, or the server died with it
        if world.sidecar.webhook(webhook, seen):
            if world.chance(0.1):
                world.later(500, lambda: self._again(webhook, seen))
        elif attempt + 1 < len(WEBHOOK_TRIES_MS):
            wait = WEBHOOK_TRIES_MS[attempt + 1] - WEBHOOK_TRIES_MS[attempt]
            world.later(wait, lambda: self._deliver(webhook, seen, attempt + 1))

    def _again(self, webhook: RoomEvent, seen: CheckpointSeen | None) -> None:
        self.world.sidecar.webhook(webhook, seen)


class Sidecar:
    """The real books over a real store; may be killed, and its disk may be full."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = SqliteStore.open(":memory:")
        self.up = True
        self.disk_full = False
        self.prices = SumBook()
        if not world.strict:  # what LiveKit bills is held by nobody, so it is overshoot
            self.prices.minute_nano_usd = {"standard": 500_000, "self-hosted-agent": 700_000}
        self.books = Books(self.prices, world.policy)
        self.ended: list[tuple[str, str]] = []
        self.checkpoints: dict[str, Checkpoint] = {}  # the last one that was told, by meter
        world.later(1_000, self._tick)
        world.later(3_000, self._poll)

    def start(self) -> None:
        self.up, self.disk_full = True, False

    def kill(self) -> None:
        self.up = False
        for agent in self.world.agents:
            agent.connection_lost()
        self.world.later(self.world.random.choice([500, 5_000, 50_000]), self.start)

    def commit(self, event: Any) -> list[Effect]:
        """Apply one event durably; raises when the disk is full, and then nothing happened."""
        with self.store.transaction() as tx:
            effects = self.books.receive(tx, event, self.world.wall_clock)
            if self.disk_full:
                raise StoreUnavailable("the disk is full", reason="full")
        for effect in effects:
            if isinstance(effect, EndRoom):
                self.world.later(5, lambda end=effect: self._end_room(end))
            elif isinstance(effect, (Command, Grant)) and not isinstance(event, Renew):
                self._route(effect)
        return effects

    def receive(self, agent: Agent, data: bytes) -> None:
        if not self.up:
            return
        message = decode_client_message(data)
        try:
            effects = self.commit(message)
        except StoreUnavailable:
            meter_id = getattr(message, "meter_id", None)
            agent.send_back(Reject(code="unavailable", message="later", meter_id=meter_id))
            return
        for effect in effects:
            if isinstance(effect, EndRoom):
                continue
            if isinstance(effect, (Command, Grant)) and not isinstance(message, Renew):
                continue  # routed by commit
            agent.send_back(effect)

    def webhook(self, webhook: RoomEvent, seen: CheckpointSeen | None) -> bool:
        """Whether it was answered 200: only when all that it told is committed."""
        if not self.up:
            return False
        try:
            self.commit(webhook)
            if seen is not None:
                self.commit(seen)
                self.checkpoints[seen.checkpoint.opened.meter_id] = seen.checkpoint
        except StoreUnavailable:
            return False
        return True

    def adopt(self, agent: Agent) -> None:
        """The dead agent's spool is on our disk and its lock is free."""
        if not self.up or self.disk_full:
            self.world.later(1_000, lambda: self.adopt(agent))
            return
        records = list(agent.spool)
        if not agent.closed:
            seq, at = records[-1].seq + 1, self.world.wall_clock + agent.clock_off
            records.append(MeterClose(agent.meter_id, seq, at, Coverage.COMPLETE, ADOPTED))
        sent_at = self.world.wall_clock + agent.clock_off
        self.commit(Records(agent.meter_id, 0, records[-1].seq, records, sent_at))

    def _route(self, effect: Command | Grant) -> None:
        for agent in self.world.agents:
            if agent.meter_id == effect.meter_id:
                agent.send_back(effect)

    def _end_room(self, end: EndRoom) -> None:
        livekit = self.world.livekit
        if not self.up or livekit.rooms.get(end.room_name, end.room_sids[0]) not in end.room_sids:
            return  # another life of the name: not ours to delete
        self.ended.append((end.call_id, end.room_name))
        livekit.delete(end.room_name)
        self.world.later(10, lambda: self._verified(end))

    def _verified(self, end: EndRoom) -> None:
        if self.up and not self.disk_full:
            for sid in end.room_sids:
                self.commit(RoomVerifiedGone(call_id=end.call_id, room_sid=sid))

    def _tick(self) -> None:
        self.world.later(1_000, self._tick)
        if self.up and not self.disk_full:
            self.commit(Tick())
        if self.up and self.world.chance(0.01):
            self.kill()
        if self.world.chance(0.01):
            self.disk_full = True
            self.world.later(8_000, self._disk_freed)

    def _disk_freed(self) -> None:
        self.disk_full = False

    def _poll(self) -> None:
        self.world.later(10_000, self._poll)
        if self.up and not self.disk_full:
            listing = self.world.livekit.listing()
            self.commit(listing)
            for who in [p for room in listing.rooms for p in room.participants or []]:
                seen = self.world.livekit.checkpoint_of(who)
                if seen is not None:
                    self.commit(seen)
                    self.checkpoints[seen.checkpoint.opened.meter_id] = seen.checkpoint
        if self.world.chance(0.03):
            self.world.livekit.restart()


class Agent:
    """One agent process with one meter: real Uplink, real Allowance, a spool that survives."""

    def __init__(self, world: World, number: int, *, beside: Agent | None = None) -> None:
        self.world = world
        self.beside = beside
        self.meter_id = f"MT_{number}"
        self.room_name = f"room-{number}" if beside is None else beside.room_name
        self.job_id = f"AJ_{number}"
        self.on_budget = world.random.choice(list(OnBudget))
        self.budget = world.random.choice([None, None, 5_000_000, 40_000_000])
        self.spool: list[Record] = []
        self.host_lost = False
        self.alive = False
        self.frozen_until = 0
        self.in_room = False
        self.connected = False
        self.spending = True
        self.clock_off = world.random.choice([0, 0, -600_000, 600_000, -86_400_000])
        self.seq = self.legs = self.total = self.acked_total = 0
        self.totals: list[tuple[int, int]] = [(0, 0)]  # (seq, total)
        self.open: dict[int, tuple[Any, dict[str, int]]] = {}
        self.checkpoint: CheckpointSeen | None = None
        failure = FailureHandling.TERMINATE if world.strict else FailureHandling.CONTINUE
        own = self.budget if self.on_budget is not OnBudget.NOTIFY else None
        self.allowance = Allowance(0, budget_nano_usd=own, failure_handling=failure)
        self.uplink = Uplink(f"process-{number}")
        world.later(world.random.randint(0, 20_000), self.begin)

    # ---- life ----------------------------------------------------------------------------------

    def begin(self) -> None:
        world = self.world
        if self.beside is None:
            world.livekit.join(self.room_name, "caller", None)
        elif not self.beside.in_room:
            return  # nobody there to help
        self.alive = True
        sid = world.livekit.join(self.room_name, f"agent-{self.job_id}", self.job_id)
        self.in_room = True
        self.write(
            MeterOpen,
            project=world.random.choice(["shop", "shop", "other"]),
            room_name=self.room_name,
            room_sid=sid,
            job_id=self.job_id,
            budget_nano_usd=self.budget,
            on_budget=self.on_budget,
        )
        world.later(10, self._connect)
        world.later(100, self._pump)
        world.later(200, self._talk)
        world.later(world.random.randint(1_000, 10_000), self._seal)
        if world.random.random() < 0.7:
            world.later(world.random.randint(5_000, 90_000), self._hang_up)

    def heal(self) -> None:
        self.frozen_until = 0
        if self.alive:
            self.world.later(100, self._hang_up)

    def rejoin(self) -> None:
        if self.alive and self.in_room:
            self.world.livekit.join(self.room_name, f"agent-{self.job_id}", self.job_id)
            if self.beside is None:
                self.world.livekit.join(self.room_name, "caller", None)

    def room_gone(self) -> None:
        if self.in_room:
            self.in_room = False
            self._close("room_deleted")

    def _hang_up(self) -> None:
        if self.beside is None:
            self.world.livekit.leave(self.room_name, "caller")
        self.in_room = False
        if self.alive:
            self.world.later(40, lambda: self._close("participant_disconnected"))

    def _close(self, reason: str) -> None:
        if not self.alive or self.closed:
            return
        for leg in list(self.open):
            self._stop(leg, Outcome.INTERRUPTED)
        self.write(MeterClose, coverage=Coverage.COMPLETE, reason=reason)
        self.checkpoint = self._checkpoint()
        self.world.livekit.leave(self.room_name, f"agent-{self.job_id}")

    @property
    def closed(self) -> bool:
        return bool(self.spool) and isinstance(self.spool[-1], MeterClose)

    def _kill(self) -> None:
        self.alive = False
        self.connected = False
        if self.world.random.random() < 0.3:
            self.host_lost = True
        else:
            # By the sidecar on its host, or much later by whoever starts there next.
            wait = self.world.random.choice([1_000, 1_000, 100_000])
            self.world.later(wait, lambda: self.world.sidecar.adopt(self))
        leave = lambda: self.world.livekit.leave(self.room_name, f"agent-{self.job_id}")  # noqa: E731
        self.world.later(21_000, leave)
        self.world.later(self.world.random.randint(500, 60_000), self._hang_up)

    def _seal(self) -> None:
        """Leave what was used so far with LiveKit; a frozen process does not."""
        if self.alive and not self.closed:
            self.world.later(10_000, self._seal)
            if self.world.now >= self.frozen_until:
                self.checkpoint = self._checkpoint()

    def _checkpoint(self) -> CheckpointSeen:
        opened = self.spool[0]
        assert isinstance(opened, MeterOpen)
        totals = [CheckpointTotal(kind, usage) for kind, usage in totals_of(self.spool).items()]
        return CheckpointSeen(
            checkpoint=Checkpoint(opened, self.seq, self.spool[-1].at_unix_ms, totals)
        )

    # ---- metering ------------------------------------------------------------------------------

    def write(self, make: Any, **fields: Any) -> None:
        self.seq += 1
        at = self.world.wall_clock + self.clock_off
        record = make(self.meter_id, self.seq, at, **fields)
        self.spool.append(record)  # on disk before anybody else sees it
        self._send(self.uplink.recorded(record, self.world.now))

    def _talk(self) -> None:
        world = self.world
        if not self.alive or self.closed:
            return
        world.later(world.random.randint(50, 1_500), self._talk)
        if world.now < self.frozen_until:
            return
        if world.chance(0.004):
            self._kill()
            return
        if world.chance(0.01):
            self.frozen_until = world.now + world.random.choice([2_000, 50_000])
            return
        if not self.spending or not self.in_room:
            return
        if world.strict and self.allowance.grant is None:
            return  # a greeting before the first grant is on credit; without credit it waits
        if not self.open or world.random.random() < 0.3:
            self.legs += 1
            attributes = world.random.choice([LLM, STT, TTS])
            self.open[self.legs] = (attributes, {})
            self.write(LegStart, leg=self.legs, attributes=attributes, usage={})
            return
        leg = world.random.choice(list(self.open))
        if world.random.random() < 0.25:
            self._stop(leg, world.random.choice([Outcome.SERVED, Outcome.INTERRUPTED]))
            return
        self._spend(leg, world.random.randint(1, 800))

    def _spend(self, leg: int, quantity: int) -> None:
        attributes, usage = self.open[leg]
        unit = {LLM: "output_tokens", STT: "audio_ms", TTS: "characters"}[attributes]
        quantity = quantity - quantity % 1000 + 1000 if attributes is STT else quantity
        cost = quantity * 1000
        if not self._may_spend(cost):
            self.spending = False
            self._send(self.uplink.exhausted(self.meter_id, self.total, self.world.now))
            if self.on_budget is OnBudget.WRAP_UP:
                self.world.later(2_000, self._wrapped_up)
            return
        usage[unit] = usage.get(unit, 0) + quantity
        self.total += cost
        self.uplink.spent(self.meter_id, self.total)
        self.write(LegInterim, leg=leg, usage=dict(usage), basis=Basis.OBSERVED)
        self.totals.append((self.seq, self.total))

    def _may_spend(self, cost: int) -> bool:
        return self.allowance.may_spend(self.total, cost, self.acked_total, self.world.now)

    def _wrapped_up(self) -> None:
        if self.alive:
            self._send(self.uplink.wrapped_up(self.meter_id, self.world.now))

    def _stop(self, leg: int, outcome: Outcome) -> None:
        _, usage = self.open.pop(leg)
        self.write(LegStop, leg=leg, usage=usage, basis=Basis.OBSERVED, outcome=outcome)

    # ---- the wire ------------------------------------------------------------------------------

    def _connect(self) -> None:
        if not self.alive:
            return
        if not self.world.sidecar.up or self.world.chance(0.1):
            self.world.later(self.world.random.choice([200, 2_000, 40_000]), self._connect)
            return
        self.connected = True
        self._send(self.uplink.connected(self.world.now))

    def connection_lost(self) -> None:
        if self.connected:
            self.connected = False
            self.allowance.reachable(False)
            self.uplink.disconnected(self.world.now)
            wait = 200 if self.world.calm else self.world.random.choice([200, 2_000, 40_000])
            self.world.later(wait, self._connect)

    def _pump(self) -> None:
        if not self.alive:
            return
        self.world.later(100, self._pump)
        if self.world.now >= self.frozen_until:
            if self.connected and self.world.chance(0.002):
                self.connection_lost()
            self._send(self.uplink.tick(self.world.now))

    def _send(self, messages: list[ClientMessage]) -> None:
        for message in messages:
            if isinstance(message, Renew):
                self.allowance.renewal_sent(message.renewal, self.world.now)
            elif isinstance(message, Records):
                sent_at = self.world.wall_clock + self.clock_off
                message = msgspec.structs.replace(message, sent_at_unix_ms=sent_at)
            data = encode_message(message)
            for _ in range(1 + self.world.chance(0.03)):
                if self.connected and not self.world.chance(0.03):
                    delay = self.world.random.randint(1, 250)
                    self.world.later(delay, lambda d=data: self.world.sidecar.receive(self, d))

    def send_back(self, message: ServerMessage) -> None:
        data = encode_message(message)
        for _ in range(1 + self.world.chance(0.03)):
            if not self.world.chance(0.03):
                delay = self.world.random.randint(1, 250)
                self.world.later(delay, lambda: self._receive(data))

    def _receive(self, data: bytes) -> None:
        if not self.alive or not self.connected:
            return
        if self.world.now < self.frozen_until:
            self.world.later(self.frozen_until - self.world.now, lambda: self._receive(data))
            return
        message = decode_server_message(data)
        if isinstance(message, Grant):
            self.allowance.granted(message)
        elif isinstance(message, Command) and message.action is not Action.WARN:
            self.spending = False
            if message.action is Action.WRAP_UP:
                self.world.later(2_000, self._wrapped_up)
        self._send(self.uplink.receive(message, self.world.now))
        self.allowance.reachable(self.uplink.welcomed)
        for _, seq in self.uplink.take_acked().items():
            # Every ack must be for what the store really holds.
            with self.world.sidecar.store.transaction() as tx:
                meter = tx.meter(self.meter_id)
            assert (meter.durable_seq if meter is not None else 0) >= seq
            known = [total for at, total in self.totals if at <= seq]
            self.acked_total = max(self.acked_total, known[-1])


def totals_of(records: Sequence[Record]) -> dict[LegAttributes, dict[str, int]]:
    """What a meter's records come to, for each kind of leg."""
    kinds: dict[int, LegAttributes] = {}
    last: dict[int, dict[str, int]] = {}
    for record in records:
        if isinstance(record, LegStart):
            kinds[record.leg] = record.attributes
        if isinstance(record, (LegStart, LegInterim, LegStop)):
            last[record.leg] = record.usage
    totals: dict[LegAttributes, dict[str, int]] = {}
    for leg, usage in last.items():
        total = totals.setdefault(kinds[leg], {})
        for unit, quantity in usage.items():
            total[unit] = total.get(unit, 0) + quantity
    return totals
