"""The public API as users write it, for mypy and pyright in their strictest mode.

Nothing here runs. A line with an ignore is a mistake that a checker has to find: both checkers
report an ignore that ignores nothing.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, assert_type, cast

from livekit.agents import AgentSession
from livekit.rtc import RemoteParticipant

from livekit.plugins.voicecost import (
    Budget,
    BudgetEvent,
    Cost,
    Meter,
    SupportsPlugins,
    VoiceCost,
)

if TYPE_CHECKING:
    from dataclasses import dataclass

    @dataclass
    class Caller:
        """An application's own userdata."""

        account: str


def first_spelling(session: AgentSession[Caller]) -> None:
    """`attach` needs nothing special: it is what we recommend."""
    meter = VoiceCost(project="support", budget="0.50").attach(session)
    assert_type(meter, Meter)


def second_spelling(session: AgentSession[Caller]) -> None:
    """`add_plugin` is set at run time: the session is cast to what it has become."""
    meter = cast(SupportsPlugins, session).add_plugin(VoiceCost(budget="0.50"))
    assert_type(meter, Meter)
    session.add_plugin(VoiceCost())  # type: ignore[attr-defined]


def every_argument(participants: set[str]) -> VoiceCost:
    """All of them, by keyword."""

    def is_operator(participant: RemoteParticipant) -> bool:
        return participant.identity in participants

    return VoiceCost(
        project="support",
        budget=Budget("0.50", warn_at_percent=90),
        agent="waiter",
        tenant="acme",
        tags={"channel": "phone"},
        on_budget="end",
        wrap_up_text="Goodbye.",
        publish_to=is_operator,
        url="https://costs.example.com",
        enabled=True,
    )


def budgets() -> list[VoiceCost]:
    """Exact amounts only."""
    return [
        VoiceCost(budget="0.50"),
        VoiceCost(budget=Decimal("0.50")),
        VoiceCost(budget=1),
        VoiceCost(budget=None),
        VoiceCost(budget=0.5),  # type: ignore[arg-type]
        VoiceCost(on_budget="explode"),  # type: ignore[arg-type]
        VoiceCost(publish_to="everyone"),  # type: ignore[arg-type]
        VoiceCost("support"),  # type: ignore[call-arg]
    ]


def callbacks(meter: Meter) -> None:
    """As a call and as a decorator; a callback keeps its own type."""

    def warn(event: BudgetEvent) -> None:
        assert_type(event.limit_nano_usd, int | None)

    meter.on("budget", warn)("x")  # type: ignore[arg-type]

    @meter.on("budget")
    def note(event: BudgetEvent) -> str:
        return f"{event.kind} {event.budget}"

    assert_type(note(BudgetEvent("warn", "call", 1, 1)), str)
    meter.on("price", warn)  # type: ignore[call-overload]


def costs(meter: Meter) -> int:
    """Whole nano-USD; by modality, and what has no price."""
    cost = meter.cost
    assert_type(cost, Cost)
    with meter.scope():
        pass
    return cost.total_nano_usd + cost.by_modality["tts"] + cost.unpriced_leg_count


def told_usage(meter: Meter) -> None:
    """Words are literals, quantities whole numbers; all by keyword."""
    meter.record_usage(
        provider="openai",
        model="gpt-4o-mini",
        modality="llm",
        usage={"input_tokens": 812, "output_tokens": 96},
    )
    meter.record_usage(
        provider="acme",
        model="",
        modality="other",
        usage={"requests": 1},
        outcome="failed",
        basis="observed",
        speech_id="speech_1",
        language="de",
        streaming=False,
        service_tier="flex",
    )
    meter.record_usage(provider="a", model="b", modality="video", usage={})  # type: ignore[arg-type]
    meter.record_usage("a", "b", "llm", {})  # type: ignore[call-arg]
