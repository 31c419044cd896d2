"""Raw audio in any chunking."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import pieces, unhurried
from whisper_byoc.audio.pcm import PcmDecoder


def test_samples_are_divided_by_32768() -> None:
    samples = PcmDecoder().receive_bytes(struct.pack("<4h", 0, 1, -32_768, 32_767))
    assert samples.dtype == np.float32
    assert samples.tolist() == [0, 1 / 32_768, -1, 32_767 / 32_768]


def test_an_odd_byte_at_the_end_is_dropped() -> None:
    assert PcmDecoder().receive_bytes(b"\x00\x40\x7f").tolist() == [0.5]


@unhurried
@given(st.binary(max_size=400), st.lists(st.integers(min_value=0)))
def test_any_chunking_of_raw_audio_gives_the_same_samples(data: bytes, cuts: list[int]) -> None:
    decoder = PcmDecoder()
    samples = np.concatenate([decoder.receive_bytes(piece) for piece in pieces(data, cuts)])
    assert np.array_equal(samples, PcmDecoder().receive_bytes(data))
    assert samples.size == len(data) // 2
