"""What the operator decided: projects, their budgets, and the few times the rules wait."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from voicecost_ledger.billing import Billing


class BudgetAction(StrEnum):
    """What a project's used-up budget does to its calls."""

    WARN = "warn"
    END = "end"


class ProjectPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One cost project. `daily_budget_nano_usd` None: no budget; 0: only free models run."""

    name: str
    daily_budget_nano_usd: int | None = None
    budget_action: BudgetAction = BudgetAction.WARN


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the pure rules are told; times in milliseconds."""

    projects: dict[str, ProjectPolicy] = {}
    # The LiveKit project whose webhooks and listings these books hear; None: no LiveKit at all.
    livekit_project: str | None = None
    billing: Billing = Billing()
    time_zone: str = "UTC"  # IANA name; where a project's day begins
    lease_ms: int = 30_000
    meter_grace_ms: int = 60_000  # an ended call settles at the latest after this
    wrap_up_ms: int = 15_000  # longest wait for the wrap-up sentence before the room is deleted
    # A meter outside any room that is not heard of for this long is lost (with one in a room,
    # LiveKit says when the room is gone).
    meter_silence_ms: int = 900_000
    tick_ms: int = 1_000
