"""The one stand-in: a model without weights, in place of Whisper."""

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.engine import WARM_UP_TEXT, Engine
from whisper_byoc.service import OpenEngine
from whisper_byoc.settings import ModelSettings
from whisper_byoc.transcript import Word

Answer = Hypothesis | DecodeError


def spoken(*words: str, seconds: float = 1.0, language: str = "en") -> Hypothesis:
    """A hypothesis whose words share the time evenly."""
    step = seconds / max(1, len(words))
    timed = [Word(word, n * step, (n + 1) * step, 0.9) for n, word in enumerate(words)]
    return Hypothesis(" ".join(words), language, tuple(timed))


def whole_seconds(request: DecodeRequest) -> Answer:
    """One word for every second of the window, at least one."""
    seconds = len(request.samples) / SAMPLE_RATE
    return spoken(*(f"w{n}" for n in range(max(1, int(seconds)))), seconds=seconds)


class ScriptedModel:
    """Answers by a function, may be held up, and keeps what it was asked.

    `gate` is set when decodes may go on; `asked` is set when one has begun.
    """

    name = "scripted"
    device = "nowhere"
    branch = "scripted"
    max_batch = 4

    def __init__(
        self,
        answer: Callable[[DecodeRequest], Answer] = whole_seconds,
        languages: frozenset[str] = frozenset({"en"}),
    ) -> None:
        self.answer = answer
        self.languages = languages
        self.requests: list[DecodeRequest] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self._warm = False

    def decode(self, requests: Sequence[DecodeRequest]) -> list[Answer]:
        if not self._warm:
            self._warm = True
            return [Hypothesis(WARM_UP_TEXT, "en") for _ in requests]
        self.asked.set()
        assert self.gate.wait(30), "the test never opened the gate"
        self.requests += requests
        self.batches.append(len(requests))
        return [self.answer(request) for request in requests]


def scripted_engine(*models: ScriptedModel) -> OpenEngine:
    """Opens an engine on scripted models."""

    @asynccontextmanager
    async def open_engine(settings: ModelSettings) -> AsyncIterator[Engine]:
        engine = Engine(models)
        async with engine.serve():
            yield engine

    return open_engine
