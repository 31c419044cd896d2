"""The samples of a stream that are kept."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.streaming.samples import Excerpt, SampleBuffer


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9000)), max_size=30))
def test_the_sample_buffer_gives_back_what_is_kept(steps: list[tuple[int, int]]) -> None:
    buffer = SampleBuffer()
    end = 0
    for length, dropped in steps:
        buffer.append(np.arange(end, end + length, dtype=np.float32))
        end += length
        buffer.drop_before(buffer.start + dropped)
        assert buffer.end == end
        kept = buffer.copy(buffer.start, buffer.end)
        assert np.array_equal(kept, np.arange(buffer.start, end, dtype=np.float32))


def test_an_excerpt_knows_its_time_in_the_stream() -> None:
    excerpt = Excerpt(8000, np.zeros(32_000, dtype=np.float32))
    assert (excerpt.offset, excerpt.end) == (0.5, 2.5)
