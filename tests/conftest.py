"""What all tests share: the event loop's kind, real speech, and a service on a real socket."""

import asyncio
import io
import os
import socket
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from hibari import Hibari
from hypothesis import settings as hypothesis_settings
from numpy.typing import NDArray

from whisper_byoc.app import build_app
from whisper_byoc.cli import Server, listen
from whisper_byoc.inference.engine import open_engine as inference_engine
from whisper_byoc.jobs.job import DIRECT, JobKey
from whisper_byoc.jobs.processing import Processor
from whisper_byoc.service import OpenEngine, Service
from whisper_byoc.settings import (
    ModelSettings,
    OrchestratorSettings,
    ServerSettings,
    Settings,
)

# Nothing here is timed: a busy machine would fail what is right.
hypothesis_settings.register_profile("untimed", deadline=None)
hypothesis_settings.load_profile("untimed")

REPOSITORY = Path(__file__).parent.parent
MODELS = REPOSITORY / "models"
SPEECH_DIR = Path(os.environ.get("SPEECH_DIR", REPOSITORY.parent / "shared" / "speech"))
TTS_RATE = 24_000
LOOPBACK = OrchestratorSettings(allowed_hosts=("127.0.0.1", "localhost"))
"""For services whose orchestrators are on this machine."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def speech_dir() -> Path:
    if not (SPEECH_DIR / "manifest.tsv").is_file():
        pytest.skip(f"no recordings in {SPEECH_DIR}: set SPEECH_DIR to a folder with manifest.tsv")
    return SPEECH_DIR


def gateway_python() -> str | None:
    """A Python with livepeer-gateway in it; `make gateway-peer` makes one where 3.12 is found."""
    here = REPOSITORY / ".venv-gateway" / "bin" / "python"
    return os.environ.get("GATEWAY_PYTHON") or (str(here) if here.exists() else None)


@pytest.fixture
def unused_tcp_port() -> int:
    """For what has to be named before it listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


Speak = Callable[[str], NDArray[np.float32]]


@pytest.fixture(scope="session")
def speak() -> Speak:
    """Text to speech: float32 (n,), 16 kHz mono; the same text gives the same samples."""
    voice = Hibari()

    def speak_text(text: str) -> NDArray[np.float32]:
        spoken = np.asarray(voice(text, seed=1), dtype=np.float32).ravel()
        return resample_to_16k(spoken)

    return speak_text


def resample_to_16k(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """24 kHz to 16 kHz by cutting the spectrum above 8 kHz: exact for a clip taken as periodic."""
    spectrum = np.fft.rfft(samples)
    length = round(len(samples) * 16_000 / TTS_RATE)
    kept = spectrum[: length // 2 + 1]
    return (np.fft.irfft(kept, length) * length / len(samples)).astype(np.float32)


def pcm(samples: NDArray[np.float32]) -> bytes:
    """s16le, as the seed's contract wants it."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def wav(audio: bytes) -> bytes:
    """16 kHz mono int16 as a file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(audio)
    return file.getvalue()


def direct(job_id: str) -> JobKey:
    """The key of a job whose callers come through no session."""
    return JobKey(job_id, DIRECT)


@asynccontextmanager
async def serve_app(
    open_engine: OpenEngine | None = None,
    settings: Settings | None = None,
    processor: Processor | None = None,
    port: int = 0,
) -> AsyncIterator[tuple[str, Service]]:
    """The real application on a real socket: its URL and its service, ready."""
    settings = settings or Settings(model=ModelSettings(directory=MODELS), orchestrator=LOOPBACK)
    service = Service(settings, open_engine or inference_engine, processor)
    server = Server(uvicorn.Config(build_app(service), log_config=None, access_log=False))
    with listen(ServerSettings(host="127.0.0.1", port=port)) as listener:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server.serve([listener]))
            await service.settled()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}", service
            finally:
                await service.drain()
                await service.leave()
                server.stop()
                await serving
