"""Words, the events of a job, and the formats they are written in (pure)."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, ClassVar

from whisper_byoc.errors import InvalidOption

# What broadcasters allow a subtitle, so that it can be read in time.
MAX_CUE_SECONDS = 7.0
MIN_CUE_SECONDS = 0.7
MAX_LINE_CHARACTERS = 42
MAX_CUE_LINES = 2

DONE = "[DONE]"
"""Ends server-sent events, as OpenAI does and orchestrators expect."""
SSE_DONE = f"data: {DONE}\n\n"
SSE_KEEPALIVE = ": keepalive\n\n"
"""A comment, which clients skip (HTML standard, server-sent events)."""
MAX_LINE_BYTES = 60 * 1024
"""Of an event that orchestrators and gateways pass on: they scan lines and give up at 64 KiB."""
OCTETS = "application/octet-stream"
UNSPACED = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages that are written without spaces between words (whisper/tokenizer.py)."""


def join_words(texts: Iterable[str], language: str) -> str:
    """One text of words or pieces of text, with or without spaces between, as the language has."""
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
    """What was heard and may still change. Replaces the previous partial of its utterance; an empty
    text takes that back. start, end: seconds of the stream."""

    type: ClassVar[str] = "partial"
    seq: int
    utterance: int
    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class SegmentDetail:
    """How a passage of a recording was decoded, as in Whisper's own segments.

    seek: where its window begins, in frames of 10 ms of the recording. tokens: ids of the weights'
    vocabulary. temperature: at which they were drawn, 0 for the most probable. avg_logprob: mean
    log-probability of the tokens. compression_ratio: text bytes over deflated bytes.
    no_speech_prob: of Whisper's no-speech token, 0..1.
    """

    seek: int
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


@dataclass(frozen=True, slots=True)
class Final:
    """Words that never change: the transcript is all finals, one behind the other. start, end:
    seconds of the stream. detail: of a passage that was decoded whole, where its decoder tells;
    no event that is written has it."""

    type: ClassVar[str] = "final"
    seq: int
    utterance: int
    start: float
    end: float
    text: str
    words: tuple[Word, ...]
    language: str
    detail: SegmentDetail | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The speech of this utterance is over, and all of it is final. time: where its audio ends, in
    seconds of the stream."""

    type: ClassVar[str] = "endpoint"
    seq: int
    utterance: int
    time: float


class EndReason(StrEnum):
    """Why a job has ended."""

    EOF = "eof"
    """Its input has come to its end."""
    DISCONNECTED = "disconnected"
    """Its input broke off: whoever sent it has gone."""
    STOPPED = "stopped"
    """Somebody asked for it."""
    IDLE = "idle"
    """No input came for too long."""
    RELEASED = "released"
    """Its session of a Live Runner is over."""
    SHUTDOWN = "shutdown"
    """The service stops."""
    ERROR = "error"
    """Its input could not be used, or could not be worked on."""


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
    final event brings its words one by one. Seconds are rounded to milliseconds."""
    document: dict[str, Any] = {"type": event.type} | {
        name: getattr(event, name) for name in event.__slots__
    }
    if isinstance(event, Final):
        del document["detail"]
        document["words"] = [word_document(word) for word in event.words]
        if not words:
            del document["words"]
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in document.items()
    }


_WRITTEN = {kind.type: kind for kind in (Partial, Final, Endpoint, End, Failure)}


def event_of(document: Mapping[str, Any]) -> Event:
    """The event that `event_document` wrote; a final that came without its words has none. Other
    fields mean nothing. Raises KeyError, TypeError or ValueError for what is no event."""
    kind = _WRITTEN[document["type"]]
    values = {name: document[name] for name in kind.__slots__ if name in document}
    if kind is Final:
        values.pop("detail", None)
        words = (dict(word) for word in document.get("words", ()))
        values["words"] = tuple(Word(word.pop("word"), **word) for word in words)
    if kind is End:
        values["reason"] = EndReason(values["reason"])
    event: Event = kind(**values)
    return event


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
_ACCEPTED = {kind.partition(";")[0]: output for output, kind in CONTENT_TYPES.items()} | {
    "application/jsonl": Format.NDJSON,
    "text/srt": Format.SRT,
}
"""Formats by the types that an `Accept` header may name."""


def choose_format(query: str | None, accept: str | None) -> Format:
    """`?format=` wins over `Accept`; plain text when neither names one of ours.

    Raises InvalidOption when `query` is no format.
    """
    if query is not None:
        try:
            return Format(query.lower())
        except ValueError:
            raise InvalidOption("format", query, "one of " + ", ".join(Format)) from None
    offers = [(0.0, Format.TEXT)]
    for offer in "".join((accept or "").lower().split()).split(","):
        name = offer.partition(";")[0]
        if name in _ACCEPTED:
            offers.append((_quality(offer), _ACCEPTED[name]))
    return max(offers, key=itemgetter(0))[1]


def _quality(offer: str) -> float:
    """How welcome one type of an `Accept` header without spaces is: 1 unless it says `q=`, and 0
    when that is no number."""
    _, told, rest = offer.partition(";q=")
    try:
        return float(rest.partition(";")[0]) if told else 1.0
    except ValueError:
        return 0.0


class Writer(ABC):
    """Turns the events of one job, in order, into the pieces of one output; words: whether JSON is
    to bring every word with its times."""

    def __init__(self, *, words: bool = True) -> None:
        self.words = words

    def begin(self) -> str:
        """What comes before the first event."""
        return ""

    @abstractmethod
    def write(self, event: Event) -> str | bytes:
        """What the next event adds; empty when it adds nothing, or nothing yet."""

    def keepalive(self) -> str:
        """What may be sent while nothing happens; empty where the format has no such thing."""
        return ""

    def progress(self, seconds: float, percent: int | None) -> str:
        """Tell how far a recording has come; empty where the format has no place for it. seconds:
        of it that are heard; percent: None while its length is not known."""
        return ""


class TextWriter(Writer):
    """Finals only, one utterance a line."""

    _utterance: int | None = None
    """Of the line that is open."""

    def write(self, event: Event) -> str:
        match event:
            case Final():
                before, self._utterance = self._utterance, event.utterance
                if before == event.utterance:
                    return join_words(("", event.text), event.language)
                return event.text if before is None else "\n" + event.text
            case Endpoint() | End() if self._utterance is not None:
                self._utterance = None
                return "\n"
        return ""


class NdjsonWriter(Writer):
    """One event a line. An empty line keeps the connection alive: whoever reads JSON skips it."""

    def write(self, event: Event) -> str:
        return event_line(event, words=self.words) + "\n"

    def keepalive(self) -> str:
        return "\n"


def sse_data(line: str) -> str:
    """The data of one server-sent event: a line of JSON. Gateways take the whole stream for ended
    when they find `[DONE]` anywhere in a line, so a transcript that says it is escaped."""
    return "data: " + line.replace(DONE, "\\u005bDONE]") + "\n\n"


class SseWriter(Writer):
    """Server-sent events whose ids are the events' seq, ended by `data: [DONE]`."""

    def write(self, event: Event) -> str:
        data = sse_data(event_line(event, words=self.words))
        text = f"id: {event.seq}\nevent: {event.type}\n{data}"
        return text + SSE_DONE if isinstance(event, End) else text

    def keepalive(self) -> str:
        return SSE_KEEPALIVE

    def progress(self, seconds: float, percent: int | None) -> str:
        """An event without an id, since it has no place among the others and is not kept."""
        told = {"type": "progress", "seconds": round(seconds, 3), "percent": percent}
        line = json.dumps(told, separators=(",", ":"))
        return f"event: progress\n{sse_data(line)}"


class JsonWriter(Writer):
    """One document, with the text of all utterances, when the job has ended."""

    _failure: Failure | None = None

    def __init__(self, *, words: bool = True) -> None:
        super().__init__(words=words)
        self._finals: list[Final] = []

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
        utterances = groupby(self._finals, key=attrgetter("utterance"))
        document: dict[str, Any] = {
            "text": self._text(self._finals),
            "language": self._finals[0].language if self._finals else None,
            "duration": round(end.audio_seconds, 3),
            "reason": end.reason,
            "segments": [
                self._segment(number, list(finals)) for number, (_, finals) in enumerate(utterances)
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


@dataclass(slots=True)
class Cue:
    """One subtitle, in the making: at most two lines of 42 characters, at most 7 s, unless one word
    is longer. start, end: when it is shown, in seconds; a short one longer than its words."""

    words: list[Word]
    language: str
    start: float
    end: float

    @classmethod
    def of(cls, word: Word, language: str) -> "Cue":
        return cls([word], language, word.start, word.end)

    @property
    def lines(self) -> list[str]:
        return _wrapped(self.words, self.language)

    @property
    def is_readable(self) -> bool:
        return self.end - self.start >= MIN_CUE_SECONDS

    def take(self, word: Word) -> bool:
        """Put a word behind the others, if there is room for it."""
        fits = len(_wrapped([*self.words, word], self.language)) <= MAX_CUE_LINES
        if not fits or word.end - self.start > MAX_CUE_SECONDS:
            return False
        self.words.append(word)
        self.end = word.end
        return True

    def take_from(self, before: "Cue") -> bool:
        """Take the last word of the cue before this one, if both can do with that."""
        *kept, word = before.words
        fits = len(_wrapped([word, *self.words], self.language)) <= MAX_CUE_LINES
        if not kept or not fits or kept[-1].end - before.start < MIN_CUE_SECONDS:
            return False
        before.words, before.end = kept, kept[-1].end
        self.words, self.start = [word, *self.words], word.start
        return True

    def linger(self, earliest: float, latest: float) -> None:
        """Have a cue that is too short shown longer: behind its words, else before them, within
        these times."""
        if not self.is_readable:
            self.end = max(self.end, min(self.start + MIN_CUE_SECONDS, latest))
        if not self.is_readable:
            self.start = min(self.start, max(self.end - MIN_CUE_SECONDS, earliest))


def _wrapped(words: Iterable[Word], language: str) -> list[str]:
    """Lines that are not too long, unless a word is."""
    lines: list[str] = []
    for word in words:
        longer = join_words((lines[-1], word.text), language) if lines else ""
        if lines and len(longer) <= MAX_LINE_CHARACTERS:
            lines[-1] = longer
        else:
            lines.append(word.text)
    return lines


class _CueWriter(Writer):
    """Writes a cue when it is full or its utterance is over, whatever finals its words came in. A
    full one waits until the next can be read, or the last words of an utterance would flash by; a
    short one until it is known how long it may stay."""

    _cue: Cue | None = None
    _before: Cue | None = None
    """The full one before it, of the same utterance."""
    _utterance: int | None = None
    _written = 0.0
    """When the last one that was written is over."""

    def write(self, event: Event) -> str:
        written = ""
        match event:
            case Final():
                if event.utterance != self._utterance:
                    written = self._close(event.start)
                self._utterance = event.utterance
                for word in event.words:
                    written += self._take(word, event.language)
            case Endpoint() if self._cue and event.time - self._cue.start >= MIN_CUE_SECONDS:
                written = self._close(event.time)
            case End():
                written = self._close(event.audio_seconds)
        return written

    def _take(self, word: Word, language: str) -> str:
        if self._cue is None:
            self._cue = Cue.of(word, language)
            return ""
        if self._cue.take(word):
            return self._write_before() if self._cue.is_readable else ""
        written = self._settle(word.start)
        self._before, self._cue = self._cue, Cue.of(word, language)
        return written

    def _close(self, latest: float) -> str:
        if self._cue is None:
            return ""
        written = self._settle(latest)
        self._before, self._cue = self._cue, None
        return written + self._write_before()

    def _settle(self, latest: float) -> str:
        """Make the cue readable, before this time, and write the one before it."""
        cue, before = self._cue, self._before
        assert cue is not None
        cue.linger(cue.start, latest)
        while before is not None and not cue.is_readable and cue.take_from(before):
            pass
        written = self._write_before()
        cue.linger(self._written, latest)
        return written

    def _write_before(self) -> str:
        cue, self._before = self._before, None
        if cue is None:
            return ""
        self._written = cue.end
        return self._text(cue)

    @abstractmethod
    def _text(self, cue: Cue) -> str: ...


class SrtWriter(_CueWriter):
    _count = 0

    def _text(self, cue: Cue) -> str:
        self._count += 1
        times = f"{clock(cue.start, ',')} --> {clock(cue.end, ',')}"
        return f"{self._count}\n{times}\n" + "\n".join(cue.lines) + "\n\n"


class VttWriter(_CueWriter):
    _ESCAPES: ClassVar = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

    def begin(self) -> str:
        return "WEBVTT\n\n"

    def _text(self, cue: Cue) -> str:
        times = f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}"
        return f"{times}\n" + "\n".join(cue.lines).translate(self._ESCAPES) + "\n\n"


def clock(seconds: float, point: str) -> str:
    """A time as `hh:mm:ss`, with its milliseconds behind `point`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return (
        f"{minutes // 60:02}:{minutes % 60:02}:"
        f"{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
    )


class PayloadWriter(Writer):
    """The bytes of all payloads, one behind the other."""

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
