"""Which segments are one body."""

from collections.abc import AsyncIterator, Sequence

import pytest

from tests.audio.bodies import DATA, fmt, speechlike, wav
from whisper_byoc.audio.formats import NATIVE, AudioFormat, Container
from whisper_byoc.audio.segments import SegmentJoiner

pytestmark = pytest.mark.anyio

TS = (b"\x47" + bytes(187)) * 3
WAV = wav(fmt(), DATA)
OGG = b"OggS\x00\x02" + bytes(100)
RAW = speechlike(100)
PAGE = b"<!DOCTYPE html><html>"


async def chunks_of(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def segments_of(data: Sequence[bytes], size: int) -> AsyncIterator[AsyncIterator[bytes]]:
    for segment in data:
        yield chunks_of(segment, size)


async def bodies_of(
    data: Sequence[bytes], declared: AudioFormat | None = None, size: int = 64
) -> list[bytes]:
    joiner = SegmentJoiner(segments_of(data, size), declared)
    return [b"".join([chunk async for chunk in body]) async for body in joiner]


@pytest.mark.parametrize("size", [1, 64, 10_000], ids="chunks of {} bytes".format)
@pytest.mark.parametrize(
    ("segments", "declared", "bodies"),
    [
        pytest.param([], None, [], id="no segments"),
        pytest.param([b"", b""], None, [], id="empty segments"),
        pytest.param([WAV, WAV], None, [WAV, WAV], id="each a file of its own"),
        pytest.param([TS, TS], None, [TS + TS], id="a transport stream goes on"),
        pytest.param([TS, OGG, OGG], None, [TS, OGG, OGG], id="another kind of file"),
        pytest.param([RAW, RAW], None, [RAW + RAW], id="raw audio goes on"),
        pytest.param([OGG, RAW], None, [OGG + RAW], id="a file in two segments"),
        pytest.param([OGG, PAGE], None, [OGG + PAGE], id="what is no audio begins nothing"),
        pytest.param([WAV, WAV], NATIVE, [WAV + WAV], id="declared raw audio is not looked at"),
        pytest.param([TS, TS], Container.MPEG_TS, [TS + TS], id="a declared transport stream"),
        pytest.param([b"", WAV, b"", WAV], None, [WAV, WAV], id="empty segments between"),
    ],
)
async def test_bodies_in_segments(
    segments: list[bytes], declared: AudioFormat | None, bodies: list[bytes], size: int
) -> None:
    assert await bodies_of(segments, declared, size) == bodies


async def test_a_body_that_is_given_up_loses_the_rest_of_its_segment_only() -> None:
    joiner = SegmentJoiner(segments_of([RAW, WAV], 10), None)
    async for _ in await anext(joiner):
        break
    rest = [b"".join([chunk async for chunk in body]) async for body in joiner]
    assert rest == [WAV]
