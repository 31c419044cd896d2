"""Voice activity: one Silero session for all streams, each stream's state beside it.

The model and how it is fed: https://github.com/snakers4/silero-vad
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.decode import FRAME_SAMPLES
from whisper_byoc.inference.worker import BatchThread

# Its Linux wheels report to their maker since 1.29, unless told not to before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

CONTEXT_SAMPLES = 64
MAX_BATCH = 32
"""Streams that go together: bounds how long a stream waits for the others."""


@dataclass(slots=True)
class VoiceState:
    """One stream's memory between frames; owned by the stream's job, changed by `VoiceModel`."""

    recurrent: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((2, 1, 128), dtype=np.float32)
    )
    context: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(CONTEXT_SAMPLES, dtype=np.float32)
    )


@dataclass(slots=True)
class VoiceRequest:
    """frames: float32 (n, 512), 16 kHz; `state` is advanced by n frames."""

    frames: NDArray[np.float32]
    state: VoiceState


class VoiceModel:
    """Silero's ONNX model (silero-vad's wheel carries it). Synchronous, one caller at a time.

    One thread: measured 0.23 ms a frame for one stream, 0.08 ms when eight go together.
    """

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = files("silero_vad").joinpath("data", "silero_vad.onnx").read_bytes()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._rate = np.array(16_000, dtype=np.int64)

    def probabilities(self, requests: Sequence[VoiceRequest]) -> list[NDArray[np.float32]]:
        """The voice probability of every frame: one float32 (n,) for each request.

        Frames of one stream follow one another; frames of several streams go together.
        """
        results = [np.empty(len(request.frames), dtype=np.float32) for request in requests]
        for step in range(max((len(request.frames) for request in requests), default=0)):
            active = [index for index, request in enumerate(requests) if step < len(request.frames)]
            states = [requests[index].state for index in active]
            frames = np.stack([requests[index].frames[step] for index in active])
            audio = np.concatenate([np.stack([state.context for state in states]), frames], axis=1)
            recurrent = np.concatenate([state.recurrent for state in states], axis=1)
            output, recurrent = self._session.run(
                None, {"input": audio, "state": recurrent, "sr": self._rate}
            )
            for row, (index, state) in enumerate(zip(active, states, strict=True)):
                results[index][step] = output[row, 0]
                state.recurrent = recurrent[:, row : row + 1]
                state.context = audio[row, -CONTEXT_SAMPLES:]
        return results


class VoiceActivity:
    """The session's single thread, shared by all jobs; `open_voice_activity` owns it."""

    def __init__(self, thread: BatchThread[VoiceRequest, NDArray[np.float32]]) -> None:
        self._thread = thread

    async def probabilities(
        self, samples: NDArray[np.float32], state: VoiceState
    ) -> NDArray[np.float32]:
        """Voice probabilities of whole frames: float32 (n * 512,) in, float32 (n,) out."""
        frames = samples.reshape(-1, FRAME_SAMPLES)
        return await self._thread.submit(VoiceRequest(frames, state))


@asynccontextmanager
async def open_voice_activity() -> AsyncIterator[VoiceActivity]:
    """Load the session and serve requests while inside."""
    thread = BatchThread("voice", VoiceModel().probabilities, MAX_BATCH)
    async with thread.serve():
        yield VoiceActivity(thread)
