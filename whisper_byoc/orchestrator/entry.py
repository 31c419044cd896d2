"""What one orchestrator knows of this worker, and when it is told again: the rules that both
interfaces share (pure)."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from whisper_byoc.settings import Settings

FIRST_RETRY_SECONDS = 0.5
MAX_RETRY_AFTER_SECONDS = 3600.0
MAX_SHOWN_CHARACTERS = 200
ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What we are, for registrations. gpu: id, name and vram_mb where CUDA computes."""

    model_name: str
    version: str
    gpu: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What we are doing, for registrations. session_ids: sessions with a request that is being
    answered. num_streams: streams of BYOC that run."""

    session_ids: Sequence[str] = ()
    num_streams: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """A POST to `path` below an orchestrator's URL; empty `authorization` sends no such header."""

    path: str
    authorization: str
    body: str
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """text: the body. retry_after: the header of this name."""

    status: int
    text: str
    retry_after: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def problem(self) -> str:
        """Empty when the answer is a good one; with our secrets, if it has any."""
        return "" if self.ok else f"{self.status} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from an answer: s from the latest request to the next, and what the log says
    now. sessions: of the runner that the orchestrator lists; None where it lists none. lost_runner:
    the id of a registration that is over, with its sessions."""

    delay: float
    level: int
    text: str
    sessions: Sequence[str] | None = field(default=None, kw_only=True)
    lost_runner: str = field(default="", kw_only=True)


def retry_delay(num_failures: int, interval: float) -> float:
    """s to wait after so many failures in a row: doubling, at most `interval`."""
    doublings = min(num_failures - 1, 20)  # 2^20 halves of a second are beyond any interval
    return min(FIRST_RETRY_SECONDS * 2.0**doublings, interval)


def shown(text: str, secrets: Iterable[str]) -> str:
    """`text` as one short line without the secrets."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may hold another
        text = text.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line[:MAX_SHOWN_CHARACTERS])


class Entry(ABC):
    """What one orchestrator knows of this worker, through one of its interfaces.

    `what` names it in the log. `registered` says whether the orchestrator has taken a registration
    that has not been withdrawn. `cuts` says whether withdrawing it cuts what runs.
    """

    cuts = False

    def __init__(self, settings: Settings, url: str, what: str) -> None:
        orchestrator = settings.orchestrator
        self.url = url
        self.what = what
        self.registered = False
        # No header can have white space at its ends, and a secret read from a file often does.
        self._secret = orchestrator.secret.get_secret_value().strip()
        self._token = orchestrator.token.get_secret_value()
        self._interval = orchestrator.interval
        self._num_failures = 0
        self._problem: str | None = None  # None until there is an answer, "" when all is well

    @property
    def answer_seconds(self) -> float:
        """How long the answer to a request is waited for."""
        return ANSWER_SECONDS

    @abstractmethod
    def next_request(self, load: Load) -> Request:
        """What registers this worker, or keeps it registered."""

    @abstractmethod
    def next_withdrawal(self) -> Request:
        """What ends the registration."""

    @abstractmethod
    def receive_answer(self, answer: Answer) -> Step:
        """To the latest request."""

    def receive_failure(self, problem: str, hint: str = "") -> Step:
        """The latest request has no answer, or none to go by. hint: what may be done about it."""
        self._num_failures += 1
        delay = retry_delay(self._num_failures, self._longest_retry)
        return self._step(delay, logging.WARNING, "could not be registered", problem, hint)

    def receive_withdrawal(self, problem: str) -> Step:
        """What became of the withdrawal; `problem` is empty when all went well."""
        if problem:
            text = f"{self.what} may still be registered with {self.url}: "
            return Step(0, logging.WARNING, text + shown(problem, self._secrets))
        self.registered = False
        return Step(0, logging.INFO, f"unregistered {self.what} from {self.url}")

    @property
    def _longest_retry(self) -> float:
        return self._interval

    def _accepted(self, delay: float, sessions: Sequence[str] | None = None) -> Step:
        level = logging.DEBUG if self._problem == "" else logging.INFO
        self._problem, self._num_failures, self.registered = "", 0, True
        return Step(delay, level, f"registered {self.what} with {self.url}", sessions=sessions)

    def _rejected(self, answer: Answer, hint: str = "") -> Step:
        """Trying again at once would not help: the operator has to mend something."""
        self._num_failures = 0
        return self._step(self._interval, logging.ERROR, "is rejected", answer.problem, hint)

    def _step(self, delay: float, level: int, what: str, problem: str, hint: str = "") -> Step:
        """hint: what the operator may do about it."""
        problem = shown(problem, self._secrets) + (hint and f" ({hint})")
        if problem == self._problem:
            level = logging.DEBUG  # it has been said
        self._problem = problem
        text = f"{self.what} {what} with {self.url}: {problem}, again in {delay:.3g} s"
        return Step(delay, level, text)

    @property
    def _secrets(self) -> tuple[str, ...]:
        return self._secret, self._token
