"""Samples with their clock, as ffmpeg writes them: where some are missing, and where too many."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import box, pieces, unhurried
from whisper_byoc.audio.clock import ClockedDecoder
from whisper_byoc.audio.formats import SAMPLE_RATE, Gap

SECOND = SAMPLE_RATE


def holding(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def fragment(place: int, first: int, num_samples: int = SECOND, version: int = 1) -> bytes:
    """A frame at a place of the clock; its samples count from `first`, so that each is known."""
    time = struct.pack(">B3x" + ("Q" if version else "I"), version, place)
    values = (np.arange(first, first + num_samples) % 32_768).astype("<i2")
    moof = holding(
        b"moof", box(b"mfhd"), holding(b"traf", box(b"tfhd"), holding(b"tfdt", time), box(b"trun"))
    )
    return moof + holding(b"mdat", values.tobytes())


def decoded(chunks: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """The numbers of the samples, with -1 for a gap, and the sizes of the gaps."""
    decoder = ClockedDecoder()
    numbers: list[int] = []
    gaps: list[int] = []
    for chunk in chunks:
        for piece in decoder.receive_bytes(chunk):
            if isinstance(piece, Gap):
                numbers.append(-1)
                gaps.append(piece.num_samples)
            else:
                assert piece.dtype == np.float32
                assert piece.size
                numbers += (piece * 32_768).astype(int).tolist()
    return numbers, gaps


BEGINNING = box(b"ftyp") + holding(b"moov", box(b"mvhd"), box(b"trak", 90))
WHOLE = list(range(2 * SECOND))


@pytest.mark.parametrize(
    ("second", "numbers", "gaps"),
    [
        pytest.param(SECOND, WHOLE, [], id="goes on"),
        pytest.param(SECOND + 1_600, WHOLE, [], id="0.1 s ahead is how senders round"),
        pytest.param(SECOND - 1_600, WHOLE, [], id="and so is 0.1 s behind"),
        pytest.param(
            SECOND + 1_601, [*WHOLE[:SECOND], -1, *WHOLE[SECOND:]], [1_601], id="ahead is a gap"
        ),
        pytest.param(
            3_601 * SECOND,
            [*WHOLE[:SECOND], -1, *WHOLE[SECOND:]],
            [3_600 * SECOND],
            id="an hour ahead",
        ),
        pytest.param(
            SECOND - 1_601, WHOLE[:SECOND] + WHOLE[SECOND + 1_601 :], [], id="behind is left out"
        ),
        pytest.param(0, WHOLE[:SECOND], [], id="all of it may be"),
        pytest.param(-SECOND, WHOLE, [], id="far behind is another clock"),
    ],
)
def test_a_clock_that_is_not_where_the_samples_are(
    second: int, numbers: list[int], gaps: list[int]
) -> None:
    start = 90 * SECOND  # it begins anywhere
    stream = BEGINNING + fragment(start, 0) + fragment(start + second, SECOND)
    assert decoded([stream]) == (numbers, gaps)


def test_what_is_left_out_brings_the_times_back() -> None:
    half = SECOND // 2
    stream = fragment(0, 0, SECOND) + fragment(half, 0, SECOND) + fragment(3 * half, 0, SECOND)
    numbers, gaps = decoded([stream])
    assert (len(numbers), gaps) == (5 * half, [])


def test_a_clock_that_is_always_a_little_late_is_brought_back_at_times() -> None:
    """100 fragments, each 10 samples behind: no place is ever off by more than is tolerated."""
    stream = b"".join(fragment(n * (SECOND - 100), 0) for n in range(100))
    numbers, gaps = decoded([stream])
    assert not gaps
    assert abs(len(numbers) - (99 * (SECOND - 100) + SECOND)) <= 1_600


def test_a_clock_of_32_bits() -> None:
    stream = fragment(0, 0, 20, version=0) + fragment(2 * SECOND, 20, 20, version=0)
    assert decoded([stream]) == ([*range(20), -1, *range(20, 40)], [2 * SECOND - 20])


@unhurried
@given(st.lists(st.integers(0, 10_000)))
def test_it_does_not_matter_where_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = BEGINNING + fragment(0, 0, 700) + fragment(700, 700, 1) + fragment(9_000, 701, 99)
    whole, gaps = [*range(701), -1, *range(701, 800)], [9_000 - 701]
    assert decoded(pieces(stream, cuts)) == (whole, gaps)


def test_what_is_not_whole_waits() -> None:
    stream = fragment(0, 0, 100)
    assert decoded([stream[:-1]]) == ([], [])
