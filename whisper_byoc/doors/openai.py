"""OpenAI's dialect of a batch request: which fields it has, and the documents of transcriptions and
translations. docs/api.md has a table of them."""

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

from whisper_byoc import transcript
from whisper_byoc.decode import Task
from whisper_byoc.doors.dialects import Answer, Dialect, choice, text_of
from whisper_byoc.doors.errors import openai_document, openai_problem
from whisper_byoc.doors.requests import flag
from whisper_byoc.doors.uploads import Fields
from whisper_byoc.errors import InvalidOption, ServiceError
from whisper_byoc.jobs.options import JobOptions
from whisper_byoc.languages import NAMES
from whisper_byoc.transcript import Final, Format, SegmentDetail, Word, join_words

MODEL = "whisper-1"
"""OpenAI's name of Whisper, which clients must send some name of; it means ours."""
_LEAST_PROBABILITY = 1e-6
_SILENT = "unknown"
"""The language of a recording in which nothing was said; the field has to be a text."""


class OpenAi(Dialect):
    """OpenAI's transcriptions, or translations, as its clients ask for them and read them."""

    takes_nothing = False
    _FORMATS: ClassVar = (Format.TEXT, Format.SRT, Format.VTT)

    def __init__(self, task: Task) -> None:
        self._task = task

    def defaults(self, *, detects: bool) -> Fields:
        return {"task": self._task, **({"language": "auto"} if detects else {})}

    def options(self, fields: Fields) -> Fields:
        """`keywords` are our key terms, and one of `languages` is the language; of several it is
        found out which is spoken. A translation's task cannot be chosen."""
        named = dict(fields)
        if keywords := listed(fields, "keywords"):
            named.setdefault("keyterms", keywords)
        if languages := listed(fields, "languages"):
            named.setdefault("language", languages[0] if len(languages) == 1 else "auto")
        if self._task is Task.TRANSLATE:
            named["task"] = self._task
        return named

    def answer(self, fields: Fields, accept: str | None, options: JobOptions) -> Answer:
        known = ("json", "verbose_json", *self._FORMATS)
        named = choice(fields, ("response_format",), known) or "json"
        details = _all_of(fields, "timestamp_granularities", ("word", "segment"))
        logprobs = "logprobs" in _all_of(fields, "include", ("logprobs",))
        _check_temperature(fields)
        _check_chunking(fields)
        if flag("stream", text_of(fields, "stream")):
            writer = DeltaWriter(logprobs=logprobs)
            return Answer(transcript.CONTENT_TYPES[Format.SSE], writer, streamed=True)
        if named == Format.TEXT:
            return Answer(transcript.CONTENT_TYPES[Format.TEXT], LineWriter())
        if named in self._FORMATS:
            chosen = Format(named)
            return Answer(transcript.CONTENT_TYPES[chosen], transcript.WRITERS[chosen]())
        json_type = transcript.CONTENT_TYPES[Format.JSON]
        if named == "json":
            return Answer(json_type, ShortWriter(logprobs=logprobs))
        return Answer(json_type, VerboseWriter(options, details or ["segment"]))

    def error_body(self, error: ServiceError) -> dict[str, Any]:
        return openai_document(error)


class LineWriter(transcript.JsonWriter):
    """The text alone, on one line."""

    def write(self, event: transcript.Event) -> str:
        written = super().write(event)
        return self._text(self._finals) + "\n" if written else ""


class ShortWriter(transcript.JsonWriter):
    """The document `json`. logprobs: whether it says how probable the words were."""

    def __init__(self, *, logprobs: bool) -> None:
        super().__init__()
        self._logprobs = logprobs

    def _document(self, end: transcript.End) -> dict[str, Any]:
        document: dict[str, Any] = {"text": self._text(self._finals), "usage": _usage(end)}
        if self._logprobs:
            document["logprobs"] = [it for final in self._finals for it in _logprobs(final)]
        return document


class VerboseWriter(transcript.JsonWriter):
    """The document `verbose_json`. details: which lists it has, of `word` and `segment`."""

    def __init__(self, options: JobOptions, details: Sequence[str]) -> None:
        super().__init__()
        self._options = options
        self._details = details

    def _document(self, end: transcript.End) -> dict[str, Any]:
        document: dict[str, Any] = {
            "task": self._options.task,
            "language": self._language(),
            "duration": round(end.audio_seconds, 3),
            "text": self._text(self._finals),
        }
        if "segment" in self._details:
            passages = enumerate(_passages(self._finals))
            document["segments"] = [self._passage(number, finals) for number, finals in passages]
        if "word" in self._details:
            words = [word for final in self._finals for word in final.words]
            document["words"] = [_timed(word) for word in words]
        return {**document, "usage": _usage(end)}

    def _language(self) -> str:
        """The name of the first one that was heard."""
        code = self._finals[0].language if self._finals else self._options.language
        return NAMES.get(code or "", _SILENT)

    def _passage(self, number: int, finals: Sequence[Final]) -> dict[str, Any]:
        text = join_words(("", self._text(finals)), finals[0].language)
        detail = finals[0].detail or _reckoned(text, finals)
        return {
            "id": number,
            "seek": detail.seek,
            "start": round(finals[0].start, 3),
            "end": round(finals[-1].end, 3),
            "text": text,
            "tokens": detail.tokens,
            "temperature": detail.temperature,
            "avg_logprob": detail.avg_logprob,
            "compression_ratio": detail.compression_ratio,
            "no_speech_prob": detail.no_speech_prob,
        }


class DeltaWriter(transcript.Writer):
    """OpenAI's server-sent events: a delta for every final, then the text and `[DONE]`."""

    def __init__(self, *, logprobs: bool = False) -> None:
        super().__init__()
        self._logprobs = logprobs
        self._text = ""
        self._failed = False

    def write(self, event: transcript.Event) -> str:
        match event:
            case Final():
                return self._delta(event)
            case transcript.Failure():
                self._failed = True
                return self._event(openai_problem(event.code, event.message))
            case transcript.End() if self._failed:
                return transcript.SSE_DONE
            case transcript.End():
                return self._done() + transcript.SSE_DONE
        return ""

    def keepalive(self) -> str:
        return transcript.SSE_KEEPALIVE

    def progress(self, seconds: float, percent: int | None) -> str:
        """A comment: OpenAI has no event for it, and clients skip comments."""
        share = "" if percent is None else f", {percent} %"
        return f": progress {seconds:.1f} s{share}\n\n"

    def _delta(self, final: Final) -> str:
        before = ("",) if self._text else ()
        delta = join_words((*before, final.text), final.language)
        self._text += delta
        told = {"logprobs": _logprobs(final)} if self._logprobs else {}
        return self._event({"type": "transcript.text.delta", "delta": delta, **told})

    def _done(self) -> str:
        """The event with the whole text, left out where relays would not pass a line so long on."""
        done = self._event({"type": "transcript.text.done", "text": self._text})
        if len(done.encode()) < transcript.MAX_LINE_BYTES:
            return done
        note = "the text is too long for one line: it is that of the deltas, one behind the other"
        return self._event({"type": "transcript.text.done", "text": "", "note": note})

    @staticmethod
    def _event(document: Mapping[str, Any]) -> str:
        line = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
        return transcript.sse_data(line)


def _passages(finals: Sequence[Final]) -> list[list[Final]]:
    """The finals of each segment: one that says how it was decoded alone, others by utterances."""
    passages: list[list[Final]] = []
    for final in finals:
        before = passages[-1][-1] if passages else None
        if (
            before is None
            or before.detail is not None
            or final.detail is not None
            or before.utterance != final.utterance
        ):
            passages.append([])
        passages[-1].append(final)
    return passages


def _reckoned(text: str, finals: Sequence[Final]) -> SegmentDetail:
    """What is known of a passage whose decoder has told nothing: how probable its words were, and
    what its text is like."""
    words = [word for final in finals for word in final.words]
    return SegmentDetail(
        seek=round(finals[0].start * 100),
        tokens=(),
        temperature=0.0,
        avg_logprob=sum(map(_logprob, words)) / max(1, len(words)),
        compression_ratio=len(text.encode()) / len(zlib.compress(text.encode())),
        no_speech_prob=0.0,
    )


def _logprob(word: Word) -> float:
    return math.log(max(word.probability, _LEAST_PROBABILITY))


def _logprobs(final: Final) -> list[dict[str, Any]]:
    """An entry a word, since it is words whose probability is known."""
    texts = (join_words(("", word.text), final.language) for word in final.words)
    return [
        {"token": text, "logprob": _logprob(word), "bytes": list(text.encode())}
        for text, word in zip(texts, final.words, strict=True)
    ]


def _timed(word: Word) -> dict[str, Any]:
    return {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}


def _usage(end: transcript.End) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(end.audio_seconds)}


def listed(fields: Fields, name: str) -> list[str]:
    """The texts of a field that may have several: a list, one in JSON, or with commas between."""
    value = fields.get(name)
    if isinstance(value, str) and value.strip().startswith("["):
        with suppress(ValueError):  # it is a text in brackets
            value = json.loads(value)
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    texts = (it for text in values for it in re.split("[,\n]", str(text)))
    return [text.strip(" \t\"'[]") for text in texts if text.strip(" \t\"'[]")]


def _all_of(fields: Fields, name: str, known: Sequence[str]) -> list[str]:
    """As `listed`. Raises InvalidOption for one that is not among `known`."""
    found = [value.lower() for value in listed(fields, name)]
    if not all(value in known for value in found):
        raise InvalidOption(name, ", ".join(found), "a list of " + ", ".join(known))
    return found


def _check_temperature(fields: Fields) -> None:
    """It has no effect: what is not believed at 0 is decoded again at higher ones, as with Whisper.
    Raises InvalidOption for what is none."""
    given = text_of(fields, "temperature")
    try:
        right = given is None or 0 <= float(given) <= 1
    except ValueError:
        right = False
    if not right:
        raise InvalidOption("temperature", str(given), "a number from 0 to 1")


def _check_chunking(fields: Fields) -> None:
    """It has no effect: recordings are always divided by voice activity. Raises InvalidOption for
    what is none."""
    given: Any = fields.get("chunking_strategy")
    if isinstance(given, str) and given.strip().startswith("{"):
        with suppress(ValueError):  # it is no strategy
            given = json.loads(given)
    kind = given.get("type") if isinstance(given, dict) else given
    if kind not in (None, "", "auto", "server_vad"):
        raise InvalidOption("chunking_strategy", str(given), "auto, or an object of server_vad")
