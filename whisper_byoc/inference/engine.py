"""The engine: decodes windows of all jobs with the loaded weights, off the event loop."""

import asyncio
import re
import wave
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray

from whisper_byoc.audio.pcm import PcmDecoder
from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.errors import ConfigurationError, DecodeError, InvalidOption
from whisper_byoc.inference.batch_thread import BatchThread, Steps
from whisper_byoc.inference.batched import BatchedModel
from whisper_byoc.inference.model import Model, SteppingModel
from whisper_byoc.settings import Device, ModelSettings, num_cores
from whisper_byoc.weights.accepting import find_weights

WARM_UP_TEXT = "the quick brown fox jumps over the lazy dog"
OTHER_LANGUAGES = "tiny, base, small, medium, large-v3 and turbo know others"
WARM_UP_CLIP = "warm-up.wav"
"""`WARM_UP_TEXT` spoken by hibari-tts, 16 kHz mono int16."""

MAX_PATIENT = 8
"""Windows of recordings that are decoded together: bounds how long one pass takes."""


class Engine:
    """Owns the models, by name, and the one thread that uses them; `open_engine` makes it. The
    first model is the default.

    Earliest deadline goes first. A live job awaits `decode` with at most one window at a time; one
    of a recording has windows without a deadline, which are decoded while no other waits.
    """

    def __init__(self, models: Sequence[Model], executor: ThreadPoolExecutor | None = None) -> None:
        """executor: of the one thread, where the models were loaded in it; see `BatchThread`."""
        self.models: Mapping[str, Model] = {model.name: model for model in models}
        self._thread = BatchThread(
            "engine",
            self._compute,
            max(model.max_batch for model in models),
            self._steps,
            MAX_PATIENT,
            executor,
        )

    @property
    def gpu(self) -> Mapping[str, object] | None:
        """What an orchestrator is told of the device where it is one: id, name and vram_mb."""
        if not any(model.device == "cuda" for model in self.models.values()):
            return None
        index = torch.cuda.current_device()
        device = torch.cuda.get_device_properties(index)
        return {"id": str(index), "name": device.name, "vram_mb": device.total_memory >> 20}

    @property
    def num_waiting(self) -> int:
        return self._thread.num_waiting

    def model_for(self, language: str | None) -> Model:
        """The weights for a language; None means detect it, where a model is loaded that can.

        Raises InvalidOption when no loaded model knows the language.
        """
        models = list(self.models.values())
        if language is None:
            return next((model for model in models if len(model.languages) > 1), models[0])
        for model in models:
            if language in model.languages:
                return model
        raise InvalidOption("language", language, self._expected_language())

    @property
    def detects_languages(self) -> bool:
        return any(len(model.languages) > 1 for model in self.models.values())

    def check_detection(self) -> None:
        """Raises InvalidOption where no loaded model can find out a language."""
        if not self.detects_languages:
            raise InvalidOption("language", "auto", self._expected_language())

    def _expected_language(self) -> str:
        if not self.detects_languages:
            return f"en, since {' and '.join(self.models)} is English only: {OTHER_LANGUAGES}"
        known = sorted(set().union(*(model.languages for model in self.models.values())))
        return "auto or one of " + ", ".join(known)

    async def decode(self, request: DecodeRequest) -> Hypothesis:
        """Decode one window. Raises DecodeError; cancelling drops the request."""
        model = self.model_for(request.language)
        return await self._thread.submit((model, request), request.deadline, model.name)

    async def warm_up(self) -> None:
        """Transcribe a known clip with every model. Raises ConfigurationError on other words."""
        samples = read_warm_up_clip()
        for model in self.models.values():
            request = DecodeRequest(samples, deadline=0.0, language="en")
            hypothesis = await self._thread.submit((model, request), key=model.name)
            heard = " ".join(re.findall(r"[a-z]+", hypothesis.text.lower()))
            if heard != WARM_UP_TEXT:
                raise ConfigurationError(
                    f"model {model.name} heard {heard!r} in the warm-up clip, expected"
                    f" {WARM_UP_TEXT!r}: the weights or the installation are damaged"
                )

    def _compute(
        self, batch: Sequence[tuple[Model, DecodeRequest]]
    ) -> Sequence[Hypothesis | DecodeError]:
        model = batch[0][0]
        return model.decode([request for _, request in batch])

    def _steps(self, batch: Sequence[tuple[Model, DecodeRequest]]) -> Steps[Hypothesis]:
        model, requests = batch[0][0], [request for _, request in batch]
        if isinstance(model, SteppingModel):
            return (yield from model.decode_in_steps(requests))
        return model.decode(requests)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        async with self._thread.serve():
            yield


def read_warm_up_clip() -> NDArray[np.float32]:
    """float32 (n,), 16 kHz mono."""
    resource = files("whisper_byoc").joinpath("data", WARM_UP_CLIP)
    with resource.open("rb") as file, wave.open(file) as clip:
        return PcmDecoder().receive_bytes(clip.readframes(clip.getnframes()))


@asynccontextmanager
async def open_engine(settings: ModelSettings) -> AsyncIterator[Engine]:
    """Load the weights off the event loop and decode while inside.

    In one thread: with a team of threads for the thread that loads and another for the one that
    decodes, OpenMP has more threads than cores, and all of them sleep at every barrier. Decoding
    then takes twice as long (docs/engine.md).
    Raises MissingModel when weights are absent or damaged.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="engine") as executor:
        loading = asyncio.get_running_loop().run_in_executor(executor, load_models, settings)
        engine = Engine(await loading, executor)
        async with engine.serve():
            yield engine


def load_models(settings: ModelSettings) -> list[Model]:
    """Every model that the settings name, on their device.

    Raises MissingModel, and ConfigurationError when CUDA is asked for and not there.
    """
    paths = {name: find_weights(settings.directory, name) for name in settings.names}
    device = choose_device(settings.device)
    threads = settings.threads or num_cores()
    torch.set_num_threads(threads)  # by itself it has one here: importing silero_vad sets that
    return [BatchedModel(name, path, device, threads=threads) for name, path in paths.items()]


def choose_device(device: Device) -> str:
    """Raises ConfigurationError when CUDA is asked for and not there."""
    available = torch.cuda.is_available()
    if device is Device.CUDA and not available:
        raise ConfigurationError("device is cuda, expected a CUDA device that torch can use")
    return "cuda" if available and device is not Device.CPU else "cpu"
