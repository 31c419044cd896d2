"""Reading a request: what comes, what does not, and a client that goes away."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from whisper_byoc.doors.requests import (
    Incoming,
    Vanished,
    body_chunks,
    check_body,
    first_chunk,
    flag,
    read_body,
    while_connected,
)
from whisper_byoc.errors import BodyTooLarge, Draining, InvalidOption, NoAudio, UnsupportedAudio

pytestmark = pytest.mark.anyio

GONE: Message = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def request_of(*messages: Message, headers: Mapping[str, str] | None = None) -> Request:
    """One that brings these messages, and then nothing for as long as anybody waits."""
    waiting = list(messages)

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": pairs}
    return Request(scope, receive)


async def all_of(chunks: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in chunks]


async def test_a_body_is_its_chunks_without_empty_ones() -> None:
    request = request_of(part(b"a"), part(b""), part(b"bc"), part(b"", more=False))
    assert await all_of(body_chunks(request)) == [b"a", b"bc"]


async def test_a_body_may_have_as_many_bytes_as_its_limit() -> None:
    assert await read_body(request_of(part(b"abc"), part(b"d", more=False)), 4) == b"abcd"


async def test_a_body_is_refused_at_the_first_byte_behind_its_limit() -> None:
    with pytest.raises(BodyTooLarge, match="at least 5 bytes, expected at most 4"):
        await read_body(request_of(part(b"abc"), part(b"de")), 4)


async def test_a_client_that_vanishes_within_a_body_is_told_of() -> None:
    with pytest.raises(Vanished):
        await read_body(request_of(part(b"abc"), GONE), 4)


async def test_a_body_that_falls_silent_is_given_up() -> None:
    with pytest.raises(NoAudio, match=r"no byte for 0\.01 s"):
        await all_of(body_chunks(request_of(part(b"a")), idle_seconds=0.01))


@pytest.mark.parametrize(
    ("message", "first"),
    [(part(b"a"), b"a"), (part(b"", more=False), b"")],
    ids=["something", "nothing"],
)
async def test_a_body_begins_with(message: Message, first: bytes) -> None:
    assert await first_chunk(body_chunks(request_of(message)), 10.0) == first


async def test_a_body_that_does_not_begin_is_given_up() -> None:
    with pytest.raises(NoAudio):
        await first_chunk(body_chunks(request_of()), 0.01)


async def test_what_comes_in_is_read_ahead_of_whoever_takes_it() -> None:
    incoming = Incoming(request_of(part(b"a"), part(b"b", more=False)), 10, 10.0)
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(incoming.watch())
        assert await incoming.begins()
        assert await all_of(incoming.chunks()) == [b"a", b"b"]
        assert not await incoming.begins()
        assert await incoming.receive() == part(b"", more=False)
        watching.cancel()


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([part(b"a", more=False), GONE], Vanished),
        ([part(b"a"), GONE], Vanished),
        ([part(b"abc"), part(b"def")], BodyTooLarge),
        ([part(b"a")], NoAudio),
    ],
    ids=["gone behind its body", "gone within it", "too large", "silent"],
)
async def test_watching_what_comes_in_tells(
    messages: list[Message], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await Incoming(request_of(*messages), 5, 0.01).watch()


async def test_a_complete_body_may_be_followed_by_silence() -> None:
    incoming = Incoming(request_of(part(b"a", more=False)), 5, 0.01)
    watching = asyncio.ensure_future(incoming.watch())
    assert await all_of(incoming.chunks()) == [b"a"]
    done, _ = await asyncio.wait({watching}, timeout=0.05)
    assert not done
    watching.cancel()


async def test_what_is_waited_for_comes_back() -> None:
    async def answer() -> int:
        return 7

    assert await while_connected(request_of(), answer()) == 7


async def test_waiting_ends_when_the_client_vanishes() -> None:
    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(Vanished):
        await while_connected(request_of(part(b"", more=False), GONE), forever())
    assert ended.is_set()


async def test_an_error_of_what_is_waited_for_comes_out() -> None:
    async def fail() -> None:
        raise Draining()

    with pytest.raises(Draining):
        await while_connected(request_of(), fail())


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"Content-Encoding": "gzip"}, UnsupportedAudio),
        ({"Content-Length": "11"}, BodyTooLarge),
    ],
    ids=["compressed", "too long"],
)
def test_a_body_is_refused_by_its_headers(
    headers: Mapping[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_body(request_of(headers=headers), 10)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Content-Encoding": "Identity"}, {"Content-Length": "10"}, {"Content-Length": "ten"}],
    ids=["without any", "as it is", "as long as allowed", "of no number"],
)
def test_a_body_is_not_refused_by_headers(headers: Mapping[str, str]) -> None:
    check_body(request_of(headers=headers), 10)


@pytest.mark.parametrize(
    ("value", "read"),
    [(None, None), ("true", True), ("TRUE", True), ("1", True), ("False", False), ("0", False)],
)
def test_a_flag_is(value: str | None, read: bool | None) -> None:
    assert flag("final", value) is read


@pytest.mark.parametrize("value", ["", "yes"])
def test_a_flag_is_refused(value: str) -> None:
    with pytest.raises(InvalidOption, match=f"final is '{value}', expected true or false"):
        flag("final", value)
