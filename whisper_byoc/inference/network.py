"""What decoding asks of the forward passes, whoever computes them.

`native.NativeNetwork` computes them on a CPU, `torch_network.TorchNetwork` on a CUDA device, in
fp32 for comparison, and wherever the native library could not be built.
"""

from bisect import bisect_left
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisper_byoc.inference.checkpoint import Dimensions
from whisper_byoc.weights.ctranslate2 import HEAD_WIDTH as HEAD_WIDTH

MAX_FRAMES = 1500
"""30 s: Whisper's positional table."""
TAIL_STRIDE = 8
"""Of the silence behind a window the decoder sees every 8th frame, with the weight of 8."""


class Encoded(Protocol):
    """The keys and values of one window for the decoder's cross-attentions.

    num_frames: how many, from the first, are of the window itself, 20 ms each.
    """

    @property
    def num_frames(self) -> int: ...


class Cache(Protocol):
    """One decode of one encoded window: the keys and values of its tokens so far.

    length: how many tokens those are; may be set back, the keys and values behind it are then
    overwritten. positions: how many tokens there is room for. is_open: until `Network.close`.
    """

    length: int

    @property
    def positions(self) -> int: ...

    @property
    def is_open(self) -> bool: ...

    def attention(self, first: int, last: int) -> NDArray[np.float32]:
        """What the alignment heads looked at when tokens [first, last) were fed: float32 (heads,
        tokens, keys), summing to 1 over the keys: first the window's frames, then its tail's."""
        ...


class Ask(NamedTuple):
    """Which token may follow the one `at` a place of a feed: any where `mask` is 0, which
    `Network.mask` made; any at all without one. num_best: how many of the best are to be named."""

    at: int
    mask: Any = None
    num_best: int = 0


class Feed(NamedTuple):
    """The next tokens for a cache, and what is asked about them: in order, each place once."""

    cache: Any
    tokens: Sequence[int]
    asks: Sequence[Ask]


def check_feeds(feeds: Sequence[Feed], dims: Dimensions) -> None:
    """Refuse what would make the forward passes read or write outside of their tables.

    Raises ValueError.
    """
    if not feeds:
        raise ValueError("a pass has no feeds, expected at least one")
    if len({id(feed.cache) for feed in feeds}) < len(feeds):
        raise ValueError("a cache is fed twice in one pass, expected once")
    for feed in feeds:
        _check_feed(feed, dims.n_vocab)


def _check_feed(feed: Feed, num_tokens: int) -> None:
    cache, tokens = feed.cache, feed.tokens
    if not cache.is_open:
        raise ValueError("a closed cache is fed, expected an open one")
    if not tokens:
        raise ValueError("a feed has no tokens, expected at least one")
    end = cache.length + len(tokens)
    if cache.length < 0 or end > cache.positions:
        raise ValueError(
            f"a feed has positions {cache.length} to {end - 1} of its cache,"
            f" expected some of 0 to {cache.positions - 1}"
        )
    if wrong := [token for token in (min(tokens), max(tokens)) if not 0 <= token < num_tokens]:
        raise ValueError(f"a feed has token {wrong[0]}, expected one of 0 to {num_tokens - 1}")
    if wrong := [ask.num_best for ask in feed.asks if not 0 <= ask.num_best <= num_tokens]:
        raise ValueError(f"a feed asks for {wrong[0]} best tokens, expected 0 to {num_tokens}")
    places = [ask.at for ask in feed.asks]
    if places and (places != sorted(set(places)) or places[0] < 0 or places[-1] >= len(tokens)):
        raise ValueError(
            f"a feed of {len(tokens)} tokens is asked at {places},"
            " expected places in it, in order, each once"
        )


def check_fork(cache: Any, num_left: int) -> None:
    """Of a cache that is to be forked, where so many more forks may be open. Raises ValueError."""
    if not cache.is_open:
        raise ValueError("a closed cache is forked, expected an open one")
    if not num_left:
        raise ValueError("as many forks are open as their cache was opened for, expected fewer")


def check_positions(positions: int, dims: Dimensions) -> None:
    """Of a cache that is to be opened. Raises ValueError."""
    if not 1 <= positions <= dims.n_text_ctx:
        raise ValueError(f"positions is {positions}, expected 1 to {dims.n_text_ctx}")


Result = TypeVar("Result")


def last_of(steps: Generator[None, None, Result]) -> Result:
    """Take all steps; returns what they do."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def check_mel(mel: Tensor, dims: Dimensions) -> None:
    """Of a window that is to be encoded. Raises ValueError."""
    num_mels, length = mel.shape
    if num_mels != dims.n_mels or length not in range(2, 2 * MAX_FRAMES + 1, 2):
        raise ValueError(
            f"mel is {tuple(mel.shape)}, expected ({dims.n_mels}, 2n), n from 1 to {MAX_FRAMES}"
        )
    if not bool(mel.isfinite().all()):
        raise ValueError("mel has values that are infinite or no numbers, expected finite ones")


def silence(level: float, dims: Dimensions) -> Tensor:
    """30 s of the log-mel that digital silence has at a level: what `Network.tail` encodes."""
    return torch.full((dims.n_mels, 2 * MAX_FRAMES), level)


TAIL_FRAMES = range(TAIL_STRIDE // 2, MAX_FRAMES, TAIL_STRIDE)
"""Which of the 1500 frames of encoded silence a tail holds."""


def first_behind(num_frames: int) -> int:
    """How many frames of a tail lie within a window of so many, and are not put behind it."""
    return bisect_left(TAIL_FRAMES, num_frames)


class Choice(NamedTuple):
    """The best of the tokens that may come, its logit, and the logarithm of the sum of the
    exponentials of the logits of all of them. −1 and −∞ when none may come.

    best: `Ask.num_best` tokens with their logits, the best first; fewer where fewer may come."""

    token: int
    logit: float
    log_sum: float
    best: Sequence[tuple[int, float]] = ()


class Network(Protocol):
    """One set of weights. Not for two threads at once."""

    dims: Dimensions

    @property
    def seconds(self) -> dict[str, float]:
        """Where time has gone since the weights were loaded, by part, if that can be told."""
        ...

    def tail(self, level: float) -> Any:
        """The encoded silence that may stand behind windows: every 8th frame of 30 s of digital
        silence, whose log-mel is `level` throughout. For `encode`."""
        ...

    def encode(self, mel: Tensor, tail: Any = None) -> Encoded:
        """Encode mel, float32 (n_mels, 2n), n from 1 to 1500. Raises ValueError for another.

        tail: of `tail`; its frames from the n-th of the 1500 on are put behind the window's, with
        log 8 added to their scores, since each stands for 8.
        """
        ...

    def encode_in_steps(self, mel: Tensor, tail: Any = None) -> Generator[None, None, Encoded]:
        """`encode`, for those who have others to serve in the middle of it."""
        ...

    def mask(self, values: NDArray[np.float32]) -> Any:
        """Prepare what is added to logits, float32 (vocabulary,), for `Ask.mask`."""
        ...

    def open(self, encoded: Any, positions: int, forks: int = 0) -> Cache:
        """Begin to decode a window, in at most so many tokens. Raises ValueError where the decoder
        has fewer positions, or no room for another cache.

        forks: how many forks of it, and of those, may be open at once."""
        ...

    def fork(self, cache: Any) -> Cache:
        """Another decode of the same window, that begins with the tokens of this one. It has no
        `attention`. Raises ValueError where as many are open as `open` was told."""
        ...

    def close(self, cache: Any) -> None:
        """Give back what `open` or `fork` took. Closing a closed cache does nothing."""
        ...

    def forward(self, feeds: Sequence[Feed]) -> tuple[list[list[Choice]], Tensor]:
        """Take tokens of several windows through the decoder at once, each into its cache.

        Returns the choices for each feed's asks, and the logits of all asks in order, float32
        (asks, vocabulary), valid until the next call. Raises ValueError, before anything is
        computed, where `check_feeds` does.
        """
        ...
