"""The job that turns audio into a transcript."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import NATIVE, SAMPLE_RATE, AudioFormat, Pcm
from whisper_byoc.audio.segments import SegmentJoiner
from whisper_byoc.audio.source import open_source
from whisper_byoc.decode import FRAME_SAMPLES, DecodeRequest, Task
from whisper_byoc.errors import (
    DecodeError,
    InvalidOption,
    JobEnded,
    ServiceError,
    UnsupportedAudio,
    bare_errors,
)
from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.voice import VoiceActivity, VoiceState
from whisper_byoc.jobs.eventlog import EventLog
from whisper_byoc.jobs.job import BodyCounter, Chunks, Job
from whisper_byoc.jobs.options import JobOptions, Options
from whisper_byoc.metrics import Metrics
from whisper_byoc.settings import Settings
from whisper_byoc.streaming.transcriber import MAX_BLOCK_SAMPLES, Purpose, Transcriber, Window
from whisper_byoc.transcript import CONTENT_TYPES, WRITERS, EndReason, Final, Format, Writer

_BLOCK_SAMPLES = MAX_BLOCK_SAMPLES // FRAME_SAMPLES * FRAME_SAMPLES
_LIVE_SLACK_SECONDS = 1.0
"""A stream that has brought more audio than the time since its start and this is a file."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all transcriptions share."""

    engine: Engine
    voice: VoiceActivity
    metrics: Metrics


class Transcriptions:
    """The kind of job that this service is for."""

    def __init__(self, services: Services, settings: Settings) -> None:
        self._services = services
        self._settings = settings

    @property
    def model_names(self) -> Sequence[str]:
        return list(self._services.engine.models)

    def model_for(self, options: Options) -> str:
        return self._services.engine.model_for(_own(options).language).name

    def options(self) -> Options:
        return JobOptions()

    def check(self, options: Options) -> None:
        """Raises InvalidOption for what the loaded models cannot do."""
        own = _own(options)
        model = self._services.engine.model_for(own.language)
        if own.task is Task.TRANSLATE and model.languages == {"en"}:
            expected = f"transcribe, since {model.name} is English only"
            raise InvalidOption("task", "translate", expected)

    def make(self, job_id: str, options: Options) -> "Transcription":
        return Transcription(job_id, _own(options), self._services, self._settings)


def _own(options: Options) -> JobOptions:
    assert isinstance(options, JobOptions)
    return options


class Transcription(Job):
    """Audio waits in the transcriber: one window of 30 s and four closed utterances at most; when
    that is full the body is not read further, so the sender waits."""

    relays_input: ClassVar[bool] = True
    options: JobOptions

    def __init__(
        self, job_id: str, options: JobOptions, services: Services, settings: Settings
    ) -> None:
        log = EventLog(settings.jobs.max_events)
        super().__init__(job_id, options, settings.jobs, services.metrics, log)
        self._services = services
        self._streaming = settings.streaming
        self._transcriber = Transcriber(options.streaming(settings.streaming))
        self._voice_state = VoiceState()
        self._pending = np.empty(0, dtype=np.float32)
        self._carry = b""
        self._raw_format: Pcm | None = None
        self._heard = asyncio.Event()
        self._decoded = asyncio.Event()
        self._num_words = 0
        self._num_samples = self._num_heard = 0
        self._partials_dropped = 0
        self._decode_seconds = 0.0

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio received, a piece shorter than a frame included."""
        return self._transcriber.audio_seconds + len(self._pending) / SAMPLE_RATE

    @property
    def lag_seconds(self) -> float:
        return self._transcriber.lag_seconds

    @property
    def worth_keeping(self) -> bool:
        return self._failure is None or self._transcriber.audio_seconds > 0

    def counters(self) -> dict[str, Any]:
        return {
            "audio_seconds": round(self.audio_seconds, 3),
            "lag_seconds": round(self.lag_seconds, 3),
            "final_lag_seconds": round(self._transcriber.final_lag_seconds, 3),
            "decode_seconds": round(self._decode_seconds, 3),
            "partials": self._transcriber.num_partials,
            "partials_dropped": self._transcriber.num_partials_dropped,
            "words": self._num_words,
        }

    def writer(self, output: Format) -> tuple[str, Writer]:
        return CONTENT_TYPES[output], WRITERS[output](words=self.options.words)

    def change(self, options: Options) -> None:
        """Go on with other options, from the next decode. Raises JobEnded."""
        super().change(options)
        self._transcriber.receive_settings(_own(options).streaming(self._streaming))
        self._heard.set()

    async def finalize(self) -> None:
        """Return when all that was received so far is final; the stream goes on. Raises JobEnded.

        What fills no frame of 32 ms waits for the rest of it.
        """
        self.check_runs()
        self.keep_alive()
        received = self._num_samples
        while not self._transcriber.ended and self._num_heard + FRAME_SAMPLES <= received:
            self._decoded.clear()
            await self._decoded.wait()
        position = self._transcriber.receive_finalize()
        self._heard.set()
        while not self._transcriber.is_final(position):
            self._decoded.clear()
            await self._decoded.wait()

    async def receive_segments(
        self, segments: AsyncIterator[Chunks], audio_format: AudioFormat | None
    ) -> None:
        """Segments that go on in one another are one body, one decoder and one clock: transport
        streams, raw audio, a recording in pieces. One that begins another file begins anew."""
        joiner = SegmentJoiner(segments, audio_format)
        while not self._input_ended and await joiner.begin():
            try:
                await self._receive_counted(joiner.chunks(), audio_format, BodyCounter(None))
            except UnsupportedAudio as error:
                if self._failure is not None:
                    raise
                self.problem = error
                self.num_problems += 1
                self._logger.debug("segment left out: %s", error)
        if self._stop_reason is not None:
            await self._end_input(self._stop_reason)

    async def _receive(
        self, chunks: AsyncIterator[bytes], audio_format: AudioFormat | None
    ) -> None:
        # What goes on in the middle of a sound has no head to tell its format by, so labelled raw
        # audio keeps its label; a divided sample goes on only in the same format.
        declared = audio_format
        if audio_format is None and self._raw_format != NATIVE:
            declared = self._raw_format
        carry = self._carry if (declared or NATIVE) == self._raw_format else b""
        async with open_source(declared, carry=carry) as source:

            async def pump() -> None:
                async for chunk in chunks:
                    self.keep_alive()
                    await source.send(chunk)

            async def finish(pumping: asyncio.Task[None]) -> None:
                """Apart from `pump`, which `stop` may cancel before its first step: what has come
                so far is decoded in any case."""
                await asyncio.wait({pumping})
                await source.send_eof()

            try:
                async with bare_errors(), asyncio.TaskGroup() as group:
                    self._pump = group.create_task(pump())
                    group.create_task(finish(self._pump))
                    async for samples in source:
                        await self._take(samples)
            finally:
                self._pump = None
            self._carry = source.carry
            if isinstance(source.format, Pcm):
                self._raw_format = source.format

    async def _take(self, samples: NDArray[np.float32]) -> None:
        """Pass whole frames on to the transcriber, as it has room."""
        self._num_samples += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        while len(self._pending) >= FRAME_SAMPLES:
            await self._wait_for_room()
            whole = len(self._pending) // FRAME_SAMPLES * FRAME_SAMPLES
            block, self._pending = np.split(self._pending, [min(whole, _BLOCK_SAMPLES)])
            await self._hear(block, block)

    async def _hear(self, samples: NDArray[np.float32], frames: NDArray[np.float32]) -> None:
        voice = await self._services.voice.probabilities(frames, self._voice_state)
        self._transcriber.receive_audio(samples, voice.tolist())
        self._metrics.audio_seconds.inc(len(samples) / SAMPLE_RATE)
        self._num_heard += len(samples)
        self.keep_alive()
        self._heard.set()
        self._decoded.set()

    async def _wait_for_room(self) -> None:
        while not (self._transcriber.has_room or self._transcriber.ended):
            self._decoded.clear()
            await self._decoded.wait()
        if self._transcriber.ended:
            raise self._failure or JobEnded(self.job_id)

    async def _end_input(self, reason: EndReason, failure: ServiceError | None = None) -> None:
        if self._input_ended:
            return
        self._input_ended = True
        tail, self._pending = self._pending, self._pending[:0]
        if len(tail) and not self._transcriber.ended:
            try:
                await self._hear(tail, np.pad(tail, (0, FRAME_SAMPLES - len(tail))))
            except DecodeError as error:  # whoever ends the input waits for the end of the job
                self._abandon(error)
        if failure is None:
            self._transcriber.receive_end(reason)
        else:
            self._transcriber.receive_end(EndReason.ERROR, (failure.code, str(failure)))
        self._heard.set()

    def _abandon(self, error: ServiceError) -> None:
        self._failure = self._failure or error
        self._transcriber.receive_failure(error.code, str(error))
        self._publish()

    async def _work(self) -> None:
        while not self._transcriber.ended:
            self._heard.clear()
            window = self._transcriber.next_window(live=self._is_live())
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
        if window.purpose is Purpose.PARTIAL:  # finals go first
            wanted += self._streaming.partial_interval
        request = DecodeRequest(
            window.samples,
            deadline=wanted,
            language=self.options.language,
            task=self.options.task,
            prompt=self.options.context,
            # The next partial comes before another attempt could.
            retry=window.purpose is not Purpose.PARTIAL,
            committed=window.committed,
            draft=window.draft,
        )
        try:
            hypothesis = await self._services.engine.decode(request)
        except DecodeError as error:
            self._logger.error("%s", error)
            self._abandon(error)
            return
        seconds = self._loop.time() - began
        self._decode_seconds += seconds
        self._metrics.observe_decode(window.purpose.name.lower(), seconds, hypothesis)
        self._transcriber.receive_hypothesis(hypothesis, seconds)
        self._publish()
        self._decoded.set()

    def _is_live(self) -> bool:
        elapsed = self._loop.time() - self._started
        return not self._input_ended and self.audio_seconds <= elapsed + _LIVE_SLACK_SECONDS

    def _publish(self) -> None:
        for event in self._transcriber.events_to_send():
            if isinstance(event, Final):
                self._num_words += len(event.words)
                if self._is_live():
                    lag = self._transcriber.final_lag_seconds
                    self._metrics.final_lag_seconds.observe(lag)
            self._send(event)
        dropped = self._transcriber.num_partials_dropped
        self._metrics.partials_dropped.inc(dropped - self._partials_dropped)
        self._partials_dropped = dropped

    def _finish(self) -> None:
        self._decoded.set()
        super()._finish()
