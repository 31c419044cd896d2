"""Door 1 as the seed's contract has it, directly and through the proxy of a Live Runner: the cases
109 to 115 of docs/wire.md."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from numpy.typing import NDArray
from yarl import URL

from tests.conftest import direct, pcm
from tests.doors.test_live import Door, open_door, pieces, raw_statuses, silence
from tests.scripted import ScriptedModel, spoken

pytestmark = pytest.mark.anyio
PREFIX = "/apps/x/session/y/app"
_HOP_BY_HOP = ("Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Host", "Date", "Server")

Samples = NDArray[np.float32]


class RunnerProxy:
    """What an orchestrator is to a Live Runner: it takes its prefix away, adds its headers, and
    passes both bodies on as they come. Use `serve`."""

    def __init__(self, runner_url: str) -> None:
        self._runner_url = runner_url

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The URL that clients have for the runner."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        # Bodies are the runner's as they are; no answer of its is followed elsewhere.
        self._http = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )
        async with self._http:
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                yield f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}"
            finally:
                await runner.cleanup()

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        assert request.raw_path.startswith(PREFIX + "/")
        kept = [(name, it) for name, it in request.headers.items() if name not in _HOP_BY_HOP]
        added = [
            ("Livepeer-Runner-Route", "x"),
            ("Livepeer-Session-Id", "y"),
            ("Livepeer-Session-Token", "token"),
            ("Livepeer-Session-Control", "https://orchestrator.example/apps/x/session/y/control"),
            ("X-Forwarded-For", "10.0.0.1"),
        ]
        async with self._http.request(
            request.method,
            URL(self._runner_url + request.raw_path.removeprefix(PREFIX), encoded=True),
            headers=kept + added,
            data=request.content.iter_any() if request.can_read_body else None,
            allow_redirects=False,
        ) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.title() not in _HOP_BY_HOP:
                    response.headers.add(name, value)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response


@asynccontextmanager
async def behind_proxy(door: Door) -> AsyncIterator[Door]:
    """The same server, as clients of an orchestrator see it."""
    async with (
        RunnerProxy(door.url).serve() as url,
        Door(url, door.service, door.model) as proxied,
    ):
        yield proxied


@pytest.fixture(params=[False, True], ids=["directly", "behind a proxy"])
async def door(request: pytest.FixtureRequest) -> AsyncIterator[Door]:
    async with open_door(output_grace_seconds=0.1) as opened:
        if request.param:
            async with behind_proxy(opened) as proxied:
                yield proxied
        else:
            yield opened


@pytest.fixture
async def runner() -> AsyncIterator[Door]:
    """Without its proxy."""
    async with open_door(output_grace_seconds=30) as opened:
        yield opened


def text_of(samples: Samples) -> str:
    """What the scripted model hears."""
    return " ".join(f"w{n}" for n in range(len(samples) // 16_000)) + "\n"


async def test_case_109_pcm_in_utf_8_text_out(door: Door, sentence: Samples) -> None:
    seconds = len(sentence) / 16_000
    door.model.answer = lambda _: spoken("größere", "Straße", seconds=seconds)
    status, document = await door.put("j", pcm(sentence))
    assert (status, document["job_id"]) == (200, "j")
    assert document["bytes"] == len(sentence) * 2
    assert document["audio_seconds"] == pytest.approx(seconds, abs=0.001)
    status, text, headers = await door.ask("GET", "/live/j/output")
    assert (status, text) == (200, "größere Straße\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Model-Id"] == "scripted"


@pytest.mark.parametrize("accept", ["text/plain", "text/event-stream", "application/x-ndjson"])
@pytest.mark.parametrize("proxied", [False, True], ids=["directly", "behind a proxy"])
async def test_case_110_output_begins_before_the_input_ends(
    runner: Door, sentence: Samples, accept: str, proxied: bool
) -> None:
    """GET first, PUT later, in pieces whose last is sent when there is output."""
    if proxied:
        async with behind_proxy(runner) as door:
            await talk_and_read(door, sentence, accept)
    else:
        await talk_and_read(runner, sentence, accept)


async def talk_and_read(door: Door, sentence: Samples, accept: str) -> None:
    heard_back = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        async for piece in pieces(pcm(np.concatenate([sentence, silence(1.5)])), 3200):
            yield piece
        await heard_back.wait()
        yield pcm(sentence)

    async def read() -> str:
        read_so_far = b""
        async with (
            aiohttp.ClientSession() as http,
            http.get(door.url + "/live/j/output", headers={"Accept": accept}) as answer,
        ):
            assert answer.content_type == accept
            async for piece in answer.content.iter_any():
                read_so_far += piece
                if b"w0" in read_so_far:
                    heard_back.set()
        return read_so_far.decode()

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read())
        assert (await door.ask("GET", "/health"))[1] == {"status": "IDLE"}
        assert (await door.put("j", body()))[0] == 200
    if accept == "text/plain":
        lines = reading.result().splitlines()
        assert [line.split()[:2] for line in lines] == [["w0", "w1"]] * 2
    elif accept == "text/event-stream":
        assert reading.result().endswith("data: [DONE]\n\n")
    else:
        assert json.loads(reading.result().splitlines()[-1])["type"] == "end"


async def test_case_111_an_empty_put_changes_nothing(door: Door, sentence: Samples) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        no_pieces: tuple[bytes, ...] = ()
        for piece in no_pieces:
            yield piece

    for empty in (b"", nothing()):
        status, document = await door.put("j", empty)
        assert status == 200
        assert document == {"job_id": "j", "bytes": 0, "audio_seconds": 0.0, "state": None}
    assert door.service.jobs.num_running == 0
    assert (await door.ask("GET", "/live/j/output"))[0] == 404
    assert (await door.put("j", pcm(sentence)))[0] == 200
    assert (await door.ask("GET", "/live/j/output"))[1] == text_of(sentence)


@pytest.mark.parametrize("size", [1, 3, 1023])
async def test_case_112_odd_chunks_give_the_same_text(
    door: Door, sentence: Samples, size: int
) -> None:
    """Counted in samples, so that a shift by one byte would be heard by any model."""
    audio = pcm(sentence[:16_000])
    # A slow sender would be a live one, with partials.
    await door.put("whole", audio, "?mode=finals_only")
    await door.put("cut", pieces(audio + b"\x01", size), "?mode=finals_only")
    texts = [(await door.ask("GET", f"/live/{job}/output"))[1] for job in ("whole", "cut")]
    assert texts == ["w0\n", "w0\n"]
    whole, cut = door.model.requests
    assert np.array_equal(whole.samples, cut.samples)


@pytest.mark.parametrize(
    ("asked", "status"), [(None, 200), ("scripted", 200), ("whisper-large", 404), ("", 404)]
)
async def test_case_113_the_model_header(
    door: Door, sentence: Samples, asked: str | None, status: int
) -> None:
    headers = {} if asked is None else {"X_Model_Id": asked}
    found, document = await door.put("j", pcm(sentence), **headers)
    assert found == status
    if status == 404:
        assert document["error"]["message"] == (
            f"model is {asked!r}, expected one that is served: scripted"
        )
        assert door.service.jobs.find(direct("j")) is None


async def test_case_114_an_unknown_job_is_not_found(door: Door) -> None:
    for method, path in (("GET", "/output"), ("GET", ""), ("DELETE", "")):
        status, document, _ = await door.ask(method, "/live/nobody" + path)
        assert (status, document["error"]["code"]) == (404, "unknown_job")


@pytest.mark.parametrize("proxied", [False, True], ids=["directly", "behind a proxy"])
@pytest.mark.parametrize(
    "job",
    [
        "..%2f..%2fetc",
        "..",
        ".",
        "a%2fb",
        "a%20b",
        "%00",
        "%c3%a4",
        "ä",
        "x" * 129,
        "a;b",
        "%2e%2e",
    ],
)
async def test_case_114_a_job_id_cannot_leave_its_place(
    runner: Door, job: str, proxied: bool
) -> None:
    async def statuses(url: str) -> list[int]:
        path = "/" + url.split("/", 3)[3] if proxied else ""
        return await raw_statuses(
            url.removesuffix(path),
            f"PUT {path}/live/{job}/source HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
            f"GET {path}/live/{job}/output HTTP/1.1\r\nHost: x\r\n\r\n",
            f"DELETE {path}/live/{job} HTTP/1.1\r\nHost: x\r\n\r\n",
        )

    if proxied:
        async with behind_proxy(runner) as door:
            # A proxy may fold dots, and then it is another path that is asked for.
            assert set(await statuses(door.url)) <= {400, 404}
    else:
        assert await statuses(runner.url) == [400, 400, 400]
    assert runner.service.jobs.num_running == 0


async def test_case_115_answers_are_the_same_behind_a_proxy(
    runner: Door, sentence: Samples
) -> None:
    async with behind_proxy(runner) as door:
        await door.put("j", pcm(sentence))
        await door.events("j")
        for path in ANSWERED:
            assert comparable(await door.ask("GET", path)) == comparable(
                await runner.ask("GET", path, Livepeer_Session_Id="y")
            )


ANSWERED = (
    "/live/j/output",
    "/live/j/output?format=ndjson",
    "/live/j/output?format=sse",
    "/live/j/output?format=json",
    "/live/j/output?format=vtt",
    "/live/j/output?format=srt",
    "/live/j/output?format=docx",
    "/live/j",
    "/live/j/source",
    "/live/nobody",
    "/health",
    "/ready",
    "/version",
    "/app-version",
    "/nowhere",
)


def comparable(answer: tuple[int, object, object]) -> tuple[int, str, str]:
    status, body, headers = answer
    assert isinstance(headers, Mapping)
    return status, json.dumps(body, sort_keys=True), headers["Content-Type"]


WITH_A_SLASH = (
    "/health/",
    "/stream/status/",
    "/live/",
    "/live/j/output/",
    "/nowhere/",
)


@pytest.mark.parametrize("path", [*ANSWERED, "/metrics", *WITH_A_SLASH])
async def test_case_115_no_answer_leads_out_of_the_prefix(
    runner: Door, sentence: Samples, path: str
) -> None:
    async with behind_proxy(runner) as door:
        await door.put("j", pcm(sentence))
        for method in ("GET", "PUT", "DELETE"):
            async with (
                aiohttp.ClientSession() as http,
                http.request(method, door.url + path, allow_redirects=False) as answer,
            ):
                assert not 300 <= answer.status < 400
                assert "Location" not in answer.headers
                assert not re.search(r"[a-z]+://|127\.0\.0\.1", str(answer.headers))
                assert not re.search(r"[a-z]+://|127\.0\.0\.1", await answer.text())


async def test_case_115_errors_pass_the_proxy_as_they_are(runner: Door, sentence: Samples) -> None:
    async with behind_proxy(runner) as door:
        asked: tuple[tuple[Callable[[], Awaitable[tuple[int, object]]], int], ...] = (
            (lambda: door.put("j", b"\0\0", "?language=de"), 400),
            (lambda: door.put("j", b"<p>", Content_Type="text/html"), 415),
            (lambda: door.put("j", pcm(sentence), X_Model_Id="other"), 404),
            (lambda: door.put("j", pcm(sentence)), 200),
            (lambda: door.put("j", pcm(sentence)), 409),
        )
        for ask, expected in asked:
            status, document = await ask()
            assert status == expected, document


async def test_case_115_a_session_is_in_use_while_a_request_is_answered(
    runner: Door, sentence: Samples
) -> None:
    """What heartbeats tell the orchestrator."""
    seen: list[list[str]] = []

    async def body() -> AsyncIterator[bytes]:
        yield pcm(sentence[:16_000])
        await client.first_event("j")
        seen.append(runner.service.runner_sessions.in_use)
        yield pcm(sentence[16_000:])

    async with behind_proxy(runner) as client:
        assert (await client.put("j", body()))[0] == 200
        assert seen == [["y"]]
        while (
            runner.service.runner_sessions.in_use
        ):  # the last bytes of an answer come before its end
            await runner.ask("GET", "/health")


async def test_case_115_a_client_that_leaves_the_proxy_leaves_its_words(
    runner: Door, sentence: Samples
) -> None:
    held = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield pcm(sentence[:16_000])
        await held.wait()

    async with behind_proxy(runner) as door, asyncio.TaskGroup() as group:
        source = group.create_task(door.put("j", body()))
        await door.first_event("j")
        source.cancel()
        events = await door.events("j")
    assert events[-1]["reason"] == "disconnected"
    assert "final" in [event["type"] for event in events]


async def test_the_version_names_the_interface_and_what_clients_ask_for(runner: Door) -> None:
    for path in ("/version", "/app-version"):
        document = (await runner.ask("GET", path))[1]
        assert document["interfaces"] == ["live-runner"]
        assert document["app"] == "live-transcription/scripted"


async def test_two_jobs_of_one_session_do_not_mix(sentence: Samples) -> None:
    model = ScriptedModel()
    async with open_door(model=model) as opened, behind_proxy(opened) as door:
        jobs = [f"job-{n}" for n in range(4)]
        await asyncio.gather(*(door.put(job, pcm(sentence)) for job in jobs))
        texts = [(await door.ask("GET", f"/live/{job}/output"))[1] for job in jobs]
        assert texts == [text_of(sentence)] * 4
