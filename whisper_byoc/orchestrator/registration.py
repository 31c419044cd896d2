"""Tells orchestrators that this worker is here, and when it leaves.

What is sent, what an answer means and when to send again is an `Entry`'s to say (pure);
`Registration` has the sockets and the tasks.
"""

import asyncio
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

import aiohttp

from whisper_byoc.errors import ServiceError
from whisper_byoc.orchestrator.tls import tls_of
from whisper_byoc.settings import Interface, Settings

ANSWER_SECONDS = 5.0
WITHDRAW_SECONDS = 3.0
FIRST_RETRY_SECONDS = 0.5
DEFAULT_HEARTBEAT_SECONDS = 5.0
MIN_HEARTBEAT_SECONDS = 0.2
MAX_HEARTBEAT_SECONDS = 3600.0
MAX_SHOWN_CHARACTERS = 200
_MAX_ANSWER_BYTES = 64 * 1024
_PATHS = ("/live/{job}/source", "/live/{job}/output", "/transcribe", "/ready")
_UNIT_SECONDS = {
    "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9,
}  # fmt: skip
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(h|ms|us|µs|ns|m|s)")

logger = logging.getLogger(__name__)


class NoAnswer(ServiceError):
    """An orchestrator could not be asked, or has not answered."""

    code = "no_answer"
    text = "{problem}"

    problem: str


@dataclass(frozen=True, slots=True)
class Request:
    """A POST to `path` below an orchestrator's URL; empty `authorization` sends no such header."""

    path: str
    authorization: str
    body: str
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from an answer: s until the next request, and what the log says now."""

    delay: float
    level: int
    text: str


def retry_delay(num_failures: int, interval: float) -> float:
    """s to wait after so many failures in a row: doubling, at most `interval`."""
    doublings = min(num_failures - 1, 20)  # 2^20 halves of a second are beyond any interval
    return min(FIRST_RETRY_SECONDS * 2.0**doublings, interval)


def heartbeat_seconds(duration: object) -> float:
    """s of a Go duration such as "1m30s", within bounds; the default when it is not one."""
    parts = _DURATION_PART.findall(duration) if isinstance(duration, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        return DEFAULT_HEARTBEAT_SECONDS
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return min(max(seconds, MIN_HEARTBEAT_SECONDS), MAX_HEARTBEAT_SECONDS)


def shown(text: str, secrets: Iterable[str]) -> str:
    """`text` as one short line without the secrets."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may hold another
        text = text.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line[:MAX_SHOWN_CHARACTERS])


def capability_body(settings: Settings) -> dict[str, object]:
    """What `/capability/register` takes (docs/wire.md)."""
    capability = settings.capability
    body: dict[str, object] = {
        "name": capability.name,
        "description": capability.description,
        "url": capability.url,
        "capacity": capability.capacity or settings.jobs.max_jobs,
        "price_per_unit": capability.price_per_unit,
        "price_scaling": capability.price_scaling,
        "currency": capability.price_currency,
    }
    token = settings.orchestrator.token.get_secret_value()
    return body | ({"token": token} if token else {})


def runner_body(settings: Settings, model_name: str, version: str) -> dict[str, object]:
    """What `/runners/heartbeat` takes, but for the fields that change (B.11)."""
    capability = settings.capability
    price = {"price": settings.runner.price, "currency": "usd", "unit": settings.runner.price_unit}
    return {
        "label": capability.name,
        "runner_url": capability.url,
        "version": version,
        # At most 1024 bytes, and public.
        "metadata": json.dumps({"model": model_name, "paths": _PATHS}),
        "status": "ready",
        "mode": "persistent",
        "app": f"{capability.pipeline}/{model_name}",
        "capacity": capability.capacity or settings.jobs.max_jobs,
        "price_info": price,
    }


class Entry(ABC):
    """What one orchestrator knows of this worker, through one of its interfaces (pure).

    `registered` says whether it has taken a registration that has not been withdrawn.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        orchestrator = settings.orchestrator
        self.url = url
        self.registered = False
        # No header can have white space at its ends, and a secret read from a file often does.
        self._secret = orchestrator.secret.get_secret_value().strip()
        self._token = orchestrator.token.get_secret_value()
        self._interval = orchestrator.interval
        self._name = settings.capability.name
        self._num_failures = 0
        self._problem: str | None = None  # None until there is an answer, "" when all is well

    @abstractmethod
    def next_request(self, session_ids: Sequence[str]) -> Request:
        """What registers this worker, or keeps it registered."""

    @abstractmethod
    def next_withdrawal(self) -> Request:
        """What ends the registration."""

    @abstractmethod
    def receive_answer(self, answer: Answer) -> Step:
        """To the latest request."""

    def receive_failure(self, problem: str) -> Step:
        """The latest request has no answer, or none to go by."""
        self._num_failures += 1
        delay = retry_delay(self._num_failures, self._interval)
        return self._step(delay, logging.WARNING, "could not be registered", problem)

    def receive_withdrawal(self, problem: str) -> Step:
        """What became of the withdrawal; `problem` is empty when all went well."""
        if problem:
            text = f"capability {self._name} may still be registered with {self.url}: "
            return Step(0, logging.WARNING, text + shown(problem, self._secrets))
        self.registered = False
        return Step(0, logging.INFO, f"unregistered capability {self._name} from {self.url}")

    def _accepted(self, delay: float) -> Step:
        level = logging.DEBUG if self._problem == "" else logging.INFO
        self._problem, self._num_failures, self.registered = "", 0, True
        return Step(delay, level, f"registered capability {self._name} with {self.url}")

    def _rejected(self, answer: Answer) -> Step:
        """Trying again at once would not help: the operator has to mend something."""
        self._num_failures = 0
        return self._step(self._interval, logging.ERROR, "is rejected", problem_of(answer))

    def _step(self, delay: float, level: int, what: str, problem: str) -> Step:
        problem = shown(problem, self._secrets)
        if problem == self._problem:
            level = logging.DEBUG  # it has been said
        self._problem = problem
        text = f"capability {self._name} {what} with {self.url}: {problem}, again in {delay:g} s"
        return Step(delay, level, text)

    @property
    def _secrets(self) -> tuple[str, ...]:
        return self._secret, self._token


def problem_of(answer: Answer) -> str:
    """Empty when the answer is a good one; with its secrets, if it has any."""
    return "" if answer.ok else f"{answer.status} {answer.text}".strip()


class CapabilityEntry(Entry):
    """BYOC: the orchestrator forgets it only when it restarts or we answer 401."""

    def __init__(self, settings: Settings, url: str) -> None:
        super().__init__(settings, url)
        self._body = json.dumps(capability_body(settings))

    def next_request(self, session_ids: Sequence[str]) -> Request:
        return Request("/capability/register", self._secret, self._body)

    def next_withdrawal(self) -> Request:
        return Request("/capability/unregister", self._secret, self._name, "text/plain")

    def receive_answer(self, answer: Answer) -> Step:
        if answer.ok:
            return self._accepted(self._interval)
        if answer.status == 400:
            return self._rejected(answer)
        return self.receive_failure(problem_of(answer))


class RunnerEntry(Entry):
    """Live Runner: the orchestrator forgets it when heartbeats stop."""

    def __init__(self, settings: Settings, url: str, model_name: str, version: str) -> None:
        super().__init__(settings, url)
        self._body = runner_body(settings, model_name, version)
        self._runner_id = ""
        self._heartbeat_secret = ""

    def next_request(self, session_ids: Sequence[str]) -> Request:
        body = self._body | {"session_ids": list(session_ids)}
        if self._runner_id:
            body["runner_id"] = self._runner_id
        authorization = self._heartbeat_secret or self._secret
        return Request("/runners/heartbeat", authorization, json.dumps(body))

    def next_withdrawal(self) -> Request:
        path = f"/runners/{quote(self._runner_id, safe='')}/unregister"
        return Request(path, self._heartbeat_secret, "")

    def receive_answer(self, answer: Answer) -> Step:
        if answer.ok:
            return self._receive_heartbeat(answer.text)
        # A restarted orchestrator takes our heartbeat secret for a wrong registration secret and
        # answers 401 (LiveRunnerRegistry.Heartbeat); one that has missed our heartbeats, 404.
        if self._runner_id and answer.status in (401, 404):
            step = self._step(0, logging.WARNING, "is not known any more", problem_of(answer))
            self._runner_id = self._heartbeat_secret = ""
            self.registered = False
            return step
        if answer.status in (400, 401, 403, 404):
            return self._rejected(answer)
        return self.receive_failure(problem_of(answer))

    def _receive_heartbeat(self, text: str) -> Step:
        fields = _parse_fields(text)
        runner_id = fields.get("runner_id") or self._runner_id
        secret = fields.get("heartbeat_secret") or self._heartbeat_secret  # a new one replaces it
        if not (_fits_header(runner_id) and _fits_header(secret)):
            return self.receive_failure("the answer has no runner_id and heartbeat_secret to use")
        self._runner_id, self._heartbeat_secret = str(runner_id), str(secret)
        return self._accepted(heartbeat_seconds(fields.get("heartbeat_interval")))

    @property
    def _secrets(self) -> tuple[str, ...]:
        return *super()._secrets, self._heartbeat_secret


def _parse_fields(text: str) -> Mapping[str, object]:
    """Of a JSON object; none when it is anything else."""
    with suppress(ValueError, RecursionError):  # deep nesting raises the latter
        fields = json.loads(text)
        if isinstance(fields, dict):
            return fields
    return {}


def _fits_header(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()


def entries(settings: Settings, model_name: str, version: str) -> list[Entry]:
    """One per orchestrator and interface."""
    found: list[Entry] = []
    for url in dict.fromkeys(settings.orchestrator.urls):
        for interface in dict.fromkeys(settings.orchestrator.interfaces):
            match interface:
                case Interface.BYOC:
                    found.append(CapabilityEntry(settings, url))
                case Interface.LIVE_RUNNER:
                    found.append(RunnerEntry(settings, url, model_name, version))
    return found


class Registration:
    """Owns the entries. One task at a time drives `run`; `withdraw` may be called beside it."""

    def __init__(
        self,
        settings: Settings,
        model_name: str,
        version: str,
        session_ids: Callable[[], Sequence[str]],
    ) -> None:
        # One request at a time may change what an orchestrator knows.
        self._locks = {entry: asyncio.Lock() for entry in entries(settings, model_name, version)}
        self._has_secret = settings.orchestrator.secret.get_secret_value().strip() != ""
        self._tls = tls_of(settings.orchestrator)
        self._version = version
        self._session_ids = session_ids
        self._withdrawn = asyncio.Event()

    async def run(self) -> None:
        """Register with every orchestrator for ever; returns once withdrawn, or with none to tell.

        Cancelling it leaves registrations as they are: call `withdraw` first.
        """
        if not self._locks:
            return
        if not self._has_secret:
            logger.warning("ORCH_SECRET is empty: expected what the orchestrators know us by")
        async with self._open_session() as session, asyncio.TaskGroup() as group:
            for entry in self._locks:
                group.create_task(self._keep_registered(session, entry))

    async def withdraw(self) -> None:
        """Unregister wherever we are registered, within 3 s; nothing registers again after it.

        What fails is logged.
        """
        self._withdrawn.set()
        try:
            async with (
                asyncio.timeout(WITHDRAW_SECONDS),
                self._open_session() as session,
                asyncio.TaskGroup() as group,
            ):
                for entry in self._locks:
                    group.create_task(self._unregister(session, entry))
        except TimeoutError:
            for entry in self._locks:
                if entry.registered:
                    _log(entry.receive_withdrawal(f"no answer within {WITHDRAW_SECONDS:g} s"))

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # A connection kept for the next beat may be gone by then, and a POST that meets it
            # fails.
            connector=aiohttp.TCPConnector(force_close=True),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            headers={"User-Agent": f"whisper-byoc/{self._version}"},
        )

    async def _keep_registered(self, session: aiohttp.ClientSession, entry: Entry) -> None:
        while True:
            async with self._locks[entry]:
                if self._withdrawn.is_set():
                    return
                step = await self._register(session, entry)
            _log(step)
            with suppress(TimeoutError):
                async with asyncio.timeout(step.delay):
                    await self._withdrawn.wait()

    async def _register(self, session: aiohttp.ClientSession, entry: Entry) -> Step:
        try:
            request = entry.next_request(self._session_ids())
            return entry.receive_answer(await self._send(session, entry.url, request))
        except NoAnswer as error:
            return entry.receive_failure(error.problem)

    async def _unregister(self, session: aiohttp.ClientSession, entry: Entry) -> None:
        async with self._locks[entry]:  # a registration under way would arrive after us
            if not entry.registered:
                return
            try:
                request = entry.next_withdrawal()
                problem = problem_of(await self._send(session, entry.url, request))
            except NoAnswer as error:
                problem = error.problem
            _log(entry.receive_withdrawal(problem))

    async def _send(self, session: aiohttp.ClientSession, url: str, request: Request) -> Answer:
        """Raises NoAnswer."""
        headers = {"Content-Type": request.content_type}
        if request.authorization:
            headers["Authorization"] = request.authorization
        try:
            async with session.post(
                url + request.path,
                data=request.body.encode(),
                headers=headers,
                ssl=self._tls,
                allow_redirects=False,  # the secret is for this host alone
            ) as response:
                body = b""
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES:
                        break
                return Answer(response.status, body.decode(errors="replace"))
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {ANSWER_SECONDS:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        except ValueError as error:  # a header with a line break, a URL that is none
            raise NoAnswer(f"the request cannot be sent: {type(error).__name__}") from error


def _log(step: Step) -> None:
    logger.log(step.level, "%s", step.text)
