"""Recordings as the service hears them, without a door: samples in, passages out."""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from whisper_byoc.audio.formats import Samples
from whisper_byoc.decode import DecodeRequest, Effort
from whisper_byoc.errors import bare_errors
from whisper_byoc.inference.batch_thread import BatchThread
from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.model import Model
from whisper_byoc.inference.voice import MAX_BATCH, VoiceActivity
from whisper_byoc.jobs.hearing import Hearing
from whisper_byoc.jobs.shared import Inference
from whisper_byoc.metrics import Metrics
from whisper_byoc.streaming.passages import Passage


def hear_recordings(
    model: Model,
    voice: Callable[..., Any],
    recordings: Sequence[Samples],
    effort: Effort,
    executor: ThreadPoolExecutor | None = None,
) -> list[list[Passage]]:
    """The passages of each recording, float32 (n,), all heard at once. voice: of requests the voice
    probabilities, as `VoiceModel.probabilities`. executor: of the thread that the model was loaded
    in, as in the service; where speed is measured. Raises DecodeError."""

    def ask(samples: Samples) -> DecodeRequest:
        return DecodeRequest(samples, math.inf, effort=effort)

    async def hear(inference: Inference, samples: Samples) -> list[Passage]:
        hearing = Hearing(inference, ask)
        passages: list[Passage] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(hearing.run(passages.append))
            await hearing.receive_samples(samples)
            await hearing.receive_end()
        return passages

    async def hear_all() -> list[list[Passage]]:
        engine, thread = Engine([model], executor), BatchThread("voice", voice, MAX_BATCH)
        async with bare_errors(), engine.serve(), thread.serve():
            inference = Inference(engine, VoiceActivity(thread), Metrics())
            return await asyncio.gather(*(hear(inference, samples) for samples in recordings))

    return asyncio.run(hear_all())
