"""openai-whisper as it is, behind our interface: what the engine has to agree with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import whisper
from whisper.audio import HOP_LENGTH, N_FRAMES, N_SAMPLES
from whisper.decoding import DecodingResult
from whisper.timing import find_alignment, merge_punctuations
from whisper.tokenizer import LANGUAGES, get_tokenizer

from whisper_byoc.decode import DecodeRequest, Hypothesis, Rung, Task, Trip
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.ladder import TEMPERATURES, find_trip
from whisper_byoc.inference.words import APPENDED, PREPENDED
from whisper_byoc.transcript import Word


def trip_of(result: DecodingResult) -> Trip | None:
    return find_trip(
        result.text, result.compression_ratio, result.no_speech_prob, result.avg_logprob
    )


class ReferenceModel:
    """One set of weights in openai-whisper's own classes.

    Whisper's decoding hangs hooks on shared modules, so one call at a time.
    """

    max_batch = 1
    branch = "openai-whisper"

    def __init__(self, name: str, path: Path, device: str) -> None:
        self.name = name
        self.device = device
        self._model = whisper.load_model(str(path), device=device)
        if name in whisper._ALIGNMENT_HEADS:
            self._model.set_alignment_heads(whisper._ALIGNMENT_HEADS[name])
        self.languages = frozenset(LANGUAGES if self._model.is_multilingual else ["en"])

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Hypothesis | DecodeError]:
        answers: list[Hypothesis | DecodeError] = []
        for request in requests:
            try:
                answers.append(self._decode(request))
            except Exception as error:  # whatever it raised, the other windows are to be heard
                answers.append(DecodeError(f"{type(error).__name__}: {error}"))
        return answers

    @torch.no_grad()
    def _decode(self, request: DecodeRequest) -> Hypothesis:
        mel = whisper.log_mel_spectrogram(
            torch.from_numpy(np.ascontiguousarray(request.samples)),
            self._model.dims.n_mels,
            padding=N_SAMPLES,
            device=self.device,
        )
        mel = whisper.pad_or_trim(mel, N_FRAMES)
        result, rung, trip = self._decode_with_fallback(mel, request)
        words = self._words(mel, result, request)
        return Hypothesis(
            text=result.text.strip(),
            language="en" if request.task is Task.TRANSLATE else result.language,
            words=words,
            avg_logprob=result.avg_logprob,
            no_speech_prob=result.no_speech_prob,
            compression_ratio=result.compression_ratio,
            rung=rung,
            trip=trip,
        )

    def _decode_with_fallback(
        self, mel: torch.Tensor, request: DecodeRequest
    ) -> tuple[DecodingResult, Rung, Trip | None]:
        """Greedy first; while the text loops or is improbable, the next temperature.

        When none will do, the most probable one that does not loop, else greedy's: Whisper takes
        the last, which at temperature 1 is often nonsense.
        """
        features = mel
        attempts: list[DecodingResult] = []
        for temperature in TEMPERATURES if request.retry else TEMPERATURES[:1]:
            result = whisper.decode(self._model, features, self._options(request, temperature))
            attempts.append(result)
            if not trip_of(result):
                rung = Rung.SAMPLED if temperature else Rung.FIRST
                return result, rung, trip_of(attempts[0])
            features = result.audio_features  # saves the next attempt the encoder
        if not request.retry:
            return attempts[0], Rung.FIRST, trip_of(attempts[0])
        straight = [attempt for attempt in attempts if trip_of(attempt) is Trip.IMPROBABLE]
        best = max(straight, key=lambda attempt: attempt.avg_logprob, default=attempts[0])
        return best, Rung.NONE, trip_of(attempts[0])

    def _options(self, request: DecodeRequest, temperature: float) -> whisper.DecodingOptions:
        return whisper.DecodingOptions(
            task=request.task.value,
            language=request.language if self._model.is_multilingual else "en",
            temperature=temperature,
            prompt=self._tokens(request.prompt),
            prefix=self._tokens(request.forced),
            without_timestamps=True,
            fp16=self.device != "cpu",
        )

    def _tokens(self, text: str | None) -> list[int] | None:
        """Of text, in which whisper would refuse the names of special tokens; None of nothing."""
        if not text:
            return None
        tokenizer = get_tokenizer(self._model.is_multilingual)
        tokens: list[int] = tokenizer.encode(" " + text.strip(), disallowed_special=())
        return tokens

    def _words(
        self, mel: torch.Tensor, result: DecodingResult, request: DecodeRequest
    ) -> tuple[Word, ...]:
        """Word times by dynamic time warping over the alignment heads (whisper/timing.py)."""
        tokenizer = get_tokenizer(
            self._model.is_multilingual,
            num_languages=self._model.num_languages,
            language=result.language,
            task=request.task.value,
        )
        forced = self._tokens(request.forced) or []
        tokens = [*forced, *(token for token in result.tokens if token < tokenizer.eot)]
        num_frames = min(N_FRAMES, len(request.samples) // HOP_LENGTH)
        alignment = find_alignment(
            self._model,
            tokenizer,
            tokens,
            mel.to(self._model.encoder.conv1.weight.dtype),
            num_frames,
        )
        if forced:
            words, _ = tokenizer.split_to_word_tokens(forced)
            alignment = alignment[len(words) :]
        merge_punctuations(alignment, PREPENDED, APPENDED)
        return tuple(
            Word(
                timing.word.strip(),
                float(timing.start),
                float(timing.end),
                float(timing.probability),
            )
            for timing in alignment
            if timing.word.strip()
        )
