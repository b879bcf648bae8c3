"""How a meter works: what legs ask of it, the session's life, and what the ledger says.

`Meter` is what applications see of it.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from voicecost_ledger.records import (
    Basis,
    ControlTotal,
    Environment,
    Gap,
    LegAttributes,
    LegStop,
    Modality,
    Outcome,
)

from . import _attribution, _ending, _job
from ._audit import Audit
from ._charges import Charges
from ._credit import Credit
from ._faults import contained
from ._livekit import versions
from ._room_messages import RoomMessages, State, cost_message
from ._watched_session import WatchedSession
from .legs import Leg
from .log import logger

if TYPE_CHECKING:
    from livekit import rtc
    from livekit.agents import (
        AgentSession,
        CloseEvent,
        ConversationItemAddedEvent,
        SessionUsageUpdatedEvent,
        UserInputTranscribedEvent,
    )

    from voicecost_ledger.pricing import PriceBook
    from voicecost_ledger.protocol import Command, Grant

    from ._checkpoint import Checkpoints
    from ._runtime import MeterLink
    from ._settings import Settings

LEGS_STOP_MAX_S: Final = 2.0
"""How long a closed session's last requests (a probe, a tool's) may still run to their own end."""
ROOM_MESSAGE_MAX_S: Final = 0.5
CENT_NANO_USD: Final = 10_000_000
_NO_MARGINS: Final[Mapping[str, int]] = MappingProxyType({})


class Metering:
    """What a meter does of itself; see `Meter`."""

    def __init__(
        self,
        session: AgentSession[Any] | None,
        settings: Settings,
        prices: PriceBook | None,
    ) -> None:
        """Use `VoiceCost.attach`. `session` None is a job's meter for legs of no session."""
        self._watched = WatchedSession(session)
        self._settings = settings
        self._prices = prices
        self._place = _job.here() if prices is not None else _job.Place(Environment.PROCESS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: MeterLink | None = None
        self._flushed: Callable[[float, str], asyncio.Future[bool]] | None = None
        self._audit = Audit()
        self._charges = Charges(self._audit.sum_up)
        self.estimates: dict[tuple[str, str], Any] = {}
        self._session_over = False
        self._close_reason = ""
        self._legs_timer: asyncio.TimerHandle | None = None
        self._checkpoints: Checkpoints | None = None
        self._closed = asyncio.Event()
        self.when_closed: Callable[[], None] | None = None
        """Called once, after the last record was written."""
        self._messages = RoomMessages(
            settings.publish_to if session is not None else "none",
            room=self._room,
            message=self._room_message,
        )
        self._credit = Credit(
            settings,
            end_call=self._end_call,
            changed=self._changed,
            context=contextvars.copy_context(),
        )

    # ---- what legs use -------------------------------------------------------------------------

    @property
    def prices(self) -> PriceBook:
        """The price book by which this meter's legs are rated."""
        assert self._prices is not None, "a disabled meter has no legs"
        return self._prices

    @property
    def cut(self) -> bool:
        """Whether the money is gone for good: every request of this meter ends."""
        return self._credit.cut

    @property
    def wrapping_up(self) -> bool:
        """Whether the wrap-up sentence is being said: it may use the closing reserve."""
        return self._credit.state is State.WRAPPING_UP

    def open_leg(
        self,
        attributes: LegAttributes,
        usage: dict[str, int],
        *,
        basis: Basis = Basis.ESTIMATED,
        speech_id: str | None = None,
        margins: Mapping[str, int] = _NO_MARGINS,
    ) -> Leg:
        """Start a leg: its first record is written before this returns."""
        self._open()
        self._audit.turns.leg_opened(attributes.modality, speech_id)
        self._charges.opening(attributes.modality)
        leg = Leg(
            self,
            self,
            self._charges.legs.known(attributes),
            usage,
            basis=basis,
            speech_id=speech_id,
            margins=margins,
        )
        self._audit.opened(leg)
        return leg

    def next_leg(self) -> int:
        """The next leg's number within the meter."""
        return self._open().next_leg()

    def write(self, make: type[Any], **fields: Any) -> None:
        """Spool a record of this meter; legs write theirs here.

        Also after the meter has closed: a correction that comes late is money all the same.
        """
        (self._link or self._open()).write(make, **fields)
        if make is LegStop and self._session_over:
            self._close_when_quiet()

    def gap(self, reason: str, modality: Modality | None = None) -> None:
        """Say that something was used which no leg shows: the call is `partial` from here on."""
        self._audit.gap()
        self.write(Gap, reason=reason, modality=modality)

    def overheard(self, attributes: LegAttributes, counts: Mapping[str, int]) -> None:
        """What LiveKit counts of another session's leg for this one too: for the control total."""
        self._audit.overheard(attributes, counts)

    def charge_changed(self, leg: Leg, amount_nano_usd: int | None) -> None:
        """Take over a leg's rated amount; None when no price is known for it."""
        self._charges.charge(leg, amount_nano_usd)
        total_nano_usd = self._charges.total_nano_usd
        if self._link is not None:
            self._link.total_nano_usd = total_nano_usd
        self._credit.charged(total_nano_usd)
        self._messages.changed()

    def may_spend(self, next_nano_usd: int) -> bool:
        """Whether a request, push or chunk that adds this much is still within the credit."""
        return self._credit.may_spend(next_nano_usd)

    def far_from_limits(self) -> bool:
        """Whether a cent more would change nothing: no limit, warning or report is that near."""
        link, a_cent_more = self._link, self._charges.total_nano_usd + CENT_NANO_USD
        return link is not None and not self.cut and link.clear(a_cent_more)

    # ---- the session's life --------------------------------------------------------------------

    def watch(self) -> None:
        """Follow the session from here on. Called once, by `VoiceCost.attach`."""
        session = self._session
        if session is None:
            return
        self._watched.watch(
            {
                "agent_state_changed": self._on_session_moved,
                "conversation_item_added": self._on_conversation_item,
                "user_input_transcribed": self._on_transcript,
                "close": self._on_session_close,
                "session_usage_updated": self._on_usage,
            },
            closing_ended=self._on_closing_ended,
        )
        with self._audit.attaching():
            _attribution.register(session, self)
            if self._watched.started:
                self._attached_late(session)
        self._charges.legs.sum_up()

    def _attached_late(self, session: AgentSession[Any]) -> None:
        from ._instrument import saw_from

        self._open()
        saw_all = saw_from(self._watched.started_at_unix_s)
        if not saw_all:  # what it used before the process's first VoiceCost()
            self.gap(_attribution.ATTACHED_LATE)
        self._audit.attached(session, saw_all=saw_all)

    def take_callbacks_of(self, before: Metering) -> None:
        """The same session runs again: who listened to its meter listens to this one."""
        self._credit.callbacks.extend(before._credit.callbacks)

    def give_up(self) -> None:
        """Attaching failed: leave the session alone, and close what is open."""
        with contained("attach"):
            self._unwatch()
        self.close("attach_failed")

    @property
    def _session(self) -> AgentSession[Any] | None:
        return self._watched.session

    def _unwatch(self) -> None:
        session = self._session
        if session is not None:
            _attribution.unregister(session)
            self._watched.unwatch()

    def _open(self) -> MeterLink:
        """The meter's link to the ledger, made on first use: `MeterOpen` is its first record."""
        if self._link is not None:
            return self._link
        # Here, not at import: it brings the uplink and the embedded ledger along.
        from ._runtime import runtime

        self._loop = self._watched.running_loop()
        if self._place.job is None:
            self._place = _job.here()  # attached outside the job, started inside
        place, settings = self._place, self._settings
        budget = None if self.unattributed else settings.budget
        process = runtime(settings.url)
        self._link = process.open_meter(
            project=settings.project,
            agent=settings.agent or place.agent,
            tenant=settings.tenant,
            tags=settings.tags,
            environment=place.environment,
            livekit_url=place.livekit_url,
            room_name=place.room_name,
            room_sid=place.room_sid,
            job_id=place.job_id,
            budget_nano_usd=None if budget is None else budget.limit_nano_usd,
            warn_at_percent=80 if budget is None else budget.warn_at_percent,
            on_budget=settings.on_budget,
            unattributed=self.unattributed,
            versions=versions(),
            hosted=place.hosted,
            listener=self,
        )
        self._flushed = process.flushed
        self._credit.opened(self._link, self._loop)
        self._leave_checkpoints(self._link)
        if place.job is not None:
            _job.join(place.job, self)
        self._changed()
        return self._link

    def _leave_checkpoints(self, link: MeterLink) -> None:
        from . import _checkpoint

        opened = link.opened
        with contained("checkpoint"):
            if opened is not None and _checkpoint.possible(
                opened, sidecar=self._settings.url is not None
            ):
                self._checkpoints = _checkpoint.Checkpoints(
                    kinds=self._charges.legs.kinds,
                    opened=opened,
                    last_seq=lambda: link.last_seq,
                    room=lambda: _job.room_of(self._place.job),
                    in_thread=link.in_thread,
                )

    def _on_session_moved(self, _event: object) -> None:
        with contained("meter"):
            self._open()

    def _on_conversation_item(self, event: ConversationItemAddedEvent) -> None:
        with contained("meter"):
            session = self._session
            if session is not None:
                for reason, modality in self._audit.turns.gaps(session, event):
                    self.gap(reason, modality)

    def _on_usage(self, event: SessionUsageUpdatedEvent) -> None:
        self._audit.usage_updated(event)

    def _on_transcript(self, event: UserInputTranscribedEvent) -> None:
        with contained("meter"):
            if event.is_final:
                listening = (Modality.STT.value, Modality.REALTIME.value)
                legs = self._charges.legs
                heard = any(leg.outcome is None and leg.modality in listening for leg in legs)
                for reason, modality in self._audit.turns.transcript_gaps(heard=heard):
                    self.gap(reason, modality)

    def _on_session_close(self, event: CloseEvent) -> None:
        with contained("meter"):
            self._session_ended(event.reason.value)

    def _on_closing_ended(self) -> None:
        with contained("meter"):
            # A session that was closed before it started may still start.
            if self._link is not None and not self._watched.started:
                self._session_ended("aborted")

    def _session_ended(self, reason: str) -> None:
        if self._session_over or self._link is None or self._loop is None:
            return
        self._session_over = True
        self._close_reason = reason
        self._credit.closed()
        self._audit.session_ended(self._session, self._charges.legs)
        # Now: LiveKit leaves the room after the handlers of `close`.
        self._messages.publish()
        if self._checkpoints is not None:
            self._checkpoints.close()
        self._legs_timer = self._loop.call_later(LEGS_STOP_MAX_S, self.close, reason)
        self._close_when_quiet()

    def close_when_quiet(self, reason: str) -> None:
        """Close when none of its legs is open any more: no session will say when it is over."""
        if self._session_over:
            return
        self._session_over = True
        self._close_reason = reason
        if self._loop is not None:  # soon: its first leg may just be opening
            self._loop.call_soon(self._close_when_quiet)

    def _close_when_quiet(self) -> None:
        if all(leg.outcome is not None for leg in self._charges.legs):
            self.close(self._close_reason)

    def close(self, reason: str) -> None:
        """Stop what is still open and write the meter's last record. Closing twice is a no-op."""
        if self._link is None or self._closed.is_set():
            return
        with contained("meter"):
            self._closed.set()
            self._session_over = True
            self._credit.closed()
            if self._legs_timer is not None:
                self._legs_timer.cancel()
            if self._checkpoints is not None:
                self._checkpoints.close()
            for leg in self._charges.legs:
                with contained("leg_stop"):  # one that fails must not cost the others their end
                    leg.stop(Outcome.INTERRUPTED)  # a no-op for those that have their outcome
            try:
                self._unwatch()
                for each in self._audit.differences():
                    self.write(ControlTotal, **msgspec.structs.asdict(each))
                if self._audit.had_faults:
                    self.write(Gap, reason="metering_fault")
            finally:
                self._link.close(self._audit.coverage, reason)
            self._log_end(self._link)
            if self.when_closed is not None:
                self.when_closed()

    def close_at_once(self) -> None:
        """Not when the session's last requests are over: it starts again. They correct this."""
        self.close(self._close_reason)

    @property
    def unattributed(self) -> bool:
        """Whether this is a job's own meter, for legs of none of its sessions."""
        return self._watched.is_none

    @property
    def over(self) -> bool:
        """Whether its session has ended; the last requests of it may still run."""
        return self._session_over

    @property
    def closed(self) -> bool:
        """Whether the meter is closed; what comes later is a correction."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Return when the meter is closed."""
        await self._closed.wait()

    async def flushed(self, timeout_s: float) -> bool:
        """Return when all of it is durable in the ledger, at the latest after `timeout_s`."""
        if self._link is None or self._flushed is None:
            return True
        return await self._flushed(timeout_s, self._link.meter_id)

    # ---- what the ledger says, on the uplink's thread --------------------------------------------

    def on_command(self, command: Command) -> None:
        """Take a command from the ledger."""
        self._on_loop(lambda: self._credit.obey(command))

    def on_grant(self, grant: Grant) -> None:
        """Take note of new credit; the link has it already."""
        self._on_loop(self._credit.look_again)

    def on_ack(self, *_: object) -> None:
        """Take note of what is durable; the link has it already. Rarely of interest, often said."""
        if self._credit.short:
            self._on_loop(self._credit.look_again)

    def _on_loop(self, react: Callable[[], None]) -> None:
        def reaction() -> None:
            with contained("meter"):
                react()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(reaction)

    def _on_own_loop(self, act: Callable[[], None]) -> None:
        """Now where that is safe; from another thread, soon on the session's own loop."""
        loop = self._loop or self._watched.loop
        here: asyncio.AbstractEventLoop | None = None
        with suppress(RuntimeError):
            here = asyncio.get_running_loop()
        if loop is None or loop is here or not loop.is_running():
            act()
        else:
            loop.call_soon_threadsafe(contained("record_usage")(act))

    async def _end_call(self, speak: bool) -> None:
        """What happens at the end of the money: see `_ending`."""
        session, link, job = self._session, self._link, self._place.job
        if session is None or link is None:
            return
        # Whatever fails on the way: a call whose money is gone is brought to its end.
        with contained("ending"):
            if speak:
                await _ending.wrap_up(session, self._settings.wrap_up_text)
            else:
                _ending.fall_silent(session)
        if speak:
            link.wrapped_up()
        with contained("ending"):
            self._credit.move(State.ENDING)
            published = self._messages.publish()
            if published is not None:  # handed to the room before the room goes
                await asyncio.wait([published], timeout=ROOM_MESSAGE_MAX_S)
        with contained("ending"):
            sidecar = self._settings.url is not None and _job.room_of(job) is not None
            if sidecar and await _ending.wait_for_sidecar(self.wait_closed):
                return
        with contained("ending"):
            await _ending.hang_up(session, job)

    # ---- what is said of it all ------------------------------------------------------------------

    def _changed(self) -> None:
        with contained("room_message"):  # its fault must not stop what changed the state
            self._messages.changed()

    def _room(self) -> rtc.Room | None:
        return self._watched.room or _job.room_of(self._place.job)

    def _room_message(self) -> str:
        cost, budget = self._charges.cost, self._settings.budget
        left = None if budget is None else max(0, budget.limit_nano_usd - cost.total_nano_usd)
        return cost_message(
            meter_id="" if self._link is None else self._link.meter_id,
            state=self._credit.state,
            total_nano_usd=cost.total_nano_usd,
            by_modality=cost.by_modality,
            unpriced_leg_count=cost.unpriced_leg_count,
            budget_left_nano_usd=left,
        )

    def _log_end(self, link: MeterLink) -> None:
        message = "voicecost: meter %s closed, coverage %s; %s"
        arguments = [link.meter_id, self._audit.coverage.value, self._charges.counted()]
        if self._settings.log_costs:
            message += "; %s"
            arguments.append(self._charges.costed())
        logger.info(message, *arguments)
