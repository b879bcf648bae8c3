"""What LiveKit itself bills for a call: its participants' connections, as legs (I8, I9).

A connection costs from joining to leaving, whoever speaks. Nothing is counted here: the legs are
brought to what the ledger knows of who was in the call's rooms, again and again. So it does not
matter whether a webhook comes late, twice or never, in which order, or that a room turns out to be
another call's. As with every leg, what is posted is the rate of the total less what was posted.

The legs are on meters of the ledger's own (`Meter.of_rooms`), one for each owner a call ever had.
"""

from __future__ import annotations

from typing import Final

import msgspec

from voicecost_ledger import calls, entries
from voicecost_ledger.calls import Call, CallState
from voicecost_ledger.entries import QUARTER_HOUR_MS, Leg
from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.policy import Policy
from voicecost_ledger.postings import Postings
from voicecost_ledger.protocol import Reject
from voicecost_ledger.records import Basis, LegAttributes, MeterOpen, Modality, Outcome
from voicecost_ledger.rooms import Connection, ParticipantKind
from voicecost_ledger.stores import Session

PROVIDER: Final = "livekit"
AGENT: Final = "agent"
"""Of an agent that is deployed to LiveKit Cloud, as its price list has it."""
SELF_HOSTED_AGENT: Final = "self-hosted-agent"
SILENCE_MS: Final = 60_000
"""LiveKit is listed every ten seconds: when nothing was heard for so long, time goes on alone."""
_STEP_MS: Final = 5_000
"""An open connection's total is brought on no oftener; it is billed by the minute."""
_UNIT: Final = "connected_ms"


class Connections:
    """Keeps the legs of connections at what is known of them.

    Args:
        postings: Rates and posts legs.
        policy: How long an owner is waited for.
    """

    def __init__(self, postings: Postings, policy: Policy) -> None:
        self._postings = postings
        self._policy = policy

    def bring_up(self, tx: Session, call: Call, now: int) -> None:
        """Bring the legs of a call's connections to what is known at `now`.

        Args:
            tx: The transaction.
            call: Whose rooms are looked at. A settled one that costs something else by now is
                marked amended.
            now: Unix ms.
        """
        connections = tx.connections_of(call.call_id)
        meters = tx.room_meters_of(call.call_id)
        if not meters and not (connections and self._is_owner_known(call, now)):
            return
        own = self._own_meter(tx, call, meters, now)
        before = [_standing(meter) for meter in meters]
        stale = {leg.number: (own, leg) for leg in tx.legs_of(own.meter_id)}
        for connection in connections:
            _, leg = stale.pop(connection.number, (own, None))
            if leg is None or leg.attributes.model == SELF_HOSTED_AGENT:
                model = self._model(tx, call, connection, now)
                if leg is None and model is not None:
                    leg = self._new_leg(tx, own, connection, model, now)
                elif leg is not None and model == AGENT:
                    # Its own process is heard of late, and it runs on LiveKit Cloud after all.
                    attributes = msgspec.structs.replace(leg.attributes, model=model)
                    self._postings.take_for(tx, own, leg, attributes)
            if leg is not None:
                self._bring(tx, own, call, leg, connection, now)
        theirs = [(m, leg) for m in meters if m is not own for leg in tx.legs_of(m.meter_id)]
        for meter, leg in (*stale.values(), *theirs):
            self._withdraw(tx, meter, call, leg, now)
        after = [_standing(meter) for meter in meters]
        for meter, was, is_now in zip(meters, before, after, strict=True):
            if was != is_now:
                tx.save_meter(meter)
        if call.state is CallState.SETTLED and not call.amended and _sum(before) != _sum(after):
            call.amended = True
            tx.save_call(call)

    def is_waiting(self, tx: Session, call: Call) -> bool:
        """Whether somebody is still connected and that costs something, or may."""
        return any(
            leg.rated_nano_usd != 0
            for meter in tx.room_meters_of(call.call_id)
            for leg in tx.open_legs_of(meter.meter_id)
        )

    def post(self, tx: Session, call: Call, now: int) -> None:
        """Post what open connections have cost so far."""
        for meter in tx.room_meters_of(call.call_id):
            for leg in tx.open_legs_of(meter.meter_id):
                self._postings.post(tx, meter, call, leg, now)
            tx.save_meter(meter)

    # ---- whose ---------------------------------------------------------------------------------

    def _is_owner_known(self, call: Call, now: int) -> bool:
        """Its agent says whose a call is; where none comes it is nobody's in particular."""
        waited = now - call.opened_at_unix_ms >= self._policy.meter_grace_ms
        return call.meter_count > 0 or call.state is not CallState.OPEN or waited

    def _own_meter(self, tx: Session, call: Call, meters: list[Meter], now: int) -> Meter:
        owner = (call.project, call.agent, call.tenant)
        for meter in meters:
            if (meter.project, meter.opened.agent, meter.opened.tenant) == owner:
                return meter
        meter_id = calls.room_meter_id(call.call_id, len(meters) + 1)
        opened = MeterOpen(
            meter_id,
            0,
            now,
            project=call.project,
            agent=call.agent,
            tenant=call.tenant,
            tags=call.tags,
            environment=call.environment,
            unattributed=True,
        )
        meter = Meter(
            meter_id=meter_id,
            call_id=call.call_id,
            project=call.project,
            opened=opened,
            of_rooms=True,
            state=MeterState.CLOSED,
        )
        tx.save_meter(meter)
        meters.append(meter)
        return meter

    def _model(self, tx: Session, call: Call, connection: Connection, now: int) -> str | None:
        """What LiveKit bills it as; None: its agent has yet to tell where it runs."""
        if connection.kind is not ParticipantKind.AGENT:
            return connection.kind.value.lower()
        agents = tx.meters_of_job(connection.job_id) if connection.job_id else []
        over = connection.left_at_unix_ms is not None or call.state is not CallState.OPEN
        waited = now - connection.joined_at_unix_ms >= self._policy.meter_grace_ms
        if not (agents or over or waited):
            return None
        return AGENT if any(agent.opened.hosted for agent in agents) else SELF_HOSTED_AGENT

    # ---- the legs ------------------------------------------------------------------------------

    def _new_leg(
        self, tx: Session, meter: Meter, connection: Connection, model: str, now: int
    ) -> Leg:
        attributes = LegAttributes(
            Modality.PARTICIPANT, PROVIDER, model, host=connection.livekit_project
        )
        joined = min(connection.joined_at_unix_ms, now)
        return self._postings.new_leg(
            tx, meter, connection.number, attributes, joined, speech_id=None
        )

    def _bring(
        self,
        tx: Session,
        meter: Meter,
        call: Call,
        leg: Leg,
        connection: Connection,
        now: int,
    ) -> None:
        joined, left = connection.joined_at_unix_ms, connection.left_at_unix_ms
        heard = max(joined, connection.heard_at_unix_ms or joined)
        margins: dict[str, int] = {}
        if left is None:
            until, basis, outcome = max(now, joined), Basis.OBSERVED, None
            if until > heard:
                margins = {_UNIT: until - heard}
        elif connection.left_told:
            until, basis, outcome = max(left, joined), Basis.OBSERVED, Outcome.SERVED
        else:
            # It left between the last that was heard of it and now: half-way, by half of that.
            until, outcome = max(joined, (min(heard, left) + left) // 2), Outcome.SERVED
            basis, margins = Basis.ESTIMATED, {_UNIT: max(0, left - until)}
        if leg.outcome is outcome and leg.recorded_basis is basis and _UNIT in leg.usage:
            more_ms = until - joined - leg.usage[_UNIT]
            if outcome is None and 0 <= more_ms < _STEP_MS:
                return
            if outcome is not None and more_ms == leg.accruing_nano_usd == 0:
                return
        if leg.outcome is not outcome:
            self._move(tx, meter, leg, outcome)
        self._accrue(tx, meter, call, leg, joined, min(until, now), now)
        leg.recorded_basis, leg.margins = basis, margins
        self._set(tx, meter, leg, until - joined)
        if outcome is not None:
            leg.stopped_at_unix_ms = leg.last_at_unix_ms
            leg.duration_ms = until - joined
            self._postings.post(tx, meter, call, leg, now)
        tx.save_leg(leg)

    def _accrue(
        self, tx: Session, meter: Meter, call: Call, leg: Leg, joined: int, until: int, now: int
    ) -> None:
        """Post each quarter hour's part in that quarter hour."""
        boundary = entries.quarter_hour(leg.last_at_unix_ms) + QUARTER_HOUR_MS
        while boundary <= until:
            if leg.last_at_unix_ms < boundary - 1:
                leg.last_at_unix_ms = boundary - 1
                self._set(tx, meter, leg, max(leg.usage.get(_UNIT, 0), boundary - joined))
            self._postings.post(tx, meter, call, leg, now)
            boundary += QUARTER_HOUR_MS
        leg.last_at_unix_ms = max(leg.last_at_unix_ms, until)

    def _set(self, tx: Session, meter: Meter, leg: Leg, connected_ms: int) -> None:
        usage = {_UNIT: connected_ms}
        price = self._postings.price_of(tx, leg)
        rated = None if price is None else price.rate(usage)
        self._postings.set_usage(meter, leg, usage, price, rated)

    def _withdraw(self, tx: Session, meter: Meter, call: Call, leg: Leg, now: int) -> None:
        """It turned out to be another call's, or another owner's: here it costs nothing."""
        if not leg.usage and leg.outcome is not None:
            return
        leg.recorded_basis, leg.margins = Basis.OBSERVED, {}
        if leg.outcome is not Outcome.DISCARDED:
            self._move(tx, meter, leg, Outcome.DISCARDED)
        leg.stopped_at_unix_ms = leg.last_at_unix_ms
        price = self._postings.price_of(tx, leg)
        self._postings.set_usage(meter, leg, {}, price, None if price is None else 0)
        self._postings.post(tx, meter, call, leg, now)
        tx.save_leg(leg)

    def _move(self, tx: Session, meter: Meter, leg: Leg, outcome: Outcome | None) -> None:
        was, leg.outcome = leg.outcome, outcome
        leg.stopped_at_unix_ms = leg.duration_ms = None
        if leg.part_count:
            tx.regroup(leg, meter, outcome=was, model=leg.billed_model)


def of_no_agent(meter_id: str) -> Reject:
    """What an agent is told that speaks for a meter of the ledger's own."""
    return Reject(
        code="malformed",
        message=f"{meter_id} is no agent's meter: under ids that begin with "
        f"{calls.ROOM_METER_PREFIX} the ledger keeps what LiveKit bills",
        meter_id=meter_id,
    )


def _standing(meter: Meter) -> tuple[int, int, int]:
    """What a meter's connections come to, how many of them have no price, and what is posted."""
    return meter.charged_nano_usd, meter.unpriced_leg_count, meter.posted_nano_usd


def _sum(standing: list[tuple[int, int, int]]) -> tuple[int, int]:
    return sum(charged for charged, _, _ in standing), sum(count for _, count, _ in standing)
