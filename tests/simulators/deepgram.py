"""The simulated Deepgram: recognition and synthesis on one host, one bill."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from .bill import Bill
from .deepgram_listen import Listen
from .deepgram_speak import Speak
from .server import Simulator

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class DeepgramSimulator(Simulator):
    """Deepgram's `/v1/listen` and `/v1/speak`.

    Args:
        transcripts: What the caller's stretches of speech mean, in order.
        bill: Where to keep the bill; its own by default.
        pause_ms: Shortest silence that ends a stretch of speech.
        speech_rms_min: Loudness of speech, root mean square of 16-bit samples.
        character_ms: How long a spoken character sounds.
        first_byte_delay_ms: From text that can be spoken to its first audio.
        speed: Seconds of speech made per second; 0 makes it all at once.

    Attributes:
        listen: Recognition: `listen.transcripts` (a deque, may be extended), `listen.faults`.
        speak: Synthesis: `speak.speed`, `speak.faults`.
    """

    def __init__(
        self,
        *,
        transcripts: Iterable[str] = (),
        bill: Bill | None = None,
        pause_ms: int = 300,
        speech_rms_min: int = 300,
        character_ms: int = 65,
        first_byte_delay_ms: int = 80,
        speed: float = 6.0,
    ) -> None:
        super().__init__()
        self.bill = bill or Bill()
        self.listen = Listen(
            bill=self.bill,
            transcripts=transcripts,
            pause_ms=pause_ms,
            speech_rms_min=speech_rms_min,
        )
        self.speak = Speak(
            bill=self.bill,
            character_ms=character_ms,
            first_byte_delay_ms=first_byte_delay_ms,
            speed=speed,
        )

    @property
    def listen_url(self) -> str:
        """For the STT's `base_url`."""
        return f"{self.url}/v1/listen"

    @property
    def speak_url(self) -> str:
        """For the TTS's `base_url`."""
        return f"{self.url}/v1/speak"

    def add_routes(self, app: web.Application) -> None:
        """Add the API's routes to `app`."""
        app.router.add_get("/v1/listen", self._authorized(self.listen.handle))
        app.router.add_get("/v1/speak", self._authorized(self.speak.handle_websocket))
        app.router.add_post("/v1/speak", self._authorized(self.speak.handle_post))

    @staticmethod
    def _authorized(handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            scheme = request.headers.get("Authorization", "").partition(" ")[0].lower()
            if scheme not in ("token", "bearer"):
                body = {"err_code": "INVALID_AUTH", "err_msg": "Invalid credentials."}
                return web.json_response(body, status=401)
            return await handler(request)

        return handle
