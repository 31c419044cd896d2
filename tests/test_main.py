"""The command as a process: start, stop, and what it says when it cannot start."""

import asyncio
import contextlib
import io
import os
import re
import shutil
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch

from examples.passthrough import Passthrough
from tests.conftest import MODELS, Speak, pcm
from whisper_byoc.cli import config_of
from whisper_byoc.service import Service
from whisper_byoc.settings import Settings

pytestmark = pytest.mark.anyio
TIMEOUT = 60


@asynccontextmanager
async def command(*arguments: str, **variables: str) -> AsyncIterator[Process]:
    """`whisper-byoc` with these arguments and variables; killed at exit if it still runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WHISPER_")} | variables
    async with asyncio.timeout(TIMEOUT):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "whisper_byoc",
            *arguments,
            env=environment,
            stdout=PIPE,
            stderr=PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def outcome(*arguments: str, **variables: str) -> tuple[int | None, str]:
    async with command(*arguments, **variables) as process:
        _, errors = await process.communicate()
        return process.returncode, errors.decode()


async def test_without_weights_it_says_how_to_get_them(tmp_path: Path) -> None:
    shutil.copy(MODELS / "manifest.json", tmp_path)
    status, errors = await outcome("serve", WHISPER_MODEL_DIRECTORY=str(tmp_path))
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert errors.endswith("run: python scripts/bake_model.py tiny.en\n")


async def test_damaged_weights_are_not_used(tmp_path: Path) -> None:
    shutil.copy(MODELS / "manifest.json", tmp_path)
    (tmp_path / "tiny.en.pt").write_bytes(b"not weights")
    status, errors = await outcome("serve", WHISPER_MODEL_DIRECTORY=str(tmp_path))
    assert status == 2
    assert "SHA-256" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("WHISPER_SERVER_PORT", "many", "WHISPER_SERVER_PORT is 'many'"),
        ("WHISPER_SERVER_PORT", "70000", "less than or equal to 65535"),
        ("WHISPER_JOBS_MAX_JOBS", "0", "greater than or equal to 1"),
        ("WHISPER_JOBS_NO_SUCH", "1", "WHISPER_JOBS_NO_SUCH is '1'"),
        ("WHISPER_MODEL_DEVICE", "tpu", "'auto', 'cpu' or 'cuda'"),
    ],
)
async def test_a_bad_setting_is_named(variable: str, value: str, expected: str) -> None:
    status, errors = await outcome("serve", **{variable: value})
    assert status == 2
    assert expected in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("variable", ["WHISPER_MODEL", "WHISPER_JOBS"])
async def test_a_group_given_as_a_value_is_named(variable: str) -> None:
    status, errors = await outcome("serve", **{variable: "tiny"})
    assert status == 2
    assert "expected WHISPER_<GROUP>_<FIELD>" in errors
    assert len(errors.splitlines()) == 1


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, errors = await outcome(
            "serve", "--host", "127.0.0.1", "--port", port, WHISPER_MODEL_DIRECTORY=str(MODELS)
        )
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert f"127.0.0.1 port {port}" in errors


@pytest.mark.model
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
async def test_models_that_do_not_load_end_the_service() -> None:
    status, errors = await outcome(
        "serve", "--port", "0", WHISPER_MODEL_DIRECTORY=str(MODELS), WHISPER_MODEL_DEVICE="cuda"
    )
    assert status == 2
    assert "not ready: device is cuda, expected a CUDA device" in errors
    assert "Traceback" not in errors


async def test_a_signal_while_starting_ends_the_start() -> None:
    """The first process of a container would lose it for want of a default action."""
    async with asyncio.timeout(TIMEOUT):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-X", "importtime", "-m", "whisper_byoc", "serve", stderr=PIPE
        )
        assert process.stderr is not None
        while b"whisper_byoc.errors" not in await process.stderr.readline():
            pass  # the first of our own modules: the heavy ones come behind it
        process.send_signal(signal.SIGTERM)
        await process.communicate()
    assert process.returncode == 0


HOSTING = ("serve", "--host", "127.0.0.1", "--port", "0", "--processor")
PROCESSOR = "examples.passthrough:Passthrough"


def test_a_socket_is_not_closed_because_its_pong_waits_behind_its_audio() -> None:
    assert config_of(Service(Settings(), processor=Passthrough())).ws_ping_timeout is None


async def test_case_r36_an_idle_connection_is_kept() -> None:
    """Longer than uvicorn's own 5 s; that it is long enough is in the configuration."""
    assert config_of(Service(Settings(), processor=Passthrough())).timeout_keep_alive >= 95
    async with command(*HOSTING, PROCESSOR) as process:
        url = await read_until(process, r"http://127.0.0.1:\d+")
        await read_until(process, "ready after")
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        for idle_seconds in (0.0, 6.5):
            await asyncio.sleep(idle_seconds)
            writer.write(b"POST /process HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(3) == b"abc"
        writer.close()
        await writer.wait_closed()


async def test_case_r27_a_log_of_everything_shows_no_token_either() -> None:
    headers = {
        "Livepeer-Session-Id": "hidden-id",
        "Livepeer-Session-Token": "hidden-token",
        "Livepeer-Session-Control": "http://o/hidden-url",
        "Livepeer-Runner-Route": "hidden-route",
        "Authorization": "Bearer hidden",
    }
    variables = {"WHISPER_SERVER_LOG_LEVEL": "debug"}
    async with (
        command(*HOSTING, PROCESSOR, **variables) as process,
        aiohttp.ClientSession(headers=headers) as http,
    ):
        url = await read_until(process, r"http://127.0.0.1:\d+")
        await read_until(process, "ready after")
        async with http.ws_connect(url + "/transcribe") as websocket:
            await websocket.send_str("eos")
            assert [it.type async for it in websocket] == [aiohttp.WSMsgType.TEXT]
        async with http.post(url + "/process", data=b"abc") as answer:
            assert await answer.read() == b"abc"
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert b"of session " in errors
    assert b"hidden" not in errors


@pytest.mark.model
async def test_a_second_signal_does_not_wait(speak: Speak) -> None:
    arguments = ("serve", "--host", "127.0.0.1", "--port", "0")
    variables = {"WHISPER_MODEL_DIRECTORY": str(MODELS), "WHISPER_SERVER_DRAIN_SECONDS": "600"}
    audio = pcm(np.tile(speak("There is a small garden behind the old house."), 200))
    async with command(*arguments, **variables) as process, aiohttp.ClientSession() as session:
        url = await read_until(process, r"http://127.0.0.1:\d+")
        await read_until(process, "ready after")

        async def put() -> None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.put(url + "/live/j/source", data=io.BytesIO(audio)) as answer:
                    await answer.read()

        async with asyncio.TaskGroup() as group:
            group.create_task(put())
            await read_until(process, "job j: started")
            process.send_signal(signal.SIGTERM)
            await read_until(process, "flushing")
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
        assert process.returncode == 0
        assert b"SystemExit" not in errors


@pytest.mark.model
async def test_sigterm_flushes_the_jobs_and_exits_with_0(speak: Speak) -> None:
    arguments = ("serve", "--host", "127.0.0.1", "--port", "0")
    audio = pcm(speak("The train to the harbour leaves early in the morning."))
    async with (
        command(*arguments, WHISPER_MODEL_DIRECTORY=str(MODELS)) as process,
        aiohttp.ClientSession() as session,
    ):
        url = await read_until(process, r"http://127.0.0.1:\d+")
        async with session.get(url + "/health") as answer:
            assert (await answer.json())["status"] in ("LOADING", "IDLE")
        await read_until(process, "ready after")
        async with session.put(url + "/live/j/source?final=false", data=audio) as answer:
            assert answer.status == 200
        async with session.get(url + "/live/j/output") as output:
            process.send_signal(signal.SIGTERM)
            text = await output.text()
        assert text.endswith("morning.\n")
        await process.communicate()
        assert process.returncode == 0


async def read_until(process: Process, pattern: str) -> str:
    """Read the log until it says `pattern`; returns what matched."""
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if match := re.search(pattern, line):
            return match.group()
    raise AssertionError(f"the log ended without {pattern}")
