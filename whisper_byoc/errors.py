"""Every error the service raises on purpose (pure).

ServiceError
├── ConfigurationError        the operator has to mend something
│   ├── MissingModel          weights are absent or are not the ones in the manifest
│   ├── InvalidManifest       weights/accepting.py
│   ├── InvalidModelFile      weights/ctranslate2.py
│   ├── DownloadFailed        weights/download.py
│   ├── SourceFailed          weights/baking.py
│   └── NothingBaked          weights/baking.py
├── RequestError              the caller has to mend something
│   ├── InvalidJobId
│   ├── InvalidSession
│   ├── InvalidOption
│   │   └── ForbiddenUrl      a URL that this service may not open
│   ├── UnknownModel
│   ├── UnknownJob
│   ├── JobEnded
│   ├── JobExists
│   ├── SourceBusy
│   ├── BodyTooLarge
│   ├── NoAudio               a body began and its first byte never came
│   ├── BadMessage            a body that should be JSON or a form is not, or lacks something
│   ├── UnknownStream         no stream of the worker door has this id
│   ├── Unauthorized
│   └── UnsupportedAudio
├── Unavailable               the caller may try again later
│   ├── NotReady
│   ├── TooManyJobs
│   ├── StreamExists          a stream of this id runs with other channels
│   ├── NoRoom                a body that has to be kept until it is whole cannot be
│   └── Draining
├── ServiceFailed             a part of the service that all need has met a fault of ours
├── CutOff                    a job was ended before its words were flushed
├── SlowReader                a reader of output fell behind what is kept
├── NoAnswer                  orchestrator/registration.py: an orchestrator could not be asked
├── TrickleError              trickle/protocol.py: what other ends of a channel answer
├── ClientError               client/: the server answered with an error or broke off
├── ProcessorError            a hosted processor failed on this input
└── DecodeError               inference failed on this request
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from string import Formatter
from typing import Any, ClassVar, dataclass_transform

_MAX_SHOWN = 160
"""Characters of what a caller sent that a text repeats."""


class _Texts(Formatter):
    """As `str.format`, where `!r` and `!s` shorten what they show, and sequences have commas."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        return super().convert_field(value[:_MAX_SHOWN] if conversion else value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        shown = ", ".join(value) if isinstance(value, tuple | list) else value
        return format(shown, format_spec)


@dataclass_transform(eq_default=False)
class ServiceError(Exception):
    """Root of the tree. `code` is the stable word that answers and error events carry.

    Annotated names are the fields of an error, as in a dataclass: the constructor takes them and
    `text` names them in braces. `{found!r}` shows what a caller sent, shortened.
    """

    code: ClassVar[str] = "internal_error"
    text: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        dataclass(eq=False)(cls)

    def __str__(self) -> str:
        return _Texts().format(self.text, **vars(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled by its fields, however it was constructed."""
        return type(self).__new__, (type(self),), vars(self)


class ConfigurationError(ServiceError):
    """The operator has to mend the configuration; `message` says what and how."""

    code = "configuration"
    text = "{message}"

    message: str


class MissingModel(ConfigurationError):
    """The weights of `model` cannot be used; the text names the command that bakes them."""

    code = "missing_model"

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(f"model {model}: {problem}, run: python scripts/bake_model.py {model}")
        self.model, self.problem = model, problem


class RequestError(ServiceError):
    """The caller sent something that cannot be served as it is."""

    code = "bad_request"


class InvalidJobId(RequestError):
    code = "invalid_job_id"
    text = (
        "job id is {job_id!r}, expected 1 to 128 characters of A-Z a-z 0-9 . _ ~ -"
        " that are not all dots"
    )

    job_id: str


class InvalidSession(RequestError):
    """The header of an orchestrator's session is none. What it holds is not shown: it may be a
    client's secret."""

    code = "invalid_session"
    text = (
        "Livepeer-Session-Id has {num_characters} characters, expected 1 to 128 of A-Z a-z 0-9 _ -"
    )

    num_characters: int


class InvalidOption(RequestError):
    """An option of a request has a value that cannot be used."""

    code = "invalid_option"
    text = "{name} is {found!r}, expected {expected}"

    name: str
    found: str
    expected: str


class UnknownModel(RequestError):
    code = "unknown_model"
    text = "model is {found!r}, expected one that is served: {served}"

    found: str
    served: Sequence[str]


class UnknownJob(RequestError):
    code = "unknown_job"
    text = "no job {job_id}, expected one that has received audio and is not forgotten"

    job_id: str


class JobEnded(RequestError):
    code = "job_ended"
    text = (
        "job {job_id} has ended, expected one that takes audio: DELETE /live/{job_id} forgets it,"
        " or use another job id"
    )

    job_id: str


class JobExists(RequestError):
    code = "job_exists"
    text = "job {job_id} exists, expected a new id, or a message of type options"

    job_id: str


class SourceBusy(RequestError):
    code = "source_busy"
    text = "job {job_id} is receiving another body, expected one source at a time"

    job_id: str


class BodyTooLarge(RequestError):
    code = "body_too_large"
    text = "body has at least {found} bytes, expected at most {limit}"

    found: int
    limit: int


class UnsupportedAudio(RequestError):
    """The bytes are not audio that can be decoded, or not what their type says."""

    code = "unsupported_audio"
    text = "audio is {found}, expected {expected}"

    found: str
    expected: str


class NoAudio(RequestError):
    code = "no_audio"
    text = "body has had no byte for {seconds:g} s, expected audio or an empty body"

    seconds: float


class BadMessage(RequestError):
    """A body that is not the message that this path takes."""

    code = "bad_message"
    text = "body is {found!s}, expected {expected}"

    found: str
    expected: str


class UnknownStream(RequestError):
    """`found`: the id that was named, or None."""

    code = "unknown_stream"
    text = "no stream {found!r} is running, expected one that was started"

    found: str | None
    running: int

    def __str__(self) -> str:
        if self.found is None:
            return f"no stream is named and {self.running} are running, expected X-Stream-Id"
        return super().__str__()


class ForbiddenUrl(InvalidOption):
    """A URL that this service may not open."""

    code = "forbidden_url"


class Unauthorized(RequestError):
    code = "unauthorized"
    text = "Authorization has no valid token, expected Bearer and the token of registration"


class Unavailable(ServiceError):
    """Nothing is wrong with the request: the same one may be sent again after `retry_after` s."""

    code = "unavailable"
    retry_after: ClassVar[int] = 5


class NotReady(Unavailable):
    """`problem`: why it never will be; None while it still may."""

    code = "not_ready"
    retry_after: ClassVar[int] = 2
    text = "the model is still loading, expected GET /ready to answer 200 first"

    problem: ServiceError | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"the service could not start: {self.problem}"
        return super().__str__()


class TooManyJobs(Unavailable):
    code = "too_many_jobs"
    text = "{running} jobs are running, which is the limit: expected one of them to end"

    running: int


class StreamExists(Unavailable):
    code = "stream_exists"
    text = "stream {stream_id!r} is running, expected it to be stopped first"

    stream_id: str


class NoRoom(Unavailable):
    """A body that can only be decoded when it is whole has no place to wait."""

    code = "no_room"
    text = (
        "{found} cannot be kept until it is whole ({problem}), expected room in the directory for"
        " temporary files"
    )

    found: str
    problem: str


class Draining(Unavailable):
    code = "draining"
    text = "the service is shutting down, expected no new jobs"


class ServiceFailed(ServiceError):
    """A part of the service that all need has met a fault of ours; nothing is served any more."""

    text = "the service has failed: {problem}"

    problem: str


class CutOff(ServiceError):
    """The service could not wait any longer for this job."""

    code = "cut_off"
    text = "the job was cut off before every word was final, expected its end to be waited for"


class SlowReader(ServiceError):
    """A reader of output fell further behind than the job keeps its finals."""

    code = "slow_reader"
    text = "reader has missed {missed} events, expected it to keep up with the job"

    missed: int


class ProcessorError(ServiceError):
    """A hosted processor failed on one input; other inputs are not concerned."""

    code = "processor_failed"
    text = "processor {processor}: {problem}"

    processor: str
    problem: str


class DecodeError(ServiceError):
    """Inference failed on one request; other requests are not concerned."""

    code = "decode_failed"
    text = "decoding failed: {problem}"

    problem: str


@asynccontextmanager
async def bare_errors() -> AsyncIterator[None]:
    """Around a task group: a ServiceError in its group comes out by itself, the first if there are
    several, so that callers catch it as they would without tasks."""
    try:
        yield
    except* ServiceError as errors:
        first = first_of(errors)
        raise first from first.__cause__


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in a task group's group, however deep."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
