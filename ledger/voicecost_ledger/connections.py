"""What LiveKit itself bills for a call: its participants' connections, as legs (I8, I9).

A connection costs from joining to leaving, whoever speaks. Nothing is counted here: the legs are
brought to what the ledger knows of who was in the call's rooms, again and again. So it does not
matter whether a webhook comes late, twice or never, in which order, or that a room turns out to be
another call's. As with every leg, what is posted is the rate of the total less what was posted.

The legs are on meters of the ledger's own (`Meter.of_rooms`), one for each owner a call ever had.
"""

from __future__ import annotations

from typing import Final

from voicecost_ledger import calls, entries
from voicecost_ledger.calls import Call, CallState
from voicecost_ledger.entries import QUARTER_HOUR_MS, Leg
from voicecost_ledger.meters import Meter, MeterState
from voicecost_ledger.policy import Policy
from voicecost_ledger.postings import Postings
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

    def bring_up(self, tx: Session, call: Call, now: int, *, confirmed: bool) -> None:
        """Bring the legs of a call's connections to what is known at `now`.

        Args:
            tx: The transaction.
            call: Whose rooms are looked at. A settled one that costs something else by now is
                marked amended.
            now: Unix ms.
            confirmed: LiveKit has just been heard; False: only time has passed.
        """
        connections = tx.connections_of(call.call_id)
        meters = tx.room_meters_of(call.call_id)
        if not meters and not (connections and self._is_owner_known(call, now)):
            return
        charged = sum(meter.charged_nano_usd for meter in meters)
        own = self._own_meter(tx, call, meters, now)
        stale = {leg.number: (own, leg) for leg in tx.legs_of(own.meter_id)}
        for connection in connections:
            _, leg = stale.pop(connection.number, (own, None))
            if leg is None:
                model = self._model(tx, call, connection, now)
                if model is None:
                    continue
                leg = self._new_leg(tx, own, connection, model, now)
            self._bring(tx, own, call, leg, connection, now, confirmed=confirmed)
        theirs = [(m, leg) for m in meters if m is not own for leg in tx.legs_of(m.meter_id)]
        for meter, leg in (*stale.values(), *theirs):
            self._withdraw(tx, meter, call, leg, now)
        meters = tx.room_meters_of(call.call_id)
        amended = charged != sum(meter.charged_nano_usd for meter in meters)
        if amended and call.state is CallState.SETTLED and not call.amended:
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
        leg = self._postings.new_leg(
            tx, meter, connection.number, attributes, joined, speech_id=None
        )
        tx.save_meter(meter)
        return leg

    def _bring(
        self,
        tx: Session,
        meter: Meter,
        call: Call,
        leg: Leg,
        connection: Connection,
        now: int,
        *,
        confirmed: bool,
    ) -> None:
        joined, left = connection.joined_at_unix_ms, connection.left_at_unix_ms
        was_open = leg.outcome is None
        if left is None:
            until, basis = max(now, joined), Basis.OBSERVED
            if was_open and until - joined - leg.usage.get(_UNIT, 0) < _STEP_MS and not confirmed:
                return
            unheard = 0 if confirmed else until - _heard_at(leg, joined)
            margins = {_UNIT: unheard} if unheard else {}
        elif connection.left_told:
            until, basis, margins = max(left, joined), Basis.OBSERVED, dict[str, int]()
            if not was_open and leg.recorded_basis is basis and until - joined == leg.usage[_UNIT]:
                return
        elif not was_open:
            return  # concluded before, and nothing else was told since
        else:
            # It left between the last that was heard of it and now: half-way, by half of that.
            heard = min(_heard_at(leg, joined), left)
            until, basis = max(joined, (heard + left) // 2), Basis.ESTIMATED
            margins = {_UNIT: max(0, left - until)}
        outcome = None if left is None else Outcome.SERVED
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
        tx.save_meter(meter)

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
        tx.save_meter(meter)

    def _move(self, tx: Session, meter: Meter, leg: Leg, outcome: Outcome | None) -> None:
        was, leg.outcome = leg.outcome, outcome
        leg.stopped_at_unix_ms = leg.duration_ms = None
        if leg.part_count:
            tx.regroup(leg, meter, outcome=was, model=leg.billed_model)


def _heard_at(leg: Leg, joined: int) -> int:
    """When LiveKit was last heard to say that it is connected."""
    return max(joined, leg.last_at_unix_ms - leg.margins.get(_UNIT, 0))
