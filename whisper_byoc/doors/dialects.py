"""What a batch request is answered with, transcript or error: `Plain` is our own form, `Pipeline`
Livepeer's and `OpenAi` OpenAI's."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from whisper_byoc import transcript
from whisper_byoc.doors.errors import error_document, status_of
from whisper_byoc.doors.requests import flag
from whisper_byoc.doors.uploads import Fields
from whisper_byoc.errors import InvalidOption, ServiceError
from whisper_byoc.transcript import Format


@dataclass(frozen=True, slots=True)
class Answer:
    """The form of an answer. streamed: whether words are sent as they become final, and not all of
    them at the end."""

    content_type: str
    writer: transcript.Writer
    streamed: bool = False


class Dialect(ABC):
    """What one family of callers asks with and looks for (pure)."""

    takes_nothing: ClassVar[bool]
    """Whether a request without a body is answered as one of silence."""

    @abstractmethod
    def answer(self, fields: Fields, accept: str | None, *, words: bool) -> Answer:
        """Raises InvalidOption."""

    @abstractmethod
    def error_body(self, error: ServiceError) -> dict[str, Any]:
        """The document that tells of an error."""


class Plain(Dialect):
    """Ours: the formats of the live door, JSON where none is named."""

    takes_nothing = True

    def answer(self, fields: Fields, accept: str | None, *, words: bool) -> Answer:
        streamed = flag("stream", _text(fields, "stream"))
        named = _choice(fields, ("response_format", "format"), [*Format, "verbose_json"])
        if streamed:
            chosen = Format.SSE
        elif named is not None:
            chosen = Format.JSON if named == "verbose_json" else Format(named)
        else:
            chosen = transcript.choose_format(None, f"{accept or ''},application/json;q=0.001")
            if chosen is Format.SSE and streamed is False:
                chosen = Format.JSON
        writer = transcript.WRITERS[chosen](words=words)
        return Answer(transcript.CONTENT_TYPES[chosen], writer, chosen is Format.SSE)

    def error_body(self, error: ServiceError) -> dict[str, Any]:
        return error_document(error.code, str(error))


class Pipeline(Dialect):
    """Livepeer's pipeline audio-to-text (go-livepeer, ai/worker)."""

    takes_nothing = False

    def answer(self, fields: Fields, accept: str | None, *, words: bool) -> Answer:
        # An empty value asks for none, as with ai-runner.
        given = fields.get("return_timestamps", "true")
        value = str(given).lower()
        if value not in ("", "true", "false", "word", "sentence"):
            raise InvalidOption("return_timestamps", value, "true, false, word or sentence")
        return Answer(transcript.CONTENT_TYPES[Format.JSON], ChunksWriter(value))

    def error_body(self, error: ServiceError) -> dict[str, Any]:
        return {"detail": {"msg": str(error)}}


class ChunksWriter(transcript.JsonWriter):
    """The document of Livepeer's pipeline. chunks: `word` asks for one chunk per word, `true` or
    `sentence` for one per utterance, anything else for none."""

    def __init__(self, chunks: str) -> None:
        super().__init__(words=True)
        self._chunks = chunks

    def _document(self, end: transcript.End) -> dict[str, Any]:
        ours = super()._document(end)
        match self._chunks:
            case "word":
                spoken = [
                    (it, it["word"]) for segment in ours["segments"] for it in segment["words"]
                ]
            case "true" | "sentence":
                spoken = [(it, it["text"]) for it in ours["segments"]]
            case _:
                spoken = []
        chunks = [{"timestamp": [it["start"], it["end"]], "text": text} for it, text in spoken]
        return {"text": ours["text"], "chunks": chunks}


class OpenAi(Dialect):
    """OpenAI's transcriptions, as its clients read them."""

    takes_nothing = False
    _FORMATS: ClassVar = (Format.TEXT, Format.SRT, Format.VTT)

    def answer(self, fields: Fields, accept: str | None, *, words: bool) -> Answer:
        known = ("json", "verbose_json", *self._FORMATS)
        named = _choice(fields, ("response_format",), known) or "json"
        details = _choices(fields, "timestamp_granularities", ("word", "segment")) or ["segment"]
        if flag("stream", _text(fields, "stream")):
            return Answer(transcript.CONTENT_TYPES[Format.SSE], DeltaWriter(), streamed=True)
        if named in self._FORMATS:
            chosen = Format(named)
            return Answer(transcript.CONTENT_TYPES[chosen], transcript.WRITERS[chosen]())
        if named == "json":
            details = []
        task = str(fields.get("task") or "transcribe")
        return Answer(transcript.CONTENT_TYPES[Format.JSON], OpenAiWriter(task, details))

    def error_body(self, error: ServiceError) -> dict[str, Any]:
        kind = "invalid_request_error" if status_of(error) < 500 else "server_error"
        param = error.name if isinstance(error, InvalidOption) else None
        return openai_problem(error.code, str(error), kind, param)


def openai_problem(
    code: str, message: str, kind: str = "server_error", param: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class OpenAiWriter(transcript.JsonWriter):
    """OpenAI's document. details: which lists it has, of `word` and `segment`; without any it is
    the text alone."""

    def __init__(self, task: str, details: Sequence[str]) -> None:
        super().__init__(words=True)
        self._task = task
        self._details = details

    def _document(self, end: transcript.End) -> dict[str, Any]:
        ours = super()._document(end)
        if not self._details:
            return {"text": ours["text"]}
        document = {
            "task": self._task,
            "language": ours["language"],
            "duration": ours["duration"],
            "text": ours["text"],
        }
        if "segment" in self._details:
            segments = [_only(it, "id", "start", "end", "text") for it in ours["segments"]]
            document["segments"] = segments
        if "word" in self._details:
            words = [word for segment in ours["segments"] for word in segment["words"]]
            document["words"] = [_only(word, "word", "start", "end") for word in words]
        return document


def _only(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: document[name] for name in names}


class DeltaWriter(transcript.Writer):
    """OpenAI's server-sent events: a delta for every final, then the text and `[DONE]`."""

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._failed = False

    def write(self, event: transcript.Event) -> str:
        match event:
            case transcript.Final():
                before = ("",) if self._text else ()
                delta = transcript.join_words((*before, event.text), event.language)
                self._text += delta
                return self._event({"type": "transcript.text.delta", "delta": delta})
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


def _choice(fields: Fields, names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of `names` that is there. Raises InvalidOption when it is not among `known`."""
    for name in names:
        value = _text(fields, name)
        if value is not None:
            if value.lower() not in known:
                raise InvalidOption(name, value, "one of " + ", ".join(known))
            return value.lower()
    return None


def _choices(fields: Fields, name: str, known: Sequence[str]) -> Sequence[str]:
    """The values of a field that may have several. Raises InvalidOption for one that is not among
    `known`."""
    values = fields.get(name) or []
    found = [values] if isinstance(values, str) else values
    if not isinstance(found, list) or not all(value in known for value in found):
        raise InvalidOption(name, str(values), "a list of " + ", ".join(known))
    return found


def _text(fields: Fields, name: str) -> str | None:
    """A field as text; None where it is absent or empty."""
    value = fields.get(name)
    return None if value in (None, "") else str(value)
