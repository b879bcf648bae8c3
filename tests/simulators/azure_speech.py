"""Simulates Azure's speech synthesis (`POST /cognitiveservices/v1`) and keeps its bill.

Wire: https://learn.microsoft.com/azure/ai-services/speech-service/rest-text-to-speech (an SSML
document, the format of the sound in `X-Microsoft-OutputFormat`, the sound as a chunked body).

Billing rules
- https://learn.microsoft.com/azure/ai-services/speech-service/text-to-speech#pricing-note: all
  characters within the SSML body, blanks, punctuation and markup included, except for the
  `speak` and `voice` tags. So a customer's twelve `<prosody rate="-10.00%">about </prosody>` were
  480 characters (https://learn.microsoft.com/answers/questions/5493673).
- Each Chinese character (hanzi, kanji, hanja) counts as two: `double_width_characters`.
  `billed_characters` is the sum.
- Cancelled work is not documented: a request whose client left is billed the whole document, as
  what was asked for. So the second bill adds nothing.
"""

from __future__ import annotations

import re
import unicodedata
import uuid

from aiohttp import web

from .bill import Bill, BillRow
from .server import Simulator
from .speech import Pace, SpeechFaults, hum, speak_body

_FREE_TAGS = re.compile(r"</?(?:speak|voice)\b[^>]*>")
_TAGS = re.compile(r"<[^>]*>")
_FORMAT = re.compile(r"raw-(\d+)(?:khz|hz)-16bit-mono-pcm")


class AzureSpeechSimulator(Simulator):
    """Azure AI Speech's text to speech.

    Args:
        bill: Where to keep the bill; its own by default.
        pace: How fast it speaks.

    Attributes:
        faults: Each request takes one.
    """

    def __init__(self, *, bill: Bill | None = None, pace: Pace | None = None) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.pace = pace or Pace()
        self.faults = SpeechFaults()

    @property
    def endpoint(self) -> str:
        """For the plugin's `speech_endpoint`."""
        return f"{self.url}/cognitiveservices/v1"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's route to `app`."""
        app.router.add_post("/cognitiveservices/v1", self._serve)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        headers = request.headers
        if not (headers.get("Ocp-Apim-Subscription-Key") or headers.get("Authorization")):
            return web.Response(status=401)
        status = self.faults.refusal()
        if status is not None:
            self.bill.close(self._open("", 0, 0), "refused")
            return web.Response(status=status)
        sound_format = _FORMAT.fullmatch(headers.get("X-Microsoft-OutputFormat", ""))
        if sound_format is None or "ssml" not in headers.get("Content-Type", ""):
            return web.Response(status=400)
        rate = int(sound_format.group(1))
        sample_rate = {22: 22_050, 44: 44_100}.get(rate, rate * 1000 if rate < 1000 else rate)
        document = await request.text()
        billed = _FREE_TAGS.sub("", document)
        wide = sum(unicodedata.name(character, "").startswith("CJK") for character in billed)
        voice = re.search(r'<voice name="([^"]*)"', document)
        row = self._open(voice.group(1) if voice else "", len(billed), wide)
        spoken = len(_TAGS.sub("", billed))
        return await speak_body(
            request,
            {"Content-Type": "audio/basic"},
            bill=self.bill,
            row=row,
            pace=self.pace,
            sound=hum(spoken * self.pace.character_ms, sample_rate),
            sample_rate=sample_rate,
            fault=self.faults.of_text(),
        )

    def _open(self, voice: str, characters: int, wide: int) -> BillRow:
        return self.bill.open(
            provider="azure",
            service="tts",
            model=voice,
            request_id=uuid.uuid4().hex,
            units={"characters": characters, "double_width_characters": wide},
            attributes={"billed_characters": characters + wide},
        )
