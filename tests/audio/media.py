"""Speech in every format, and what sends it and compares what comes out, for this folder."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from whisper_byoc.audio.ffmpeg import Decoder
from whisper_byoc.audio.formats import SAMPLE_RATE, AudioFormat, Container, Gap, Samples
from whisper_byoc.audio.source import AudioSource, open_source

TEXT = "Nobody knows why the fox did so, but everybody agrees that it was a fine thing to do."
Make = Callable[..., bytes]

VIDEO = "-f lavfi -i testsrc=size=320x240:rate=25:duration=6 -c:v mpeg2video"
AAC_TS = "-c:a aac -b:a 96k -ar 48000 -f mpegts", "ts"

# label: (ffmpeg's arguments, file's suffix, content type, what it is, bytes per chunk)
FORMATS = {
    "FLAC": ("", "flac", "audio/flac", Container.FLAC, 700),
    "MP3": ("-b:a 64k", "mp3", "audio/mpeg", Container.MP3, 100),
    "Ogg Opus": ("-c:a libopus", "ogg", "audio/ogg", Container.OGG, 3),
    "Ogg Vorbis at 44.1 kHz": ("-c:a libvorbis -ar 44100", "ogg", "audio/ogg", Container.OGG, 100),
    "WebM Opus": ("-c:a libopus -live 1", "webm", "audio/webm", Container.WEBM, 3),
    "MPEG-TS with AAC": (*AAC_TS, "video/mp2t", Container.MPEG_TS, 3),
    "MPEG-TS with Opus": ("-c:a libopus -f mpegts", "ts", "video/mp2t", Container.MPEG_TS, 188),
    "MPEG-TS with a picture": (
        f"{VIDEO} -c:a aac -b:a 96k -ar 48000 -f mpegts",
        "ts",
        "video/mp2t",
        Container.MPEG_TS,
        1_000,
    ),
    "fragmented MP4": (
        "-c:a aac -b:a 96k -movflags frag_keyframe+empty_moov -frag_duration 200000",
        "mp4",
        "video/mp4",
        Container.MP4,
        3,
    ),
    "faststart M4A": ("-b:a 96k -movflags +faststart", "m4a", "audio/x-m4a", Container.MP4, 100),
    "AAC": ("-c:a aac -b:a 96k", "aac", "audio/aac", Container.AAC, 100),
    "WAV at 44.1 kHz, stereo": ("-ar 44100 -ac 2", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV of 24 bits": ("-c:a pcm_s24le", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV of floats": ("-c:a pcm_f32le", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV with ADPCM": ("-c:a adpcm_ms", "wav", "audio/wav", Container.WAV, 1_001),
    "WAV of our own format": ("", "wav", "audio/wav", Container.WAV, 101),
    "AIFF": ("", "aiff", "audio/aiff", Container.AIFF, 1_001),
    "CAF": ("", "caf", "audio/x-caf", Container.CAF, 1_001),
    "FLV with AAC": ("-c:a aac -b:a 96k -ar 44100 -f flv", "flv", "video/x-flv", Container.FLV, 99),
}
RAW = {
    "audio/l16;rate=8000": "-f s16le -ar 8000",
    "audio/l16;rate=44100;channels=2": "-f s16le -ar 44100 -ac 2",
    "audio/l16;endianness=big-endian": "-f s16be",
    "audio/pcm;format=f32le;rate=48000": "-f f32le -ar 48000",
    "audio/pcmu": "-f mulaw -ar 8000",
}

CONTAINERS = [pytest.param(container, id=container.label) for container in Container]


@asynccontextmanager
async def open_decoder(
    audio_format: AudioFormat, ffmpeg_path: str | None = None
) -> AsyncIterator[Decoder]:
    decoder = await Decoder.start(audio_format, ffmpeg_path)
    try:
        yield decoder
    finally:
        await decoder.close()


async def feed(source: AudioSource | Decoder, data: bytes, chunk_bytes: int = 4_096) -> None:
    for start in range(0, len(data), chunk_bytes):
        await source.send(data[start : start + chunk_bytes])
    await source.send_eof()


@asynccontextmanager
async def fed(
    source: AudioSource | Decoder, data: bytes, chunk_bytes: int = 4_096
) -> AsyncIterator[None]:
    sender = asyncio.ensure_future(feed(source, data, chunk_bytes))
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        sender.cancel()
        await asyncio.wait({sender})


async def collect(source: AudioSource | Decoder) -> Samples:
    blocks = [piece async for piece in source if not isinstance(piece, Gap)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


async def decode(
    data: bytes, declared: AudioFormat | None = None, chunk_bytes: int = 4_096
) -> Samples:
    async with open_source(declared) as source, fed(source, data, chunk_bytes):
        return await collect(source)


def samples_of(native: bytes) -> Samples:
    return np.frombuffer(native, "<i2").astype(np.float32) / np.float32(32_768)


def likeness(found: Samples, expected: Samples) -> float:
    """The best correlation at any shift of up to 0.1 s, which codecs need."""
    size = 1 << (found.size + expected.size).bit_length()
    product = np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size))
    shifts = np.fft.irfft(product, size)
    most = SAMPLE_RATE // 10
    near = max(shifts[:most].max(), shifts[-most:].max())
    return float(near / np.linalg.norm(found) / np.linalg.norm(expected))


def assert_same_speech(found: Samples, speech: bytes, least: float = 0.9) -> None:
    expected = samples_of(speech)
    assert found.dtype == np.float32
    assert abs(found.size - expected.size) < 0.15 * SAMPLE_RATE
    assert likeness(found, expected) > least


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
