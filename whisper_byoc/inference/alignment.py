"""When words were spoken, from the attention that produced their tokens (pure).

The method is openai-whisper's timing.py: attention of the alignment heads, normalised over tokens,
smoothed over frames, and the cheapest monotone path through it.
"""

import numpy as np
from numpy.typing import NDArray

MEDIAN_WIDTH = 7
FRAME_SECONDS = 0.02
WORD_DELAYS = {"tiny.en": 0.085, "base": -0.055}
"""Seconds by which the alignment heads of these weights look at a word too late, most of the time;
of others nothing was measured (docs/engine.md, Word times)."""


def token_times(attention: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where each token begins, in seconds: (tokens,), not falling.

    attention: float32 (heads, tokens, frames), summing to 1 over frames; row i is of the query that
    produces token i.
    """
    centred = attention - attention.mean(axis=1, keepdims=True)
    scaled = centred / (attention.std(axis=1, keepdims=True) + 1e-8)
    smooth = median_filter(scaled.mean(axis=0), MEDIAN_WIDTH)
    return first_frames(-smooth) * FRAME_SECONDS


def attended_times(attention: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where the decoder looked most for each token, in seconds: (tokens,).

    attention: as for `token_times`, without the need to sum to 1. Unlike that path it may fall.
    """
    smooth = median_filter(attention.mean(axis=0), MEDIAN_WIDTH)
    times: NDArray[np.float64] = smooth.argmax(axis=-1) * FRAME_SECONDS
    return times


def median_filter(rows: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The running median along the last axis, (n, m) → (n, m), ends mirrored; `width` is odd."""
    pad = width // 2
    if rows.shape[-1] <= pad:
        return rows
    padded = np.pad(rows, ((0, 0), (pad, pad)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1)
    return np.partition(windows, pad, axis=-1)[..., pad]


def first_frames(cost: NDArray[np.float32]) -> NDArray[np.float64]:
    """The first frame of each row on the cheapest monotone path: (rows,) for cost (rows, frames).

    A path goes from the first row and frame to the last, to the next row, the next frame or both.
    Within a row the best cost at frame j is the sum S(j) of the row up to j plus the least over
    k ≤ j of (the best entry at k − S(k−1)), so a row takes a running minimum and no inner loop.
    """
    rows, frames = cost.shape
    total = np.zeros((rows, frames))
    total[0] = np.cumsum(cost[0], dtype=np.float64)
    for row in range(1, rows):
        above = total[row - 1]
        entry = above.copy()
        entry[1:] = np.minimum(above[1:], above[:-1])
        sums = np.cumsum(cost[row], dtype=np.float64)
        total[row] = sums + np.minimum.accumulate(entry - sums + cost[row])
    return _first_frames_of_path(total)


def _first_frames_of_path(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Walk back along the cheapest predecessors from the last corner."""
    row, frame = total.shape[0] - 1, total.shape[1] - 1
    first = np.zeros(total.shape[0])
    while row > 0:
        diagonal = total[row - 1, frame - 1] if frame else np.inf
        up = total[row - 1, frame]
        left = total[row, frame - 1] if frame else np.inf
        if left < diagonal and left < up:
            frame -= 1
            continue
        first[row] = frame
        row -= 1
        if diagonal <= up:
            frame -= 1
    return first
