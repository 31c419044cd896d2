"""Whisper in batches: right-sized windows, shared decode steps, a ladder of retries."""

import math
import re
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import whisper
from numpy.typing import NDArray
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT
from whisper.tokenizer import LANGUAGES, Tokenizer, get_tokenizer
from whisper.utils import compression_ratio

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import DecodeRequest, Effort, Hypothesis, Rung, Task, Trip
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.alignment import WORD_DELAYS
from whisper_byoc.inference.batch_thread import Steps
from whisper_byoc.inference.beam_search import BeamSearch, Search
from whisper_byoc.inference.checkpoint import Checkpoint
from whisper_byoc.inference.decoding import (
    Course,
    Decoded,
    EncodedWindow,
    Rules,
    Straight,
    decode_in_steps,
    in_groups,
)
from whisper_byoc.inference.ladder import TEMPERATURES, find_trip
from whisper_byoc.inference.network import MAX_FRAMES, Ask, Feed, Result, last_of
from whisper_byoc.inference.precision import Branch, choose_branch, open_network
from whisper_byoc.inference.speech_rates import tokens_per_second
from whisper_byoc.inference.words import words_of
from whisper_byoc.settings import num_cores
from whisper_byoc.transcript import UNSPACED

FRAMES_PER_SECOND = 50
BUCKET_FRAMES = FRAMES_PER_SECOND
"""Windows are rounded up to 1 s: real silence behind the speech helps (docs/engine.md)."""
FLOOR_STEP = 0.5
"""Windows share a tail when their digital silence has the same log-mel, rounded to this."""
_USUAL_FLOORS = (-1.5, -1.0, -0.5)
"""Levels of digital silence beside anything from silence to speech at full volume: their tails are
encoded before the first window comes."""
_MULTILINGUAL_VOCABULARY = 51865
MAX_BATCH = 16
MAX_BATCH_CUDA = 64
"""Windows decoded together: a stream waits for the slowest of them."""
MAX_CACHES = 88
"""Texts in one pass, of eight windows with ten beams and a cache that those are forked from."""


@dataclass(frozen=True)
class _Attempt:
    """One request with its window encoded, and what was decoded of it: nothing at first."""

    request: DecodeRequest
    tokenizer: Tokenizer
    window: EncodedWindow
    decoded: Decoded = field(default_factory=Decoded)
    temperature: float = 0.0

    @property
    def language(self) -> str:
        return _written(self.tokenizer, self.request.task)

    @cached_property
    def text(self) -> str:
        return str(self.tokenizer.decode(self.decoded.tokens)).strip()

    def words(self, tokens: Sequence[int]) -> list[str]:
        """Of a text, as texts are compared: letters and digits, in small ones."""
        text = str(self.tokenizer.decode(tokens)).lower()
        return re.findall(r"[^\W_]" if self.language in UNSPACED else r"[^\W_](?:[\w']*\w)?", text)

    @property
    def compression_ratio(self) -> float:
        return float(compression_ratio(self.text)) if self.text else 1.0

    @cached_property
    def trip(self) -> Trip | None:
        """Why Whisper's rules, and ours, ask for another attempt; None when they do not."""
        text, ratio, decoded = self.text, self.compression_ratio, self.decoded
        if decoded.overlong:
            return Trip.CAP
        return find_trip(text, ratio, decoded.no_speech_prob, decoded.avg_logprob, decoded.complete)


class BatchedModel:
    """One set of weights in our own forward passes. Used by the engine's thread alone.

    full_padding: encode 30 s whatever the window's length, as openai-whisper does. threads: how
    many compute on a CPU; 0 means as many as there are cores.
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
        self._word_delay = WORD_DELAYS.get(name, 0.0)
        self.device = device
        self.branch = branch or choose_branch(device)
        self.max_batch = MAX_BATCH if device == "cpu" else MAX_BATCH_CUDA
        # In fp32 on a CPU each takes 24 MB.
        self._max_caches = MAX_BATCH if self.branch is Branch.FP32 else MAX_CACHES
        checkpoint = Checkpoint.load(path, name)
        num_tokens = checkpoint.dims.n_vocab
        self._full_padding = full_padding
        self.search = Search()
        self._multilingual = num_tokens >= _MULTILINGUAL_VOCABULARY
        self._num_languages = num_tokens - 51765 - self._multilingual
        self.languages = frozenset(LANGUAGES if self._multilingual else ["en"])
        self._network = open_network(
            self.branch, checkpoint, device, threads or num_cores(), self._max_caches
        )
        self._rules = Rules(self._tokenizer("en", "transcribe"), num_tokens, self._network)
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
        """See `Model`."""
        return list(last_of(self.decode_in_steps(requests)))

    @torch.inference_mode()
    def decode_in_steps(self, requests: Sequence[DecodeRequest]) -> Steps[Hypothesis]:
        """See `SteppingModel`. A batch in which one window fails is decoded again, a window at a
        time: the others' words do not depend on it."""
        try:
            return (yield from self._decode(requests))
        except Exception as error:  # whatever it raised, the other windows are to be heard
            if len(requests) == 1:
                return [DecodeError(f"{type(error).__name__}: {error}")]
        answers: list[Hypothesis | DecodeError] = []
        for request in requests:
            answers += yield from self.decode_in_steps([request])
        return answers

    def _decode(self, requests: Sequence[DecodeRequest]) -> Generator[None, None, list[Hypothesis]]:
        encoded = yield from self._encode_all(requests, self._full_padding)
        first = yield from self._attempt(encoded)
        best = yield from self._climb(first)
        with self._timed("word times"):
            return [
                replace(_hypothesis(attempt, rung, straight.trip), word_delay=self._word_delay)
                for (attempt, rung), straight in zip(best, first, strict=True)
            ]

    def _climb(
        self, first: Sequence[_Attempt]
    ) -> Generator[None, None, list[tuple[_Attempt, Rung]]]:
        """The ladder: padded to 30 s, then Whisper's temperatures; the best when none will do."""
        best = [(attempt, Rung.FIRST) for attempt in first]
        tried = {
            place: [attempt]
            for place, attempt in enumerate(first)
            if attempt.trip and attempt.request.retry
        }
        # A prompt is dropped: what loops often took its beginning from there.
        again = [replace(attempt.request, prompt=None, draft="") for [attempt] in tried.values()]
        encoded = yield from self._encode_all(again, full_padding=True)
        padded = dict(zip(tried, encoded, strict=True))
        for temperature in TEMPERATURES:
            places = list(tried)
            attempts = yield from self._attempt([padded[place] for place in places], temperature)
            for place, attempt in zip(places, attempts, strict=True):
                tried[place].append(attempt)
                if not attempt.trip:
                    best[place] = attempt, Rung.SAMPLED if temperature else Rung.PADDED
                    del tried[place]
        for place, attempts in tried.items():
            straight = [attempt for attempt in attempts if attempt.trip is Trip.IMPROBABLE]
            chosen = max(straight, key=lambda it: it.decoded.avg_logprob, default=attempts[0])
            best[place] = chosen, Rung.NONE
        return best

    def _encode_all(
        self, requests: Sequence[DecodeRequest], full_padding: bool
    ) -> Generator[None, None, list[_Attempt]]:
        encoded = []
        for request in requests:
            encoded.append((yield from self._encode(request, full_padding)))
            yield
        return encoded

    def _attempt(
        self, encoded: Sequence[_Attempt], temperature: float = 0.0
    ) -> Generator[None, None, list[_Attempt]]:
        """Decode them together, as many as there is room for; a pass at each step."""
        courses = [self._course(attempt, temperature) for attempt in encoded]
        for together in in_groups(courses, self._max_caches):
            steps = decode_in_steps(self._network, together)
            yield from self._timed_steps("network", steps)
        return [
            replace(one, decoded=course.result, temperature=temperature)
            for one, course in zip(encoded, courses, strict=True)
        ]

    def _course(self, attempt: _Attempt, temperature: float) -> Course:
        if attempt.request.effort is Effort.QUICK or temperature > 0:
            return Straight(attempt.window, self._rules, temperature)
        return BeamSearch(attempt.window, self._rules, self.search, attempt.words)

    def _encode(
        self, request: DecodeRequest, full_padding: bool
    ) -> Generator[None, None, _Attempt]:
        seconds = len(request.samples) / SAMPLE_RATE
        num_frames = min(MAX_FRAMES, max(1, math.ceil(seconds * FRAMES_PER_SECOND)))
        encoded = MAX_FRAMES
        if not full_padding:
            encoded = min(MAX_FRAMES, math.ceil(num_frames / BUCKET_FRAMES) * BUCKET_FRAMES)
        with self._timed("mel"):
            mel = log_mel(request.samples, encoded, self._network.dims.n_mels)
        tail = self._tail(silence_level(mel)) if encoded < MAX_FRAMES else None
        steps = self._network.encode_in_steps(mel, tail)
        audio = yield from self._timed_steps("network", steps)
        language = request.language if self._multilingual else "en"
        if language is None:
            language = self._detect(audio)
        tokenizer = self._tokenizer(language, request.task.value)
        forced = _tokens(tokenizer, request.forced)
        prompt = self._prompt(tokenizer, request.prompt, len(forced))
        start = tokenizer.sot_sequence_including_notimestamps
        window = EncodedWindow(
            audio,
            num_frames,
            prefix=(*prompt, *start, *forced),
            sot=len(prompt),
            seconds=seconds,
            tokens_per_second=tokens_per_second(_written(tokenizer, request.task)),
            draft=_tokens(tokenizer, request.draft),
            num_forced=len(forced),
        )
        return _Attempt(request, tokenizer, window)

    def _tail(self, level: float) -> Any:
        """What stands behind windows whose digital silence is near a level; encoded once."""
        step = round(level / FLOOR_STEP)
        if step not in self._tails:
            self._tails[step] = self._network.tail(step * FLOOR_STEP)
        return self._tails[step]

    def _detect(self, audio: Any) -> str:
        """The most probable language token after the start."""
        tokenizer = self._tokenizer("en", "transcribe")
        cache = self._network.open(audio, positions=1)
        try:
            _, logits = self._network.forward([Feed(cache, [tokenizer.sot], [Ask(0)])])
        finally:
            self._network.close(cache)
        best = int(logits[0][list(tokenizer.all_language_tokens)].argmax())
        return str(tokenizer.all_language_codes[best])

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - began

    def _timed_steps(
        self, part: str, steps: Generator[None, None, Result]
    ) -> Generator[None, None, Result]:
        """Take steps; what others do between them is not counted."""
        while True:
            try:
                with self._timed(part):
                    next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield

    def _prompt(self, tokenizer: Tokenizer, prompt: str | None, taken: int) -> tuple[int, ...]:
        """As much of a prompt's end as fits: half of the decoder's positions are for the text, and
        the prompt shares the other half with `taken` forced tokens."""
        kept = self._network.dims.n_text_ctx // 2 - 1 - taken
        if not prompt or kept <= 0:
            return ()
        return tokenizer.sot_prev, *_tokens(tokenizer, prompt)[-kept:]

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        return get_tokenizer(
            self._multilingual, num_languages=self._num_languages, language=language, task=task
        )


def _hypothesis(attempt: _Attempt, rung: Rung, trip: Trip | None) -> Hypothesis:
    """trip: of the first attempt, whichever this is."""
    decoded, window, language = attempt.decoded, attempt.window, attempt.language
    words, evidence = words_of(decoded, window, attempt.tokenizer, language)
    return Hypothesis(
        text=attempt.text,
        language=language,
        words=words,
        evidence=evidence,
        avg_logprob=decoded.avg_logprob,
        no_speech_prob=decoded.no_speech_prob,
        compression_ratio=attempt.compression_ratio,
        rung=rung,
        trip=trip,
        tokens=tuple(decoded.tokens),
        temperature=attempt.temperature,
    )


def _written(tokenizer: Tokenizer, task: Task) -> str:
    """The language of the text: a translation is English."""
    return "en" if task is Task.TRANSLATE else tokenizer.language or "en"


def _tokens(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Tokens of text from a transcript; "<|endoftext|>" and the like in it are plain text."""
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
