"""Sessions that clients have reserved at a Live Runner: which are in use, over, or silent.

The rules are `SessionBook`'s (pure); `RunnerSessions` has the clock, the tasks and the sockets.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from whisper_byoc.errors import InvalidSession
from whisper_byoc.orchestrator.tls import tls_of
from whisper_byoc.settings import Settings

SESSION_HEADER = "Livepeer-Session-Id"
_ROUTE_HEADER = "Livepeer-Runner-Route"
_TOKEN_HEADER = "Livepeer-Session-Token"
_CONTROL_HEADER = "Livepeer-Session-Control"
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MAX_SESSIONS = 10_000
"""As many as an orchestrator of livepeer/node has; a direct caller can invent any number."""
_MAX_MISSING = 2
"""Answers in a row without a session that mean it is over: one may have been on its way already
when the session was reserved."""
_STOP_SECONDS = 5.0
_CONFIRM_SECONDS = 3.0
"""s that a request is held for its orchestrator's word that its session is one."""
_ASK_SECONDS = 0.5
"""Between two requests for that word: whoever forges sessions must not make us ask at will."""
_CHECKS = 4
"""Looks for silent sessions within the time that makes one silent."""

logger = logging.getLogger(__name__)

EndJobs = Callable[[str], Coroutine[Any, Any, None]]
"""Flushes and forgets the jobs of a session, by its id; raises nothing."""


@dataclass(slots=True, eq=False)
class RunnerSession:
    """One session as its requests tell of it. Its id, token and control URL are its client's
    secrets: they are not logged."""

    session_id: str = field(repr=False)
    runner_id: str
    """Empty while only the orchestrator has told of it."""
    control: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    num_requests: int = 0
    """That are being answered now."""
    last_time: float = 0.0
    """When a request last began or ended."""
    known: bool = False
    """Whether the orchestrator itself has told of it: headers alone may be anyone's."""
    num_missing: int = 0
    """Answers in a row that did not list it."""

    def is_silent(self, now: float, seconds: float) -> bool:
        """Whether it has sent a request, and none for so long: only a request brings the token to
        stop a session with."""
        return bool(self.control and not self.num_requests and now - self.last_time >= seconds)


def session_id_of(headers: Mapping[str, str]) -> str:
    """The session that a request came through; empty where it came directly. Raises
    InvalidSession."""
    found = headers.get(SESSION_HEADER)
    if found is None:
        return ""
    if not _SESSION_ID.fullmatch(found):
        raise InvalidSession(len(found))
    return found


class SessionBook:
    """What is known of sessions (pure). now: s of any clock. Bounded: the oldest session without
    a request gives way."""

    def __init__(self, max_sessions: int = _MAX_SESSIONS) -> None:
        self._sessions: dict[str, RunnerSession] = {}
        self._max_sessions = max_sessions

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def num_requests(self) -> int:
        return sum(session.num_requests for session in self._sessions.values())

    @property
    def in_use(self) -> list[str]:
        """Sessions with a request that is being answered."""
        return [it.session_id for it in self._sessions.values() if it.num_requests]

    def knows(self, session_id: str) -> bool:
        """Whether an orchestrator has told of this session."""
        session = self._sessions.get(session_id)
        return session is not None and session.known

    def is_over(self, session_id: str) -> bool:
        """Whether an orchestrator should list this session, and does not."""
        session = self._sessions.get(session_id)
        return session is None or session.num_missing >= _MAX_MISSING

    def begin(self, headers: Mapping[str, str], now: float) -> RunnerSession:
        """A request has come through a session. Raises InvalidSession."""
        session = self._session(session_id_of(headers), headers.get(_ROUTE_HEADER, ""), now)
        session.control = headers.get(_CONTROL_HEADER, "")
        session.token = headers.get(_TOKEN_HEADER, "")
        session.num_requests += 1
        session.last_time = now
        return session

    def end(self, session: RunnerSession, now: float) -> None:
        """A request of the session has been answered."""
        session.num_requests -= 1
        session.last_time = now

    def note_reserved(self, runner_id: str, session_id: str, now: float) -> None:
        """The orchestrator says that a session has begun."""
        session = self._session(session_id, runner_id, now)
        session.known, session.num_missing = True, 0

    def reconcile(self, runner_id: str, listed: Collection[str], now: float) -> list[str]:
        """The orchestrator's list of our sessions; returns those that are over. Sessions of other
        runners are not touched: a static one is in no list."""
        listed = frozenset(listed)  # of thousands, compared with thousands
        for session_id in listed:
            self.note_reserved(runner_id, session_id, now)
        over = []
        for session in list(self._sessions.values()):
            if session.runner_id == runner_id and session.session_id not in listed:
                session.num_missing += 1
                if session.num_missing >= _MAX_MISSING:
                    over.append(session.session_id)
        return over

    def of_runner(self, runner_id: str) -> list[str]:
        return [it.session_id for it in self._sessions.values() if it.runner_id == runner_id]

    def forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)

    def silent(self, now: float, seconds: float) -> list[RunnerSession]:
        """Those that are."""
        return [it for it in self._sessions.values() if it.is_silent(now, seconds)]

    def _session(self, session_id: str, runner_id: str, now: float) -> RunnerSession:
        session = self._sessions.get(session_id)
        if session is None:
            self._make_room()
            session = self._sessions[session_id] = RunnerSession(session_id, runner_id)
            session.last_time = now
        session.runner_id = runner_id or session.runner_id
        return session

    def _make_room(self) -> None:
        if len(self._sessions) >= self._max_sessions:
            idle = (it for it in self._sessions.values() if not it.num_requests)
            oldest = min(idle, key=lambda it: it.last_time, default=None)
            if oldest is not None:
                self.forget(oldest.session_id)


class RunnerSessions:
    """Owns the sessions, and what is done at their end: their jobs are flushed and forgotten.

    `request` notes requests at any time; `serve` must be entered for sessions to end. `ask_now`
    makes orchestrators tell of their sessions at once; None where none can be asked.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._book = SessionBook()
        self._group: asyncio.TaskGroup | None = None
        self._end_jobs: EndJobs | None = None
        self._answered = asyncio.Event()
        self._told = asyncio.Event()
        self._last_asked = -_ASK_SECONDS
        self._told_of_host = False
        """Whether the log says that a host is not allowed. Behind a static single-shot runner every
        request is a session that would say so."""
        self.ask_now: Callable[[], None] | None = None

    @property
    def in_use(self) -> list[str]:
        """Ids of sessions with a request that is being answered."""
        return self._book.in_use

    def knows(self, session_id: str) -> bool:
        """Whether an orchestrator has told us of this session, so that its requests are no one
        else's."""
        return self._book.knows(session_id)

    async def confirmed(self, session_id: str) -> bool:
        """As `knows`, but for a session of a request that is being answered: its orchestrator may
        tell of it a moment later, and is asked."""
        if self.ask_now is None:
            return self.knows(session_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONFIRM_SECONDS):
                while not (self._book.knows(session_id) or self._book.is_over(session_id)):
                    await self._ask(self.ask_now)
        return self.knows(session_id)

    async def _ask(self, ask_now: Callable[[], None]) -> None:
        """Return when an orchestrator has told something, or it is time to ask again."""
        told, now = self._told, asyncio.get_running_loop().time()
        if now - self._last_asked >= _ASK_SECONDS:
            self._last_asked = now
            ask_now()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._last_asked + _ASK_SECONDS):
                await told.wait()

    def _tell(self) -> None:
        """Wake those who wait for an orchestrator's word."""
        self._told.set()
        self._told = asyncio.Event()

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Note a request that has come through a session, for as long as it is being answered.
        Raises InvalidSession."""
        clock = asyncio.get_running_loop().time
        session = self._book.begin(headers, clock())
        try:
            yield
        finally:
            self._book.end(session, clock())
            self._answered.set()

    async def until_answered(self) -> None:
        """Return when no request of any session is being answered."""
        while self._book.num_requests:
            self._answered.clear()
            await self._answered.wait()

    @asynccontextmanager
    async def serve(self, end_jobs: EndJobs) -> AsyncIterator[None]:
        """End sessions while inside."""
        async with asyncio.TaskGroup() as group:
            self._end_jobs, self._group = end_jobs, group
            watching = group.create_task(self._stop_silent())
            try:
                yield
            finally:
                self._group = None
                watching.cancel()

    def note_reserved(self, runner_id: str, session_id: str) -> None:
        """The orchestrator says that a session of this runner has begun."""
        self._book.note_reserved(runner_id, session_id, asyncio.get_running_loop().time())
        self._tell()

    def reconcile(self, runner_id: str, listed: Collection[str]) -> None:
        """The orchestrator's list of this runner's sessions."""
        now = asyncio.get_running_loop().time()
        for session_id in self._book.reconcile(runner_id, listed, now):
            self.release(session_id)
        self._tell()

    def forget_runner(self, runner_id: str) -> None:
        """The registration is over, and every session with it."""
        for session_id in self._book.of_runner(runner_id):
            self.release(session_id)

    def release(self, session_id: str) -> None:
        """The session is over: flush its jobs, behind the caller's back."""
        self._book.forget(session_id)
        self._end(session_id)

    def _end(self, session_id: str) -> None:
        if self._group is not None and self._end_jobs is not None:
            self._group.create_task(self._end_jobs(session_id))

    async def _stop_silent(self) -> None:
        limit, clock = self._settings.runner.session_idle_seconds, asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(limit / _CHECKS)
            for session in self._book.silent(clock(), limit):
                if not session.is_silent(clock(), limit):
                    continue  # it was used while others were being stopped
                self._end(session.session_id)
                # Nothing else ends a session that is listed, so it is tried again.
                if await self._stop(session) or not session.known:
                    self._book.forget(session.session_id)

    async def _stop(self, session: RunnerSession) -> bool:
        """Give the session back to its orchestrator, which would keep it for ever. False when that
        may go well another time."""
        url, host = _callback(session, "/stop")
        if host not in self._settings.orchestrator.hosts:
            # The header may be anyone's, and could lead anywhere.
            logger.log(
                logging.DEBUG if self._told_of_host else logging.WARNING,
                "a silent session cannot be stopped: its callbacks lead to host %r, expected one"
                " of WHISPER_ORCHESTRATOR_ALLOWED_HOSTS",
                host[:128],
            )
            self._told_of_host = True
            return True
        again = False
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_STOP_SECONDS)) as http,
                http.post(
                    url,
                    headers={_TOKEN_HEADER: session.token},
                    ssl=tls_of(self._settings.orchestrator),
                    allow_redirects=False,
                ) as answer,
            ):
                fine = answer.status < 300 or answer.status == 404  # 404: it is over already
                problem, again = "" if fine else f"status {answer.status}", answer.status >= 500
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            problem, again = type(error).__name__, True
        if problem:
            logger.warning("a silent session at %s could not be stopped: %s", host, problem)
        else:
            logger.info("stopped a session at %s that was silent", host)
        return not again


def _callback(session: RunnerSession, name: str) -> tuple[str, str]:
    """URL and host of a session's callback. The host is empty where the header is no URL of this
    session's: a direct caller can put anything there, and could have us POST to any path of an
    orchestrator's host."""
    url = session.control.rstrip("/")
    with suppress(ValueError):
        parts = urlsplit(url)
        if url.endswith(f"/session/{session.session_id}") and not (parts.query or parts.fragment):
            return url + name, (parts.hostname or "").lower()
    return url + name, ""
