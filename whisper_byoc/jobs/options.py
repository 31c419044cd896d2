"""What a caller may choose for one job, at its start and while it runs (pure)."""

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from whisper_byoc.decode import Task
from whisper_byoc.errors import InvalidOption
from whisper_byoc.settings import (
    EndpointSilence,
    MaxUtterance,
    Mode,
    PartialInterval,
    StreamingSettings,
)

MAX_PROMPT_CHARACTERS = 1000
MAX_KEYTERMS = 100
_PYDANTIC_BEGINNING = re.compile("^(Input should be|Value error,|(Tuple|String) should have) ")
"""What pydantic's messages say before what was expected."""


class Options(BaseModel):
    """What any kind of job can be asked for."""

    model_config = ConfigDict(frozen=True)

    def changed(self, values: Mapping[str, Any]) -> Self:
        """With other values for some. Raises InvalidOption, naming what was found and expected."""
        try:
            return self.model_validate({**self.model_dump(exclude_unset=True), **values})
        except ValidationError as error:
            problem = error.errors()[0]
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            raise InvalidOption("option", name, "one of " + ", ".join(type(self).model_fields))
        found = values.get(name)
        if problem["type"] == "string_too_long":
            found = f"{len(str(found))} characters"
        expected = _PYDANTIC_BEGINNING.sub("", problem["msg"])
        raise InvalidOption(name, found if isinstance(found, str) else repr(found), expected)


class ProcessorOptions(Options):
    """Whatever a hosted processor understands."""

    model_config = ConfigDict(frozen=True, extra="allow")


class JobOptions(Options):
    """Options of one transcription; what is None is as the service has it, except for the language.

    language: Whisper's code; None detects it. prompt: text that the decoder is told came before.
    keyterms: names and terms that it is told to expect. words: whether final events bring every
    word with its times and probability. The others are those of `StreamingSettings`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str | None = "en"
    task: Task = Task.TRANSCRIBE
    mode: Mode | None = None
    prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    keyterms: tuple[str, ...] = Field((), max_length=MAX_KEYTERMS)
    words: bool = True
    endpoint_silence: EndpointSilence | None = None
    partial_interval: PartialInterval | None = None
    max_utterance: MaxUtterance | None = None

    @field_validator("language", mode="before")
    @classmethod
    def _code(cls, value: object) -> object:
        if isinstance(value, str):
            return None if value.lower() == "auto" else value.lower()
        return value

    @field_validator("keyterms", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """A list, or text with commas between."""
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, list | tuple) and all(isinstance(term, str) for term in value):
            return tuple(term.strip() for term in value if term.strip())
        return value

    @field_validator("keyterms")
    @classmethod
    def _short(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        if len(", ".join(terms)) > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"at most {MAX_PROMPT_CHARACTERS} characters in all")
        return terms

    @property
    def context(self) -> str | None:
        """What the decoder is told. It keeps the end of what is too long, so terms come last."""
        terms = ", ".join(self.keyterms)
        return " ".join(part for part in (self.prompt, terms and f"{terms}.") if part) or None

    def streaming(self, service: StreamingSettings) -> StreamingSettings:
        """The service's settings with the job's own in their place."""
        chosen = self.model_dump(include=set(StreamingSettings.model_fields), exclude_none=True)
        return service.model_copy(update=chosen)
