"""What every error says and carries, and what comes out of a task group when something fails."""

import asyncio
import copy
import pickle
import traceback
from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from whisper_byoc import errors
from whisper_byoc.client import ClientError
from whisper_byoc.errors import Draining, ProcessorError, ServiceError, bare_errors
from whisper_byoc.orchestrator.registration import NoAnswer
from whisper_byoc.trickle.protocol import ChannelEnded, ChannelGone, TrickleError
from whisper_byoc.weights.accepting import InvalidManifest
from whisper_byoc.weights.baking import Failure, NothingBaked

LONG = "x" * 161
SHOWN = repr("x" * 160)

TEXTS: list[tuple[ServiceError, str, str]] = [
    (errors.ConfigurationError("no ffmpeg"), "configuration", "no ffmpeg"),
    (
        errors.MissingModel("tiny", "is absent"),
        "missing_model",
        "model tiny: is absent, run: python scripts/bake_model.py tiny",
    ),
    (InvalidManifest(Path("m.json"), "is empty"), "invalid_manifest", "m.json: is empty"),
    (
        NothingBaked("tiny", [Failure("a", "gone"), Failure("b", "slow")]),
        "nothing_baked",
        "model tiny cannot be baked: a: gone; b: slow",
    ),
    (
        errors.InvalidJobId("a/b"),
        "invalid_job_id",
        "job id is 'a/b', expected 1 to 128 characters of A-Z a-z 0-9 . _ ~ - that are not all"
        " dots",
    ),
    (
        errors.InvalidSession(129),
        "invalid_session",
        "Livepeer-Session-Id has 129 characters, expected 1 to 128 of A-Z a-z 0-9 _ -",
    ),
    (
        errors.InvalidOption("task", "sing", "one of a, b"),
        "invalid_option",
        "task is 'sing', expected one of a, b",
    ),
    (
        errors.InvalidOption("task", LONG, LONG),
        "invalid_option",
        f"task is {SHOWN}, expected {LONG}",
    ),
    (
        errors.UnknownModel("big", ["tiny", "base"]),
        "unknown_model",
        "model is 'big', expected one that is served: tiny, base",
    ),
    (
        errors.UnknownJob("j"),
        "unknown_job",
        "no job j, expected one that has received audio and is not forgotten",
    ),
    (
        errors.JobEnded("j"),
        "job_ended",
        "job j has ended, expected one that takes audio: DELETE /live/j forgets it, or use another"
        " job id",
    ),
    (
        errors.JobExists("j"),
        "job_exists",
        "job j exists, expected a new id, or a message of type options",
    ),
    (
        errors.SourceBusy("j"),
        "source_busy",
        "job j is receiving another body, expected one source at a time",
    ),
    (
        errors.BodyTooLarge(5, 3),
        "body_too_large",
        "body has at least 5 bytes, expected at most 3",
    ),
    (
        errors.UnsupportedAudio(LONG, "WAV"),
        "unsupported_audio",
        f"audio is {LONG}, expected WAV",
    ),
    (
        errors.NoAudio(60.0),
        "no_audio",
        "body has had no byte for 60 s, expected audio or an empty body",
    ),
    (errors.BadMessage(LONG, "JSON"), "bad_message", f"body is {LONG[:160]}, expected JSON"),
    (
        errors.UnknownStream(None, 2),
        "unknown_stream",
        "no stream is named and 2 are running, expected X-Stream-Id",
    ),
    (
        errors.UnknownStream("s", 2),
        "unknown_stream",
        "no stream 's' is running, expected one that was started",
    ),
    (
        errors.ForbiddenUrl("data_url", "ftp://x", "http://"),
        "forbidden_url",
        "data_url is 'ftp://x', expected http://",
    ),
    (
        errors.Unauthorized(),
        "unauthorized",
        "Authorization has no valid token, expected Bearer and the token of registration",
    ),
    (
        errors.NotReady(),
        "not_ready",
        "the model is still loading, expected GET /ready to answer 200 first",
    ),
    (
        errors.NotReady(errors.DecodeError("no memory")),
        "not_ready",
        "the service could not start: decoding failed: no memory",
    ),
    (
        errors.TooManyJobs(64),
        "too_many_jobs",
        "64 jobs are running, which is the limit: expected one of them to end",
    ),
    (
        errors.StreamExists(LONG),
        "stream_exists",
        f"stream {SHOWN} is running, expected it to be stopped first",
    ),
    (
        errors.NoRoom("a file of 5 bytes or more", "No space left on device"),
        "no_room",
        "a file of 5 bytes or more cannot be kept until it is whole (No space left on device),"
        " expected room in the directory for temporary files",
    ),
    (errors.Draining(), "draining", "the service is shutting down, expected no new jobs"),
    (
        errors.CutOff(),
        "cut_off",
        "the job was cut off before every word was final, expected its end to be waited for",
    ),
    (
        errors.SlowReader(7),
        "slow_reader",
        "reader has missed 7 events, expected it to keep up with the job",
    ),
    (errors.ProcessorError("Tint", "no frame"), "processor_failed", "processor Tint: no frame"),
    (errors.ServiceFailed("OSError: x"), "internal_error", "the service has failed: OSError: x"),
    (errors.DecodeError("a {b} %s"), "decode_failed", "decoding failed: a {b} %s"),
    (TrickleError("http://o/c", "gone"), "trickle_failed", "channel http://o/c: gone"),
    (ChannelEnded("http://o/c", "over"), "channel_ended", "channel http://o/c: over"),
    (ChannelGone("http://o/c", "lost"), "channel_gone", "channel http://o/c: lost"),
    (ClientError("no job"), "client_error", "no job"),
    (ClientError("no job", 404), "client_error", "no job (HTTP 404)"),
    (NoAnswer("refused"), "no_answer", "refused"),
]
EACH = pytest.mark.parametrize(
    ("error", "code", "text"), TEXTS, ids=[f"{type(it).__name__}: {text}" for it, _, text in TEXTS]
)


@EACH
def test_an_error_says_what_was_found_and_what_was_expected(
    error: ServiceError, code: str, text: str
) -> None:
    assert (error.code, str(error)) == (code, text)


@EACH
def test_an_error_is_the_same_when_it_was_copied_or_pickled(
    error: ServiceError, code: str, text: str
) -> None:
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), str(again)) == (type(error), text)
        assert {name: str(value) for name, value in vars(again).items()} == {
            name: str(value) for name, value in vars(error).items()
        }


@pytest.mark.parametrize(
    ("error", "seconds"), [(errors.NotReady(), 2), (Draining(), 5), (errors.TooManyJobs(64), 5)]
)
def test_who_may_try_again_is_told_when(error: errors.Unavailable, seconds: int) -> None:
    assert error.retry_after == seconds


def test_an_error_takes_its_fields_by_name() -> None:
    error = errors.InvalidOption(expected="e", found="f", name="n")
    assert (error.name, error.found, error.expected) == ("n", "f", "e")
    assert str(copy.copy(error)) == "n is 'f', expected e"


def test_an_error_without_a_field_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="expected"):
        errors.InvalidOption("name", "found")  # type: ignore[call-arg]


def test_two_errors_of_the_same_fields_are_not_one() -> None:
    assert errors.JobEnded("j") != errors.JobEnded("j")
    assert len({errors.JobEnded("j"), errors.JobEnded("j")}) == 2


def subclasses(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


def test_every_error_has_its_place_in_the_tree_and_a_code_of_its_own() -> None:
    for name in ("trickle.protocol", "weights.baking", "weights.ctranslate2", "app"):
        import_module(f"whisper_byoc.{name}")
    own = [cls for cls in subclasses(ServiceError) if cls.__module__.startswith("whisper_byoc")]
    assert len({cls.code for cls in own}) == len(own)
    below = [cls.__name__ for cls in own if not issubclass(cls, ChannelEnded)]
    assert [name for name in below if f"─ {name}" not in str(errors.__doc__)] == []


async def fail_with(error: BaseException) -> None:
    raise error


async def in_a_group(*errors: BaseException) -> None:
    async with bare_errors(), asyncio.TaskGroup() as group:
        for error in errors:
            group.create_task(fail_with(error))


async def in_groups_of_groups(*errors: BaseException) -> None:
    async with bare_errors(), asyncio.TaskGroup() as group:
        group.create_task(_nested(*errors))


async def _nested(*errors: BaseException) -> None:
    async with asyncio.TaskGroup() as group:
        for error in errors:
            group.create_task(fail_with(error))


async def without_a_group(error: BaseException) -> None:
    async with bare_errors():
        raise error


Failing = Callable[[BaseException], Awaitable[None]]


@pytest.mark.anyio
@pytest.mark.parametrize("failing", [in_a_group, in_groups_of_groups, without_a_group])
async def test_a_service_error_comes_out_by_itself(failing: Failing) -> None:
    error = Draining()
    with pytest.raises(Draining) as caught:
        await failing(error)
    assert caught.value is error


@pytest.mark.anyio
async def test_of_several_the_first_comes_out() -> None:
    first = Draining()
    with pytest.raises(Draining) as caught:
        await in_a_group(first, Draining())
    assert caught.value is first


@pytest.mark.anyio
async def test_what_an_error_came_from_is_still_told() -> None:
    error = ProcessorError("p", "it failed")
    error.__cause__ = ValueError("the cause")
    with pytest.raises(ProcessorError) as caught:
        await in_a_group(error)
    told = "".join(traceback.format_exception(caught.value))
    assert "ValueError: the cause" in told
    assert "ExceptionGroup" not in told


@pytest.mark.anyio
async def test_a_fault_of_our_own_stays_in_its_group() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await in_a_group(ValueError("a fault"))
    assert caught.group_contains(ValueError, match="a fault")
