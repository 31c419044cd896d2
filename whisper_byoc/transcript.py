"""Words, the events of a job, and the formats they are written in (pure)."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import Any, ClassVar

from whisper_byoc.errors import InvalidOption

MAX_CUE_SECONDS = 7.0
MAX_LINE_CHARACTERS = 42
MAX_CUE_LINES = 2
DONE = "[DONE]"
SSE_DONE = f"data: {DONE}\n\n"
SSE_KEEPALIVE = ": keepalive\n\n"
"""Ends server-sent events, as OpenAI does and orchestrators expect."""
MAX_LINE_BYTES = 60 * 1024
"""Of an event that orchestrators and gateways pass on: they scan lines and give up at 64 KiB."""
OCTETS = "application/octet-stream"
UNSPACED = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages that are written without spaces between words (whisper/tokenizer.py)."""


def join_words(texts: Iterable[str], language: str) -> str:
    """As the language is written."""
    return ("" if language in UNSPACED else " ").join(texts)


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its punctuation and no space around it; seconds, probability in 0..1."""

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True)
class Partial:
    """Replaces the previous partial of its utterance; an empty text takes it back."""

    type: ClassVar[str] = "partial"
    seq: int
    utterance: int
    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Final:
    """Words that never change; every final appends to the transcript."""

    type: ClassVar[str] = "final"
    seq: int
    utterance: int
    start: float
    end: float
    text: str
    words: tuple[Word, ...]
    language: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The speech of this utterance is over, and all of it is final."""

    type: ClassVar[str] = "endpoint"
    seq: int
    utterance: int
    time: float


class EndReason(StrEnum):
    EOF = "eof"
    DISCONNECTED = "disconnected"
    STOPPED = "stopped"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class End:
    """The last event of every job, after an error too."""

    type: ClassVar[str] = "end"
    seq: int
    audio_seconds: float
    reason: EndReason


@dataclass(frozen=True, slots=True)
class Failure:
    """Something went wrong with this job; `code` is a code of `errors.py`."""

    type: ClassVar[str] = "error"
    seq: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Payload:
    """What a hosted processor made of one input; the only event that is not written as JSON."""

    type: ClassVar[str] = "payload"
    seq: int
    data: bytes


Event = Partial | Final | Endpoint | End | Failure | Payload


def event_document(event: Event, *, words: bool = True) -> dict[str, Any]:
    """The JSON object of an event, the same for NDJSON, SSE and data channels; words: whether a
    final's are wanted."""
    document: dict[str, Any] = {"type": event.type}
    for name in event.__slots__:
        if name == "words" and not words:
            continue
        value = getattr(event, name)
        if isinstance(value, float):
            value = round(value, 3)
        elif name == "words":
            value = [word_document(word) for word in value]
        document[name] = value
    return document


def word_document(word: Word) -> dict[str, Any]:
    return {
        "word": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "probability": round(word.probability, 3),
    }


def event_line(event: Event, *, words: bool = True) -> str:
    """One event as JSON on one line, without the line end."""
    document = event_document(event, words=words)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


class Format(StrEnum):
    TEXT = "text"
    NDJSON = "ndjson"
    JSON = "json"
    SSE = "sse"
    VTT = "vtt"
    SRT = "srt"


CONTENT_TYPES = {
    Format.TEXT: "text/plain; charset=utf-8",
    Format.NDJSON: "application/x-ndjson",
    Format.JSON: "application/json",
    Format.SSE: "text/event-stream; charset=utf-8",
    Format.VTT: "text/vtt; charset=utf-8",
    Format.SRT: "application/x-subrip; charset=utf-8",
}
_ACCEPTED = {
    "text/plain": Format.TEXT,
    "application/x-ndjson": Format.NDJSON,
    "application/jsonl": Format.NDJSON,
    "application/json": Format.JSON,
    "text/event-stream": Format.SSE,
    "text/vtt": Format.VTT,
    "application/x-subrip": Format.SRT,
    "text/srt": Format.SRT,
}


def choose_format(query: str | None, accept: str | None) -> Format:
    """`?format=` wins over `Accept`; plain text when neither names one of ours.

    Raises InvalidOption when `query` is no format.
    """
    if query is not None:
        try:
            return Format(query.lower())
        except ValueError:
            raise InvalidOption("format", query, "one of " + ", ".join(Format)) from None
    offers: list[tuple[float, Format]] = []
    for part in (accept or "").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name in _ACCEPTED:
            offers.append((_quality(parameters), _ACCEPTED[name]))
    best = max(offers, key=lambda offer: offer[0], default=(1.0, Format.TEXT))
    return best[1] if best[0] > 0 else Format.TEXT


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


class Writer(ABC):
    """Turns the events of one job, in order, into the pieces of one output; words: whether JSON is
    to bring every word with its times."""

    def __init__(self, *, words: bool = True) -> None:
        self.words = words

    def begin(self) -> str:
        return ""

    @abstractmethod
    def write(self, event: Event) -> str | bytes: ...

    def keepalive(self) -> str:
        """What may be sent while nothing happens; empty where the format has no such thing."""
        return ""


class TextWriter(Writer):
    """Finals only, one utterance a line."""

    def __init__(self, *, words: bool = True) -> None:
        super().__init__(words=words)
        self._utterance: int | None = None

    def write(self, event: Event) -> str:
        match event:
            case Final():
                if self._utterance is None:
                    lead = ""
                elif event.utterance != self._utterance:
                    lead = "\n"
                else:
                    lead = "" if event.language in UNSPACED else " "
                self._utterance = event.utterance
                return lead + event.text
            case Endpoint() | End() if self._utterance is not None:
                self._utterance = None
                return "\n"
        return ""


class NdjsonWriter(Writer):
    def write(self, event: Event) -> str:
        return event_line(event, words=self.words) + "\n"


def sse_data(line: str) -> str:
    """A line of JSON as one server-sent event, or the end of one. What relays it looks for the end
    of all by its text, anywhere in a line, so that is written otherwise."""
    return "data: " + line.replace(DONE, "\\u005bDONE]") + "\n\n"


class SseWriter(Writer):
    """Server-sent events whose ids are the events' seq, ended by `data: [DONE]`."""

    def write(self, event: Event) -> str:
        data = sse_data(event_line(event, words=self.words))
        text = f"id: {event.seq}\nevent: {event.type}\n{data}"
        return text + SSE_DONE if isinstance(event, End) else text

    def keepalive(self) -> str:
        return SSE_KEEPALIVE


class JsonWriter(Writer):
    """One document when the job has ended."""

    def __init__(self, *, words: bool = True) -> None:
        super().__init__(words=words)
        self._finals: list[Final] = []
        self._failure: Failure | None = None

    def write(self, event: Event) -> str:
        match event:
            case Final():
                self._finals.append(event)
            case Failure():
                self._failure = event
            case End():
                return json.dumps(self._document(event), ensure_ascii=False) + "\n"
        return ""

    def _document(self, end: End) -> dict[str, Any]:
        document: dict[str, Any] = {
            "text": self._text(self._finals),
            "language": self._finals[0].language if self._finals else None,
            "duration": round(end.audio_seconds, 3),
            "reason": end.reason,
            "segments": [
                self._segment(number, list(finals))
                for number, (_, finals) in enumerate(
                    groupby(self._finals, key=lambda final: final.utterance)
                )
            ],
        }
        if self._failure is not None:
            document["error"] = {"code": self._failure.code, "message": self._failure.message}
        return document

    @staticmethod
    def _text(finals: Sequence[Final]) -> str:
        return "".join(
            join_words(("", final.text) if number else (final.text,), final.language)
            for number, final in enumerate(finals)
        )

    def _segment(self, number: int, finals: Sequence[Final]) -> dict[str, Any]:
        """An utterance, in however many pieces it became final."""
        segment = {
            "id": number,
            "utterance": finals[0].utterance,
            "start": round(finals[0].start, 3),
            "end": round(finals[-1].end, 3),
            "text": self._text(finals),
        }
        if self.words:
            segment["words"] = [word_document(word) for final in finals for word in final.words]
        return segment


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle: at most two lines of 42 characters, at most 7 s, unless one word is longer."""

    start: float
    end: float
    lines: tuple[str, ...]


@dataclass(slots=True)
class _OpenCue:
    words: list[Word] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    space: str = " "

    def takes(self, word: Word) -> bool:
        if not self.words:
            return True
        if word.end - self.words[0].start > MAX_CUE_SECONDS:
            return False
        return len(self.lines) < MAX_CUE_LINES or self._fits(word)

    def _fits(self, word: Word) -> bool:
        return len(self.lines[-1] + self.space + word.text) <= MAX_LINE_CHARACTERS

    def add(self, word: Word) -> None:
        if self.lines and self._fits(word):
            self.lines[-1] += self.space + word.text
        else:
            self.lines.append(word.text)
        self.words.append(word)

    def close(self) -> Cue:
        return Cue(self.words[0].start, self.words[-1].end, tuple(self.lines))


class _CueWriter(Writer):
    """Writes a cue when it is full or its utterance is over, whatever finals its words came in."""

    def __init__(self, *, words: bool = True) -> None:
        super().__init__(words=words)
        self._open = _OpenCue()
        self._utterance: int | None = None

    def write(self, event: Event) -> str:
        cues: list[Cue] = []
        match event:
            case Final():
                if event.utterance != self._utterance:
                    self._flush(cues)
                self._utterance = event.utterance
                self._open.space = join_words(("", ""), event.language)
                for word in event.words:
                    if not self._open.takes(word):
                        self._flush(cues)
                    self._open.add(word)
            case Endpoint() | Failure() | End():
                self._flush(cues)
        return "".join(map(self._cue, cues))

    def _flush(self, cues: list[Cue]) -> None:
        if self._open.words:
            cues.append(self._open.close())
            self._open = _OpenCue(space=self._open.space)

    @abstractmethod
    def _cue(self, cue: Cue) -> str: ...


class SrtWriter(_CueWriter):
    def __init__(self, *, words: bool = True) -> None:
        super().__init__(words=words)
        self._count = 0

    def _cue(self, cue: Cue) -> str:
        self._count += 1
        times = f"{clock(cue.start, ',')} --> {clock(cue.end, ',')}"
        return f"{self._count}\n{times}\n" + "\n".join(cue.lines) + "\n\n"


class VttWriter(_CueWriter):
    _ESCAPES: ClassVar = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

    def begin(self) -> str:
        return "WEBVTT\n\n"

    def _cue(self, cue: Cue) -> str:
        times = f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}"
        return f"{times}\n" + "\n".join(cue.lines).translate(self._ESCAPES) + "\n\n"


def clock(seconds: float, point: str) -> str:
    """`hh:mm:ss` and milliseconds after `point`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return (
        f"{minutes // 60:02}:{minutes % 60:02}:"
        f"{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
    )


class PayloadWriter(Writer):
    """The payloads as they are, one behind the other."""

    def write(self, event: Event) -> bytes:
        return event.data if isinstance(event, Payload) else b""


WRITERS: dict[Format, type[Writer]] = {
    Format.TEXT: TextWriter,
    Format.NDJSON: NdjsonWriter,
    Format.JSON: JsonWriter,
    Format.SSE: SseWriter,
    Format.VTT: VttWriter,
    Format.SRT: SrtWriter,
}
