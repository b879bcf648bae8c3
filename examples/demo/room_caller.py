"""The caller in a LiveKit room: an ordinary participant with a microphone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator

from livekit import rtc

from examples.demo.caller import (
    FRAME_MS,
    HEARD_SAMPLE_RATE,
    SAMPLE_RATE,
    Caller,
    Line,
    Samples,
)


class RoomCaller(Caller):
    """One participant in one room. Made by `RoomCaller.dial`."""

    def __init__(self, room: rtc.Room) -> None:
        super().__init__()
        self._room = room
        self._source = rtc.AudioSource(SAMPLE_RATE, 1, queue_size_ms=100)
        room.on("track_subscribed", self._on_track)
        room.on("data_received", self._on_data)
        room.on("disconnected", self._on_disconnected)
        room.register_text_stream_handler("lk.transcription", self._on_transcription)

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(cls, url: str, token: str) -> AsyncGenerator[RoomCaller]:
        """Join the token's room with an open microphone; hang up at the end of the block."""
        room = rtc.Room()
        caller = cls(room)
        await room.connect(url, token)
        try:
            track = rtc.LocalAudioTrack.create_audio_track("microphone", caller._source)
            options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
            await room.local_participant.publish_track(track, options)
            caller._run(caller._microphone())
            yield caller
        finally:
            await caller.hang_up()

    @property
    def connected(self) -> bool:
        """Whether the connection stands, and is not being made again just now."""
        return self._room.connection_state == rtc.ConnectionState.CONN_CONNECTED

    async def _send(self, chunk: Samples) -> None:
        frame = rtc.AudioFrame(chunk.tobytes(), SAMPLE_RATE, 1, len(chunk))
        await self._source.capture_frame(frame)  # waits while 100 ms are queued

    async def _leave(self) -> None:
        await self._room.disconnect()

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(
            track, sample_rate=HEARD_SAMPLE_RATE, num_channels=1, frame_size_ms=FRAME_MS
        )
        try:
            async for event in stream:
                self._hear(bytes(event.frame.data))
        finally:
            await stream.aclose()

    async def _transcribe(self, reader: rtc.TextStreamReader, by_agent: bool) -> None:
        text = await reader.read_all()
        final = (reader.info.attributes or {}).get("lk.transcription_final") == "true"
        if text and (by_agent or final):  # the caller's interim guesses are of no use here
            self._note(Line(by_agent=by_agent, text=text))

    def _on_track(
        self,
        track: rtc.Track,
        publication: rtc.RemoteTrackPublication,
        participant: rtc.RemoteParticipant,
    ) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            self._run(self._listen(track))

    def _on_data(self, packet: rtc.DataPacket) -> None:
        # Anyone in the room can send on any topic: only an agent's word counts.
        if (
            packet.topic == "voicecost"
            and packet.participant is not None
            and packet.participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
        ):
            self.on_cost(json.loads(packet.data)["total"]["usd"])

    def _on_transcription(self, reader: rtc.TextStreamReader, identity: str) -> None:
        by_agent = identity != self._room.local_participant.identity
        self._run(self._transcribe(reader, by_agent))

    def _on_disconnected(self, reason: rtc.DisconnectReason.ValueType) -> None:
        self.disconnect_reason = rtc.DisconnectReason.Name(reason)
