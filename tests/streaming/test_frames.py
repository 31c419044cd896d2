"""Pieces of samples in, whole frames out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.decode import FRAME_SAMPLES
from whisper_byoc.streaming.frames import FrameBlocks


@given(st.lists(st.integers(0, 3 * FRAME_SAMPLES), max_size=8), st.integers(1, 3))
def test_pieces_of_any_length_give_the_same_samples_in_whole_frames(
    lengths: list[int], max_frames: int
) -> None:
    stream = np.arange(sum(lengths), dtype=np.float32)
    frames = FrameBlocks(max_frames)
    pieces = np.split(stream, np.cumsum(lengths)[:-1]) if lengths else []
    blocks = [block for piece in pieces for block in frames.receive_samples(piece)]
    tail = frames.receive_end()
    assert {len(block) % FRAME_SAMPLES for block in blocks} <= {0}
    assert all(0 < len(block) <= max_frames * FRAME_SAMPLES for block in blocks)
    assert len(tail) < FRAME_SAMPLES
    assert np.array_equal(np.concatenate([*blocks, tail]), stream)


@pytest.mark.parametrize("num_samples", [0, 1, FRAME_SAMPLES - 1])
def test_what_fills_no_frame_waits(num_samples: int) -> None:
    frames = FrameBlocks(4)
    assert list(frames.receive_samples(np.zeros(num_samples, np.float32))) == []
    assert len(frames.receive_end()) == num_samples
    assert len(frames.receive_end()) == 0


@given(st.lists(st.integers(0, 5 * FRAME_SAMPLES), max_size=8))
def test_blocks_of_one_size_are_the_same_however_the_samples_come(lengths: list[int]) -> None:
    stream = np.arange(sum(lengths), dtype=np.float32)
    frames = FrameBlocks(3, 3)
    pieces = np.split(stream, np.cumsum(lengths)[:-1]) if lengths else []
    blocks = [block for piece in pieces for block in frames.receive_samples(piece)]
    assert {len(block) for block in blocks} <= {3 * FRAME_SAMPLES}
    tail = frames.receive_end()
    assert len(tail) < 3 * FRAME_SAMPLES
    assert np.array_equal(np.concatenate([*blocks, tail]), stream)
