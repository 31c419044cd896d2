"""The work that makes a transcript of one whole recording: a live job's interface around `Hearing`,
with the events that tell of it."""

import asyncio
import itertools
import math
from typing import Any

from whisper_byoc.audio.formats import SAMPLE_RATE, Samples
from whisper_byoc.decode import DecodeRequest
from whisper_byoc.errors import ServiceError
from whisper_byoc.jobs.audio_work import AudioWork
from whisper_byoc.jobs.hearing import Hearing
from whisper_byoc.jobs.options import JobOptions
from whisper_byoc.jobs.shared import Inference
from whisper_byoc.jobs.work import Owner
from whisper_byoc.settings import RecordingSettings
from whisper_byoc.streaming.passages import Passage
from whisper_byoc.transcript import End, Endpoint, EndReason, Failure, Final


class RecordingWork(AudioWork):
    """The work of one recording. `run` has it heard in the job's task; `receive` takes audio in the
    task of the request that brings it. Every passage is an utterance: one final, one endpoint."""

    lag_seconds = 0.0
    """Nobody waits for the words of a recording one by one."""

    def __init__(
        self, options: JobOptions, owner: Owner, inference: Inference, settings: RecordingSettings
    ) -> None:
        super().__init__(options, owner)
        self._settings = settings
        self._hearing = Hearing(inference, self._ask)
        self._seqs = itertools.count()
        self._passages = itertools.count()
        self._num_samples = self._num_words = 0
        self._end: tuple[EndReason, ServiceError | None] = EndReason.ERROR, None
        self._ended = asyncio.Event()

    @property
    def audio_seconds(self) -> float:
        """Of the recording so far: audio received, and the gaps in it."""
        return self._num_samples / SAMPLE_RATE

    @property
    def heard_seconds(self) -> float:
        """Of those, up to where the transcript is there."""
        return self._hearing.heard_seconds

    @property
    def has_understood(self) -> bool:
        return self._num_samples > 0

    def counters(self) -> dict[str, Any]:
        lag_seconds = round(self.audio_seconds - self.heard_seconds, 3)
        return {
            "audio_seconds": round(self.audio_seconds, 3),
            "lag_seconds": lag_seconds,
            "final_lag_seconds": lag_seconds,
            "decode_seconds": round(self._hearing.decode_seconds, 3),
            "partials": 0,
            "partials_dropped": 0,
            "words": self._num_words,
        }

    async def finalize(self) -> None:
        """A recording is heard as a whole: everything is final when it has ended."""
        await self._ended.wait()

    async def _take(self, samples: Samples) -> None:
        self._num_samples += len(samples)
        await self._hearing.receive_samples(samples)

    async def _pass_over(self, num_samples: int) -> None:
        self._num_samples += num_samples
        await self._hearing.receive_gap(num_samples)

    async def receive_end(self, reason: EndReason, failure: ServiceError | None) -> None:
        self._end = reason, failure
        await self._hearing.receive_end()

    def abandon(self, error: ServiceError) -> None:
        self._hearing.close()
        self._finish(EndReason.ERROR, error)

    async def run(self) -> None:
        await self._hearing.run(self._publish)
        self._finish(*self._end)

    def _ask(self, samples: Samples) -> DecodeRequest:
        return DecodeRequest(
            samples,
            math.inf,
            self.options.language,
            self.options.task,
            self.options.context,
            effort=self.options.effort or self._settings.effort,
        )

    def _publish(self, passage: Passage) -> None:
        self._num_words += len(passage.words)
        number = next(self._passages)
        self._owner.send(
            Final(
                next(self._seqs),
                number,
                passage.start,
                passage.end,
                passage.text,
                passage.words,
                passage.language,
                passage.detail,
            )
        )
        self._owner.send(Endpoint(next(self._seqs), number, passage.end))

    def _finish(self, reason: EndReason, failure: ServiceError | None) -> None:
        """Tell of the end, unless it was told before."""
        if self._ended.is_set():
            return
        self._ended.set()
        if failure is not None:
            self._owner.send(Failure(next(self._seqs), failure.code, str(failure)))
        self._owner.send(End(next(self._seqs), self.audio_seconds, reason))
