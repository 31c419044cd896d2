"""What streaming asks of inference and what comes back (pure).

Both sides import this module and nothing of one another.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.transcript import Word

FRAME_SAMPLES = 512
"""One frame of voice activity: Silero's 32 ms at 16 kHz."""

MAX_WINDOW_SECONDS = 30.0
"""Whisper's positional table ends here, so no window may be longer."""

MAX_NO_SPEECH_PROBABILITY = 0.6
MIN_AVG_LOGPROB = -1.0
"""Whisper's own limits of what it believes to be speech (openai-whisper, transcribe.py)."""


class Task(StrEnum):
    TRANSCRIBE = "transcribe"
    TRANSLATE = "translate"


class Effort(StrEnum):
    """How much is computed to find a window's words."""

    QUICK = "quick"
    """One text, of the most probable token each time."""
    THOROUGH = "thorough"
    """Several texts, of which the one with the least expected word errors is chosen."""


class Rung(StrEnum):
    """Which attempt at a window gave a hypothesis, from the first to the last."""

    FIRST = "first"
    PADDED = "padded"
    """The window was padded with silence to 30 s, and there was no prompt."""
    SAMPLED = "sampled"
    """Tokens were drawn at random, by their probabilities, at a temperature above 0."""
    NONE = "none"
    """No attempt was believed: this is the most probable one that does not loop."""


class Trip(StrEnum):
    """Why the first attempt at a window was not believed."""

    CAP = "cap"
    """It has more tokens than that much speech can have."""
    LOOP = "loop"
    """It repeats itself, and compresses well."""
    IMPROBABLE = "improbable"
    """Its mean log-probability is under Whisper's limit."""


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """One window of one stream, to be decoded once.

    samples: float32 (n,), 16 kHz mono in [-1, 1), at most `MAX_WINDOW_SECONDS`.
    deadline: event-loop time in seconds by which the answer is wanted; earlier ones go first.
    language: Whisper's code, or None to detect it (multilingual weights only).
    prompt: text that the decoder is told came before, or None.
    retry: whether to make further attempts when the first is not believed.
    forced: words that the text is made to begin with; the hypothesis holds those behind them.
    draft: words that may come behind those, say of the last hypothesis. They are tried in one pass,
    so a good draft makes decoding cheaper; it never changes the words.
    effort: how much is computed. A thorough decode has no use for a draft.
    """

    samples: NDArray[np.float32]
    deadline: float
    language: str | None = "en"
    task: Task = Task.TRANSCRIBE
    prompt: str | None = None
    retry: bool = True
    forced: str = ""
    draft: str = ""
    effort: Effort = Effort.QUICK


@dataclass(frozen=True, slots=True)
class Evidence:
    """How a word was heard: taken over the tokens of its letters, without punctuation.

    attended: where in the audio the decoder looked latest, in seconds from the start of the window.
    tail_mass: the largest share of a token's attention that was behind the end of the audio.
    probability: the lowest of a token.
    num_tokens: of the word, punctuation included; 0 where nobody has counted.
    """

    attended: float
    tail_mass: float
    probability: float
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the decoder heard in one window.

    language: of the text; a translation is English.
    words: in order, times in seconds from the start of the window.
    evidence: of each of the words; empty from engines that cannot tell.
    tokens: of the text, in Whisper's vocabulary. temperature: they were chosen at.
    avg_logprob: mean log-probability of the tokens, end-of-text included.
    no_speech_prob: probability of Whisper's no-speech token.
    compression_ratio: text bytes over deflated bytes; above 2.4 Whisper calls it a loop.
    rung: which attempt gave it. trip: why the first attempt was not believed; None if it was.
    word_delay: seconds by which these weights put words too late, most of the time; `words` has it
    still, since places for cuts were measured with it, and the words of events have not.
    """

    text: str
    language: str
    words: tuple[Word, ...] = ()
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    compression_ratio: float = 1.0
    rung: Rung = Rung.FIRST
    trip: Trip | None = None
    evidence: tuple[Evidence, ...] = ()
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    word_delay: float = 0.0
