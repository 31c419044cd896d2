"""The work that turns audio into words: it carries samples and windows between the parts that
decide, the transcriber of its stream, and those that compute, which all streams share."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE, AudioFormat, Declared, Gap
from whisper_byoc.audio.pcm import RawStream
from whisper_byoc.audio.segments import SegmentJoiner
from whisper_byoc.audio.source import open_source
from whisper_byoc.decode import FRAME_SAMPLES, DecodeRequest, Task
from whisper_byoc.errors import InvalidOption, ServiceError, bare_errors
from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.voice import VoiceActivity, VoiceState
from whisper_byoc.jobs.options import JobOptions, Options
from whisper_byoc.jobs.work import Body, Chunks, Owner
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import StreamingSettings
from whisper_byoc.streaming.frames import FrameBlocks
from whisper_byoc.streaming.transcriber import MAX_BLOCK_SAMPLES, Transcriber
from whisper_byoc.streaming.utterance import Purpose, Window
from whisper_byoc.transcript import CONTENT_TYPES, WRITERS, EndReason, Final, Format, Writer

_MAX_SILENCE = 10 * SAMPLE_RATE
"""Samples of a gap that are heard as silence. A longer one ends the utterance before it."""
_LAST_SILENCE = SAMPLE_RATE
"""Samples of silence that are heard of a longer gap."""


@dataclass(frozen=True, slots=True)
class Inference:
    """What all transcriptions share.

    live_slack_seconds: a stream is live while it has brought no more audio than the time since its
    start and this; what comes faster is a file, for which nobody waits word by word.
    """

    engine: Engine
    voice: VoiceActivity
    metrics: Metrics
    live_slack_seconds: float = 1.0


class Transcriptions:
    """The kind of job whose work is a `Transcription`; what a service without a processor has."""

    def __init__(self, inference: Inference, settings: StreamingSettings) -> None:
        self._inference = inference
        self._settings = settings

    @property
    def model_names(self) -> Sequence[str]:
        return list(self._inference.engine.models)

    def model_for(self, options: Options) -> str:
        return self._inference.engine.model_for(_own(options).language).name

    def options(self) -> Options:
        return JobOptions()

    def check(self, options: Options) -> None:
        """Raises InvalidOption for what the loaded models cannot do."""
        own = _own(options)
        model = self._inference.engine.model_for(own.language)
        if own.task is Task.TRANSLATE and model.languages == {"en"}:
            expected = f"transcribe, since {model.name} is English only"
            raise InvalidOption("task", "translate", expected)

    def make(self, options: Options, owner: Owner) -> "Transcription":
        return Transcription(_own(options), owner, self._inference, self._settings)


def _own(options: Options) -> JobOptions:
    assert isinstance(options, JobOptions)
    return options


class Transcription:
    """The work of one job. `run` decodes windows in the job's task; `receive` takes audio in the
    task of the request that brings it.

    Audio waits in the transcriber: one window of 30 s and four closed utterances at most. While
    that is full the body is not read further, so the sender waits.
    """

    relays_input = True
    max_body_bytes = None

    def __init__(
        self, options: JobOptions, owner: Owner, inference: Inference, settings: StreamingSettings
    ) -> None:
        self.options = options
        self._owner = owner
        self._inference = inference
        self._settings = settings
        self._transcriber = Transcriber(options.streaming(settings))
        self._voice_state = VoiceState()
        self._raw = RawStream()
        self._frames = FrameBlocks(MAX_BLOCK_SAMPLES // FRAME_SAMPLES)
        self._heard = asyncio.Event()
        """Set when there may be a window or an event, which `run` waits for."""
        self._decoded = asyncio.Event()
        """Set when there may be room for audio, or words have become final, which `_take` and
        `finalize` wait for."""
        self._num_samples = self._num_words = 0
        self._num_missing = 0
        """Of those samples, what was in gaps."""
        self._decode_seconds = self._final_lag_seconds = 0.0
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()

    @property
    def audio_seconds(self) -> float:
        """The length of the stream so far: audio received, with what waits for room in the
        transcriber, and the gaps in it."""
        return self._num_samples / SAMPLE_RATE

    @property
    def lag_seconds(self) -> float:
        return self._transcriber.lag_seconds

    @property
    def has_understood(self) -> bool:
        return self._transcriber.num_samples > 0

    def counters(self) -> dict[str, Any]:
        return {
            "audio_seconds": round(self.audio_seconds, 3),
            "lag_seconds": round(self.lag_seconds, 3),
            "final_lag_seconds": round(self._final_lag_seconds, 3),
            "decode_seconds": round(self._decode_seconds, 3),
            "partials": self._transcriber.pace.num_made,
            "partials_dropped": self._transcriber.pace.num_dropped,
            "words": self._num_words,
        }

    def writer(self, output: Format) -> tuple[str, Writer]:
        return CONTENT_TYPES[output], WRITERS[output](words=self.options.words)

    def change(self, options: Options) -> None:
        """Go on by other options, from the next decode."""
        self.options = _own(options)
        self._transcriber.receive_settings(self.options.streaming(self._settings))
        self._heard.set()

    async def finalize(self) -> None:
        """Return when all that has come is final, but for the samples of the last frame (32 ms)
        when it is not whole: they wait for the rest of it."""
        received = self._num_samples
        while (
            not self._transcriber.ended
            and self._transcriber.num_samples + FRAME_SAMPLES <= received
        ):
            await self._until_decoded()
        await self._until_final()

    def bodies(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> AsyncIterator[Chunks]:
        """Segments that are pieces of one thing (a transport stream, raw audio, a file) are one
        body, so that one decoder reads them with one clock. A segment that begins another file
        begins another body."""
        return SegmentJoiner(segments, audio_format)

    def leave_out(self, error: ServiceError) -> None:
        self._owner.logger.debug("segment left out: %s", error)

    async def receive(self, body: Body, audio_format: Declared | None) -> None:
        async with open_source(audio_format, self._raw) as source:

            async def pump() -> None:
                await body.pump(source.send)
                # Also after a part of the body: what has come of it is decoded in any case.
                await source.send_eof()

            async with bare_errors(), asyncio.TaskGroup() as group:
                group.create_task(pump())
                while (piece := await source.next_piece()) is not None:
                    if isinstance(piece, Gap):
                        await self._pass_over(piece.num_samples)
                    else:
                        await self._take(piece)

    async def _pass_over(self, num_samples: int) -> None:
        """Silence takes the place of what is missing. Of a long gap only its beginning is heard,
        for the last words to end in, and the rest is left out when they are final."""
        self._num_missing += num_samples
        num_heard = num_samples
        if num_samples > _MAX_SILENCE:
            num_heard = _LAST_SILENCE + (self._frames.num_lacking - _LAST_SILENCE) % FRAME_SAMPLES
        await self._take(np.zeros(num_heard, np.float32))
        if num_heard < num_samples:
            self._num_samples += num_samples - num_heard
            await self._until_final()
            self._transcriber.receive_gap(num_samples - num_heard)
            self._decoded.set()

    async def _take(self, samples: NDArray[np.float32]) -> None:
        """Pass whole frames on to the transcriber, as it has room."""
        self._num_samples += len(samples)
        for block in self._frames.receive_samples(samples):
            while not (self._transcriber.has_room or self._transcriber.ended):
                await self._until_decoded()
            if not self._transcriber.ended:
                await self._hear(block)

    async def _hear(self, samples: NDArray[np.float32]) -> None:
        voice = await self._inference.voice.probabilities(samples, self._voice_state)
        self._transcriber.receive_audio(samples, voice.tolist())
        self._inference.metrics.audio_seconds.inc(len(samples) / SAMPLE_RATE)
        self._owner.keep_alive()
        self._heard.set()
        self._decoded.set()

    async def receive_end(self, reason: EndReason, failure: ServiceError | None) -> None:
        tail = self._frames.receive_end()
        if len(tail) and not self._transcriber.ended:
            await self._hear(tail)
        told = None if failure is None else (failure.code, str(failure))
        self._transcriber.receive_end(reason, told)
        self._heard.set()

    def abandon(self, error: ServiceError) -> None:
        self._transcriber.receive_failure(error.code, str(error))
        self._publish()
        self._heard.set()
        self._decoded.set()

    async def run(self) -> None:
        while not self._transcriber.ended:
            self._heard.clear()
            before = self._transcriber.pace.num_dropped
            window = self._transcriber.next_window(live=self._is_live())
            num_dropped = self._transcriber.pace.num_dropped - before
            self._inference.metrics.partials_dropped.inc(num_dropped)
            self._publish()
            if window is not None:
                await self._decode(window)
            elif not self._transcriber.ended:
                self._decoded.set()  # what held no speech was dropped without a decode
                await self._heard.wait()
        self._publish()
        self._decoded.set()

    async def _decode(self, window: Window) -> None:
        began = self._loop.time()
        wanted = began
        if window.purpose is Purpose.PARTIAL:
            # Later than every final that is asked for meanwhile, of whichever stream: those go
            # first. A partial that comes after the next one is due is of no use.
            wanted += self._settings.partial_interval
        request = DecodeRequest(
            window.samples,
            deadline=wanted,
            language=self.options.language,
            task=self.options.task,
            prompt=self.options.context,
            # The next partial comes before another attempt could.
            retry=window.purpose is not Purpose.PARTIAL,
            forced=window.forced,
            draft=window.draft,
        )
        hypothesis = await self._inference.engine.decode(request)
        seconds = self._loop.time() - began
        self._decode_seconds += seconds
        self._inference.metrics.observe_decode(window.purpose, seconds, hypothesis)
        self._transcriber.receive_hypothesis(hypothesis, seconds)
        self._decoded.set()

    async def _until_final(self) -> None:
        """Return when all that was heard is final."""
        place = self._transcriber.receive_finalize()
        self._heard.set()
        while not self._transcriber.is_final(place):
            await self._until_decoded()

    async def _until_decoded(self) -> None:
        self._decoded.clear()
        await self._decoded.wait()

    def _is_live(self) -> bool:
        elapsed = self._loop.time() - self._started
        received = (self._num_samples - self._num_missing) / SAMPLE_RATE
        in_time = received <= elapsed + self._inference.live_slack_seconds
        return in_time and self._transcriber.end_reason is None

    def _publish(self) -> None:
        for event in self._transcriber.events_to_send():
            if isinstance(event, Final):
                self._num_words += len(event.words)
                self._final_lag_seconds = self._transcriber.audio_seconds - event.end
                if self._is_live():
                    self._inference.metrics.final_lag_seconds.observe(self._final_lag_seconds)
            self._owner.send(event)
