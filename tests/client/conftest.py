"""Both ways of sending audio, and audio of every kind that a client may be given."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from whisper_byoc.client import ClientError, LiveClient

Send = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture(params=["transcribe", "converse"])
def send(request: pytest.FixtureRequest) -> Send:
    """Client, audio, receive and options; the job's id is `job`."""

    async def by_put_and_get(client: LiveClient, audio: Any, *rest: Any, **options: Any) -> Any:
        return await client.transcribe("job", audio, *rest, **options)

    async def by_socket(client: LiveClient, audio: Any, *rest: Any, **options: Any) -> Any:
        return await client.converse(audio, *rest, job="job", **options)

    return by_put_and_get if request.param == "transcribe" else by_socket


async def refusal(sending: Coroutine[Any, Any, Any]) -> ClientError:
    """What it fails with."""
    with pytest.raises(ClientError) as error:
        await sending
    return error.value


async def pieces(*audio: bytes) -> AsyncIterator[bytes]:
    for piece in audio:
        yield piece


async def silent_behind(*audio: bytes) -> AsyncIterator[bytes]:
    """A microphone that gives nothing more."""
    for piece in audio:
        yield piece
    await asyncio.Event().wait()


async def never_read() -> AsyncIterator[bytes]:
    raise AssertionError("audio was read")
    yield b""


def ignore(text: str) -> None:
    pass
