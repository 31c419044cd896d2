"""What a caller may choose for one job, at its start and while it runs (pure)."""

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from whisper_byoc.decode import Effort, Task
from whisper_byoc.errors import InvalidOption
from whisper_byoc.languages import code_of
from whisper_byoc.settings import (
    EndpointSilence,
    MaxUtterance,
    Mode,
    PartialInterval,
    StreamingSettings,
)

MAX_PROMPT_CHARACTERS = 2000
"""Of a longer prompt the end is kept: more than the decoder has room for, which is 223 tokens."""
MAX_KEYTERMS = 100
MAX_KEYTERMS_CHARACTERS = 1000
_PYDANTIC_BEGINNING = re.compile("^(Input should be|Value error,|(Tuple|String) should have) ")
"""What pydantic's messages say before what was expected."""


def _check_text(text: str) -> None:
    """JSON can hold half of a surrogate pair, which nothing can be written with. Raises
    ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("text, without half of a surrogate pair") from None


class Options(BaseModel):
    """What a job can be asked for; what there is to ask depends on the kind of job."""

    model_config = ConfigDict(frozen=True)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """These options with other values for some, which are as a query or JSON has them. Raises
        InvalidOption, naming what was found and expected."""
        try:
            return self.model_validate({**self.model_dump(exclude_unset=True), **values})
        except ValidationError as error:
            problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            raise InvalidOption("option", name, "one of " + ", ".join(type(self).model_fields))
        found = values.get(name)
        expected = _PYDANTIC_BEGINNING.sub("", problem["msg"])
        raise InvalidOption(name, found if isinstance(found, str) else repr(found), expected)


class ProcessorOptions(Options):
    """Any names and values: only the hosted processor knows what they mean."""

    model_config = ConfigDict(frozen=True, extra="allow")


class JobOptions(Options):
    """Options of one transcription.

    language: Whisper's code, made of code, name or tag; None detects it. prompt: text that the
    decoder is told came before, of which the end counts.
    keyterms: names and terms that the decoder is told to expect. words: whether final events bring
    every word with its times and probability. effort: of a recording, the
    service's for None; a live stream's is quick. The others take the place of those of the
    service's `StreamingSettings` of the same name, unless they are None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str | None = "en"
    task: Task = Task.TRANSCRIBE
    mode: Mode | None = None
    prompt: str | None = None
    keyterms: tuple[str, ...] = Field((), max_length=MAX_KEYTERMS)
    words: bool = True
    endpoint_silence: EndpointSilence | None = None
    partial_interval: PartialInterval | None = None
    max_utterance: MaxUtterance | None = None
    effort: Effort | None = None

    @field_validator("language", mode="before")
    @classmethod
    def _code(cls, value: object) -> object:
        """`auto` in a query means what null means in JSON."""
        if isinstance(value, str):
            return None if value.strip().lower() == "auto" else code_of(value)
        return value

    @field_validator("prompt")
    @classmethod
    def _end(cls, text: str | None) -> str | None:
        """Of a text that is too long the end, from where a word begins."""
        _check_text(text or "")
        if text is None or len(text) <= MAX_PROMPT_CHARACTERS:
            return text
        return re.sub(r"^\S{0,40}\s+", "", text[-MAX_PROMPT_CHARACTERS:])

    @field_validator("keyterms", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A list as in JSON, or a text with commas between the terms as in a query."""
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, list | tuple) and all(isinstance(term, str) for term in value):
            return tuple(term.strip() for term in value if term.strip())
        return value

    @field_validator("keyterms")
    @classmethod
    def _short(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        _check_text("".join(terms))
        if len(", ".join(terms)) > MAX_KEYTERMS_CHARACTERS:
            raise ValueError(f"at most {MAX_KEYTERMS_CHARACTERS} characters in all")
        return terms

    @property
    def context(self) -> str | None:
        """The text that the decoder is told came before: prompt and terms, None without either.
        Of one that is too long the decoder keeps the end, so terms come last."""
        terms = ", ".join(self.keyterms)
        return " ".join(part for part in (self.prompt, terms and f"{terms}.") if part) or None

    def streaming(self, service: StreamingSettings) -> StreamingSettings:
        """The service's settings with the job's own in their place."""
        chosen = self.model_dump(include=set(StreamingSettings.model_fields), exclude_none=True)
        return service.model_copy(update=chosen)
