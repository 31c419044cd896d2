"""One channel out of several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.audio.bodies import pieces, speechlike, unhurried
from whisper_byoc.audio.channels import BLOCK_SAMPLES, RawDecoder
from whisper_byoc.audio.formats import SAMPLE_RATE, Samples

VOICE = np.frombuffer(speechlike(2 * SAMPLE_RATE, 1), "<i2").astype(np.float32)
OTHER = np.frombuffer(speechlike(2 * SAMPLE_RATE, 2), "<i2").astype(np.float32)
NOTHING = np.zeros_like(VOICE)


def mixed(*channels: NDArray[np.float32]) -> Samples:
    decoder = RawDecoder(len(channels))
    data = np.stack(channels, axis=1).round().astype("<i2").tobytes()
    return np.concatenate([decoder.receive_bytes(data), decoder.receive_end()]) * 32_768


def level(samples: Samples) -> float:
    return float(np.sqrt((samples.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        pytest.param((VOICE, VOICE), VOICE, id="the same twice"),
        pytest.param((VOICE, NOTHING), VOICE / 2, id="one is silent"),
        pytest.param((VOICE, OTHER), (VOICE + OTHER) / 2, id="two speakers"),
        pytest.param((VOICE, -VOICE), VOICE, id="turned over"),
        pytest.param((-VOICE / 2, VOICE), VOICE, id="turned over, and softer: the louder one"),
        pytest.param((VOICE, -VOICE, VOICE, -VOICE), VOICE, id="four that cancel out"),
        pytest.param((VOICE, *[NOTHING] * 7), VOICE / 8, id="one speaker in a room of eight"),
    ],
)
def test_what_is_heard(
    channels: tuple[NDArray[np.float32], ...], expected: NDArray[np.float32]
) -> None:
    assert np.abs(mixed(*channels) - expected).max() <= 1


def test_channels_that_begin_to_cancel_out_are_heard_at_once() -> None:
    half = len(VOICE) // 2
    turned = np.concatenate([VOICE[:half], -VOICE[half:]])
    found = mixed(VOICE, turned)
    assert np.abs(found[:half] - VOICE[:half]).max() <= 1
    later = half + round(0.3 * SAMPLE_RATE)
    assert level(found[later:]) == pytest.approx(level(VOICE[later:]), rel=0.05)


def test_a_change_makes_no_click() -> None:
    tone = 8_000 * np.sin(np.arange(SAMPLE_RATE) * 0.02).astype(np.float32)
    turned = np.concatenate([tone[:8_000], -tone[8_000:]])
    assert np.abs(np.diff(mixed(tone, turned)))[8_100:].max() < 2 * np.abs(np.diff(tone)).max()


@unhurried
@given(st.lists(st.integers(0, 10**6), max_size=20), st.integers(1, 4))
def test_the_pieces_make_no_difference(cuts: list[int], num_channels: int) -> None:
    data = speechlike(5 * BLOCK_SAMPLES * num_channels + 3)
    whole, piecewise = RawDecoder(num_channels), RawDecoder(num_channels)
    expected = [whole.receive_bytes(data), whole.receive_end()]
    found = [piecewise.receive_bytes(piece) for piece in pieces(data, cuts)]
    found.append(piecewise.receive_end())
    assert np.array_equal(np.concatenate(found), np.concatenate(expected))
    assert sum(map(len, found)) == len(data) // 2 // num_channels
