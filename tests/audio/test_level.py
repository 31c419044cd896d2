"""Quiet recordings brought up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import unhurried
from whisper_byoc.audio.formats import SAMPLE_RATE, Samples
from whisper_byoc.audio.level import BLOCK_SAMPLES, Leveller


def noise(seconds: float, decibels: float, seed: int = 0) -> Samples:
    samples = np.random.default_rng(seed).normal(0, 1, round(seconds * SAMPLE_RATE))
    return (samples * 10 ** (decibels / 20)).clip(-1, 1).astype(np.float32)


def levelled(samples: Samples, cuts: list[int] | None = None) -> Samples:
    leveller = Leveller()
    parts = np.split(samples, sorted(cut % (len(samples) + 1) for cut in cuts or []))
    found = [leveller.receive_samples(part) for part in parts]
    return np.concatenate([*found, leveller.receive_end()])


def decibels(samples: Samples) -> float:
    return float(10 * np.log10((samples.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize("level", [-6, -12, -20, -27])
def test_a_usual_level_passes_unchanged(level: float) -> None:
    samples = noise(7, level)
    assert np.array_equal(levelled(samples), samples)


@pytest.mark.parametrize("level", [-35, -45, -60, -75])
def test_a_quiet_recording_is_brought_up(level: float) -> None:
    assert decibels(levelled(noise(7, level))) == pytest.approx(-28, abs=0.5)


def test_it_is_brought_up_by_50_db_at_most() -> None:
    assert decibels(levelled(noise(7, -90))) == pytest.approx(-40, abs=0.5)
    assert not levelled(np.zeros(50_000, np.float32)).any()


def test_one_loud_word_bounds_it() -> None:
    samples = noise(4, -70)
    samples[20_000:22_000] = noise(0.125, -30)
    assert decibels(levelled(samples)[20_000:22_000]) == pytest.approx(-10, abs=1)


def test_noise_before_speech_is_not_brought_up_over_it() -> None:
    samples = np.concatenate([noise(6, -70), noise(4, -20)])
    assert np.array_equal(levelled(samples), samples)


def test_speech_that_becomes_quiet_is_brought_up_later() -> None:
    found = levelled(np.concatenate([noise(4, -20), noise(60, -45)]))
    assert decibels(found[5 * SAMPLE_RATE : 7 * SAMPLE_RATE]) < -40
    assert decibels(found[-5 * SAMPLE_RATE :]) == pytest.approx(-28, abs=1)


def test_what_is_loud_enough_does_not_wait() -> None:
    leveller = Leveller()
    samples = noise(10, -20)
    first = leveller.receive_samples(samples[:BLOCK_SAMPLES])
    assert len(first) == BLOCK_SAMPLES
    assert len(leveller.receive_samples(samples[BLOCK_SAMPLES : BLOCK_SAMPLES + 100])) == 100


@unhurried
@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(-90, -3)), min_size=1, max_size=6),
    st.lists(st.integers(0, 10**6), max_size=12),
)
def test_the_pieces_make_no_difference(parts: list[tuple[float, float]], cuts: list[int]) -> None:
    samples = np.concatenate([noise(*part, seed=n) for n, part in enumerate(parts)])
    expected = levelled(samples)
    assert len(expected) == len(samples)
    assert np.array_equal(levelled(samples, cuts), expected)


def test_nothing_is_nothing() -> None:
    assert not len(levelled(np.zeros(0, np.float32)))
