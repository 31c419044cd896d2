"""Speech, and the same in other formats."""

import subprocess
from collections.abc import Callable

import pytest

from tests.audio.media import TEXT, Make
from whisper_byoc.audio.ffmpeg import find_ffmpeg
from whisper_byoc.audio.formats import Samples


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    return find_ffmpeg()


@pytest.fixture(scope="session")
def speech(speak: Callable[[str], Samples]) -> bytes:
    """Five seconds, NATIVE."""
    return bytes((speak(TEXT) * 32_767).astype("<i2").tobytes())


@pytest.fixture(scope="session")
def make(ffmpeg: str, speech: bytes, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The speech in another format, by the arguments that ffmpeg needs for it."""
    folder = tmp_path_factory.mktemp("media")
    made: dict[str, bytes] = {}

    def make_one(arguments: str, suffix: str) -> bytes:
        key = f"{arguments} {suffix}"
        if key not in made:
            path = folder / f"{len(made)}.{suffix}"
            command = [ffmpeg, "-loglevel", "error", "-f", "s16le", "-ar", "16000", "-ac", "1"]
            command += ["-i", "pipe:0", *arguments.split(), str(path)]
            subprocess.run(command, input=speech, check=True)
            made[key] = path.read_bytes()
        return made[key]

    return make_one
