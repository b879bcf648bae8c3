"""Runs the simulated OpenAI and Deepgram as one process, for the demo.

    python tests/simulators/serve.py --port 0 --script FILE

Prints one JSON line with the addresses, then serves until SIGINT or SIGTERM. Beside the
providers' own routes (which never show these):

    GET  /bill?since_unix_ms=N   what the providers bill: provider, model, request
    POST /script                 the same JSON as FILE; replaces only the keys it names
    POST /faults                 {"llm": [...], "stt": [...], "tts": [...]}: each
                                 {"status": 429} | {"dies_after": 20} | {"silent": true}

Keys of the script: transcripts, replies, first_token_delay_ms, token_delay_ms, pause_ms,
speech_rms_min, character_ms, first_byte_delay_ms, speed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

from aiohttp import web

if __package__ in (None, ""):  # started by path: find the package, and not its files as modules
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.simulators.bill import Bill
from tests.simulators.deepgram import DeepgramSimulator
from tests.simulators.openai_chat import OpenAISimulator
from tests.simulators.script import Fault, reply_from_json
from tests.simulators.server import LoopbackServer


class Control:
    """What the demo may ask of the simulators, apart from what a provider offers."""

    def __init__(self) -> None:
        self.bill = Bill()
        self.openai = OpenAISimulator(bill=self.bill)
        self.deepgram = DeepgramSimulator(bill=self.bill)

    def add_routes(self, app: web.Application) -> None:
        """Add the control routes to `app`."""
        app.router.add_get("/bill", self._bill)
        app.router.add_post("/script", self._script)
        app.router.add_post("/faults", self._faults)

    def follow(self, script: dict[str, Any]) -> None:
        """Do as the script says; what it does not name stays.

        Raises:
            ValueError: It names a key that there is not.
        """
        openai, listen, speak = self.openai, self.deepgram.listen, self.deepgram.speak
        for key, value in script.items():
            match key:
                case "replies":
                    openai.replies = [reply_from_json(reply) for reply in value]
                case "transcripts":
                    listen.transcripts = deque(value)
                case "first_token_delay_ms" | "token_delay_ms":
                    setattr(openai, key, int(value))
                case "pause_ms" | "speech_rms_min":
                    setattr(listen, key, int(value))
                case "character_ms" | "first_byte_delay_ms":
                    setattr(speak, key, int(value))
                case "speed":
                    speak.speed = float(value)
                case _:
                    raise ValueError(f"unknown key {key!r} in the script: see {__file__}")

    async def _bill(self, request: web.Request) -> web.Response:
        since_unix_ms = int(request.query.get("since_unix_ms", "0"))
        return web.json_response(self.bill.as_json(since_unix_ms=since_unix_ms))

    async def _script(self, request: web.Request) -> web.Response:
        try:
            self.follow(await request.json())
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": repr(error)}, status=400)
        return web.json_response({})

    async def _faults(self, request: web.Request) -> web.Response:
        lists = {
            "llm": self.openai.faults,
            "stt": self.deepgram.listen.faults,
            "tts": self.deepgram.speak.faults,
        }
        try:
            for service, faults in (await request.json()).items():
                lists[service].add(*(Fault(**fault) for fault in faults))
        except (KeyError, TypeError, ValueError) as error:
            return web.json_response({"error": repr(error)}, status=400)
        return web.json_response({})


async def serve(port: int, script: dict[str, Any]) -> None:
    """Serve on loopback until told to stop."""
    control = Control()
    control.follow(script)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with LoopbackServer([control.openai, control.deepgram, control], port=port) as server:
        urls = {
            "openai_base_url": f"{server.url}/v1",
            "deepgram_listen_url": f"{server.url}/v1/listen",
            "deepgram_speak_url": f"{server.url}/v1/speak",
            "bill_url": f"{server.url}/bill",
            "script_url": f"{server.url}/script",
            "faults_url": f"{server.url}/faults",
        }
        sys.stdout.write(json.dumps(urls) + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="Simulated OpenAI and Deepgram on loopback.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--script", type=Path, help="JSON: what to hear and to answer")
    arguments = parser.parse_args()
    script = json.loads(arguments.script.read_text("utf-8")) if arguments.script else {}
    asyncio.run(serve(arguments.port, script))


if __name__ == "__main__":
    main()
