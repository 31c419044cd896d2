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
│   ├── InvalidOption
│   ├── UnknownModel
│   ├── UnknownJob
│   ├── JobEnded
│   ├── JobExists
│   ├── SourceBusy
│   ├── BodyTooLarge
│   ├── NoAudio               a body began and its first byte never came
│   ├── BadMessage            a body that should be JSON or a form is not, or lacks something
│   ├── UnknownStream         no stream of the worker door has this id
│   ├── ForbiddenUrl          a URL that this service may not open
│   ├── Unauthorized
│   └── UnsupportedAudio
├── Unavailable               the caller may try again later
│   ├── NotReady
│   ├── TooManyJobs
│   ├── StreamExists          a stream of this id runs with other channels
│   └── Draining
├── CutOff                    a job was ended before its words were flushed
├── SlowReader                a reader of output fell behind what is kept
├── NoAnswer                  orchestrator/registration.py: an orchestrator could not be asked
├── TrickleError              trickle/protocol.py: what other ends of a channel answer
├── ClientError               client.py: the server answered with an error or broke off
├── ProcessorError            a hosted processor failed on this input
└── DecodeError               inference failed on this request
"""

from collections.abc import Sequence
from typing import ClassVar


class ServiceError(Exception):
    """Root of the tree. `code` is the stable word that answers and error events carry."""

    code: ClassVar[str] = "internal_error"


class ConfigurationError(ServiceError):
    """The operator has to mend the configuration; `message` says what and how."""

    code = "configuration"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class MissingModel(ConfigurationError):
    """The weights of `model` cannot be used; the text names the command that bakes them."""

    code = "missing_model"

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(f"model {model}: {problem}, run: python scripts/bake_model.py {model}")
        self.model = model
        self.problem = problem


class RequestError(ServiceError):
    """The caller sent something that cannot be served as it is."""

    code = "bad_request"


class InvalidJobId(RequestError):
    code = "invalid_job_id"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return (
            f"job id is {self.job_id[:160]!r}, expected 1 to 128 characters of A-Z a-z 0-9 . _ ~ -"
            " that are not all dots"
        )


class InvalidOption(RequestError):
    """An option of a request has a value that cannot be used."""

    code = "invalid_option"

    def __init__(self, name: str, found: str, expected: str) -> None:
        super().__init__(name, found, expected)
        self.name, self.found, self.expected = name, found, expected

    def __str__(self) -> str:
        return f"{self.name} is {self.found[:160]!r}, expected {self.expected}"


class UnknownModel(RequestError):
    code = "unknown_model"

    def __init__(self, found: str, served: Sequence[str]) -> None:
        super().__init__(found, served)
        self.found, self.served = found, tuple(served)

    def __str__(self) -> str:
        return (
            f"model is {self.found[:160]!r}, expected one that is served: {', '.join(self.served)}"
        )


class UnknownJob(RequestError):
    code = "unknown_job"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"no job {self.job_id}, expected one that has received audio and is not forgotten"


class JobEnded(RequestError):
    code = "job_ended"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return (
            f"job {self.job_id} has ended, expected one that takes audio:"
            f" DELETE /live/{self.job_id} forgets it, or use another job id"
        )


class JobExists(RequestError):
    code = "job_exists"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id} exists, expected a new id, or a message of type options"


class SourceBusy(RequestError):
    code = "source_busy"

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"job {self.job_id} is receiving another body, expected one source at a time"


class BodyTooLarge(RequestError):
    code = "body_too_large"

    def __init__(self, found: int, limit: int) -> None:
        super().__init__(found, limit)
        self.found, self.limit = found, limit

    def __str__(self) -> str:
        return f"body has at least {self.found} bytes, expected at most {self.limit}"


class UnsupportedAudio(RequestError):
    """The bytes are not audio that can be decoded, or not what their type says."""

    code = "unsupported_audio"

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found, expected)
        self.found, self.expected = found, expected

    def __str__(self) -> str:
        return f"audio is {self.found}, expected {self.expected}"


class NoAudio(RequestError):
    code = "no_audio"

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"body has had no byte for {self.seconds:g} s, expected audio or an empty body"


class BadMessage(RequestError):
    """A body that is not the message that this path takes."""

    code = "bad_message"

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found, expected)
        self.found, self.expected = found, expected

    def __str__(self) -> str:
        return f"body is {self.found[:160]}, expected {self.expected}"


class UnknownStream(RequestError):
    code = "unknown_stream"

    def __init__(self, found: str | None, running: int) -> None:
        super().__init__(found, running)
        self.found, self.running = found, running

    def __str__(self) -> str:
        if self.found is None:
            return f"no stream is named and {self.running} are running, expected X-Stream-Id"
        return f"no stream {self.found[:160]!r} is running, expected one that was started"


class ForbiddenUrl(RequestError):
    code = "forbidden_url"

    def __init__(self, name: str, found: str, expected: str) -> None:
        super().__init__(name, found, expected)
        self.name, self.found, self.expected = name, found, expected

    def __str__(self) -> str:
        return f"{self.name} is {self.found[:160]!r}, expected {self.expected}"


class Unauthorized(RequestError):
    code = "unauthorized"

    def __str__(self) -> str:
        return "Authorization has no valid token, expected Bearer and the token of registration"


class Unavailable(ServiceError):
    """Nothing is wrong with the request; `retry_after` says after how many seconds to try again."""

    code = "unavailable"

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class NotReady(Unavailable):
    """`problem`: why it never will be; None while it still may."""

    code = "not_ready"

    def __init__(self, retry_after: int, problem: ServiceError | None = None) -> None:
        super().__init__(retry_after)
        self.problem = problem

    def __str__(self) -> str:
        if self.problem is not None:
            return f"the service could not start: {self.problem}"
        return "the model is still loading, expected GET /ready to answer 200 first"


class TooManyJobs(Unavailable):
    code = "too_many_jobs"

    def __init__(self, retry_after: int, running: int) -> None:
        super().__init__(retry_after)
        self.running = running

    def __str__(self) -> str:
        return f"{self.running} jobs are running, which is the limit: expected one of them to end"


class StreamExists(Unavailable):
    code = "stream_exists"

    def __init__(self, retry_after: int, stream_id: str) -> None:
        super().__init__(retry_after)
        self.stream_id = stream_id

    def __str__(self) -> str:
        return f"stream {self.stream_id[:160]!r} is running, expected it to be stopped first"


class Draining(Unavailable):
    code = "draining"

    def __str__(self) -> str:
        return "the service is shutting down, expected no new jobs"


class CutOff(ServiceError):
    """The service could not wait any longer for this job."""

    code = "cut_off"

    def __str__(self) -> str:
        return "the job was cut off before every word was final, expected its end to be waited for"


class SlowReader(ServiceError):
    """A reader of output fell further behind than the job keeps its finals."""

    code = "slow_reader"

    def __init__(self, missed: int) -> None:
        super().__init__(missed)
        self.missed = missed

    def __str__(self) -> str:
        return f"reader has missed {self.missed} events, expected it to keep up with the job"


class ProcessorError(ServiceError):
    """A hosted processor failed on one input; other inputs are not concerned."""

    code = "processor_failed"

    def __init__(self, processor: str, problem: str) -> None:
        super().__init__(processor, problem)
        self.processor, self.problem = processor, problem

    def __str__(self) -> str:
        return f"processor {self.processor}: {self.problem}"


class DecodeError(ServiceError):
    """Inference failed on one request; other requests are not concerned."""

    code = "decode_failed"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"decoding failed: {self.problem}"


def first_of(group: BaseExceptionGroup[ServiceError]) -> ServiceError:
    """The first error of a task group's group, however deep."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
