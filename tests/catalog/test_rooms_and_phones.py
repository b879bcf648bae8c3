"""What a room, a recording and a phone call cost, by LiveKit and by the carrier."""

from __future__ import annotations

import pytest

from voicecost_catalog import open_price_book
from voicecost_ledger.records import LegAttributes, Modality

NOW_UNIX_MS = 1_795_305_600_000  # 2026-11-22
BOOK = open_price_book(genai=False)
CLOUD = "my-app-1a2b3c4d.livekit.cloud"

# Pages and their days ("" where a page has none), as the price rows say too. That LiveKit rounds up
# to minutes is on https://docs.livekit.io/deploy/admin/billing, that Twilio does (1:20 is billed as
# 2 minutes) on https://support.twilio.com/hc/articles/223132307.
LIVEKIT = ("https://livekit.com/pricing", "2026-08-13")
LIVEKIT_UNDATED = ("https://livekit.com/pricing", "")
LIVEKIT_IO = ("https://livekit.io/pricing", "2026-08-20")
OWN_SERVER = ("https://docs.livekit.io/transport/self-hosting/", "")
AVATAR_PAGE = ("https://docs.liveavatar.com/docs/credits-and-subscriptions", "")
TWILIO = ("https://www.twilio.com/en-us/voice/pricing/us", "2026-08-20")
TELNYX = ("https://telnyx.com/pricing/elastic-sip", "2026-08-20")


def avatar(model: str) -> LegAttributes:
    return LegAttributes(modality=Modality.AVATAR, provider="liveavatar", model=model)


def room(modality: Modality, model: str, host: str = CLOUD) -> LegAttributes:
    return LegAttributes(modality=modality, provider="livekit", model=model, host=host)


@pytest.mark.parametrize(
    ("page", "leg", "plan", "connected_ms", "amount_nano_usd"),
    [
        pytest.param(
            LIVEKIT,
            room(Modality.PARTICIPANT, "standard"),
            "ship",
            10_000,
            500_000,
            id="10 seconds are a minute",
        ),
        pytest.param(
            LIVEKIT,
            room(Modality.PARTICIPANT, "standard"),
            "ship",
            70_000,
            1_000_000,
            id="70 seconds are two",
        ),
        pytest.param(
            LIVEKIT,
            room(Modality.PARTICIPANT, "standard"),
            "build",
            70_000,
            1_000_000,
            id="Build: as Ship (a hard limit ends what is included)",
        ),
        pytest.param(
            LIVEKIT,
            room(Modality.PARTICIPANT, "standard"),
            "scale",
            60_000,
            400_000,
            id="Scale: $0.0004",
        ),
        pytest.param(
            LIVEKIT_IO, room(Modality.PARTICIPANT, "sip"), "ship", 60_001, 8_000_000, id="SIP, Ship"
        ),
        pytest.param(
            LIVEKIT_IO,
            room(Modality.PARTICIPANT, "sip"),
            "scale",
            60_000,
            3_000_000,
            id="SIP, Scale",
        ),
        pytest.param(
            LIVEKIT,
            room(Modality.PARTICIPANT, "agent"),
            "scale",
            60_000,
            10_000_000,
            id="an agent costs the same on every plan",
        ),
        pytest.param(
            LIVEKIT, room(Modality.EGRESS, "video"), "ship", 61_000, 40_000_000, id="video"
        ),
        pytest.param(
            LIVEKIT_UNDATED,
            room(Modality.EGRESS, "audio"),
            "ship",
            61_000,
            10_000_000,
            id="audio only",
        ),
        pytest.param(
            OWN_SERVER,
            room(Modality.PARTICIPANT, "standard", "livekit.example.com:7880"),
            "scale",
            61_000,
            0,
            id="a server of one's own",
        ),
        pytest.param(
            OWN_SERVER,
            room(Modality.EGRESS, "video", "127.0.0.1:7880"),
            "ship",
            61_000,
            0,
            id="its recordings",
        ),
        pytest.param(
            AVATAR_PAGE,
            avatar(""),
            "ship",
            61_000,
            200_000_000,
            id="an avatar: $0.10 a begun minute",
        ),
        pytest.param(
            AVATAR_PAGE,
            avatar("full"),
            "ship",
            10_000,
            200_000_000,
            id="an avatar that speaks itself: $0.20, at least a minute",
        ),
    ],
)
def test_worked_examples_of_rooms(
    page: tuple[str, str], leg: LegAttributes, plan: str, connected_ms: int, amount_nano_usd: int
) -> None:
    price = open_price_book(genai=False, plans={"livekit": plan}).price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert [(rate.source_url, rate.source_date) for rate in price.rates.values()] == [page]
    assert price.rate({"connected_ms": connected_ms}) == amount_nano_usd


@pytest.mark.parametrize(
    ("page", "carrier", "direction", "number", "model", "seconds", "amount_nano_usd"),
    [
        (TWILIO, "twilio", "inbound", "+1 (415) 555-0100", "us-local-inbound", 80, 17_000_000),
        (TWILIO, "twilio", "outbound", "+12125550100", "us-local-outbound", 80, 28_000_000),
        (TWILIO, "twilio", "inbound", "+18005550100", "us-tollfree-inbound", 60, 22_000_000),
        (TWILIO, "twilio", "outbound", "+18885550100", "us-tollfree-outbound", 1, 14_000_000),
        (TELNYX, "telnyx", "inbound", "+14155550100", "us-local-inbound", 80, 6_400_000),
        (TELNYX, "telnyx", "outbound", "+14155550100", "us-local-outbound", 30, 5_000_000),
        (TELNYX, "telnyx", "inbound", "+18775550100", "us-tollfree-inbound", 61, 30_000_000),
        (LIVEKIT_IO, "livekit", "inbound", "+14155550100", "us-local-inbound", 61, 20_000_000),
        (
            LIVEKIT_IO,
            "LiveKit",
            "inbound",
            "+18335550100",
            "us-tollfree-inbound",
            61,
            40_000_000,
        ),
    ],
)
def test_a_number_says_by_its_longest_prefix_what_the_call_costs(
    page: tuple[str, str],
    carrier: str,
    direction: str,
    number: str,
    model: str,
    seconds: int,
    amount_nano_usd: int,
) -> None:
    leg = BOOK.phone_leg(carrier, direction=direction, number=number)
    assert leg.model == model
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.rate({"connected_ms": seconds * 1_000}) == amount_nano_usd
    assert [(rate.source_url, rate.source_date) for rate in price.rates.values()] == [page]


@pytest.mark.parametrize(
    ("carrier", "direction", "number"),
    [
        pytest.param("twilio", "outbound", "+14165550100", id="Toronto is not in the US"),
        pytest.param("twilio", "outbound", "+18765550100", id="nor is Jamaica"),
        pytest.param(
            "twilio", "outbound", "+19005550100", id="a number the caller pays dearly for"
        ),
        pytest.param("twilio", "outbound", "+4915112345678", id="Germany"),
        pytest.param("livekit", "outbound", "+14155550100", id="LiveKit's numbers only take calls"),
        pytest.param("telnyx", "outbound", "+18005550100", id="a direction without a price"),
        pytest.param("plivo", "inbound", "+14155550100", id="a carrier without a source"),
    ],
)
def test_what_no_prefix_fits_is_unpriced(carrier: str, direction: str, number: str) -> None:
    leg = BOOK.phone_leg(carrier, direction=direction, number=number)
    assert leg.model == ""
    assert BOOK.price_for(leg, NOW_UNIX_MS) is None


def test_a_number_may_be_said_by_its_type() -> None:
    leg = BOOK.phone_leg("twilio", direction="inbound", number_type="sip-interface")
    price = BOOK.price_for(leg, NOW_UNIX_MS)
    assert price is not None
    assert price.rate({"connected_ms": 61_000}) == 8_000_000
    client = BOOK.phone_leg("twilio", direction="outbound", number_type="client")
    assert BOOK.price_for(client, NOW_UNIX_MS) is not None


@pytest.mark.parametrize(
    ("direction", "number", "says"),
    [("in", "+14155550100", "expected inbound or outbound"), ("inbound", "", "neither was given")],
)
def test_a_phone_leg_that_says_too_little_is_refused(
    direction: str, number: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        BOOK.phone_leg("twilio", direction=direction, number=number)


def test_a_plan_without_a_rate_of_its_own_has_the_common_one() -> None:
    """LiveKit lists language models once, and speech for each plan."""
    scale = open_price_book(genai=False, plans={"livekit": "scale"})
    llm = LegAttributes(modality=Modality.LLM, provider="livekit", model="openai/gpt-5.6-luna")
    price = scale.price_for(llm, NOW_UNIX_MS)
    assert price is not None
    assert (price.provider, price.plan) == ("livekit", "build_ship")
    usage = {"input_tokens": 1_000_000, "cache_write_tokens": 1_000_000, "output_tokens": 0}
    assert price.rate(usage) == 250_000_000


@pytest.mark.parametrize("model", ["standard", "sip", "agent"])
def test_a_room_of_an_unnamed_server_is_livekits(model: str) -> None:
    assert BOOK.price_for(room(Modality.PARTICIPANT, model, ""), NOW_UNIX_MS) is not None
    assert BOOK.price_for(room(Modality.LLM, model, "livekit.example.com"), NOW_UNIX_MS) is None
