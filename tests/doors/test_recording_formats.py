"""What people send as recordings, with real weights: each kind gives its text or one clear no."""

import asyncio
import random
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.audio.bodies import id3
from tests.conftest import Speak, pcm, serve_app, wav
from whisper_byoc.audio.ffmpeg import find_ffmpeg

pytestmark = [pytest.mark.anyio, pytest.mark.model]
TEXT = "The train to the harbour leaves early in the morning."
OPENAI, PIPELINE, PLAIN = "/v1/audio/transcriptions", "/audio-to-text", "/transcribe"
Make = Callable[[str, str], bytes]


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with asyncio.timeout(400), serve_app() as (address, _):
        yield address


@pytest.fixture(scope="module")
def speech(speak: Speak) -> NDArray[np.float32]:
    return speak(TEXT)


@pytest.fixture(scope="module")
def make(speech: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The speech in another format, by ffmpeg's arguments and a suffix."""
    folder = tmp_path_factory.mktemp("recordings")

    def make_one(arguments: str, suffix: str) -> bytes:
        path = folder / f"a.{suffix}"
        command = [find_ffmpeg(), "-y", "-loglevel", "error", "-f", "s16le", "-ar", "16000"]
        command += ["-ac", "1", "-i", "pipe:0", *arguments.split(), str(path)]
        subprocess.run(command, input=pcm(speech), check=True)
        return path.read_bytes()

    return make_one


async def send(
    url: str, data: bytes, content_type: str = "application/octet-stream", path: str = OPENAI
) -> tuple[int, str]:
    """The status, and the text or the message."""
    form = aiohttp.FormData()
    form.add_field("file", data, filename="recording", content_type=content_type)
    async with aiohttp.ClientSession() as session, session.post(url + path, data=form) as answer:
        document = await answer.json()
        if answer.status == 200:
            return 200, document["text"].lower().replace("harbour", "harbor")
        return answer.status, str(document.get("error", document.get("detail")))


HEARD = (200, "the train to the harbor leaves early in the morning.")


@pytest.mark.parametrize("path", [OPENAI, PIPELINE, PLAIN])
@pytest.mark.parametrize(("arguments", "suffix"), [("-c:a aac", "m4a"), ("-c:a alac", "mov")])
async def test_case_recordings_01_an_index_at_the_end(
    url: str, make: Make, path: str, arguments: str, suffix: str
) -> None:
    assert await send(url, make(arguments, suffix), "audio/mp4", path) == HEARD


async def test_case_recordings_01_a_live_door_says_why_it_cannot(url: str, make: Make) -> None:
    data = make("-c:a aac", "m4a")
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{url}/live/index-at-the-end/source", data=data) as answer,
    ):
        assert answer.status == 415
        assert "index (moov) behind the audio" in await answer.text()


@pytest.mark.parametrize("path", [OPENAI, PIPELINE, PLAIN])
async def test_case_recordings_02_what_nothing_understands(url: str, path: str) -> None:
    for seed in range(4):
        noise = random.Random(seed).randbytes(3_000)
        status, message = await send(url, noise, path=path)
        assert (status, "3000 bytes of no kind that ffmpeg knows" in message) == (415, True)


async def test_case_recordings_02_what_ffmpeg_understands(url: str, make: Make) -> None:
    mp3 = make("-b:a 64k", "mp3")
    assert await send(url, bytes(4_000) + mp3) == HEARD
    status, text = await send(url, mp3[-len(mp3) * 2 // 3 :])
    assert (status, text[-12:]) == (200, "the morning.")
    for arguments, suffix in (("", "au"), ("", "aiff"), ("", "w64"), ("", "wma"), ("", "wv")):
        assert await send(url, make(arguments, suffix)) == HEARD, suffix


async def test_case_recordings_02_raw_audio_is_declared(
    url: str, speech: NDArray[np.float32]
) -> None:
    audio = pcm(speech)
    assert (await send(url, audio))[0] == 415
    assert await send(url, audio, "audio/l16") == HEARD
    assert await send(url, audio, "audio/pcm", PLAIN) == HEARD
    assert await send(url, audio, path=PLAIN) == HEARD  # as the contract of these paths has it


@pytest.mark.parametrize(
    "label", ["video/mpeg", "audio/*", "audio/x-mpeg", "audio/flac", "audio/pcm", "text/plain"]
)
async def test_case_recordings_06_labels_are_hints(url: str, make: Make, label: str) -> None:
    assert await send(url, make("", "wav"), label) == HEARD
    if label != "audio/pcm":  # frames of MP3 have no magic that raw audio could not have
        assert await send(url, make("-b:a 64k", "mp3"), label) == HEARD


async def test_case_recordings_07_quiet_speech(url: str, speech: NDArray[np.float32]) -> None:
    for decibels in (-40, -44):
        assert await send(url, wav(pcm(speech * 10 ** (decibels / 20)))) == HEARD


async def test_case_recordings_07_no_words_in_what_is_brought_up(
    url: str, speech_dir: Path
) -> None:
    for path in sorted((speech_dir / "nonspeech").glob("*.flac")):
        assert await send(url, path.read_bytes()) == (200, ""), path.name


@pytest.mark.parametrize("channels", ["c0=c0|c1=-1*c0", "c0=c0|c1=-0.7*c0"])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ts"])
async def test_case_recordings_08_channels_that_cancel_out(
    url: str, make: Make, channels: str, suffix: str
) -> None:
    codec = "-c:a ac3 -b:a 192k" if suffix == "ts" else ""
    data = make(f"-af pan=stereo|{channels} {codec}", suffix)
    assert await send(url, data) == HEARD


async def test_case_recordings_08_raw_channels_that_cancel_out(
    url: str, speech: NDArray[np.float32]
) -> None:
    both = np.stack([speech, -speech], axis=1)
    assert await send(url, pcm(both), "audio/l16;channels=2") == HEARD


@pytest.mark.parametrize("size", [20, 20_000, 300_000])
@pytest.mark.parametrize("suffix", ["flac", "wav", "mp3", "aac"])
async def test_case_recordings_09_a_tag_in_front(
    url: str, make: Make, size: int, suffix: str
) -> None:
    assert await send(url, id3(bytes(size)) + make("", suffix)) == HEARD


async def test_case_recordings_15_one_clear_message_each(url: str, make: Make) -> None:
    flac = make("", "flac")
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"\r\n'
        b"Content-Type: audio/flac\r\n\r\n" + flac + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + OPENAI, data=body, headers=headers) as answer,
    ):
        assert answer.status == 400
        assert "bytes and no file name" in (await answer.json())["error"]["message"]
    status, message = await send(url, b"", "audio/wav")
    assert (status, "a form whose file is empty" in message) == (400, True)
    status, message = await send(url, make("-t 0", "flac"))
    assert (status, "FLAC that holds no audio" in message) == (415, True)
