"""Whisper in batches: right-sized windows, shared decode steps, a ladder of retries."""

import base64
import gzip
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from numpy.typing import NDArray
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT
from whisper.timing import WordTiming, merge_punctuations
from whisper.tokenizer import LANGUAGES, Tokenizer, get_tokenizer
from whisper.utils import compression_ratio

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import DecodeRequest, Evidence, Hypothesis, Rung, Task, Trip
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.alignment import attended_times, token_times
from whisper_byoc.inference.decoding import Decode, Decoded, Rules, Window, decode_all
from whisper_byoc.inference.ladder import TEMPERATURES, find_trip
from whisper_byoc.inference.network import MAX_FRAMES, Ask, Dimensions, Feed
from whisper_byoc.inference.precision import (
    Branch,
    Resources,
    choose_branch,
    num_cores,
    open_network,
)
from whisper_byoc.inference.speech_rates import tokens_per_second
from whisper_byoc.transcript import UNSPACED, Word

FRAMES_PER_SECOND = 50
BUCKET_FRAMES = FRAMES_PER_SECOND
"""Windows are rounded up to 1 s: real silence behind the speech helps (docs/engine.md)."""
TAIL_STRIDE = 8
"""Of the silence behind the window the decoder sees every 8th frame, with the weight of 8."""
FLOOR_STEP = 0.5
"""Clips whose digital silence is this near in the log-mel share a tail."""
_USUAL_FLOORS = (-1.5, -1.0, -0.5)
"""Of everything from silence to speech at full volume."""
_MULTILINGUAL_VOCABULARY = 51865
MAX_BATCH = 16
PREPENDED = "\"'“¿([{-"
APPENDED = "\"'.。,，!！?？:：”)]}、"
"""Punctuation that belongs to the following and to the preceding word (whisper/timing.py)."""
MAX_BATCH_CUDA = 64
"""Windows decoded together: a stream waits for the slowest of them."""


@dataclass(slots=True)
class _Attempt:
    """One request on its way: what was encoded, and the best that was decoded so far."""

    request: DecodeRequest
    tokenizer: Tokenizer
    window: Window
    decoded: Decoded
    rung: Rung = Rung.FIRST
    temperature: float = 0.0
    first_trip: Trip | None = None

    @property
    def text(self) -> str:
        return str(self.tokenizer.decode(self.decoded.tokens)).strip()

    @property
    def trip(self) -> Trip | None:
        """Why Whisper's rules, and ours, ask for another attempt; None when they do not."""
        if self.decoded.overlong:
            return Trip.CAP
        text, decoded = self.text, self.decoded
        ratio = compression_ratio(text) if text else 1.0
        return find_trip(text, ratio, decoded.no_speech_prob, decoded.avg_logprob, decoded.complete)


class BatchedModel:
    """One set of weights in our own forward passes. Used by the engine's thread alone.

    full_padding: encode 30 s whatever the window's length, as openai-whisper does. threads: that
    compute on a CPU, 0 as many as there are cores.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        device: str,
        *,
        branch: Branch | None = None,
        full_padding: bool = False,
        threads: int = 0,
    ) -> None:
        self.name = name
        self.device = device
        self.branch = branch or choose_branch(device)
        self.max_batch = MAX_BATCH if device == "cpu" else MAX_BATCH_CUDA
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        dims = Dimensions(**checkpoint["dims"])
        self._full_padding = full_padding
        self._multilingual = dims.n_vocab >= _MULTILINGUAL_VOCABULARY
        self._num_languages = dims.n_vocab - 51765 - self._multilingual
        self.languages = frozenset(LANGUAGES if self._multilingual else ["en"])
        self._heads = _alignment_heads(name, dims)
        resources = Resources(device, threads or num_cores(), self.max_batch)
        self._network = open_network(
            self.branch, dims, checkpoint["model_state_dict"], self._heads, resources
        )
        self._rules = Rules(self._tokenizer("en", "transcribe"), dims.n_vocab, self._network)
        self._tails: dict[int, Any] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)
        if not full_padding:
            for level in _USUAL_FLOORS:
                self._tail(level)

    @property
    def seconds(self) -> dict[str, float]:
        """Where the time of all decodes has gone, by part."""
        parts = self._network.seconds or {"network": self._seconds["network"]}
        return {part: self._seconds[part] for part in ("mel", "word times")} | parts

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Hypothesis | DecodeError]:
        """See `Model`. A batch in which one window fails is decoded again, a window at a time: the
        others' words do not depend on it."""
        try:
            return list(self._decode(requests))
        except Exception as error:  # whatever it raised, the other windows are to be heard
            if len(requests) == 1:
                return [DecodeError(f"{type(error).__name__}: {error}")]
            return [answer for request in requests for answer in self.decode([request])]

    @torch.inference_mode()
    def _decode(self, requests: Sequence[DecodeRequest]) -> list[Hypothesis]:
        attempts = [self._encode(request, self._full_padding) for request in requests]
        self._fill(attempts)
        climbed = self._climb(attempts)
        with self._timed("word times"):
            return [self._hypothesis(attempt) for attempt in climbed]

    def _climb(self, first: list[_Attempt]) -> list[_Attempt]:
        """The ladder: padded to 30 s, then Whisper's temperatures; the best when none will do."""
        best = list(first)
        tried = {
            place: [attempt]
            for place, attempt in enumerate(first)
            if attempt.trip and attempt.request.retry
        }
        # A prompt is dropped: what loops often took its beginning from there.
        padded = {
            place: self._encode(replace(attempt.request, prompt=None, draft=""), full_padding=True)
            for place, [attempt] in tried.items()
        }
        for temperature in TEMPERATURES:
            rung = {
                place: replace(
                    padded[place],
                    decoded=Decoded(),
                    temperature=temperature,
                    rung=Rung.SAMPLED if temperature else Rung.PADDED,
                    first_trip=attempts[0].trip,
                )
                for place, attempts in tried.items()
            }
            self._fill(list(rung.values()))
            for place, attempt in rung.items():
                tried[place].append(attempt)
                if not attempt.trip:
                    best[place] = attempt
                    del tried[place]
        for place, attempts in tried.items():
            straight = [attempt for attempt in attempts if attempt.trip is Trip.IMPROBABLE]
            chosen = max(straight, key=lambda it: it.decoded.avg_logprob, default=attempts[0])
            best[place] = replace(chosen, rung=Rung.NONE, first_trip=attempts[0].trip)
        return best

    def _fill(self, attempts: Sequence[_Attempt]) -> None:
        """Decode them together; those at temperature 0 greedily."""
        decodes = []
        for attempt in attempts:
            generator = None
            if attempt.temperature:
                generator = torch.Generator().manual_seed(0)  # the same audio, the same words
            decodes.append(
                Decode(self._network, attempt.window, self._rules, attempt.temperature, generator)
            )
        with self._timed("network"):
            decode_all(self._network, decodes)
        for attempt, decode in zip(attempts, decodes, strict=True):
            attempt.decoded = decode.result

    def _encode(self, request: DecodeRequest, full_padding: bool) -> _Attempt:
        seconds = len(request.samples) / SAMPLE_RATE
        num_frames = min(MAX_FRAMES, max(1, math.ceil(seconds * FRAMES_PER_SECOND)))
        encoded = MAX_FRAMES
        if not full_padding:
            encoded = min(MAX_FRAMES, math.ceil(num_frames / BUCKET_FRAMES) * BUCKET_FRAMES)
        with self._timed("mel"):
            mel = log_mel(request.samples, encoded, self._network.dims.n_mels)
        tail = self._tail(silence_level(mel)) if encoded < MAX_FRAMES else None
        with self._timed("network"):
            audio = self._network.encode(mel, tail, TAIL_STRIDE)
        language = request.language if self._multilingual else "en"
        if language is None:
            language = self._detect(audio)
        tokenizer = self._tokenizer(language, request.task.value)
        forced = _tokens(tokenizer, request.forced)
        prompt = self._prompt(tokenizer, request.prompt, len(forced))
        start = tokenizer.sot_sequence_including_notimestamps
        window = Window(
            audio,
            num_frames,
            prefix=(*prompt, *start, *forced),
            sot=len(prompt),
            seconds=seconds,
            tokens_per_second=tokens_per_second(_written(tokenizer, request.task)),
            draft=_tokens(tokenizer, request.draft),
            num_forced=len(forced),
        )
        return _Attempt(request, tokenizer, window, Decoded())

    def _tail(self, level: float) -> Any:
        """Keys and values of every 8th frame of 30 s of digital silence, encoded once."""
        step = round(level / FLOOR_STEP)
        if step not in self._tails:
            silence = torch.full((self._network.dims.n_mels, 2 * MAX_FRAMES), step * FLOOR_STEP)
            self._tails[step] = self._network.thin(self._network.encode(silence), TAIL_STRIDE)
        return self._tails[step]

    def _detect(self, audio: Any) -> str:
        """The most probable language token after the start."""
        tokenizer = self._tokenizer("en", "transcribe")
        stream = self._network.open(audio, positions=1)
        try:
            _, logits = self._network.forward([Feed(stream, [tokenizer.sot], [Ask(0)])])
        finally:
            self._network.close(stream)
        best = int(logits[0][list(tokenizer.all_language_tokens)].argmax())
        return str(tokenizer.all_language_codes[best])

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - began

    def _prompt(self, tokenizer: Tokenizer, prompt: str | None, taken: int) -> tuple[int, ...]:
        """The end of a prompt; it shares Whisper's half of the positions with `taken` others."""
        kept = self._network.dims.n_text_ctx // 2 - 1 - taken
        if not prompt or kept <= 0:
            return ()
        return tokenizer.sot_prev, *_tokens(tokenizer, prompt)[-kept:]

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        return get_tokenizer(
            self._multilingual, num_languages=self._num_languages, language=language, task=task
        )

    def _hypothesis(self, attempt: _Attempt) -> Hypothesis:
        text = attempt.text
        language = _written(attempt.tokenizer, attempt.request.task)
        words, evidence = self._words(attempt)
        return Hypothesis(
            text=text,
            language=language,
            words=words,
            evidence=evidence,
            avg_logprob=attempt.decoded.avg_logprob,
            no_speech_prob=attempt.decoded.no_speech_prob,
            compression_ratio=compression_ratio(text) if text else 1.0,
            rung=attempt.rung,
            trip=attempt.trip if attempt.rung is Rung.FIRST else attempt.first_trip,
        )

    def _words(self, attempt: _Attempt) -> tuple[tuple[Word, ...], tuple[Evidence, ...]]:
        """With times and evidence; a token is as probable as it was when it was chosen."""
        decoded, tokenizer, window = attempt.decoded, attempt.tokenizer, attempt.window
        if not decoded.tokens or decoded.attention is None:
            return (), ()
        forced = window.num_forced
        real = decoded.attention[:, :, : window.num_frames]
        masses = real.sum(axis=-1, keepdims=True)
        times = token_times(real / np.maximum(masses, 1e-6))[forced:]
        if not decoded.complete:
            times = np.append(times, window.num_frames / FRAMES_PER_SECOND)
        attended = attended_times(real)[forced:]
        tails = 1 - masses.mean(axis=(0, 2))[forced:]
        probabilities = np.exp(np.array(decoded.logprobs))
        spaced = _written(tokenizer, attempt.request.task) not in UNSPACED
        split = tokenizer.split_tokens_on_spaces if spaced else tokenizer.split_tokens_on_unicode
        texts, groups = split([*decoded.tokens, tokenizer.eot])
        timings = []
        first = 0
        for text, group in zip(texts[:-1], groups[:-1], strict=True):
            last = first + len(group)
            probability = float(probabilities[first:last].mean())
            timings.append(WordTiming(text, group, times[first], times[last], probability))
            first = last
        heard = {
            id(timing): Evidence(
                float(attended[begin:end].max()),
                float(tails[begin:end].max()),
                float(probabilities[begin:end].min()),
            )
            for timing, begin, end in _with_places(timings)
        }
        merge_punctuations(timings, PREPENDED, APPENDED)
        pieces = [
            (
                timing.word,
                Word(
                    timing.word.strip(), float(timing.start), float(timing.end), timing.probability
                ),
                heard[id(timing)],
            )
            for timing in timings
            if timing.word.strip()
        ]
        return whole_words(pieces, continued=forced > 0) if spaced else _columns(pieces)


def _written(tokenizer: Tokenizer, task: Task) -> str:
    """The language of the text: a translation is English."""
    return "en" if task is Task.TRANSLATE else tokenizer.language or "en"


Piece = tuple[str, Word, Evidence]


def _columns(pieces: Sequence[Piece]) -> tuple[tuple[Word, ...], tuple[Evidence, ...]]:
    return tuple(word for _, word, _ in pieces), tuple(evidence for *_, evidence in pieces)


def whole_words(
    pieces: Sequence[Piece], *, continued: bool
) -> tuple[tuple[Word, ...], tuple[Evidence, ...]]:
    """What Whisper's tokenizer divides at hyphens, put together again: a word begins with a space.

    pieces: with the text as the tokens have it. continued: forced words stand before them; what
    the first piece then adds to the last of those, which never changes, is left out if it is
    punctuation, and else a word of its own.
    """
    whole: list[Piece] = []
    for raw, word, seen in pieces:
        if raw.startswith(" ") or (not whole and not continued):
            whole.append((raw, word, seen))
        elif whole:
            _, last, before = whole[-1]
            joined = Word(
                last.text + word.text,
                last.start,
                word.end,
                min(last.probability, word.probability),
            )
            evidence = Evidence(
                max(before.attended, seen.attended),
                max(before.tail_mass, seen.tail_mass),
                min(before.probability, seen.probability),
            )
            whole[-1] = raw, joined, evidence
        elif text := re.sub(r"^\W+", "", word.text):
            whole.append((raw, replace(word, text=text), seen))
    return _columns(whole)


def _with_places(timings: Sequence[WordTiming]) -> Iterator[tuple[WordTiming, int, int]]:
    """Each timing with the places of its first token and of the one behind its last."""
    place = 0
    for timing in timings:
        yield timing, place, place + len(timing.tokens)
        place += len(timing.tokens)


def _tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Of text as it stands in a transcript; the names of special tokens are text as any other."""
    return tuple(tokenizer.encode(" " + text.strip(), disallowed_special=())) if text else ()


def log_mel(samples: NDArray[np.float32], num_frames: int, num_mels: int) -> Tensor:
    """Whisper's log-mel of samples with silence behind them: float32 (mels, 2 · num_frames)."""
    length = 2 * num_frames * HOP_LENGTH
    padded = torch.zeros(length + N_FFT)  # so that the last frame sees silence, not its mirror
    padded[: min(len(samples), length)] = torch.from_numpy(samples[:length])
    mel: Tensor = whisper.log_mel_spectrogram(padded, num_mels)
    return mel[:, : 2 * num_frames]


def silence_level(mel: Tensor) -> float:
    """The value of digital silence in a log-mel: Whisper clamps 8 below the clip's maximum, and
    at 1e-10 (openai-whisper, audio.py)."""
    loudest = float(mel.max()) * 4 - 4
    return (max(loudest - 8, -10.0) + 4) / 4


def _alignment_heads(name: str, dims: Dimensions) -> list[tuple[int, int]]:
    """(layer, head) pairs whose attention follows the audio; else all of the later half, as
    openai-whisper has it."""
    known = whisper._ALIGNMENT_HEADS.get(name)
    if known is None:
        layers = range(dims.n_text_layer // 2, dims.n_text_layer)
        return [(layer, head) for layer in layers for head in range(dims.n_text_head)]
    marks = np.frombuffer(gzip.decompress(base64.b85decode(known)), dtype=bool)
    rows = marks.reshape(dims.n_text_layer, dims.n_text_head)
    return [(int(layer), int(head)) for layer, head in np.argwhere(rows)]
