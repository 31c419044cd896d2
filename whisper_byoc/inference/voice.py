"""Voice activity: one Silero session for all streams, each stream's state beside it.

The model and how it is fed: https://github.com/snakers4/silero-vad
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Self

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.decode import FRAME_SAMPLES
from whisper_byoc.inference.batch_thread import BatchThread

# Its Linux wheels report to their maker since 1.29, unless told not to before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

CONTEXT_SAMPLES = 64
MAX_BATCH = 32
"""Streams that go together: bounds how long a stream waits for the others."""


@dataclass(slots=True)
class VoiceState:
    """One stream's memory between frames; owned by the stream's job, changed by `VoiceModel`."""

    hidden: NDArray[np.float32] = field(default_factory=lambda: _zeros(1, 1, 128))
    cell: NDArray[np.float32] = field(default_factory=lambda: _zeros(1, 1, 128))
    context: NDArray[np.float32] = field(default_factory=lambda: _zeros(CONTEXT_SAMPLES))


def _zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


@dataclass(slots=True)
class VoiceRequest:
    """frames: float32 (n, 512), 16 kHz; `state` is advanced by n frames."""

    frames: NDArray[np.float32]
    state: VoiceState

    @classmethod
    def of(cls, samples: NDArray[np.float32], state: VoiceState) -> Self:
        """samples: float32 (n,); the last frame is filled up with silence."""
        whole = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
        return cls(whole.reshape(-1, FRAME_SAMPLES), state)


class VoiceModel:
    """Silero's ONNX model (silero-vad's wheel carries it). Synchronous, one caller at a time.

    The build that takes a sequence of frames, bit for bit the same as frame by frame. One thread;
    measured 0.12 ms for a call of one frame and 0.06 ms for each of 31, so frames that came
    together go together, and streams one after another.
    """

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = files("silero_vad").joinpath("data", "silero_vad_16k_sequence.onnx").read_bytes()
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def probabilities(self, requests: Sequence[VoiceRequest]) -> list[NDArray[np.float32]]:
        """The voice probability of every frame: one float32 (n,) for each request."""
        return [self._advance(request.frames, request.state) for request in requests]

    def _advance(self, frames: NDArray[np.float32], state: VoiceState) -> NDArray[np.float32]:
        if not len(frames):
            return _zeros(0)
        contexts = np.concatenate([state.context[None], frames[:-1, -CONTEXT_SAMPLES:]])
        audio = np.concatenate([contexts, frames], axis=1)
        result: NDArray[np.float32]
        result, state.hidden, state.cell = self._session.run(
            None, {"input": audio, "h": state.hidden, "c": state.cell}
        )
        state.context = frames[-1, -CONTEXT_SAMPLES:].copy()
        return result


class VoiceActivity:
    """The session's single thread, shared by all jobs; `open_voice_activity` owns it."""

    def __init__(self, thread: BatchThread[VoiceRequest, NDArray[np.float32]]) -> None:
        self._thread = thread

    async def probabilities(
        self, samples: NDArray[np.float32], state: VoiceState
    ) -> NDArray[np.float32]:
        """The voice probability of every frame of `samples`, float32 (n,). Raises DecodeError."""
        return await self._thread.submit(VoiceRequest.of(samples, state))


@asynccontextmanager
async def open_voice_activity() -> AsyncIterator[VoiceActivity]:
    """Load the session and serve requests while inside."""
    thread = BatchThread("voice", VoiceModel().probabilities, MAX_BATCH)
    async with thread.serve():
        yield VoiceActivity(thread)
