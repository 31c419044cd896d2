"""What all transcriptions of a service share."""

import asyncio
from dataclasses import dataclass, field

from whisper_byoc.inference.engine import Engine
from whisper_byoc.inference.voice import VoiceActivity
from whisper_byoc.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Inference:
    """The parts that compute, for every stream and recording.

    live_slack_seconds: a stream is live while it has brought no more audio than the time since its
    start and this; what comes faster is a file, for which nobody waits word by word.
    places: of windows of recordings that are at the engine, as many as go together. They are given
    out in order of asking, so that recordings take turns, and bound what all of them hold.
    """

    engine: Engine
    voice: VoiceActivity
    metrics: Metrics
    live_slack_seconds: float = 1.0
    places: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        largest = max(model.max_batch for model in self.engine.models.values())
        object.__setattr__(self, "places", asyncio.Semaphore(largest))
