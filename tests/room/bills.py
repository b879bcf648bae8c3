"""The ledger held against the providers' own bill."""

from __future__ import annotations

from examples.demo.bills import difference_percent, sum_up
from examples.demo.conversations import Conversation
from examples.demo.stage import Stage
from voicecost_catalog import open_price_book
from voicecost_ledger.records import Modality
from voicecost_ledger.stores import CallDetail, LegView


def begin(stage: Stage, *conversations: Conversation) -> int:
    """Prepare the providers for these calls; returns where their bill begins."""
    stage.providers.prepare(
        said=[line for conversation in conversations for line in conversation.said],
        replies=[reply for conversation in conversations for reply in conversation.replies],
    )
    return len(stage.providers.bill.rows)


def requests(call: CallDetail) -> list[LegView]:
    """What providers were asked in a call: all but what LiveKit's own server connects."""
    return [leg for leg in call.legs if leg.modality is not Modality.PARTICIPANT]


async def assert_equals_the_bill(stage: Stage, row_count: int, *calls: CallDetail) -> None:
    """The ledger is within half a percent of what the providers bill, nothing unpriced."""
    billed = await stage.providers.billed_since(row_count)
    prices = open_price_book(host_aliases=stage.providers.host_aliases)
    bill = sum_up(billed, prices, calls[0].summary.opened_at_unix_ms)
    assert bill.unpriced_count == 0
    assert [call.summary.unpriced_leg_count for call in calls] == [0] * len(calls)
    total_nano_usd = sum(call.summary.total_nano_usd for call in calls)
    percent = difference_percent(total_nano_usd, bill.total_nano_usd)
    assert percent is not None
    assert abs(percent) <= 0.5
