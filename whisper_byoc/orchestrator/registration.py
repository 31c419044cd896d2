"""Tells orchestrators that this worker is here, that it is about to leave, and that it has left.

What is sent, what an answer means and when to send again is an `Entry`'s to say (pure);
`Registration` has the sockets and the tasks.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress

import aiohttp

from whisper_byoc.errors import ServiceError
from whisper_byoc.orchestrator.capability import CapabilityEntry
from whisper_byoc.orchestrator.entry import Answer, Entry, Identity, Load, Request, Step
from whisper_byoc.orchestrator.o2r import follow
from whisper_byoc.orchestrator.runner import RunnerEntry, offers
from whisper_byoc.orchestrator.runner_sessions import RunnerSessions
from whisper_byoc.orchestrator.tls import tls_of
from whisper_byoc.settings import Interface, Settings

WITHDRAW_SECONDS = 3.0
DRAIN_SECONDS = 2.0
_MIN_GAP_SECONDS = 0.1
"""Between two requests to one orchestrator, however often there is a reason for one."""
_UNTRUSTED = (
    "name its CA in WHISPER_ORCHESTRATOR_CA_FILE, or set WHISPER_ORCHESTRATOR_VERIFY_TLS=false for"
    " an orchestrator such as go-livepeer that signs its own"
)
_MAX_ANSWER_BYTES = 1024 * 1024
"""An orchestrator may have ten thousand sessions to list."""

logger = logging.getLogger(__name__)


class NoAnswer(ServiceError):
    """An orchestrator could not be asked, or has not answered. hint: what may be done about it."""

    code = "no_answer"
    text = "{problem}"

    problem: str
    hint: str = ""


def entries(settings: Settings, identity: Identity) -> Iterator[Entry]:
    """One per orchestrator and interface, and of a Live Runner one per mode."""
    for url in dict.fromkeys(settings.orchestrator.urls):
        for interface in dict.fromkeys(settings.orchestrator.interfaces):
            match interface:
                case Interface.BYOC:
                    yield CapabilityEntry(settings, url)
                case Interface.LIVE_RUNNER:
                    for offer in offers(settings):
                        yield RunnerEntry(settings, url, identity, offer)


class _Told:
    """What belongs to one entry: its turn to be asked, and the reader of its o2r channel."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        # One request at a time may change what an orchestrator knows.
        self.lock = asyncio.Lock()
        self.wake = asyncio.Event()
        self.answered = asyncio.Event()
        self.left = False
        """Whether it was tried to unregister: once is enough for a log and for an exit."""
        self.o2r_url = ""
        self.reader: asyncio.Task[None] | None = None


class Registration:
    """Owns the entries, and the readers of what orchestrators tell. One task at a time drives
    `run`; the other methods may be called beside it."""

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        sessions: RunnerSessions,
        num_streams: Callable[[], int],
    ) -> None:
        """num_streams: of BYOC that run. Raises ConfigurationError."""
        self._told = [_Told(entry) for entry in entries(settings, identity)]
        self._has_secret = settings.orchestrator.secret.get_secret_value().strip() != ""
        self._tls = tls_of(settings.orchestrator)
        self._version = identity.version
        self._sessions = sessions
        self._num_streams = num_streams
        self._draining = False
        self._withdrawn = False

    @property
    def num_registered(self) -> int:
        """Registrations that orchestrators have taken."""
        return sum(told.entry.registered for told in self._told)

    @property
    def has_runners(self) -> bool:
        """Whether there are orchestrators that can be asked for their sessions."""
        return any(isinstance(told.entry, RunnerEntry) for told in self._told)

    async def run(self) -> None:
        """Register with every orchestrator for ever; returns once withdrawn, or with none to tell.

        Cancelling it leaves registrations as they are: call `withdraw` first.
        """
        if not self._told:
            return
        if not self._has_secret:
            logger.warning("ORCH_SECRET is empty: expected what the orchestrators know us by")
        async with self._open_session() as http, asyncio.TaskGroup() as group:
            for told in self._told:
                group.create_task(self._keep_registered(http, told, group))

    def tell_now(self) -> None:
        """Do not wait for the next turn: something has changed, or is in doubt."""
        for told in self._told:
            told.wake.set()

    def ask_sessions(self) -> None:
        """Have orchestrators that know us as a runner tell of their sessions at once. Others are
        not asked before their turn, since strangers can bring this about."""
        for told in self._told:
            if isinstance(told.entry, RunnerEntry) and told.entry.registered:
                told.wake.set()

    async def drain(self) -> None:
        """Get no new work, while what runs goes on: a Live Runner is told that we are draining, and
        of BYOC, where that cuts nothing, we are withdrawn. Returns within 3 s."""
        self._draining = True
        async with asyncio.TaskGroup() as group:
            group.create_task(self._withdraw([it for it in self._told if not it.entry.cuts]))
            group.create_task(self._tell_draining([it for it in self._told if it.entry.cuts]))

    async def withdraw(self) -> None:
        """Unregister wherever we are registered, within 3 s; nothing registers again after it. Live
        Runners cut what still runs.

        What fails is logged.
        """
        self._draining = self._withdrawn = True
        self.tell_now()
        await self._withdraw(self._told)
        for told in self._told:
            if told.reader is not None:
                told.reader.cancel()

    async def _tell_draining(self, staying: list[_Told]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS), asyncio.TaskGroup() as group:
                for told in staying:
                    group.create_task(self._beat_now(told))

    async def _beat_now(self, told: _Told) -> None:
        """Return when the orchestrator has answered one more beat, where it has had any."""
        async with told.lock:  # behind one that is under way
            told.answered.clear()
        if told.entry.registered:
            told.wake.set()
            await told.answered.wait()

    async def _withdraw(self, leaving: list[_Told]) -> None:
        leaving = [told for told in leaving if not told.left]
        for told in leaving:
            told.left = True
        try:
            async with (
                asyncio.timeout(WITHDRAW_SECONDS),
                self._open_session() as http,
                asyncio.TaskGroup() as group,
            ):
                for told in leaving:
                    group.create_task(self._unregister(http, told))
        except TimeoutError:
            for told in leaving:
                if told.entry.registered:
                    _log(told.entry.receive_withdrawal(f"no answer within {WITHDRAW_SECONDS:g} s"))

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # A connection kept for the next beat may be gone by then, and a POST that meets it
            # fails.
            connector=aiohttp.TCPConnector(force_close=True),
            headers={"User-Agent": f"whisper-byoc/{self._version}"},
        )

    async def _keep_registered(
        self, http: aiohttp.ClientSession, told: _Told, group: asyncio.TaskGroup
    ) -> None:
        """Beat on time: the delay counts from the beginning of the request before."""
        clock = asyncio.get_running_loop().time
        while True:
            async with told.lock:
                if self._withdrawn or (self._draining and not told.entry.cuts):
                    return
                told.wake.clear()
                began = clock()
                step = await self._register(http, told.entry)
                told.answered.set()
            _log(step)
            self._note_sessions(told, step, group)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(began + step.delay):
                    await told.wake.wait()
            await asyncio.sleep(began + _MIN_GAP_SECONDS - clock())

    async def _register(self, http: aiohttp.ClientSession, entry: Entry) -> Step:
        load = Load(self._sessions.in_use, self._num_streams(), self._draining)
        try:
            return entry.receive_answer(
                await self._send(http, entry.url, entry.next_request(load), entry.answer_seconds)
            )
        except NoAnswer as error:
            return entry.receive_failure(error.problem, error.hint)

    def _note_sessions(self, told: _Told, step: Step, group: asyncio.TaskGroup) -> None:
        """What an answer says of sessions, and where it says that the rest is told."""
        entry = told.entry
        if not isinstance(entry, RunnerEntry):
            return
        if step.lost_runner:
            self._sessions.forget_runner(step.lost_runner)
        if step.sessions is not None:
            self._sessions.reconcile(entry.runner_id, step.sessions)
        if entry.o2r_url != told.o2r_url:
            if told.reader is not None:
                told.reader.cancel()
            told.o2r_url, told.reader = entry.o2r_url, None
            if entry.o2r_url:
                following = follow(entry.o2r_url, entry, self._sessions, self._tls, told.wake.set)
                told.reader = group.create_task(following)

    async def _unregister(self, http: aiohttp.ClientSession, told: _Told) -> None:
        entry = told.entry
        async with told.lock:  # a registration under way would arrive after us
            if not entry.registered:
                return
            try:
                answer = await self._send(
                    http, entry.url, entry.next_withdrawal(), WITHDRAW_SECONDS
                )
                problem = answer.problem
            except NoAnswer as error:
                problem = error.problem
            _log(entry.receive_withdrawal(problem))

    async def _send(
        self, http: aiohttp.ClientSession, url: str, request: Request, seconds: float
    ) -> Answer:
        """Raises NoAnswer, after so many seconds at the latest."""
        headers = {"Content-Type": request.content_type}
        if request.authorization:
            headers["Authorization"] = request.authorization
        try:
            async with http.post(
                url + request.path,
                data=request.body.encode(),
                headers=headers,
                ssl=self._tls,
                allow_redirects=False,  # the secret is for this host alone
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                body = b""
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES:
                        break
                retry_after = response.headers.get("Retry-After", "")
                return Answer(response.status, body.decode(errors="replace"), retry_after)
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {seconds:.3g} s") from error
        except aiohttp.ClientConnectorCertificateError as error:
            problem = f"its certificate is not trusted: {error.certificate_error}"
            raise NoAnswer(problem, _UNTRUSTED) from error
        except aiohttp.ClientResponseError as error:  # whose text has the URL, and a runner's id
            raise NoAnswer(error.message) from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        except ValueError as error:  # a header with a line break, a URL that is none
            raise NoAnswer(f"the request cannot be sent: {type(error).__name__}") from error


def _log(step: Step) -> None:
    logger.log(step.level, "%s", step.text)
