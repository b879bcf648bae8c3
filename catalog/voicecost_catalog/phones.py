"""What a call over the telephone network is, to its carrier: by direction and by number.

A leg holds no number: `phone_leg` turns one into the name of a price (`us-local-inbound`), by the
longest prefix that a row of the carrier states. What counts is the number that is called: ours for
a call that comes in (its kind), the other's for a call that goes out (where it leads).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from voicecost_catalog.rows import Row
from voicecost_ledger.records import LegAttributes, Modality

DIRECTIONS: Final = ("inbound", "outbound")

# +1 is more than the local numbers of the United States: area codes of Canada, of the Caribbean and
# of its territories in the Pacific (which price lists name apart), of numbers that the caller pays
# dearly for and of those that the called one pays for. Only a longer prefix stands for them.
# https://www.nanpa.com/numbering/area-codes
_NOT_LOCAL: Final = (
    "204 226 236 249 250 257 263 289 306 343 354 365 367 368 382 387 403 416 418 428 431 437 438 "
    "450 460 468 474 506 514 519 537 548 568 579 581 584 587 600 604 613 639 647 672 683 705 709 "
    "742 753 778 780 782 807 819 825 867 873 879 902 905 942 "
    "242 246 264 268 284 340 345 441 473 649 658 664 670 671 684 721 758 767 784 787 809 829 849 "
    "868 869 876 939 "
    "500 521 522 523 524 525 526 527 528 529 533 544 566 577 588 622 633 644 655 677 688 700 710 "
    "900 "
    "800 833 844 855 866 877 888"
)
_UNITED_STATES: Final = "+1"


def phone_leg(
    carrier: str,
    rows: Iterable[Row],
    *,
    direction: str,
    number: str = "",
    number_type: str = "",
    country: str = "us",
) -> LegAttributes:
    """The attributes of a phone leg, ready to be priced.

    Args:
        carrier: Provider id, `twilio`.
        rows: The carrier's, whatever their dates.
        direction: `inbound` or `outbound`, as the carrier sees it.
        number: That is called, E.164 with its `+`. Spaces, dots, dashes and brackets are ignored.
        number_type: Instead: `local`, `tollfree`, `sip-interface` or `client`.
        country: Of `number_type`, two letters.

    Returns:
        Attributes whose `model` is the name of a price; "" (which has none) where no prefix fits.

    Raises:
        ValueError: The direction is no such word, or neither number nor type is given.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r}: expected {' or '.join(DIRECTIONS)}")
    if number_type:
        model = f"{country.lower()}-{number_type.lower()}-{direction}"
    elif number:
        model = _longest(rows, direction, re.sub(r"[\s().-]", "", number))
    else:
        raise ValueError("a phone leg needs its number or its number's type: neither was given")
    return LegAttributes(modality=Modality.TELEPHONY, provider=carrier, model=model)


def _longest(rows: Iterable[Row], direction: str, number: str) -> str:
    elsewhere = number.startswith(_UNITED_STATES) and number[2:5] in _NOT_LOCAL.split()
    best, model = "", ""
    for row in rows:
        if row.direction not in ("", direction) or not row.match:
            continue
        for prefix in row.prefixes:
            fits = number.startswith(prefix) and not (elsewhere and prefix == _UNITED_STATES)
            if fits and len(prefix) > len(best):
                best, model = prefix, row.match[0]
    return model
