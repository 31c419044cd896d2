"""What is measured: this project, openai-whisper, faster-whisper, a running service.

Each run is loaded in a process of its own, which imports this module: what is heavy is imported
where it is used, so that no run's memory holds what another one needs.
"""

import asyncio
import io
import time
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from whisper_bench.setup import MODEL, Setup
from whisper_byoc.audio.formats import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    from whisper_byoc.inference.model import Model
    from whisper_byoc.inference.voice import VoiceRequest


class Transcribe(Protocol):
    """One run, loaded: recordings in, texts out, in order."""

    def __call__(self, recordings: Sequence[Samples], /) -> list[str]: ...


def load_ours(setup: Setup, engine: str = "") -> Transcribe:
    """Recordings as a whole: voice activity, windows, decodes, word times."""
    from whisper_bench.hearing import hear_recordings
    from whisper_byoc.decode import Effort
    from whisper_byoc.inference.voice import VoiceModel

    executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
    model = executor.submit(_load_model, setup, engine or setup.engine).result()
    voice = VoiceModel()
    seconds = {"voice activity": 0.0}

    def probabilities(requests: "Sequence[VoiceRequest]") -> list[Samples]:
        began = time.perf_counter()
        result = voice.probabilities(requests)
        seconds["voice activity"] += time.perf_counter() - began
        return result

    class Ours:
        def __call__(self, recordings: Sequence[Samples]) -> list[str]:
            heard = hear_recordings(
                model, probabilities, recordings, Effort(setup.effort), executor
            )
            return [" ".join(passage.text for passage in passages) for passages in heard]

        def profile(self) -> dict[str, float]:
            return seconds | dict(getattr(model, "seconds", {}))

    return Ours()


def _load_model(setup: Setup, engine: str) -> "Model":
    from whisper_byoc.inference.engine import choose_device, load_models
    from whisper_byoc.settings import Device, ModelSettings

    prepare_torch(setup.threads)
    device = Device(setup.device)
    if engine == "reference":
        from whisper_bench.reference import ReferenceModel

        return ReferenceModel(MODEL, setup.weights, choose_device(device))
    [model] = load_models(
        ModelSettings(
            directory=setup.models_dir, names=(MODEL,), device=device, threads=setup.threads
        )
    )
    return model


def load_openai(setup: Setup) -> Transcribe:
    """openai-whisper's `transcribe` as it comes."""
    import whisper

    prepare_torch(setup.threads)
    model = whisper.load_model(str(setup.weights), device="cpu")
    return one_by_one(
        lambda samples: str(model.transcribe(samples, language="en", fp16=False)["text"])
    )


def one_by_one(transcribe: Callable[[Samples], str]) -> Transcribe:
    return lambda recordings: [transcribe(samples) for samples in recordings]


def load_openai_decode(setup: Setup) -> Transcribe:
    """openai-whisper's `decode`: one window, greedily, without timestamps."""
    import whisper

    prepare_torch(setup.threads)
    model = whisper.load_model(str(setup.weights), device="cpu")
    options = whisper.DecodingOptions(
        language="en", temperature=0.0, without_timestamps=True, fp16=False
    )

    def transcribe(samples: Samples) -> str:
        mel = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples))
        return str(whisper.decode(model, mel, options).text)

    return one_by_one(transcribe)


def load_faster_whisper(setup: Setup, beam_size: int) -> Transcribe:
    """int8, everything but the beam as it comes."""
    model = open_faster_whisper(setup)

    def transcribe(samples: Samples) -> str:
        segments, _ = model.transcribe(samples, language="en", beam_size=beam_size)
        return "".join(segment.text for segment in segments)

    return one_by_one(transcribe)


def load_faster_whisper_batched(setup: Setup) -> Transcribe:
    """Its pipeline for batches, which takes one recording: ours behind one another, a clip each."""
    from faster_whisper import BatchedInferencePipeline

    pipeline = BatchedInferencePipeline(open_faster_whisper(setup))

    def transcribe(recordings: Sequence[Samples]) -> list[str]:
        ends = np.cumsum([len(samples) for samples in recordings]) / SAMPLE_RATE
        starts = [0.0, *ends[:-1].tolist()]
        clips = [{"start": a, "end": b} for a, b in zip(starts, ends.tolist(), strict=True)]
        segments, _ = pipeline.transcribe(
            np.concatenate(recordings),
            language="en",
            beam_size=1,
            vad_filter=False,
            clip_timestamps=clips,
            batch_size=setup.batch,
        )
        texts = [""] * len(recordings)
        for segment in segments:
            texts[int(np.searchsorted(ends, (segment.start + segment.end) / 2))] += segment.text
        return texts

    return transcribe


def open_faster_whisper(setup: Setup) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(
        str(setup.ctranslate2_dir),
        device="cpu",
        compute_type="int8",
        cpu_threads=setup.threads,
        num_workers=1,
        local_files_only=True,
    )


def load_server(setup: Setup) -> Transcribe:
    """A running service, through OpenAI's door: each recording in one request."""
    import aiohttp

    async def send(session: aiohttp.ClientSession, samples: Samples) -> str:
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(_wav(samples)), filename="recording.wav")
        form.add_field("response_format", "text")
        form.add_field("effort", setup.effort)
        url = setup.url.rstrip("/") + "/v1/audio/transcriptions"
        async with session.post(url, data=form) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise OSError(f"{url} answered {answer.status}, expected 200: {text[:200]}")
            return text

    async def send_all(recordings: Sequence[Samples]) -> list[str]:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            return await asyncio.gather(*(send(session, samples) for samples in recordings))

    return lambda recordings: asyncio.run(send_all(recordings))


def _wav(samples: Samples) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes((samples * 32768).astype("<i2").tobytes())
    return file.getvalue()


def prepare_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)  # for the temperatures above 0 that a bad window is decoded with


OURS, SERVER, BASELINE = "ours", "server", "openai"
PEERS: dict[str, Callable[[Setup], Transcribe]] = {
    "reference": lambda setup: load_ours(setup, "reference"),
    BASELINE: load_openai,
    "openai-decode": load_openai_decode,
    "faster-whisper": lambda setup: load_faster_whisper(setup, beam_size=1),
    "faster-whisper-beam5": lambda setup: load_faster_whisper(setup, beam_size=5),
    "faster-whisper-batched": load_faster_whisper_batched,
}
LOADERS = {OURS: load_ours, SERVER: load_server, **PEERS}
