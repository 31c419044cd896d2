"""Hears whole recordings: samples in, passages out, many windows decoded at a time."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.errors import bare_errors
from whisper_byoc.inference.voice import VoiceState
from whisper_byoc.jobs.shared import Inference
from whisper_byoc.settings import StreamingSettings
from whisper_byoc.streaming.frames import FrameBlocks
from whisper_byoc.streaming.hypothesis import believed
from whisper_byoc.streaming.passages import Passage, passages_of
from whisper_byoc.streaming.recording import RecordingPlanner, RecordingWindow, split_unheard

BLOCK_FRAMES = 64
"""Frames (2 s) that are asked about voice in one call."""
MAX_WINDOW_SECONDS = 28.0
"""Measured: shorter windows cost words (docs/engine.md, Recordings)."""
MAX_SPLITS = 3
"""How often a window may be divided because its words leave out speech."""
MAX_WINDOWS_OUT = 8
"""Windows of one recording that are decoded, or are and wait for one before them. Measured: more
gain no speed, and cost memory (docs/engine.md, Recordings)."""
_MAX_SILENCE = 10 * SAMPLE_RATE
"""Samples of a gap that are heard as silence. Speech before and behind a longer one has nothing to
do with one another."""

Ask = Callable[[NDArray[np.float32]], DecodeRequest]
"""The request for the samples of one window."""
_Heard = list[tuple[RecordingWindow, Hypothesis]]


class Hearing:
    """One recording on its way through voice activity and engine; owned by whoever has it heard.

    `receive_*` bring its audio, in one task; `run` decodes it, in another. What is decoded depends
    on the samples alone: not on the pieces that they come in, nor on what else is heard meanwhile.
    Audio waits in the planner (one window), in the windows that are whole and have no place yet
    (those of 2 s of audio; while there is one, `receive_samples` waits), and at the engine.
    """

    def __init__(self, inference: Inference, ask: Ask) -> None:
        self._inference = inference
        self._ask = ask
        self._frames = FrameBlocks(BLOCK_FRAMES, BLOCK_FRAMES)
        self._voice_state = VoiceState()
        # Not by the settings of live streams, or a recording would have other words by them.
        self._planner = RecordingPlanner(StreamingSettings(), MAX_WINDOW_SECONDS)
        self._planned: deque[RecordingWindow] = deque()
        self._out: deque[tuple[RecordingWindow, asyncio.Task[_Heard]]] = deque()
        self._complete = self._closed = False
        self._last_end = 0.0
        """Of the last passage, in seconds of the recording."""
        self._changed = asyncio.Event()
        """Set when something has that one of the tasks may wait for."""
        self._num_asking = 0
        """Windows at the engine."""
        self._asking_since = self._seconds = 0.0
        self._loop = asyncio.get_running_loop()

    @property
    def heard_seconds(self) -> float:
        """Up to where the passages have been told of, in seconds of the recording."""
        windows = chain((window for window, _ in self._out), self._planned)
        first = next((window.start for window in windows), self._planner.pending_from)
        return first / SAMPLE_RATE

    @property
    def decode_seconds(self) -> float:
        """In which at least one window was at the engine."""
        going_on = self._loop.time() - self._asking_since if self._num_asking else 0.0
        return self._seconds + going_on

    async def receive_samples(self, samples: NDArray[np.float32]) -> None:
        """Take float32 (n,), 16 kHz mono, as there is room. Raises DecodeError."""
        for block in self._frames.receive_samples(samples):
            await self._listen(block)

    async def receive_gap(self, num_samples: int) -> None:
        """Pass over samples that are missing, as over silence. Raises DecodeError."""
        num_silent = num_samples
        if num_samples > _MAX_SILENCE:
            num_silent = self._frames.num_lacking
        await self.receive_samples(np.zeros(num_silent, np.float32))
        if num_silent < num_samples:
            await self._listen(self._frames.receive_end())
            self._plan(self._planner.receive_gap(num_samples - num_silent))

    async def receive_end(self) -> None:
        """No more audio comes. Raises DecodeError."""
        await self._listen(self._frames.receive_end())
        self._complete = True
        self._plan(self._planner.receive_end())

    def close(self) -> None:
        """End at once: `run` returns, and what still comes is dropped."""
        self._closed = self._complete = True
        self._planned.clear()
        for _, task in self._out:
            task.cancel()
        self._changed.set()

    async def run(self, publish: Callable[[Passage], None]) -> None:
        """Have all windows decoded and their passages published, in order; returns when the
        recording has ended, or is closed. Raises DecodeError; cancelling drops what is out."""
        async with bare_errors(), asyncio.TaskGroup() as group:
            sending = group.create_task(self._send_windows(group))
            sending.add_done_callback(lambda _: self._changed.set())
            while True:
                await self._until(lambda: self._out or sending.done() or self._closed)
                if self._closed or not self._out:
                    return
                await self._publish_first(publish)

    async def _publish_first(self, publish: Callable[[Passage], None]) -> None:
        """The passages of the first window that is out, when it is heard."""
        _, hearing = self._out[0]
        await asyncio.wait({hearing})
        if hearing.cancelled() or hearing.exception():
            return  # closed, or about to fail
        for window, hypothesis in hearing.result():
            for passage in passages_of(window, hypothesis, self._last_end):
                self._last_end = passage.end
                publish(passage)
        self._out.popleft()
        self._changed.set()

    async def _send_windows(self, group: asyncio.TaskGroup) -> None:
        """Begin with every window that is whole, as soon as there is a place for it."""
        places = self._inference.places
        while True:
            await self._until(lambda: self._planned or self._complete)
            await self._until(lambda: len(self._out) < MAX_WINDOWS_OUT or self._closed)
            if not self._planned:
                return
            await places.acquire()
            if self._closed:
                places.release()
                return
            hearing = group.create_task(self._hear(self._planned[0]))
            hearing.add_done_callback(lambda _: places.release())
            self._out.append((self._planned.popleft(), hearing))
            self._changed.set()

    async def _hear(self, window: RecordingWindow, num_splits: int = MAX_SPLITS) -> _Heard:
        """What was heard in a window: one hypothesis, or those of its parts, where its words leave
        out speech and it was divided. Raises DecodeError."""
        hypothesis = believed(await self._decode(window.samples))
        parts = split_unheard(window, hypothesis.words) if num_splits else []
        if not parts:
            return [(window, hypothesis)]
        async with bare_errors(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._hear(part, num_splits - 1)) for part in parts]
        return list(chain(*(task.result() for task in tasks)))

    async def _decode(self, samples: NDArray[np.float32]) -> Hypothesis:
        """Raises DecodeError."""
        began = self._loop.time()
        if not self._num_asking:
            self._asking_since = began
        self._num_asking += 1
        try:
            hypothesis = await self._inference.engine.decode(self._ask(samples))
        finally:
            self._num_asking -= 1
            if not self._num_asking:
                self._seconds += self._loop.time() - self._asking_since
        seconds = self._loop.time() - began
        self._inference.metrics.observe_decode("recording", seconds, hypothesis)
        return hypothesis

    async def _listen(self, samples: NDArray[np.float32]) -> None:
        """Find the windows of the next whole frames, or of the last samples; waits while one that
        was found before has no place. Raises DecodeError."""
        await self._until(lambda: not self._planned or self._closed)
        if self._closed or not len(samples):
            return
        voice = await self._inference.voice.probabilities(samples, self._voice_state)
        self._inference.metrics.audio_seconds.inc(len(samples) / SAMPLE_RATE)
        self._plan(self._planner.receive_audio(samples, voice.tolist()))

    def _plan(self, windows: Iterable[RecordingWindow]) -> None:
        if not self._closed:
            self._planned.extend(windows)
        self._changed.set()

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
