"""The double's calls over sockets, what it does by itself, what it is told to do wrong, and what it
records (wire reference, 1 to 5 and 13)."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.orchestrator.scripted_channel import self_signed_context
from tests.sim.live_runners import Call, Seen, calls, echo, join, never, serve_runner, stream
from tests.trickle.wire import TIMEOUT
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_entries import Refused, Runner
from whisper_sim.runner_hub import KEEPALIVE
from whisper_sim.runner_records import Drop, Hang, Lose, Told

pytestmark = pytest.mark.anyio
NOWHERE = "http://127.0.0.1:1"
BODY = json.dumps({"runner_url": NOWHERE, "app": "a/b"}).encode()
BOOTSTRAP = {"Authorization": "secret"}


@pytest.fixture(params=["node", "go-livepeer"])
async def it(request: pytest.FixtureRequest) -> AsyncIterator[LiveRunner]:
    async with open_live_runner(node=request.param == "node", sweeps=False) as opened:
        yield opened


@pytest.fixture
async def node() -> AsyncIterator[LiveRunner]:
    async with open_live_runner(sweeps=False) as opened:
        yield opened


@pytest.fixture
async def call(request: pytest.FixtureRequest) -> AsyncIterator[Call]:
    """To whichever double the test has."""
    name = "node" if "node" in request.fixturenames else "it"
    async with calls(request.getfixturevalue(name).url) as opened:
        yield opened


def error(it: LiveRunner, text: str) -> bytes:
    """A body, in the double's dialect."""
    return json.dumps({"error": text}).encode() if it.options.node else text.encode() + b"\n"


async def test_a_runner_beats_and_leaves(it: LiveRunner, call: Call) -> None:
    status, headers, body = await call("POST", "/runners/heartbeat", headers=BOOTSTRAP, body=BODY)
    assert (status, headers["content-type"]) == (200, "application/json")
    first = json.loads(body)
    runner_id = first["runner_id"]
    assert first["orchestrator"] == it.url
    credential = {"Authorization": first["heartbeat_secret"]}
    again = json.dumps(json.loads(BODY) | {"runner_id": runner_id}).encode()
    assert (await call("POST", "/runners/heartbeat", headers=credential, body=again))[0] == 200
    status, _, body = await call("POST", f"/runners/{runner_id}/unregister", headers=BOOTSTRAP)
    assert status == 401
    path = f"/runners/{runner_id}/unregister"
    status, _, body = await call("POST", path, headers=credential)
    assert (status, body) == ((200, b'{"ok": true}') if it.options.node else (204, b""))
    status, _, body = await call("POST", path, headers=credential)
    assert (status, body) == (404, error(it, "runner not found"))
    assert [(beat.runner_id, beat.status) for beat in it.records.beats] == [(runner_id, 200)] * 2
    assert [departure.status for departure in it.records.departures] == [401, 200, 404] or (
        [departure.status for departure in it.records.departures] == [401, 204, 404]
    )
    assert [it.path for it in it.records.stale] == [path]
    assert len(it.records.gaps(runner_id)) == 1


async def test_errors_are_in_the_words_of_the_dialect(it: LiveRunner, call: Call) -> None:
    is_node = it.options.node
    status, headers, body = await call("POST", "/runners/heartbeat", body=BODY)
    text = "invalid runner credential" if is_node else "invalid registration authorization"
    assert (status, body) == (401, error(it, text))
    assert headers.get("connection") == ("close" if is_node else None)
    status, _, body = await call("POST", "/runners/heartbeat", headers=BOOTSTRAP, body=b"{")
    assert (status, body) == (400, error(it, "invalid heartbeat JSON"))
    assert [beat.status for beat in it.records.beats] == [401, 400]
    for path in ("/capability/register", "/other", "/runners/heartbeat/"):
        status, headers, body = await call("POST", path, body=BODY)
        assert (status, body) == (404, b"404 page not found\n")
        assert headers["content-type"].startswith("text/plain")
    status, headers, body = await call("GET", "/runners/heartbeat")
    assert (status, headers["allow"], body) == (405, "POST", b"Method Not Allowed\n")
    status, headers, _ = await call("POST", "//runners/heartbeat", body=BODY)
    assert (status, headers["location"]) == (307, "/runners/heartbeat")


async def test_bases_are_stripped_the_longer_first() -> None:
    async with (
        open_live_runner(
            service_url="https://o.example/pub", runner_service_url="http://inner:1/pub/x"
        ) as it,
        calls(it.url) as call,
    ):
        for base in ("/pub", "/pub/x"):
            status, _, body = await call("GET", f"{base}/discovery")
            assert (status, json.loads(body)[0]["address"]) == (200, "https://o.example/pub")
        status, _, body = await call("GET", "/discovery")
        assert (status, json.loads(body)) == (404, {"error": "route not found"})
        status, _, body = await call("POST", "/pub/runners/heartbeat", headers=BOOTSTRAP, body=BODY)
        first = json.loads(body)
        assert first["orchestrator"] == "http://inner:1/pub/x"
        assert first["o2r"]["url"].startswith("http://inner:1/pub/x/ai/trickle/")


async def test_a_client_discovers_reserves_and_stops(it: LiveRunner, call: Call) -> None:
    async with serve_runner(echo) as (url, _):
        runner = await join(it, url, capacity=1)
        [entry] = json.loads((await call("GET", "/discovery"))[2])
        path = entry["runners"][0]["url"].removeprefix(it.url)
        status, _, body = await call("POST", path, body=b"{}")
        session = json.loads(body)
        assert status == 200
        status, _, body = await call("POST", path)
        full = "runner at capacity" if it.options.node else "no capacity available for runner"
        assert (status, body) == (409 if it.options.node else 503, error(it, full))
        async with aiohttp.ClientSession() as http, http.get(session["app_url"] + "/x") as answer:
            assert (await answer.json())["target"] == "/x"
        control = session["control_url"].removeprefix(it.url)
        assert (await call("POST", f"{control}/stop"))[0] == (200 if it.options.node else 204)
        assert (await call("POST", f"{control}/stop"))[0] == 404
        assert (await call("GET", f"{control}/app/"))[0] == 404
        assert (await call("POST", f"/apps/{runner.runner_id}x/session"))[0] == 404
        assert not runner.sessions


async def test_single_shots(it: LiveRunner, call: Call) -> None:
    async with serve_runner(echo) as (url, _):
        runner = await join(it, url, mode="single-shot", capacity=1)
        path = f"/apps/{runner.runner_id}/app"
        status, _, body = await call("POST", f"{path}/v1/audio?x", body=b"abc")
        got = json.loads(body)
        assert (status, got["target"], got["body"]) == (200, "/v1/audio?x", "abc")
        assert got["headers"]["livepeer-session-id"].startswith("session_")
        await it.records.until(lambda: not runner.sessions)
        assert not it.records.cuts
        status, _, body = await call("POST", f"/apps/{runner.runner_id}/session")
        assert (status, body) == (400, error(it, "runner is not persistent"))
        persistent = await join(it, url)
        status, _, body = await call("GET", f"/apps/{persistent.runner_id}/app/")
        assert (status, body) == (400, error(it, "runner is not single-shot"))


async def test_a_single_shot_holds_its_place_while_it_runs(node: LiveRunner, call: Call) -> None:
    async with serve_runner(never) as (url, seen):
        runner = await join(node, url, mode="single-shot", capacity=1)
        path = f"/apps/{runner.runner_id}/app/"
        first = await call.start("POST", path, body=b"x")
        assert await seen.piece() == b"x"
        assert (await call("POST", path, body=b"x"))[0] == 409
        await first.close()
        assert await seen.end() == "broken"
        await node.records.until(lambda: not runner.sessions)


async def test_generated_proxies(node: LiveRunner, call: Call) -> None:
    async with serve_runner(echo) as (url, _):
        runner = await join(node, url + "/base", proxy=True)
        _, _, body = await call("POST", f"/apps/{runner.runner_id}/session")
        app = json.loads(body)["app_url"].removeprefix(node.url)
        label = app.removeprefix("/run/")
        for path in (f"/run/{label}/x?y", f"/proxy/{label}/x?y"):
            assert json.loads((await call("GET", path))[2])["target"] == "/base/x?y"
        single = await join(node, url, proxy=True, mode="single-shot")
        got = json.loads((await call("GET", f"/run/{single.runner_id}"))[2])
        assert got["target"] == "/"
        [session] = runner.sessions.values()
        callbacks = f"/runner/{runner.runner_id}/session/{session.session_id}"
        token = {"Livepeer-Session-Token": session.token}
        body = json.dumps({"target_url": url + "/other"}).encode()
        status, _, body = await call("POST", f"{callbacks}/proxy", headers=token, body=body)
        made = json.loads(body)["url"].removeprefix(node.url)
        assert json.loads((await call("GET", made))[2])["target"] == "/other/"
        for wrong in (b"", b'{"target_url": "/x"}', b"[]"):
            status, _, _ = await call("POST", f"{callbacks}/proxy", headers=token, body=wrong)
            assert status == 400
        assert (await call("POST", f"{callbacks}/stop", headers=token))[0] == 200
        status, _, body = await call("GET", made)
        assert (status, body) == (404, error(node, "proxy not found"))


async def test_channels_of_a_session(node: LiveRunner, call: Call) -> None:
    runner = await join(node, NOWHERE)
    session = node.reserve(runner.runner_id)
    path = f"/runner/{runner.runner_id}/session/{session.session_id}/channels"
    token = {"Livepeer-Session-Token": session.token}
    asked = json.dumps({"channels": [{"name": "out", "mime_type": "text/x"}]}).encode()
    assert (await call("POST", path, body=asked))[0] == 403
    for wrong in (b"", b"{}", b'{"channels": ["out"]}', b'{"channels": []}'):
        status, _, body = await call("POST", path, headers=token, body=wrong)
        assert (status, body) == (400, error(node, "invalid channels request"))
    status, _, body = await call("POST", path, headers=token, body=asked)
    [channel] = json.loads(body)["channels"]
    url = channel["internal_url"].removeprefix(node.url)
    assert (await call("POST", f"{url}/0", body=b"data"))[0] == 200
    status, headers, body = await call("GET", f"{url}/0")
    assert (status, headers["content-type"], body) == (200, "text/x", b"data")
    gone = json.dumps({"channels": ["out", "other"]}).encode()
    status, _, body = await call("DELETE", path, headers=token, body=gone)
    assert (status, json.loads(body)) == (200, {"deleted": ["out"]})
    assert (await call("GET", f"{url}/0"))[0] == 404
    again = json.loads((await call("POST", path, headers=token, body=asked))[2])["channels"][0]
    url = again["url"].removeprefix(node.url)
    waiting = await call.start("GET", f"{url}/0")
    await node.records.until(lambda: node.records.requests[-1].path == f"{url}/0")
    node.release(session)
    assert (await waiting.answer()).headers["lp-trickle-closed"] == "terminated"


async def test_o2r_tells_of_sessions_and_ends_with_the_registration(
    node: LiveRunner, call: Call
) -> None:
    runner = await join(node, NOWHERE)
    o2r = f"/ai/trickle/{runner.o2r}"
    waiting = await call.start("GET", f"{o2r}/-1")
    await node.records.until(lambda: node.records.requests[-1].path.startswith(o2r))
    session = node.reserve(runner.runner_id)
    event = json.loads((await waiting.answer()).body)
    assert (event["event"], event["session"]) == ("reserved", session.session_id)
    assert event["timestamp"].endswith("Z")
    node.release(session)
    event = json.loads((await call("GET", f"{o2r}/1"))[2])
    assert (event["event"], event["session"]) == ("released", session.session_id)
    for _ in range(5):
        node.tell(runner, KEEPALIVE)
    status, headers, _ = await call("GET", f"{o2r}/1")
    assert (status, headers["lp-trickle-latest"]) == (470, "7")
    waiting = await call.start("GET", f"{o2r}/7")
    await node.records.until(lambda: node.records.requests[-1].path == f"{o2r}/7")
    node.restart()
    assert (await waiting.answer()).headers["lp-trickle-closed"] == "terminated"
    assert (await call("GET", f"{o2r}/next"))[0] == 404


async def test_o2r_is_kept_alive() -> None:
    async with open_live_runner(keepalive_seconds=0.01) as it, calls(it.url) as call:
        runner = await join(it, NOWHERE)
        status, _, body = await call("GET", f"/ai/trickle/{runner.o2r}/0")
        assert (status, body) == (200, KEEPALIVE)


async def test_runners_that_fall_silent_are_swept_in_time() -> None:
    async with open_live_runner(heartbeat_interval="20ms", heartbeat_ttl="50ms") as it:
        runner = await join(it, NOWHERE)
        await it.records.until(lambda: not it.registry.runners)
        async with calls(it.url) as call:
            body = json.dumps(json.loads(BODY) | {"runner_id": runner.runner_id}).encode()
            credential = {"Authorization": runner.credential or ""}
            status, _, _ = await call("POST", "/runners/heartbeat", headers=credential, body=body)
            assert status == 401
        assert [beat.late for beat in it.records.beats] == [False, True]
        assert len(it.records.stale) == 1


async def test_static_runners_are_polled() -> None:
    healthy = True

    async def answer(request: web.Request, seen: Seen) -> web.StreamResponse:
        if request.path == "/ready":
            return web.Response(status=200 if healthy else 503)
        return await stream(request, seen)

    async with (
        open_live_runner(heartbeat_interval="20ms") as it,
        serve_runner(answer) as (url, seen),
        calls(it.url) as call,
    ):
        runner = it.add_static("s", url, "a/b", health_url=f"{url}/ready", capacity=2)
        session = it.reserve("s")
        running = await call.start("GET", f"/apps/s/session/{session.session_id}/app/")
        assert await running.until(5) == b"begun"
        await it.records.until(lambda: sum(r.path == "/ready" for r in seen.requests) > 2)
        healthy = False
        await it.records.until(lambda: not runner.healthy)
        assert not runner.sessions
        healthy = True
        await it.records.until(lambda: runner.healthy)
        it.reserve("s")


async def test_what_is_closing_or_restarted_knows_nobody(node: LiveRunner, call: Call) -> None:
    await join(node, NOWHERE)
    node.restart()
    assert not node.registry.runners
    await join(node, NOWHERE)
    node.close()
    status, _, body = await call("POST", "/runners/heartbeat", headers=BOOTSTRAP, body=BODY)
    assert (status, body) == (401, error(node, "invalid runner credential"))


# On-chain


async def test_a_paid_session_is_pending_before_it_is_paid() -> None:
    async with open_live_runner(on_chain=True) as it, calls(it.url) as call:
        with pytest.raises(AssertionError, match="runner price must be positive"):
            await join(it, NOWHERE)
        runner = await join(it, NOWHERE, price_info={"price": 0.1, "unit": "fixed"})
        path = f"/apps/{runner.runner_id}/session"
        status, _, body = await call("POST", path)
        assert (status, body) == (402, error(it, "Livepeer-Payer-Address is required"))
        payer = {"Livepeer-Payer-Address": "0x1"}
        status, _, body = await call("POST", path, headers=payer)
        assert status == 402
        [session] = runner.sessions.values()
        assert session.pending
        assert json.loads(body) == {"manifest_id": session.session_id}
        paid = payer | {"Livepeer-Payment": "p", "Livepeer-Segment": session.session_id}
        status, _, body = await call("POST", path, headers=paid)
        assert (status, json.loads(body)["session_id"]) == (200, session.session_id)
        assert not session.pending


# What it is told to do wrong


async def test_answers_may_be_told(node: LiveRunner, call: Call) -> None:
    told: list[Any] = [
        *[Told(503, "server busy")] * 2,
        Told(429, "slow down", {"Retry-After": "2"}),
        Told(404, "404 page not found", plain=True),
        Drop(),
        Lose(),
        Hang(0.01),
    ]
    node.next_answers["heartbeat"] = told
    answers = []
    async with aiohttp.ClientSession() as http:
        for _ in range(7):
            try:
                async with http.post(
                    f"{node.url}/runners/heartbeat", data=BODY, headers=BOOTSTRAP
                ) as answer:
                    answers.append((answer.status, await answer.text()))
                    if answer.status == 429:
                        assert answer.headers["Retry-After"] == "2"
            except aiohttp.ServerDisconnectedError:
                answers.append((0, str(len(node.registry.runners))))
    assert answers[:6] == [
        (503, '{"error": "server busy"}'),
        (503, '{"error": "server busy"}'),
        (429, '{"error": "slow down"}'),
        (404, "404 page not found\n"),
        (0, "0"),
        (0, "1"),
    ]
    assert answers[6][0] == 200
    assert len(node.records.to("/runners/heartbeat")) == 7
    assert len(node.records.beats) == 2  # what was told was no beat
    status, _, _ = await call("POST", "/capability/register", body=b"{}")
    assert status == 404


async def test_a_call_hangs_until_its_caller_leaves(node: LiveRunner, call: Call) -> None:
    node.next_answers["heartbeat"] = [Hang()]
    hanging = await call.start("POST", "/runners/heartbeat", headers=BOOTSTRAP, body=BODY)
    await node.records.until(lambda: len(node.records.requests) == 1)
    await hanging.assert_silent()
    await hanging.close()
    await join(node, NOWHERE)
    assert len(node.records.beats) == 1


async def test_connections_are_refused_and_taken_again_on_the_same_port(node: LiveRunner) -> None:
    async with aiohttp.ClientSession() as http:
        async with http.get(f"{node.url}/discovery") as answer:
            assert answer.status == 200
        async with node.refusing():
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(f"{node.url}/discovery")
        async with http.get(f"{node.url}/discovery") as answer:
            assert answer.status == 200


async def test_nothing_is_answered_while_it_is_silent(node: LiveRunner, call: Call) -> None:
    async with node.silent():
        waiting = await call.start("GET", "/discovery")
        await node.records.until(lambda: len(node.records.requests) == 1)
        await waiting.assert_silent()
    assert (await waiting.answer()).status == 200


async def test_there_are_so_many_places() -> None:
    async with (
        open_live_runner(streaming_places=1, control_places=1, sweeps=False) as it,
        serve_runner(never) as (url, seen),
        calls(it.url) as call,
    ):
        runner = await join(it, url)
        session = it.reserve(runner.runner_id)
        path = f"/apps/{runner.runner_id}/session/{session.session_id}/app/"
        running = await call.start("POST", path, body=b"x")
        assert await seen.piece() == b"x"
        for busy in (path, f"/ai/trickle/{runner.o2r}/0"):
            status, _, body = await call("GET", busy)
            assert (status, json.loads(body)) == (503, {"error": "server busy"})
        assert (await call("GET", "/discovery"))[0] == 200
        await running.close()
        await it.records.until(lambda: not it.records.running)
        # A reader that waits keeps its place when its client has gone: node looks only at data.
        reader = await call.start("GET", f"/ai/trickle/{runner.o2r}/1")
        await it.records.until(lambda: it.records.requests[-1].path.endswith("-o2r/1"))
        await reader.close()
        assert (await call("GET", path))[0] == 503
        it.tell(runner, KEEPALIVE)
        await it.records.until(lambda: it.places_taken == 0)
        it.next_answers["discovery"] = [Hang()]
        await call.start("GET", "/discovery")
        await it.records.until(lambda: it.records.requests[-1].path == "/discovery")
        assert (await call("GET", "/discovery"))[0] == 503
        assert it.records.denied == 4


async def test_it_listens_on_tls(tmp_path: Path) -> None:
    async with open_live_runner(tls=self_signed_context(tmp_path)) as it:
        assert it.url.startswith("https://")
        async with calls(it.url) as call:
            _, _, body = await call("POST", "/runners/heartbeat", headers=BOOTSTRAP, body=BODY)
            assert json.loads(body)["orchestrator"] == it.url
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.ClientConnectorCertificateError) as refused:
                await http.get(f"{it.url}/discovery")
            assert isinstance(refused.value.certificate_error, ssl.SSLCertVerificationError)


async def test_it_closes_with_all_that_hangs() -> None:
    async with aiohttp.ClientSession() as http, serve_runner(never) as (url, seen):
        async with open_live_runner() as it:
            runner = await join(it, url)
            session = it.reserve(runner.runner_id)
            app = f"{it.url}/apps/{runner.runner_id}/session/{session.session_id}/app"
            it.next_answers["discovery"] = [Hang()]
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(_broken(http.post(app, data=b"x"))),
                    group.create_task(_broken(http.get(f"{it.url}/discovery"))),
                    group.create_task(_broken(http.get(f"{it.url}/ai/trickle/{runner.o2r}/1"))),
                ]
                await it.records.until(lambda: len(it.records.requests) == 4)
                await seen.piece()
                await it.shut()
        assert len(asked) == 3


async def _broken(call: Any) -> None:
    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(aiohttp.ClientError):
            await call


async def test_a_session_that_nobody_can_have_is_refused(node: LiveRunner) -> None:
    with pytest.raises(Refused):
        node.reserve("runner_other")
    runner: Runner = await join(node, NOWHERE)
    assert await node.registered() is runner
