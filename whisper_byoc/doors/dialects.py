"""What a batch request asks with and is answered with, transcript or error: `Plain` is our own form
and `Pipeline` Livepeer's; OpenAI's is `doors/openai`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from whisper_byoc import transcript
from whisper_byoc.doors.errors import error_document
from whisper_byoc.doors.requests import flag
from whisper_byoc.doors.uploads import Fields
from whisper_byoc.errors import InvalidOption, ServiceError
from whisper_byoc.jobs.options import JobOptions
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

    def defaults(self, *, detects: bool) -> Fields:
        """Values of options in place of the service's, for who names none. detects: whether the
        weights that are loaded can find out a language."""
        return {}

    def options(self, fields: Fields) -> Fields:
        """The fields with our options by our names. Raises InvalidOption."""
        return fields

    @abstractmethod
    def answer(self, fields: Fields, accept: str | None, options: JobOptions) -> Answer:
        """Raises InvalidOption."""

    @abstractmethod
    def error_body(self, error: ServiceError) -> dict[str, Any]:
        """The document that tells of an error."""


class Plain(Dialect):
    """Ours: the formats of the live door, JSON where none is named."""

    takes_nothing = True

    def answer(self, fields: Fields, accept: str | None, options: JobOptions) -> Answer:
        streamed = flag("stream", text_of(fields, "stream"))
        named = choice(fields, ("response_format", "format"), [*Format, "verbose_json"])
        if streamed:
            chosen = Format.SSE
        elif named is not None:
            chosen = Format.JSON if named == "verbose_json" else Format(named)
        else:
            chosen = transcript.choose_format(None, f"{accept or ''},application/json;q=0.001")
            if chosen is Format.SSE and streamed is False:
                chosen = Format.JSON
        writer = transcript.WRITERS[chosen](words=options.words)
        return Answer(transcript.CONTENT_TYPES[chosen], writer, chosen is Format.SSE)

    def error_body(self, error: ServiceError) -> dict[str, Any]:
        return error_document(error.code, str(error))


class Pipeline(Dialect):
    """Livepeer's pipeline audio-to-text (go-livepeer, ai/worker)."""

    takes_nothing = False

    def answer(self, fields: Fields, accept: str | None, options: JobOptions) -> Answer:
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


def choice(fields: Fields, names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of `names` that is there. Raises InvalidOption when it is not among `known`."""
    for name in names:
        value = text_of(fields, name)
        if value is not None:
            if value.lower() not in known:
                raise InvalidOption(name, value, "one of " + ", ".join(known))
            return value.lower()
    return None


def text_of(fields: Fields, name: str) -> str | None:
    """A field as text; None where it is absent or empty."""
    value = fields.get(name)
    return None if value in (None, "") else str(value)
