"""What seeing one thing costs on the agent's event loop: an LLM chunk, a word, 50 ms of audio.

    python -m benchmarks.bench_observation [--count N] [--strict]

Real attempts of the real plugins' streams, a real meter with the catalog's prices and a real
spool; only the network and the uplink's thread are left out, for they are not on the loop. A word
for a voice is recorded before it is sent, chunks and audio every 50 and 250 ms: the recording is
taken out of the observation, and its write(2) held against a bare one of the same bytes, in the
same run.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from livekit.agents import AgentSession, APIConnectOptions
from livekit.agents.llm import ChatContext, LLMStream
from livekit.agents.stt import RecognizeStream
from livekit.agents.tts import AudioEmitter, SynthesizeStream
from livekit.plugins.deepgram import STT, TTS
from livekit.plugins.openai import LLM
from openai.types.chat import ChatCompletionChunk

from benchmarks import _report
from livekit.plugins.voicecost import VoiceCost, _attribution, _prices, _runtime, _wire
from livekit.plugins.voicecost._link import MeterLink
from livekit.plugins.voicecost._wire_answers import show
from livekit.plugins.voicecost._wire_openai import read_chunk
from voicecost_ledger.money import MAX_NANO_USD
from voicecost_ledger.protocol import Grant
from voicecost_ledger.records import Record
from voicecost_ledger.spool import Spool

ROUNDS = 5
P50_MAX_US, P99_MAX_US, WRITE_MAX = 5.0, 25.0, 1.3
OPTIONS = APIConnectOptions(max_retry=0)
CHUNK = ChatCompletionChunk.model_validate(
    {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "delta": {"content": " sunny"}, "finish_reason": None}],
    }
)
WORD = json.dumps({"type": "Speak", "text": "sunny "})
AUDIO = bytes(2 * 16_000 // 20)


class Uplink:
    """What a link asks of the uplink, which has nothing to report."""

    def report_at_nano_usd(self, meter_id: str) -> None:
        """Never."""


class Outlet:
    """A runtime without its uplink: what a link writes goes to the spool and nowhere else."""

    uplink: Any = Uplink()
    place = ""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def record(self, record: Record) -> None:
        """Spool it."""
        self.spool.append(record)

    def hand_in(self, action: object) -> None:
        """Nobody is there."""

    def open_meter(self, **_: object) -> MeterLink:
        """A link as the runtime makes it, with a grant that these calls will not use up."""
        link = MeterLink(self, None)
        link.granted(
            Grant(
                meter_id=link.meter_id,
                epoch=1,
                renewal=0,
                ceiling_nano_usd=MAX_NANO_USD,
                soft_nano_usd=MAX_NANO_USD,
                unreported_max_nano_usd=MAX_NANO_USD,
                lease_ms=3_600_000,
            )
        )
        return link

    def flushed(self, timeout_s: float) -> None:
        """Nothing is to be waited for."""


class Recording:
    """Times the writing of records while it is on: all of it, and the write(2) in there."""

    def __init__(self) -> None:
        self.taken_ns: list[int] = []
        self.write_ns: list[int] = []
        self.last_frame = b""

    @contextmanager
    def timed(self) -> Generator[None]:
        """Time what is recorded inside."""
        bare, record, clock = os.write, MeterLink.write, time.perf_counter_ns

        def timed_write(fd: int, data: bytes) -> int:
            before = clock()
            written = bare(fd, data)
            self.write_ns.append(clock() - before)
            self.last_frame = bytes(data)
            return written

        def timed_record(self_: MeterLink, make: type[Any], **fields: Any) -> None:
            before = clock()
            record(self_, make, **fields)
            self.taken_ns.append(clock() - before)

        link_class: Any = MeterLink
        os.write, link_class.write = timed_write, timed_record
        try:
            yield
        finally:
            os.write, link_class.write = bare, record


class Timed:
    """Runs an observation many times inside an attempt, and keeps what each took."""

    def __init__(
        self, count: int, observe: Callable[[Any], None], *, answers: bool = False
    ) -> None:
        self.count = count
        self.observe = observe
        self.answers = answers
        self.recording = Recording()
        self.taken_ns: list[int] = []

    async def run(self) -> None:
        """What the stream runs instead of a request."""
        attempt: Any = _wire.observer()
        clock = time.perf_counter_ns
        if self.answers:
            attempt = attempt.answer_observed()
        for _ in range(500):
            self.observe(attempt)
        records = self.recording.taken_ns
        with self.recording.timed():
            for index in range(self.count):
                recorded = len(records)
                before = clock()
                self.observe(attempt)
                taken = clock() - before
                self.taken_ns.append(taken - sum(records[recorded:]))
                if index % 20 == 0:
                    await asyncio.sleep(0)  # as between any two of them in a call


class TimedAnswer(LLMStream):
    """Observed as any other, but it requests nothing."""

    timed: Timed

    async def _run(self) -> None:
        await self.timed.run()


class TimedSpeech(SynthesizeStream):
    """Observed as any other, but it requests nothing."""

    timed: Timed

    async def _run(self, output_emitter: AudioEmitter) -> None:
        output_emitter.initialize(
            request_id="1", sample_rate=24_000, num_channels=1, mime_type="audio/pcm", stream=True
        )
        await self.timed.run()


class TimedHearing(RecognizeStream):
    """Observed as any other, but it requests nothing."""

    timed: Timed

    async def _run(self) -> None:
        await self.timed.run()


async def observe(stream: Any, timed: Timed) -> None:
    stream.timed = timed  # its attempt starts with the next turn of the loop
    task: asyncio.Task[None] = stream._task
    await task


@asynccontextmanager
async def metered(directory: Path) -> AsyncGenerator[None]:
    outlet = Outlet(Spool(directory / "spool"))
    _runtime.runtime = lambda url=None: outlet
    session: AgentSession[None] = AgentSession(vad=None)
    meter = VoiceCost(budget=1_000_000).attach(session)
    _prices.prices().book.warm()
    with _attribution.scoped(meter):
        yield
    outlet.spool.close()


def percentile(taken_ns: list[int], share: float) -> float:
    return sorted(taken_ns)[min(len(taken_ns) - 1, int(len(taken_ns) * share))] / 1_000


async def measure(count: int, http: aiohttp.ClientSession) -> dict[str, list[Timed]]:
    llm, tts, stt = LLM(api_key="x"), TTS(api_key="x"), STT(api_key="x", http_session=http)
    connection = object()
    context = ChatContext.empty()
    context.add_message(role="system", content="You are a helpful telephone agent. " * 20)
    rounds: dict[str, list[Timed]] = {"LLM chunk": [], "word": [], "50 ms of audio": []}
    for _ in range(ROUNDS):
        answer = Timed(count, lambda seen: show(CHUNK, read_chunk, seen), answers=True)
        await observe(TimedAnswer(llm, chat_ctx=context, tools=[], conn_options=OPTIONS), answer)
        speech = Timed(count, lambda attempt: attempt.text_sending(connection, WORD))
        await observe(TimedSpeech(tts=tts, conn_options=OPTIONS), speech)
        hearing = Timed(count, lambda attempt: attempt.bytes_sending(connection, AUDIO))
        ear = TimedHearing(stt=stt, conn_options=OPTIONS)
        ear._opts = stt._opts  # type: ignore[attr-defined]
        await observe(ear, hearing)
        for name, timed in zip(rounds, (answer, speech, hearing), strict=True):
            rounds[name].append(timed)
    return rounds


def bare_writes(frame: bytes, count: int, directory: Path) -> list[int]:
    fd = os.open(directory / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    clock, taken = time.perf_counter_ns, [0] * count
    for index in range(count):
        before = clock()
        os.write(fd, frame)
        taken[index] = clock() - before
    os.close(fd)
    return taken


async def main() -> int:
    command = _report.parser(__doc__)
    command.add_argument("--count", type=int, default=5_000, help="observations per round")
    arguments = command.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        async with metered(directory), aiohttp.ClientSession() as http:
            rounds = await measure(arguments.count, http)
        frame = rounds["word"][0].recording.last_frame
        bare = bare_writes(frame, arguments.count * ROUNDS, directory)

    bars: list[_report.Bar] = []
    print(f"{ROUNDS} rounds of {arguments.count:,}, without the recording\n")
    print(f"{'µs':<24}{'p50':>8}{'p99':>8}")
    for name, each in rounds.items():
        taken = [ns for timed in each for ns in timed.taken_ns]
        p50, p99 = percentile(taken, 0.5), percentile(taken, 0.99)
        print(f"{name:<24}{p50:>8.2f}{p99:>8.2f}")
        bars.append(_report.Bar(f"{name}: p50", p50, P50_MAX_US, "µs"))
        bars.append(_report.Bar(f"{name}: p99", p99, P99_MAX_US, "µs"))
    words = rounds["word"]
    recorded = [ns for timed in words for ns in timed.recording.taken_ns]
    written = [ns for timed in words for ns in timed.recording.write_ns]
    for name, taken in (
        ("recording a word", recorded),
        ("of it the write(2)", written),
        ("bare write(2)", bare),
    ):
        print(f"{name:<24}{percentile(taken, 0.5):>8.2f}{percentile(taken, 0.99):>8.2f}")
    ratio = statistics.median(written) / statistics.median(bare)
    bars.append(_report.Bar("write for a word, to a bare write(2)", ratio, WRITE_MAX, "×"))
    return _report.conclude(bars, strict=arguments.strict)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
