"""Sessions of a Live Runner: the book of them, and what is done when one is over or silent. Cases
are numbered as in docs/live-runner.md."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.orchestrator.scripted_channel import self_signed_context
from whisper_byoc.errors import InvalidSession
from whisper_byoc.orchestrator.runner_sessions import (
    RunnerSessions,
    SessionBook,
    session_id_of,
)
from whisper_byoc.settings import OrchestratorSettings, RunnerSettings, Settings

pytestmark = pytest.mark.anyio
TIMEOUT = 30.0
IDLE = 60.0
"""s without a request, by the book's clock."""


def headers(
    session_id: str = "s", runner_id: str = "r", control: str = "http://o/s", token: str = "t"
) -> dict[str, str]:
    return {
        "Livepeer-Session-Id": session_id,
        "Livepeer-Runner-Route": runner_id,
        "Livepeer-Session-Control": control,
        "Livepeer-Session-Token": token,
    }


# The book


@pytest.mark.parametrize("found", ["", "a.b", "a b", "ä", "x" * 129, "a\n"])
def test_a_session_id_that_is_none_is_refused_and_not_shown(found: str) -> None:
    with pytest.raises(InvalidSession) as caught:
        session_id_of({"Livepeer-Session-Id": found})
    assert f"has {len(found)} characters" in str(caught.value)


def test_without_the_header_there_is_no_session() -> None:
    assert session_id_of({}) == ""
    assert session_id_of(headers("a-B_9")) == "a-B_9"


def test_a_session_is_in_use_while_a_request_is_answered() -> None:
    book = SessionBook()
    first, second = book.begin(headers(), 0), book.begin(headers(), 1)
    assert first is second
    book.end(first, 2)
    assert (book.in_use, book.num_requests) == (["s"], 1)
    book.end(second, 3)
    assert (book.in_use, book.num_requests, len(book)) == ([], 0, 1)


def test_only_the_orchestrator_makes_a_session_known() -> None:
    book = SessionBook()
    book.begin(headers(), 0)
    assert not book.knows("s")
    book.note_reserved("r", "s", 1)
    assert book.knows("s")
    book.forget("s")
    assert not book.knows("s")


def test_a_session_is_over_when_two_lists_lack_it() -> None:
    book = SessionBook()
    book.end(book.begin(headers(), 0), 0)
    assert book.reconcile("r", [], 1) == []
    assert not book.is_over("s")
    assert book.reconcile("r", ["s"], 2) == []  # the list before was older than the session
    assert book.reconcile("r", ["t"], 3) == []
    assert book.reconcile("r", ["t"], 4) == ["s"]
    assert book.is_over("s")
    assert book.knows("t")


def test_lists_of_one_runner_say_nothing_of_another() -> None:
    book = SessionBook()
    book.begin(headers("s", "other"), 0)
    assert [book.reconcile("r", [], now) for now in range(5)] == [[]] * 5
    assert book.of_runner("other") == ["s"]
    assert book.of_runner("r") == []


def test_case_r26_the_order_of_a_list_means_nothing() -> None:
    book = SessionBook()
    for order in (["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]):
        assert book.reconcile("r", order, 0) == []
    assert set(book.of_runner("r")) == {"a", "b", "c"}


def test_a_session_is_silent_when_its_last_request_ended_long_ago() -> None:
    book = SessionBook()
    session = book.begin(headers(), 0)
    assert book.silent(2 * IDLE, IDLE) == []  # it is being answered
    book.end(session, 2 * IDLE)
    assert book.silent(3 * IDLE - 1, IDLE) == []
    assert book.silent(3 * IDLE, IDLE) == [session]


def test_a_session_without_a_request_cannot_be_stopped() -> None:
    book = SessionBook()
    book.note_reserved("r", "s", 0)
    assert book.silent(IDLE, IDLE) == []


def test_of_too_many_sessions_the_oldest_without_a_request_gives_way() -> None:
    book = SessionBook(max_sessions=2)
    book.begin(headers("a"), 0)
    book.end(book.begin(headers("b"), 1), 1)
    book.begin(headers("c"), 2)
    assert (len(book), book.in_use) == (2, ["a", "c"])


def test_a_session_does_not_show_its_secrets() -> None:
    shown = repr(SessionBook().begin(headers("hidden-id", "r", "hidden-url", "hidden-token"), 0))
    assert "hidden" not in shown


# Confirming


def sessions_of(**orchestrator: object) -> RunnerSessions:
    return RunnerSessions(
        Settings(
            orchestrator=OrchestratorSettings.model_validate(orchestrator),
            runner=RunnerSettings(session_idle_seconds=0.05),
        )
    )


async def test_a_known_session_is_confirmed_at_once() -> None:
    sessions = sessions_of()
    sessions.ask_now = unexpected
    sessions.note_reserved("r", "s")
    assert await sessions.confirmed("s")


def unexpected() -> None:
    raise AssertionError("nobody had to be asked")


async def test_a_session_is_not_confirmed_where_none_can_be_asked() -> None:
    sessions = sessions_of()
    with sessions.request(headers()):
        assert not await sessions.confirmed("s")


async def test_a_session_is_confirmed_by_the_answer_to_being_asked() -> None:
    sessions = sessions_of()
    sessions.ask_now = lambda: sessions.reconcile("r", ["s"])
    with sessions.request(headers()):
        assert await sessions.confirmed("s")


async def test_a_session_is_confirmed_by_an_event_on_its_channel() -> None:
    sessions, asked = sessions_of(), asyncio.Event()
    sessions.ask_now = asked.set
    with sessions.request(headers()):
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
            waiting = group.create_task(sessions.confirmed("s"))
            await asked.wait()
            sessions.note_reserved("r", "s")
        assert waiting.result()


async def test_a_session_that_answers_do_not_list_is_not_confirmed() -> None:
    sessions = sessions_of()
    asked: list[None] = []

    def answer() -> None:
        asked.append(None)
        sessions.reconcile("r", ["other"])

    sessions.ask_now = answer
    with sessions.request(headers()):
        assert not await sessions.confirmed("s")
        assert not await sessions.confirmed("s")  # it is over, and nobody is asked again
    assert len(asked) == 2


async def test_no_answer_confirms_nothing_and_is_not_asked_for_at_will() -> None:
    sessions = sessions_of()
    asked: list[None] = []
    sessions.ask_now = lambda: asked.append(None)
    with sessions.request(headers()):
        confirmed = await asyncio.gather(*(sessions.confirmed("s") for _ in range(50)))
    assert not any(confirmed)
    assert 1 <= len(asked) <= 8


# The end of a session


class Callbacks:
    """An orchestrator that sessions are given back to. Use `serve`."""

    def __init__(self, *statuses: int) -> None:
        """statuses: of its first answers; 200 from then on."""
        self._statuses = list(statuses)
        self.stops: list[tuple[str, str | None]] = []
        """Path and token of each."""
        self.came = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    @asynccontextmanager
    async def serve(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._stop)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            yield f"http{'s' if tls else ''}://127.0.0.1:{runner.addresses[0][1]}/runner/r/session"
        finally:
            await runner.cleanup()

    async def _stop(self, request: web.Request) -> web.Response:
        self.stops.append((request.path, request.headers.get("Livepeer-Session-Token")))
        self.came.set()
        await self.may_answer.wait()
        return web.Response(status=self._statuses.pop(0) if self._statuses else 200)


class Ended:
    """Notes the sessions whose jobs were ended."""

    def __init__(self) -> None:
        self.sessions: list[str] = []
        self.came = asyncio.Event()

    async def end(self, session_id: str) -> None:
        self.sessions.append(session_id)
        self.came.set()


class Said(logging.Handler):
    """Lines of the log, of which one can wait for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.came.set()


@asynccontextmanager
async def listening() -> AsyncIterator[Said]:
    said, logger = Said(), logging.getLogger("whisper_byoc.orchestrator.runner_sessions")
    before = logger.level
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.removeHandler(said)
        logger.setLevel(before)


async def test_a_release_ends_the_jobs_of_its_session_alone() -> None:
    sessions, ended = sessions_of(), Ended()
    async with asyncio.timeout(TIMEOUT), sessions.serve(ended.end):
        for session_id in "ab":
            sessions.note_reserved("r", session_id)
        sessions.release("a")
        await ended.came.wait()
    assert ended.sessions == ["a"]
    assert [sessions.knows(it) for it in "ab"] == [False, True]


async def test_a_registration_that_is_over_takes_its_sessions_along() -> None:
    sessions, ended = sessions_of(), Ended()
    async with asyncio.timeout(TIMEOUT), sessions.serve(ended.end):
        for runner_id, session_id in (("r", "a"), ("r", "b"), ("other", "c")):
            sessions.note_reserved(runner_id, session_id)
        sessions.forget_runner("r")
    assert sorted(ended.sessions) == ["a", "b"]


async def test_until_answered_waits_for_every_request() -> None:
    sessions = sessions_of()
    first, second = sessions.request(headers("a")), sessions.request(headers("b"))
    with first:
        with second:
            waiting = asyncio.ensure_future(sessions.until_answered())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(TIMEOUT):
        await waiting


@asynccontextmanager
async def watching(
    sessions: RunnerSessions,
    callbacks: Callbacks,
    ended: Ended,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[str, Said]]:
    """Sessions that may fall silent: where their callbacks lead, and what is logged of them."""
    async with (
        asyncio.timeout(TIMEOUT),
        callbacks.serve(tls) as url,
        listening() as said,
        sessions.serve(ended.end),
    ):
        yield url, said


@pytest.mark.parametrize("status", [200, 204, 404])
async def test_case_r31_a_silent_session_is_stopped_once_with_its_token(status: int) -> None:
    callbacks, ended = Callbacks(status), Ended()
    sessions = sessions_of(allowed_hosts="127.0.0.1")
    async with watching(sessions, callbacks, ended) as (url, said):
        with sessions.request(headers("s", control=f"{url}/s/", token="secret")):
            pass
        await said.came.wait()
    assert callbacks.stops == [("/runner/r/session/s/stop", "secret")]
    assert ended.sessions == ["s"]
    assert said.lines == ["stopped a session at 127.0.0.1 that was silent"]


async def test_case_r31_a_stop_that_is_refused_is_logged() -> None:
    callbacks, ended = Callbacks(403), Ended()
    sessions = sessions_of(allowed_hosts="127.0.0.1")
    async with watching(sessions, callbacks, ended) as (url, said):
        with sessions.request(headers(control=f"{url}/s", token="secret")):
            pass
        await said.came.wait()
    [line] = said.lines
    assert "could not be stopped: status 403" in line
    assert "secret" not in line
    assert len(callbacks.stops) == 1


async def test_a_session_that_is_used_while_another_is_stopped_goes_on() -> None:
    callbacks, ended = Callbacks(), Ended()
    callbacks.may_answer.clear()
    sessions = sessions_of(allowed_hosts="127.0.0.1")
    async with watching(sessions, callbacks, ended) as (url, said):
        first, second = (headers(it, control=f"{url}/{it}") for it in "ab")
        with sessions.request(first), sessions.request(second):
            pass
        await callbacks.came.wait()
        with sessions.request(second):
            callbacks.may_answer.set()
            await said.came.wait()
            await asyncio.sleep(0)
            assert sessions.in_use == ["b"]
            assert ended.sessions == ["a"]


async def test_a_stop_of_a_listed_session_is_tried_again_where_it_may_go_well() -> None:
    """Its orchestrator would keep the place for ever."""
    callbacks, ended = Callbacks(503), Ended()
    sessions = sessions_of(allowed_hosts="127.0.0.1")
    async with watching(sessions, callbacks, ended) as (url, said):
        with sessions.request(headers(control=f"{url}/s", token="secret")):
            sessions.reconcile("r", ["s"])
        while len(said.lines) < 2:
            sessions.reconcile("r", ["s"])
            said.came.clear()
            await said.came.wait()
    assert callbacks.stops == [("/runner/r/session/s/stop", "secret")] * 2
    assert "could not be stopped: status 503" in said.lines[0]


async def test_case_r31_a_host_that_is_not_allowed_is_not_called() -> None:
    callbacks, ended = Callbacks(), Ended()
    sessions = sessions_of(allowed_hosts="orchestrator")
    async with watching(sessions, callbacks, ended) as (url, said):
        for session_id in "ab":
            with sessions.request(headers(session_id, control=f"{url}/{session_id}")):
                pass
        while len(ended.sessions) < 2:
            ended.came.clear()
            await ended.came.wait()
    assert callbacks.stops == []
    [line] = said.lines
    assert "host '127.0.0.1', expected one of WHISPER_ORCHESTRATOR_ALLOWED_HOSTS" in line


@pytest.mark.parametrize(
    "forged",
    ["http://[x", "{url}/../shutdown", "{url}/x?/session/s", "{url}/x#/session/s", "/session/s"],
)
async def test_a_callback_that_is_no_sessions_is_not_called(forged: str) -> None:
    """A direct caller can put anything into the header."""
    callbacks, ended = Callbacks(), Ended()
    sessions = sessions_of(allowed_hosts="127.0.0.1")
    async with watching(sessions, callbacks, ended) as (url, said):
        with sessions.request(headers("s", control=forged.format(url=url))):
            pass
        with sessions.request(headers("t", control=f"{url}/t")):
            pass
        while "stopped a session at 127.0.0.1 that was silent" not in said.lines:
            said.came.clear()
            await said.came.wait()
    assert [path for path, _ in callbacks.stops] == ["/runner/r/session/t/stop"]


@pytest.mark.parametrize("trusted", [True, False], ids=["its CA is set", "by default"])
async def test_case_r41_callbacks_go_to_whom_the_certificates_tell(
    trusted: bool, tmp_path: Path
) -> None:
    tls = self_signed_context(tmp_path)
    callbacks, ended = Callbacks(), Ended()
    ca_file = {"ca_file": tmp_path / "certificate.pem"} if trusted else {}
    sessions = sessions_of(allowed_hosts="127.0.0.1", **ca_file)
    async with watching(sessions, callbacks, ended, tls) as (url, said):
        with sessions.request(headers(control=f"{url}/s", token="secret")):
            pass
        await said.came.wait()
    assert len(callbacks.stops) == (1 if trusted else 0)
    assert said.lines == [
        "stopped a session at 127.0.0.1 that was silent"
        if trusted
        else "a silent session at 127.0.0.1 could not be stopped: ClientConnectorCertificateError"
    ]
