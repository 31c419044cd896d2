"""A window's words, with their times and their evidence, out of the tokens of a decode."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import numpy as np
from whisper.timing import merge_punctuations
from whisper.tokenizer import Tokenizer

from whisper_byoc.decode import Evidence
from whisper_byoc.inference.alignment import FRAME_SECONDS, attended_times, token_times
from whisper_byoc.inference.decoding import Decoded, EncodedWindow
from whisper_byoc.transcript import UNSPACED, Word

PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
"""Punctuation that belongs to the following and to the preceding word (whisper/timing.py)."""


@dataclass(slots=True)
class Piece:
    """What Whisper's tokenizer calls a word; `word`, as its tokens have it with a space in front,
    and `tokens` are what `merge_punctuations` changes. Times in seconds."""

    word: str
    tokens: list[int]
    start: float
    end: float
    probability: float
    evidence: Evidence


def words_of(
    decoded: Decoded, window: EncodedWindow, tokenizer: Tokenizer, language: str
) -> tuple[tuple[Word, ...], tuple[Evidence, ...]]:
    """The words behind the forced ones, and the evidence for each. language: of the text."""
    if not decoded.tokens:
        return (), ()
    spaced = language not in UNSPACED
    pieces = _pieces(decoded, window, tokenizer, spaced)
    merge_punctuations(pieces, PREPENDED, APPENDED)
    pieces = [piece for piece in pieces if piece.word.strip()]
    if spaced:
        pieces = whole_words(pieces, continued=window.num_forced > 0)
    words = (Word(it.word.strip(), it.start, it.end, it.probability) for it in pieces)
    evidence = (replace(it.evidence, num_tokens=len(it.tokens)) for it in pieces)
    return tuple(words), tuple(evidence)


def _pieces(
    decoded: Decoded, window: EncodedWindow, tokenizer: Tokenizer, spaced: bool
) -> list[Piece]:
    """The tokens by words. A token is as probable as it was when it was chosen."""
    real = decoded.attention[:, :, : window.num_frames]
    masses = real.sum(axis=-1, keepdims=True)
    times = token_times(real / np.maximum(masses, 1e-6))[window.num_forced :]
    if not decoded.complete:  # no query produced an end, whose time would be the last word's
        times = np.append(times, window.num_frames * FRAME_SECONDS)
    attended = attended_times(real)[window.num_forced :]
    tails = 1 - masses.mean(axis=(0, 2))[window.num_forced :]
    probabilities = np.exp(np.array(decoded.logprobs))
    split = tokenizer.split_tokens_on_spaces if spaced else tokenizer.split_tokens_on_unicode
    texts, groups = split([*decoded.tokens, tokenizer.eot])
    places = pairwise(accumulate(map(len, groups), initial=0))
    *words, _ = zip(texts, groups, places, strict=True)  # the last is the end of the text
    pieces = []
    for text, group, (first, last) in words:
        probable = probabilities[first:last]
        evidence = Evidence(
            float(attended[first:last].max()),
            float(tails[first:last].max()),
            float(probable.min()),
        )
        start, end = float(times[first]), float(times[last])
        pieces.append(Piece(text, group, start, end, float(probable.mean()), evidence))
    return pieces


def whole_words(pieces: Sequence[Piece], *, continued: bool) -> list[Piece]:
    """What Whisper's tokenizer divides at hyphens, put together again: a word begins with a space.

    continued: forced words stand before them; what the first piece then adds to the last of those,
    which never changes, is left out if it is punctuation, and else a word of its own.
    """
    whole: list[Piece] = []
    for piece in pieces:
        if piece.word.startswith(" ") or (not whole and not continued):
            whole.append(piece)
        elif whole:
            whole[-1] = _joined(whole[-1], piece)
        elif text := re.sub(r"^\W+", "", piece.word.strip()):
            piece.word = text
            whole.append(piece)
    return whole


def _joined(a: Piece, b: Piece) -> Piece:
    """As certain as the less certain of the two."""
    return replace(
        a,
        word=a.word.strip() + b.word.strip(),
        tokens=a.tokens + b.tokens,
        end=b.end,
        probability=min(a.probability, b.probability),
        evidence=Evidence(
            max(a.evidence.attended, b.evidence.attended),
            max(a.evidence.tail_mass, b.evidence.tail_mass),
            min(a.evidence.probability, b.evidence.probability),
        ),
    )
