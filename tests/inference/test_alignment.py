"""When words were spoken: our path against openai-whisper's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.timing import dtw_cpu

from whisper_byoc.inference.alignment import first_frames, median_filter, token_times


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 60), st.integers(0, 10**6))
def test_the_path_is_whispers(rows: int, frames: int, seed: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(rows, frames)).astype(np.float32)
    text, time = dtw_cpu(cost.astype(np.float64))
    begins = np.pad(np.diff(text), (1, 0), constant_values=1).astype(bool)
    assert first_frames(cost).tolist() == time[begins].tolist()


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 10**6))
def test_the_running_median_is_a_median(rows: int, frames: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, frames)).astype(np.float32)
    filtered = median_filter(values, 7)
    assert filtered.shape == values.shape
    for place in range(3, frames - 3):
        expected = np.median(values[:, place - 3 : place + 4], axis=1)
        assert filtered[:, place] == pytest.approx(expected)


def test_tokens_begin_where_attention_goes() -> None:
    attention = np.full((2, 3, 100), 1e-4, dtype=np.float32)
    for row, start in enumerate((0, 30, 70)):
        attention[:, row, start : start + 30] = 0.03
    assert token_times(attention) == pytest.approx([0.0, 0.6, 1.4], abs=0.1)
