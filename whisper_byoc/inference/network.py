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
NUM_TIMESTAMPS = 1501
"""The last tokens of every vocabulary: 0.00 to 30.00 s in steps of 0.02."""


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
    """

    length: int

    def attention(self, first: int, last: int) -> NDArray[np.float32]:
        """Of the tokens [first, last), float32 (heads, tokens, keys), summing to 1: what the
        alignment heads looked at. The first keys are the window's frames, the others its tail."""
        ...


class Ask(NamedTuple):
    """Which token may follow the one `at` a place of a feed: where `mask` is 0, or a timestamp in
    [first_time, end_time)."""

    at: int
    mask: Any = None
    first_time: int = 0
    end_time: int = 0


class Feed(NamedTuple):
    """The next tokens of a stream, and what is asked about them, in order of place."""

    stream: Any
    tokens: Sequence[int]
    asks: Sequence[Ask]


class Choice(NamedTuple):
    """The best text token and the best timestamp with their logits, −1 and −∞ when none may come,
    and the logarithms of the sums of the exponentials of all that may come."""

    text: int
    time: int
    text_logit: float
    time_logit: float
    text_sum: float
    time_sum: float


class Network(Protocol):
    """One set of weights. Not for two threads at once."""

    dims: Dimensions

    @property
    def seconds(self) -> dict[str, float]:
        """Where time has gone since the weights were loaded, by part, if that can be told."""
        ...

    def encode(self, mel: Tensor, tail: Any = None, stride: int = 1) -> Encoded:
        """Encode mel, float32 (n_mels, 2n), n at most 1500.

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
        """Begin to decode a window, in at most so many tokens."""
        ...

    def close(self, stream: Any) -> None:
        """Give back what `open` took."""
        ...

    def forward(self, feeds: Sequence[Feed]) -> tuple[list[list[Choice]], Tensor]:
        """Take tokens of several streams through the decoder at once.

        Returns the choices for each feed's asks, and the logits of all asks in order, float32
        (asks, vocabulary), valid until the next call.
        """
        ...
