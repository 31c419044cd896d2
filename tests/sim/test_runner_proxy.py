"""What passes through the double to a runner and back, and what cuts it (reference, 4 and 6)."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.sim.live_runners import (
    Call,
    Handler,
    Seen,
    calls,
    echo,
    join,
    never,
    refuse,
    serve_runner,
    socket,
    stream,
    swallow,
)
from tests.trickle.wire import TIMEOUT, Answer, BrokenOff
from tests.trickle.wire import Exchange as Request
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_entries import Runner, Session
from whisper_sim.runner_proxy import HELD_BYTES, Exchange, ProxyOptions

pytestmark = pytest.mark.anyio
UNAVAILABLE = {"error": "runner destination unavailable"}


class Path:
    """A runner behind a double, and a session of it."""

    def __init__(self, it: LiveRunner, runner: Runner, session: Session, call: Call, seen: Seen):
        self.it, self.runner, self.session, self.call, self.seen = it, runner, session, call, seen
        self.control = f"/apps/{runner.runner_id}/session/{session.session_id}"
        self.app = self.control + "/app"

    async def start(self, method: str, path: str = "", **arguments: Any) -> Request:
        return await self.call.start(method, self.app + path, **arguments)

    async def ask(self, method: str, path: str = "", **arguments: Any) -> Answer:
        return await (await self.start(method, path, **arguments)).answer()

    async def finished(self, count: int = 1) -> list[Exchange]:
        """The requests that have passed, once so many have."""
        await self.it.records.until(lambda: len(self.it.records.finished) >= count)
        return list(self.it.records.finished)


Open = Callable[..., Awaitable[Path]]


@asynccontextmanager
async def path_to(
    handler: Handler, base: str = "", fields: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Path]:
    """base: the path of the runner's URL. options: of the double."""
    async with (
        open_live_runner(sweeps=False, **options) as it,
        serve_runner(handler) as (url, seen),
        calls(it.url) as call,
    ):
        runner = await join(it, url + base, **(fields or {}))
        yield Path(it, runner, it.reserve(runner.runner_id), call, seen)


@pytest.fixture
async def open_path() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def opened(handler: Handler, *arguments: Any, **options: Any) -> Path:
            return await stack.enter_async_context(path_to(handler, *arguments, **options))

        yield opened


@pytest.mark.parametrize("node", [True, False], ids=["node", "go-livepeer"])
async def test_a_request_reaches_the_runner_with_the_orchestrators_headers(
    open_path: Open, node: bool
) -> None:
    path = await open_path(echo, "/base", node=node)
    forged = {
        "Livepeer-Session-Id": "forged",
        "X-Forwarded-For": "1.2.3.4",
        "Authorization": "Bearer mine",
        "Keep-Alive": "5",
    }
    answer = await path.ask("POST", "/live/a%2Fb%25c?x=1;y", headers=forged, body=b"abc")
    assert answer.status == 200
    got = json.loads(answer.body)
    assert (got["method"], got["body"]) == ("POST", "abc")
    assert got["target"] == "/base/live/a/b%25c?x=1;y"
    headers = got["headers"]
    session = path.session
    assert headers["livepeer-runner-route"] == path.runner.runner_id
    assert headers["livepeer-session-id"] == session.session_id
    assert headers["livepeer-session-token"] == session.token
    assert headers["livepeer-session-control"] == (
        f"{path.it.url}/runner/{path.runner.runner_id}/session/{session.session_id}"
    )
    assert headers["authorization"] == "Bearer mine"
    assert (
        headers["host"] == path.runner.fields.runner_url.removeprefix("http://").partition("/")[0]
    )
    assert headers["accept-encoding"] == "gzip"
    assert "keep-alive" not in headers
    forwarded = [headers.get(f"x-forwarded-{name}") for name in ("for", "host", "proto")]
    host = path.it.url.removeprefix("http://")
    assert forwarded == (["127.0.0.1", host, "http"] if node else [None] * 3)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PATCH", "DELETE", "PUT"])
async def test_every_method_passes(open_path: Open, method: str) -> None:
    path = await open_path(echo)
    answer = await path.ask(method)
    assert answer.status == 200
    if method != "HEAD":
        assert json.loads(answer.body)["target"] == "/"
    assert path.seen.requests[0].method == method


@pytest.mark.parametrize("end", ["", "/"])
async def test_a_path_with_and_without_its_slash_is_the_same(open_path: Open, end: str) -> None:
    path = await open_path(echo, "/base?k=v")
    assert json.loads((await path.ask("GET", end)).body)["target"] == "/base/?k=v"


async def test_both_bodies_pass_piece_by_piece(open_path: Open) -> None:
    path = await open_path(stream, proxy=ProxyOptions(hold_early=False))
    exchange = await path.start("PUT", streamed=True)
    await exchange.send(b"one")
    assert await path.seen.piece() == b"one"
    assert await exchange.until(8) == b"begunONE"
    await exchange.send(b"two")
    assert await exchange.until(3) == b"TWO"
    await exchange.finish()
    assert await exchange.rest() == b""
    [passed] = await path.finished()
    assert (passed.uploaded, passed.downloaded, passed.status) == (6, 11, 200)


async def test_a_long_body_passes_whole(open_path: Open) -> None:
    path = await open_path(swallow)
    answer = await path.ask("PUT", body=bytes(3_000_000))
    assert answer.body == b"read"
    assert (await path.finished())[0].uploaded == 3_000_000


async def test_a_websocket_passes_untouched(open_path: Open) -> None:
    path = await open_path(socket)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{path.it.url}{path.app}/ws", protocols=("speech",), autoping=False) as ws,
    ):
        assert ws.protocol == "speech"
        await ws.send_str("hello")
        assert (await ws.receive(TIMEOUT)).data == "HELLO"
        await ws.ping(b"?")
        pong = await ws.receive(TIMEOUT)
        assert (pong.type, pong.data) == (aiohttp.WSMsgType.PONG, b"?!")
        await ws.close(code=4001)
    assert await path.seen.piece() == b"4001"
    assert (await path.finished())[0].upgraded


async def test_gzip_that_nobody_asked_for_is_undone(open_path: Open) -> None:
    async def zipped(request: web.Request, seen: Seen) -> web.StreamResponse:
        headers = {"Content-Encoding": "gzip"}
        return web.Response(body=gzip.compress(b"plain"), headers=headers)

    path = await open_path(zipped)
    answer = await path.ask("GET")
    assert answer.body == b"plain"
    assert "content-encoding" not in answer.headers
    answer = await path.ask("GET", headers={"Accept-Encoding": "gzip"})
    assert gzip.decompress(answer.body) == b"plain"


async def test_who_waits_for_100_gets_it(open_path: Open) -> None:
    path = await open_path(swallow)
    exchange = await path.start("PUT", headers={"Expect": "100-continue"}, streamed=True)
    assert await exchange.interim(TIMEOUT) == 100
    await exchange.send(b"x")
    await exchange.finish()
    assert (await exchange.answer()).body == b"read"


async def test_paths_are_checked_before_they_pass(open_path: Open) -> None:
    path = await open_path(echo)
    for climbing in ("/../x", "/%2e%2e/x"):
        answer = await path.ask("GET", climbing)
        assert (answer.status, json.loads(answer.body)) == (400, {"error": "invalid path"})
    answer = await path.ask("POST", "//x/./y?q", body=b"b")
    assert (answer.status, answer.headers["location"]) == (307, f"{path.app}/x/y?q")
    assert (await path.ask("GET", "/%zz")).status == 400
    assert not path.seen.requests


async def test_go_livepeer_redirects_a_bare_app(open_path: Open) -> None:
    path = await open_path(echo, node=False)
    answer = await path.ask("GET", "?q=1")
    assert (answer.status, answer.headers["location"]) == (307, f"{path.app}/?q=1")


# The end of a session


async def stop(path: Path) -> None:
    answer = await path.call("POST", path.control + "/stop")
    assert answer[0] == (200 if path.it.options.node else 204)


async def stop_by_runner(path: Path) -> None:
    runner_id, session = path.runner.runner_id, path.session
    url = f"/runner/{runner_id}/session/{session.session_id}/stop"
    answer = await path.call("POST", url, headers={"Livepeer-Session-Token": session.token})
    assert answer[0] in (200, 204)


async def unregister(path: Path) -> None:
    headers = {"Authorization": path.runner.credential or ""}
    answer = await path.call(
        "POST", f"/runners/{path.runner.runner_id}/unregister", headers=headers
    )
    assert answer[0] in (200, 204)


async def expire(path: Path) -> None:
    path.runner.last_beat -= 1000
    path.it.sweep()


async def restart(path: Path) -> None:
    path.it.restart()


async def fail_health(path: Path) -> None:
    path.it.registry.receive_health(path.runner, False)
    path.it.carry_out()


ENDS = pytest.mark.parametrize(
    "end",
    [stop, stop_by_runner, unregister, expire, restart, fail_health],
    ids=lambda end: end.__name__,
)


@ENDS
async def test_node_cuts_requests_when_their_session_ends(
    open_path: Open, end: Callable[[Path], Awaitable[None]]
) -> None:
    path = await open_path(stream, proxy=ProxyOptions(hold_early=False))
    uploading = await path.start("PUT", streamed=True)
    await uploading.send(b"heard")
    assert await uploading.until(10) == b"begunHEARD"
    await end(path)
    with pytest.raises((BrokenOff, ConnectionResetError)):
        await uploading.rest()
    assert await path.seen.end() == "broken"
    [cut] = path.it.records.cuts
    assert (cut.uploaded, cut.downloaded, cut.was_cut) == (5, 10, True)
    answer = await path.ask("GET")
    assert answer.status == 404


async def test_node_cuts_a_websocket_without_a_close_frame(open_path: Open) -> None:
    path = await open_path(socket)
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{path.it.url}{path.app}") as ws:
        await ws.send_str("a")
        assert (await ws.receive(TIMEOUT)).data == "A"
        await unregister(path)
        assert (await ws.receive(TIMEOUT)).type is aiohttp.WSMsgType.CLOSED
        assert ws.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE
    assert await path.seen.end() == "broken"
    [departure] = path.it.records.departures
    assert [it.upgraded for it in departure.open] == [True]


async def test_an_answer_that_had_not_begun_is_502(open_path: Open) -> None:
    path = await open_path(never)
    waiting = await path.start("POST", body=b"all of it")
    assert await path.seen.piece() == b"all of it"
    await stop(path)
    answer = await waiting.answer()
    assert (answer.status, json.loads(answer.body)) == (502, UNAVAILABLE)
    assert await path.seen.end() == "broken"


async def test_a_client_in_a_chunked_upload_hears_of_the_cut_at_its_end(open_path: Open) -> None:
    path = await open_path(swallow)
    uploading = await path.start("PUT", streamed=True)
    await uploading.send(b"heard")
    assert await path.seen.piece() == b"heard"
    await stop(path)
    assert await path.seen.end() == "broken"
    await uploading.send(b"lost")
    await uploading.assert_silent(0.1)
    await uploading.finish()
    assert (await uploading.answer()).status == 502


async def test_go_livepeer_lets_requests_go_on(open_path: Open) -> None:
    path = await open_path(stream, node=False, proxy=ProxyOptions(hold_early=False))
    uploading = await path.start("PUT", "/x", streamed=True)
    await uploading.send(b"one")
    assert await uploading.until(8) == b"begunONE"
    await unregister(path)
    await uploading.send(b"two")
    assert await uploading.until(3) == b"TWO"
    await uploading.finish()
    assert await uploading.rest() == b""
    assert not path.it.records.cuts


async def test_a_client_that_leaves_is_noticed_by_the_runner(open_path: Open) -> None:
    path = await open_path(never)
    waiting = await path.start("POST", body=b"x")
    assert await path.seen.piece() == b"x"
    await waiting.close()
    assert await path.seen.end() == "broken"
    await path.it.records.until(lambda: not path.it.records.running)


# Early answers, and late ones


async def test_an_early_answer_to_a_chunked_upload_waits_for_256_kib(open_path: Open) -> None:
    path = await open_path(refuse)
    uploading = await path.start("PUT", streamed=True)
    await uploading.send(b"x")
    assert await path.seen.end() == "whole"
    await uploading.assert_silent(0.1)
    for _ in range(HELD_BYTES // 4096):
        await uploading.send(bytes(4096))
    await uploading.send(bytes(4096))
    answer = await uploading.answer()
    assert (answer.status, answer.headers["connection"]) == (415, "close")
    assert json.loads(answer.body) == {"error": "not this"}


async def test_an_early_answer_to_a_chunked_upload_is_there_at_its_end(open_path: Open) -> None:
    path = await open_path(refuse)
    uploading = await path.start("PUT", streamed=True)
    assert await path.seen.end() == "whole"
    await uploading.assert_silent(0.1)
    await uploading.finish()
    assert (await uploading.answer()).status == 415


async def test_an_early_answer_to_a_long_body_of_known_length_comes_at_once(
    open_path: Open,
) -> None:
    path = await open_path(refuse)
    uploading = await path.start("PUT", headers={"Content-Length": str(HELD_BYTES + 1)})
    answer = await uploading.answer()
    assert (answer.status, answer.headers["connection"]) == (415, "close")


async def test_early_answers_may_be_let_go(open_path: Open) -> None:
    path = await open_path(refuse, proxy=ProxyOptions(hold_early=False))
    uploading = await path.start("PUT", streamed=True)
    assert (await uploading.answer()).status == 415


async def test_an_answer_must_begin_in_time_after_the_last_byte(open_path: Open) -> None:
    path = await open_path(never, proxy=ProxyOptions(head_seconds=0.1))
    uploading = await path.start("PUT", streamed=True)
    await uploading.send(b"x")
    assert await path.seen.piece() == b"x"
    await uploading.assert_silent(0.3)
    await uploading.finish()
    answer = await uploading.answer()
    assert (answer.status, json.loads(answer.body)) == (502, UNAVAILABLE)
    assert await path.seen.end() == "broken"


async def test_a_runner_that_is_not_there_or_not_granted_is_502(open_path: Open) -> None:
    path = await open_path(echo, proxy=ProxyOptions(grants=frozenset({"whisper:8000"})))
    answer = await path.ask("GET")
    assert (answer.status, json.loads(answer.body)) == (502, UNAVAILABLE)
    assert not path.seen.requests
    gone = await join(path.it, "http://127.0.0.1:1")
    session = path.it.reserve(gone.runner_id)
    status, _, _ = await path.call(
        "GET", f"/apps/{gone.runner_id}/session/{session.session_id}/app"
    )
    assert status == 502


# Connections to runners


async def test_idle_connections_are_used_again(open_path: Open) -> None:
    path = await open_path(echo)
    for number in range(3):
        assert (await path.ask("POST", body=b"x" * number)).status == 200
        await path.finished(number + 1)
    assert len(path.seen.transports) == 1
    assert [it.reused for it in await path.finished()] == [False, True, True]


async def test_idle_connections_are_closed_after_their_time(open_path: Open) -> None:
    path = await open_path(echo, proxy=ProxyOptions(idle_seconds=0.0))
    for number in range(2):
        assert (await path.ask("GET")).status == 200
        await path.finished(number + 1)
    assert [it.reused for it in await path.finished(2)] == [False, False]


@asynccontextmanager
async def closing_runner() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Answers the first request of a connection, and closes upon the second's."""
    lines: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(await reader.readline())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        if line := await reader.readline():
            lines.append(line)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", lines


@pytest.mark.parametrize(
    ("method", "body", "status"), [("POST", b"x", 502), ("PUT", b"x", 502), ("GET", None, 200)]
)
async def test_a_request_that_meets_a_closing_connection(
    method: str, body: bytes | None, status: int
) -> None:
    """Go sends only those again that have no body."""
    async with open_live_runner() as it, closing_runner() as (url, lines), calls(it.url) as call:
        runner = await join(it, url)
        session = it.reserve(runner.runner_id)
        path = f"/apps/{runner.runner_id}/session/{session.session_id}/app"
        assert (await call("GET", path))[0] == 200
        assert (await call(method, path, body=body))[0] == status
        assert len(lines) == (3 if status == 200 else 2)
