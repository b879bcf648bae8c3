"""What a meter may spend, as tables: budgets, grants, the unreported window, leases, outages."""

from __future__ import annotations

import pytest

from voicecost_ledger.grants import Allowance, Answer, FailureHandling
from voicecost_ledger.protocol import Grant


def grant(
    epoch: int,
    *,
    ceiling: int | None,
    renewal: int = 1,
    unreported: int = 1_000,
    lease_ms: int = 30_000,
    final: bool = False,
) -> Grant:
    return Grant("M", epoch, renewal, ceiling, ceiling, unreported, lease_ms, final)


def check(table: str, allowance: Allowance) -> None:
    """Replay a table; each `may` line states whether the meter may go to `total + next`.

    "meanwhile": it may, on credit, while more is asked for.
    """
    for line in filter(None, (row.partition("#")[0].split() for row in table.splitlines())):
        verb, *words = line
        named = dict(word.split("=") for word in words if "=" in word)
        number = {name: int(value) for name, value in named.items()}
        match verb:
            case "renew":
                allowance.renewal_sent(number["renewal"], number["at"])
            case "grant":
                ceiling = number.get("ceiling")
                allowance.granted(
                    grant(
                        number["epoch"],
                        ceiling=ceiling,
                        renewal=number.get("renewal", 1),
                        unreported=number.get("unreported", 1_000),
                        final="final" in words,
                    )
                )
            case "connected" | "lost":
                allowance.reachable(verb == "connected")
            case _:
                asked = number["total"], number["next"], number.get("acked", 0), number["at"]
                answer = allowance.ask(*asked)
                assert answer is Answer(words[-1]), " ".join(line)
                assert allowance.may_spend(*asked) == (answer is not Answer.NO)


def test_the_last_grant_is_spent_to_its_ceiling_and_no_further() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        grant  epoch=1 ceiling=100 final
        may    total=0   next=100 at=10  yes   # to the last unit
        may    total=100 next=1   at=10  no
        may    total=100 next=0   at=10  yes
        grant  epoch=2 ceiling=150 final       # another call gave back what it held
        may    total=100 next=50  at=20  yes
        grant  epoch=1 ceiling=900             # late: stale
        may    total=150 next=1   at=20  no
        grant  epoch=3 ceiling=120 final       # pulled back
        may    total=120 next=1   at=20  no
        """,
        Allowance(0),
    )


def test_a_grant_that_is_not_the_last_is_a_not_now_on_credit() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        grant  epoch=1 ceiling=100
        may    total=100 next=50 acked=100 at=10 meanwhile   # more is free, and asked for
        may    total=150 next=1  acked=100 at=10 no          # the credit is bounded
        renew  renewal=2 at=20
        grant  epoch=2 ceiling=400 renewal=2
        may    total=150 next=99 acked=100 at=30 yes
        may    total=400 next=1  acked=300 at=30 meanwhile
        renew  renewal=3 at=40
        grant  epoch=3 ceiling=400 renewal=3 final
        may    total=401 next=1  acked=300 at=50 no
        """,
        Allowance(0, outage_credit_nano_usd=50),
    )


def test_credit_in_the_meantime_never_exceeds_the_calls_own_budget() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        grant  epoch=1 ceiling=100
        may    total=100 next=20 acked=100 at=10 meanwhile
        may    total=100 next=21 acked=100 at=10 no
        """,
        Allowance(0, budget_nano_usd=120),
    )


def test_an_authority_that_owes_an_answer_is_an_outage() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        connected                                            # it answers,
        grant  epoch=1 ceiling=100
        renew  renewal=2 at=1000
        may    total=100 next=1 acked=100 at=2999  meanwhile
        renew  renewal=3 at=3000                             # asked again
        may    total=100 next=1 acked=100 at=3000  yes       # on the outage's credit
        connected                                            # an acknowledgement
        may    total=100 next=1 acked=100 at=3001  meanwhile
        """,
        Allowance(0, outage_credit_nano_usd=50),
    )


def test_no_budget_is_no_limit_even_in_an_outage() -> None:
    check(
        """
        connected
        grant  epoch=1 unreported=0
        may    total=0 next=9000000000 at=10     yes
        lost
        may    total=9000000000 next=1 at=999999 yes
        """,
        Allowance(0),
    )


def test_only_so_much_may_be_unreported() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        grant  epoch=1 ceiling=1000 unreported=100
        may    total=0   next=100 acked=0  at=1  yes
        may    total=100 next=1   acked=0  at=1  meanwhile   # an acknowledgement is on its way
        may    total=100 next=51  acked=0  at=1  no
        may    total=100 next=1   acked=60 at=1  yes
        """,
        Allowance(0, outage_credit_nano_usd=50),
    )


def test_without_credit_only_so_much_may_be_unreported() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        grant  epoch=1 ceiling=1000 unreported=100
        may    total=100 next=1   acked=0  at=1  no
        may    total=100 next=1   acked=60 at=1  yes
        """,
        Allowance(0, failure_handling=FailureHandling.TERMINATE),
    )


def test_a_lease_counts_from_when_its_renewal_was_sent() -> None:
    check(
        """
        renew  renewal=1 at=1000
        grant  epoch=1 ceiling=100 renewal=1     # arrives whenever
        may    total=0 next=1 at=30999 yes
        may    total=0 next=1 at=31000 no
        renew  renewal=2 at=31000
        grant  epoch=2 ceiling=100 renewal=2
        may    total=0 next=1 at=60999 yes
        grant  epoch=3 ceiling=100 renewal=0     # unasked: prolongs nothing
        may    total=0 next=1 at=61000 no
        """,
        Allowance(0, failure_handling=FailureHandling.TERMINATE),
    )


def test_terminate_waits_for_the_first_grant_then_ends() -> None:
    check(
        """
        may    total=0 next=1 at=29999 yes   # the greeting never waits
        may    total=0 next=1 at=30000 no
        """,
        Allowance(0, failure_handling=FailureHandling.TERMINATE),
    )


def test_an_outage_is_bridged_by_a_bounded_credit() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        grant  epoch=1 ceiling=100 unreported=40
        lost
        may    total=60 next=40 acked=60 at=1      yes
        may    total=100 next=50 acked=60 at=1     yes   # 50 on credit
        may    total=150 next=1  acked=60 at=1     no
        may    total=120 next=30 acked=60 at=99999 yes   # lease over: held are 100 all the same
        may    total=150 next=1  acked=60 at=99999 no
        """,
        Allowance(0, outage_credit_nano_usd=50),
    )


def test_without_any_grant_there_is_only_the_credit() -> None:
    check(
        """
        may    total=0  next=50 at=1 yes
        may    total=50 next=1  at=1 no
        """,
        Allowance(0, outage_credit_nano_usd=50),
    )


def test_credit_is_per_call_and_what_a_grant_covers_is_not_lost() -> None:
    check(
        """
        may    total=0  next=30 at=1 yes        # before the first grant
        connected
        renew  renewal=1 at=1
        grant  epoch=1 ceiling=100              # covers it
        lost
        may    total=100 next=50 acked=100 at=2 yes
        connected
        renew  renewal=2 at=3
        grant  epoch=2 ceiling=120 renewal=2    # covers 20 of the 150: the credit is gone
        lost
        may    total=120 next=1 acked=120 at=4  no
        """,
        Allowance(0, outage_credit_nano_usd=50),
    )


def test_a_used_up_budget_is_no_outage() -> None:
    check(
        """
        connected
        renew  renewal=1 at=0
        grant  epoch=1 ceiling=100 final
        lost
        may    total=90  next=10 at=1 yes
        may    total=100 next=1  at=1 no
        """,
        Allowance(0),
    )


def test_the_calls_own_budget_holds_without_anybody_to_ask() -> None:
    allowance = Allowance(0, budget_nano_usd=10_000_000)
    assert allowance.ceiling_nano_usd == 10_000_000
    # What the end of the call costs is kept back: at most a fifth.
    assert allowance.soft_end_nano_usd == 8_000_000
    assert allowance.may_spend(0, 10_000_000, 0, 1)
    assert not allowance.may_spend(10_000_000, 1, 0, 1)
    allowance.granted(grant(1, ceiling=None))
    assert not allowance.may_spend(10_000_000, 1, 0, 1)


def test_a_limit_of_zero_lets_only_what_is_free_run() -> None:
    allowance = Allowance(0, budget_nano_usd=0)
    assert allowance.may_spend(0, 0, 0, 1)
    assert not allowance.may_spend(0, 1, 0, 1)


def test_after_a_restore_epochs_count_anew() -> None:
    allowance = Allowance(0)
    allowance.granted(grant(9, ceiling=100))
    assert not allowance.granted(grant(1, ceiling=200))
    allowance.restored()
    assert allowance.granted(grant(1, ceiling=200))
    assert allowance.ceiling_nano_usd == 200


@pytest.mark.parametrize(
    ("acked", "expected"), [pytest.param(0, 50, id="at first"), pytest.param(70, 120, id="later")]
)
def test_half_of_the_unreported_window_is_reported_at_once(acked: int, expected: int) -> None:
    allowance = Allowance(0)
    assert allowance.report_at_nano_usd(acked) is None
    allowance.granted(grant(1, ceiling=1_000, unreported=100))
    assert allowance.report_at_nano_usd(acked) == expected
