"""Sessions of an orchestrator: reserved, used through its proxy, and always stopped."""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import Send, ignore, never_read, pieces, refusal, silent_behind
from tests.client.test_live import PAGE, answering
from tests.conftest import MODELS, Speak, pcm, serve_app
from tests.orchestrator.scripted_channel import self_signed_context
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.client import ClientError, LiveClient, ProcessorClient, Session, reserve
from whisper_byoc.client.network import session_urls
from whisper_byoc.service import Service
from whisper_byoc.settings import JobSettings, ModelSettings, Settings
from whisper_byoc.transcript import EndReason, Format
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_records import Fault, Hang, Told

pytestmark = pytest.mark.anyio
TIMEOUT = 60
APP = "live-transcription/tiny.en"
NOWHERE = "http://127.0.0.1:9"


@asynccontextmanager
async def orchestrator(runner_url: str = NOWHERE, **options: Any) -> AsyncIterator[LiveRunner]:
    """One with a runner of `APP` that has two places."""
    async with asyncio.timeout(TIMEOUT), open_live_runner(**options) as it:
        it.add_static("whisper", runner_url, APP, capacity=2)
        yield it


@dataclass
class Network:
    orchestrator: LiveRunner
    service: Service

    @asynccontextmanager
    async def client(self) -> AsyncIterator[LiveClient]:
        url = self.orchestrator.url
        async with reserve(url, APP) as session, LiveClient(session.app_url) as client:
            yield client

    def cut(self) -> None:
        """End every session, as an operator's restart does."""
        for session in list(self.orchestrator.registry.sessions.values()):
            self.orchestrator.release(session)


@asynccontextmanager
async def network(max_jobs: int = 64, **options: Any) -> AsyncIterator[Network]:
    """The real service behind an orchestrator."""
    settings = Settings(model=ModelSettings(directory=MODELS), jobs=JobSettings(max_jobs=max_jobs))
    async with (
        serve_app(scripted_engine(ScriptedModel()), settings) as (url, service),
        orchestrator(url, **options) as it,
    ):
        yield Network(it, service)


def listed(*runners: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"address": "http://o", "runners": list(runners)}]


def runner(app: str, url: str = "http://o/s", **fields: Any) -> dict[str, Any]:
    return {"url": url, "app": app, "mode": "persistent"} | fields


def test_runners_of_the_app_with_a_place_are_tried_in_order() -> None:
    found = listed(
        runner("a", "http://o/1"),
        runner("b", "http://o/2"),
        runner("a", "http://o/3", mode="single-shot"),
        runner("a", "http://o/4", capacity_available=0),
    )
    found += listed(runner("a", "http://o/5", capacity_available=3))
    assert session_urls(found, "a") == ["http://o/1", "http://o/5"]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (listed(), "app a (persistent) is not listed, or has no place left, expected one that is:"
         " none at all"),
        ([], "none at all"),
        (listed(runner("b"), runner("a", mode="single-shot")), "a (single-shot), b (persistent)"),
        (listed(runner("a", capacity_available=0)), "all 1 runners of a are full"),
        (None, "/discovery has null, expected"),
        ({"runners": []}, '/discovery has {"runners": []}, expected'),
        (["a"], '/discovery has ["a"], expected'),
        (listed({"app": "a"}), "expected"),
    ],
)  # fmt: skip
def test_what_no_session_can_be_had_from_is_named(document: Any, text: str) -> None:
    with pytest.raises(ClientError) as error:
        session_urls(document, "a")
    assert text in str(error.value)


@pytest.mark.parametrize("node", [True, False], ids=["node", "go-livepeer"])
async def test_a_session_is_stopped_when_it_is_left(node: bool) -> None:
    async with orchestrator(node=node) as it:
        async with reserve(it.url, APP) as session:
            assert list(it.registry.sessions) == [session.session_id]
            assert session.app_url.startswith(it.url)
        assert not it.registry.sessions
        with pytest.raises(RuntimeError, match="mine"):
            async with reserve(it.url, APP):
                raise RuntimeError("mine")
        assert not it.registry.sessions


async def test_a_session_is_stopped_when_its_user_is_cancelled() -> None:
    async def use(url: str, reserved: asyncio.Event) -> None:
        async with reserve(url, APP):
            reserved.set()
            await asyncio.Event().wait()

    async with orchestrator() as it:
        reserved = asyncio.Event()
        using = asyncio.create_task(use(it.url, reserved))
        await reserved.wait()
        using.cancel()
        await asyncio.wait({using})
        assert using.cancelled()
        assert not it.registry.sessions


@pytest.mark.parametrize("call", ["reserve", "client-stop"])
async def test_a_place_is_given_back_by_who_is_cancelled_while_he_waits(call: str) -> None:
    """For the answer to the reservation, or to the stop."""

    async def use(url: str) -> None:
        async with reserve(url, APP):
            pass

    async with orchestrator() as it:
        it.next_answers[call] = [Hang(0.3)]
        using = asyncio.create_task(use(it.url))
        path = "/apps/whisper/session"
        ending = "/session" if call == "reserve" else "/stop"
        await it.records.until(
            lambda: any(
                request.path.startswith(path) and request.path.endswith(ending)
                for request in it.records.requests
            )
        )
        using.cancel()
        await asyncio.wait({using})
        assert using.cancelled()
        assert not it.registry.sessions


@pytest.mark.parametrize("status", [404, 409, 502, 503])
async def test_a_runner_that_refuses_is_passed_over(status: int) -> None:
    async with orchestrator() as it:
        it.add_static("other", NOWHERE, APP)
        it.next_answers["reserve"] = [Told(status, "not now")]
        async with reserve(it.url, APP) as session:
            assert it.registry.sessions[session.session_id].runner_id == "other"


async def test_refusals_of_all_runners_are_told() -> None:
    async with orchestrator() as it:
        it.add_static("other", NOWHERE, APP)
        it.next_answers["reserve"] = [Told(409, "runner at capacity"), Told(502, "no answer")]
        with pytest.raises(ClientError) as error:
            async with reserve(it.url, APP):
                pass
    text = str(error.value)
    assert "runner at capacity (HTTP 409); no answer (HTTP 502)" in text


@pytest.mark.parametrize("node", [True, False], ids=["node", "go-livepeer"])
async def test_a_network_without_a_place_is_told(node: bool) -> None:
    async with orchestrator(node=node) as it, reserve(it.url, APP), reserve(it.url, APP):
        with pytest.raises(ClientError, match="no place left" if node else "are full"):
            async with reserve(it.url, APP):
                pass


async def test_an_app_that_is_not_there_is_told_with_those_that_are() -> None:
    async with orchestrator() as it:
        with pytest.raises(ClientError, match=f"app a/b .*: {APP} .persistent"):
            async with reserve(it.url, "a/b"):
                pass


async def test_payment_is_not_for_this_client() -> None:
    async with orchestrator() as it:
        it.add_static("other", NOWHERE, APP)
        it.next_answers["reserve"] = [Told(402, "Livepeer-Payer-Address is required")]
        with pytest.raises(ClientError, match=r"wants to be paid: Livepeer-.*livepeer-gateway"):
            async with reserve(it.url, APP):
                pass


async def test_an_orchestrator_that_is_not_there_is_told() -> None:
    with pytest.raises(ClientError, match=f"GET {NOWHERE}/discovery: cannot connect"):
        async with reserve(NOWHERE, APP):
            pass


@pytest.mark.parametrize(
    ("head", "body"), [("404 Not Found", "404 page not found"), ("200 OK", "<html>")]
)
async def test_what_is_no_orchestrator_is_told(head: str, body: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        text = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
        writer.write(f"HTTP/1.1 {head}\r\n{text}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with answering(answer) as url:
        with pytest.raises(ClientError, match=rf"/discovery is answered .*{body}.* orchestrator"):
            async with reserve(url, APP):
                pass


async def test_a_session_that_lacks_something_is_told_without_its_secrets() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = f'[{{"address": "", "runners": [{{"app": "{APP}", "url": "{url}/s"}}]}}]'
        if head.startswith(b"POST"):
            body = '{"session_id": "secret", "control_url": 5}'
        text = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
        writer.write(f"HTTP/1.1 200 OK\r\n{text}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with answering(answer) as url:
        with pytest.raises(ClientError, match="has session_id, control_url, expected texts") as it:
            async with reserve(url, APP):
                pass
    assert "secret" not in str(it.value)


@pytest.mark.parametrize(("status", "logged"), [(500, True), (404, False)])
async def test_a_stop_that_fails_is_logged_and_not_raised(
    caplog: pytest.LogCaptureFixture, status: int, logged: bool
) -> None:
    """404: the session was over before."""
    async with orchestrator() as it:
        it.next_answers["client-stop"] = [Told(status, "sorry")]
        with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="mine"):
            async with reserve(it.url, APP) as session:
                raise RuntimeError("mine")
    assert ("sorry (HTTP 500)" in caplog.text) == logged
    assert session.session_id not in caplog.text


async def test_certificates_are_checked_unless_told_otherwise(tmp_path: Path) -> None:
    server = self_signed_context(tmp_path)
    own = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    async with orchestrator(tls=server, node=False) as it:
        with pytest.raises(ClientError, match=r"certificate is not trusted .*self-signed"):
            async with reserve(it.url, APP):
                pass
        for tls in (own, False):
            async with reserve(it.url, APP, tls=tls) as session:
                assert session.app_url.startswith("https://")
        assert not it.registry.sessions


def test_a_session_shows_none_of_its_secrets() -> None:
    session = Session("session_a", "http://o/apps/r/session/session_a/app", "http://o/session_a")
    assert repr(session) == "Session()"


async def test_errors_show_none_of_a_session_that_is_over(send: Send) -> None:
    async with network() as net, net.client() as client:
        session_id = next(iter(net.orchestrator.registry.sessions))
        net.cut()
        error = await refusal(send(client, never_read(), ignore))
    assert error.status == 404
    assert session_id not in str(error)


@pytest.mark.parametrize("base", ["", "/base/path"])
@pytest.mark.parametrize("node", [True, False], ids=["node", "go-livepeer"])
async def test_every_call_of_the_clients_works_through_the_proxy(
    unused_tcp_port: int, speak: Speak, node: bool, base: str
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}{base}"
    audio = pcm(speak("Please keep your ticket."))
    by_put: list[str] = []
    by_socket: list[str] = []
    async with (
        network(port=unused_tcp_port, service_url=url, node=node) as net,
        reserve(url, APP) as session,
        LiveClient(session.app_url) as client,
    ):
        assert await client.is_ready()
        answer = await client.transcribe("a", pieces(audio), by_put.append, output=Format.TEXT)
        end = await client.converse(pieces(audio), by_socket.append, output=Format.TEXT)
        assert (await client.delete("a"))["forgotten"]
        assert answer["bytes"] == len(audio)
        assert end.reason is EndReason.EOF
        assert "".join(by_put) == "".join(by_socket) != ""
        batch = await ProcessorClient(session.app_url).process_frame(audio)
        assert batch.decode().split()[:1] == "".join(by_put).split()[:1], "a word a second"
    assert not net.orchestrator.registry.sessions


async def test_a_generated_proxy_is_a_base_as_well(speak: Speak) -> None:
    said: list[str] = []
    async with network() as net:
        url = net.orchestrator.registry.runners["whisper"].fields.runner_url
        net.orchestrator.add_static("proxied", url, "proxied", proxy=True)
        async with (
            reserve(net.orchestrator.url, "proxied") as session,
            LiveClient(session.app_url) as client,
        ):
            assert "/run/" in session.app_url
            await client.converse(pieces(pcm(speak("Good morning."))), said.append)
    assert '"end"' in "".join(said)


@pytest.mark.parametrize("problem", ["full", "taken", "option"])
async def test_case_r38_a_start_is_refused_through_an_orchestrator_without_any_audio(
    problem: str,
) -> None:
    options: dict[str, Any] = {"mode": "fast"} if problem == "option" else {}
    async with network(max_jobs=1 if problem == "full" else 64) as net, net.client() as client:
        if problem != "option":
            await client.start("first")
        job_id = "first" if problem == "taken" else "second"
        error = await refusal(client.transcribe(job_id, never_read(), ignore, **options))
        assert error.status == {"full": 503, "taken": 409, "option": 400}[problem]
        assert not [it for it in net.orchestrator.records.finished if it.request.method == b"PUT"]


async def test_a_socket_is_refused_through_an_orchestrator_by_its_close_code() -> None:
    async with network(max_jobs=1) as net, net.client() as client:
        await client.start("first")
        with pytest.raises(ClientError, match=r"closed with 1013 .1 jobs are running"):
            await client.converse(silent_behind(), ignore)


async def test_audio_that_is_refused_ends_a_silent_stream_through_an_orchestrator(
    send: Send,
) -> None:
    """The proxy holds the answer to an upload back while the upload lasts."""
    async with network() as net, net.client() as client:
        error = await refusal(send(client, silent_behind(PAGE), ignore))
        assert re.search("audio is .*, expected", str(error))
        assert net.service.jobs.num_running == 0


async def test_a_session_that_is_cut_ends_a_silent_stream(send: Send) -> None:
    async with network() as net, net.client() as client, asyncio.TaskGroup() as group:
        audio = silent_behind(b"\0" * 3200)
        streaming = group.create_task(refusal(send(client, audio, ignore)))
        records = net.orchestrator.records
        await records.until(lambda: any(it.uploaded >= 3200 for it in records.running))
        await records.until(lambda: any(it.status for it in records.running))
        net.cut()
        error = await streaming
    assert re.search("live/job/output: |closed with 1006", str(error))


async def test_an_upload_that_is_refused_leaves_no_job_behind() -> None:
    async with network() as net, net.client() as client:
        told: list[Fault] = [Hang(0.0), Told(503, "server busy")]  # behind the start's answer
        net.orchestrator.next_answers["app"] = told
        with pytest.raises(ClientError, match="server busy"):
            await client.transcribe("job", silent_behind(b"\0" * 3200), ignore)
        assert net.service.jobs.num_running == 0


async def test_a_socket_for_which_there_is_no_place_is_refused() -> None:
    async with network() as net, net.client() as client:
        net.orchestrator.next_answers["app"] = [Told(503, "server busy")]
        with pytest.raises(ClientError, match="WebSocket was refused") as refused:
            await client.converse(never_read(), ignore)
    assert refused.value.status == 503
