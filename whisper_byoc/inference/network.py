"""What decoding asks of the forward passes, whoever computes them.

`native.NativeNetwork` computes them on a CPU, `torch_network.TorchNetwork` on a CUDA device, in
fp32 for comparison, and wherever the native library could not be built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from whisper_byoc.weights.ctranslate2 import HEAD_WIDTH as HEAD_WIDTH

MAX_FRAMES = 1500
"""30 s: Whisper's positional table."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The `dims` of an OpenAI checkpoint."""

    n_mels: int
    n_audio_ctx: int
    n_audio_state: int
    n_audio_head: int
    n_audio_layer: int
    n_vocab: int
    n_text_ctx: int
    n_text_state: int
    n_text_head: int
    n_text_layer: int


class Encoded(Protocol):
    """The keys and values of one window for the decoder's cross-attentions.

    num_frames: how many, from the first, are of the window itself, 20 ms each.
    """

    @property
    def num_frames(self) -> int: ...


class Stream(Protocol):
    """One decode of one encoded window: the keys and values of its tokens so far.

    length: how many tokens those are; may be set back, what lies behind is then overwritten.
    positions: how many there is room for. is_open: until `Network.close`.
    """

    length: int

    @property
    def positions(self) -> int: ...

    @property
    def is_open(self) -> bool: ...

    def attention(self, first: int, last: int) -> NDArray[np.float32]:
        """Of the tokens [first, last), float32 (heads, tokens, keys), summing to 1: what the
        alignment heads looked at. The first keys are the window's frames, the others its tail."""
        ...


class Ask(NamedTuple):
    """Which token may follow the one `at` a place of a feed: any where `mask` is 0, which
    `Network.mask` made; any at all without one."""

    at: int
    mask: Any = None


class Feed(NamedTuple):
    """The next tokens of a stream, and what is asked about them, in order of place."""

    stream: Any
    tokens: Sequence[int]
    asks: Sequence[Ask]


def check_feeds(feeds: Sequence[Feed], dims: Dimensions) -> None:
    """Refuse what would make the forward passes read or write outside of their tables.

    Raises ValueError.
    """
    if not feeds:
        raise ValueError("a pass has no feeds, expected at least one")
    if len({id(feed.stream) for feed in feeds}) < len(feeds):
        raise ValueError("a stream is fed twice in one pass, expected once")
    for feed in feeds:
        _check_feed(feed, dims.n_vocab)


def _check_feed(feed: Feed, num_tokens: int) -> None:
    stream, tokens = feed.stream, feed.tokens
    if not stream.is_open:
        raise ValueError("a closed stream is fed, expected an open one")
    if not tokens:
        raise ValueError("a feed has no tokens, expected at least one")
    end = stream.length + len(tokens)
    if stream.length < 0 or end > stream.positions:
        raise ValueError(
            f"a feed has positions {stream.length} to {end - 1} of its stream,"
            f" expected some of 0 to {stream.positions - 1}"
        )
    if min(tokens) < 0 or max(tokens) >= num_tokens:
        wrong = min(tokens) if min(tokens) < 0 else max(tokens)
        raise ValueError(f"a feed has token {wrong}, expected one of 0 to {num_tokens - 1}")
    places = [ask.at for ask in feed.asks]
    if places and (places != sorted(places) or places[0] < 0 or places[-1] >= len(tokens)):
        raise ValueError(
            f"a feed of {len(tokens)} tokens is asked at {places}, expected places in it, in order"
        )


def check_positions(positions: int, dims: Dimensions) -> None:
    """Of a stream that is to be opened. Raises ValueError."""
    if not 1 <= positions <= dims.n_text_ctx:
        raise ValueError(f"positions is {positions}, expected 1 to {dims.n_text_ctx}")


def check_mel(mel: Tensor, dims: Dimensions) -> None:
    """Of a window that is to be encoded. Raises ValueError."""
    num_mels, length = mel.shape
    if num_mels != dims.n_mels or length not in range(2, 2 * MAX_FRAMES + 1, 2):
        raise ValueError(
            f"mel is {tuple(mel.shape)}, expected ({dims.n_mels}, 2n), n from 1 to {MAX_FRAMES}"
        )
    if not bool(mel.isfinite().all()):
        raise ValueError("mel has values that are infinite or no numbers, expected finite ones")


class Choice(NamedTuple):
    """The best of the tokens that may come, its logit, and the logarithm of the sum of the
    exponentials of the logits of all of them. −1 and −∞ when none may come."""

    token: int
    logit: float
    log_sum: float


class Network(Protocol):
    """One set of weights. Not for two threads at once."""

    dims: Dimensions

    @property
    def seconds(self) -> dict[str, float]:
        """Where time has gone since the weights were loaded, by part, if that can be told."""
        ...

    def encode(self, mel: Tensor, tail: Any = None, stride: int = 1) -> Encoded:
        """Encode mel, float32 (n_mels, 2n), n from 1 to 1500. Raises ValueError for another.

        tail: of `thin`; what lies behind the n frames there is put behind them here, too, and has
        log(stride) added to its scores.
        """
        ...

    def thin(self, encoded: Any, stride: int) -> Any:
        """Every stride-th frame of 1500, from the stride/2-th on."""
        ...

    def mask(self, values: NDArray[np.float32]) -> Any:
        """Prepare what is added to logits, float32 (vocabulary,), for `Ask.mask`."""
        ...

    def open(self, encoded: Any, positions: int) -> Stream:
        """Begin to decode a window, in at most so many tokens. Raises ValueError where the decoder
        has fewer positions, or no room for another stream."""
        ...

    def close(self, stream: Any) -> None:
        """Give back what `open` took; once more does nothing."""
        ...

    def forward(self, feeds: Sequence[Feed]) -> tuple[list[list[Choice]], Tensor]:
        """Take tokens of several streams through the decoder at once.

        Returns the choices for each feed's asks, and the logits of all asks in order, float32
        (asks, vocabulary), valid until the next call. Raises ValueError, before anything is
        computed, where `check_feeds` does.
        """
        ...
