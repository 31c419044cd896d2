"""The runners, credentials and sessions of a scripted Live Runner orchestrator, and what each call
about them is answered (pure).

In the words of livepeer/node, or of go-livepeer where `node` is false. Time is an argument, in s
from any beginning. What follows from a call (a session's requests are cut, an event goes to its
runner) is left in `effects`, for whoever drives the registry to carry out at once.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from hmac import compare_digest
from typing import Any, Final

from whisper_sim.go_rules import parse_duration, random_id
from whisper_sim.heartbeat_fields import Fields, Invalid, read_fields
from whisper_sim.runner_entries import Answer, Change, Effect, Refused, Runner, Session

MAX_RUNNERS: Final = 256
MAX_SESSIONS: Final = 10_000


@dataclass
class Registry:
    """Owned by the orchestrator that drives it; tests read it, and may set its options at any time.

    heartbeat_interval, heartbeat_ttl: Go durations, told as they are; where one cannot be read, it
    is told all the same and counts as its default. on_chain: prices must be positive, and
    reservations be paid. retired: heartbeat secrets that are no longer any runner's.
    """

    secret: str
    service_url: str
    runner_service_url: str
    node: bool = True
    heartbeat_interval: str = "5s"
    heartbeat_ttl: str = "30s"
    on_chain: bool = False
    wei_per_usd: Fraction = Fraction(300_000_000_000_000)
    runners: dict[str, Runner] = field(default_factory=dict)
    proxies: dict[str, tuple[str, str]] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    effects: list[Effect] = field(default_factory=list)
    closing: bool = False

    @property
    def interval(self) -> float:
        return _seconds(self.heartbeat_interval, 5.0)

    @property
    def ttl(self) -> float:
        return _seconds(self.heartbeat_ttl, 30.0)

    @property
    def sessions(self) -> dict[str, Session]:
        """All of them, oldest first."""
        every = [it for runner in self.runners.values() for it in runner.sessions.values()]
        return {it.session_id: it for it in sorted(every, key=lambda it: it.created)}

    def take_effects(self) -> list[Effect]:
        taken, self.effects = self.effects, []
        return taken

    # Runners

    def authorize(self, authorization: str) -> None:
        """Before a heartbeat's body is read: some credential must match. Raises Refused."""
        credentials = [it.credential for it in self.runners.values() if it.credential]
        known = [] if self.closing else [self.secret, *credentials]
        if self.node and not any(_equal(authorization, it) for it in known):
            raise Refused(401, "invalid runner credential", last=True)
        if not self.node and not self.secret:
            raise Refused(404, "dynamic live runner registration is disabled")

    def heartbeat(self, authorization: str, body: bytes, now: float) -> Answer:
        """Raises Refused."""
        self.authorize(authorization)
        try:
            fields = read_fields(body, node=self.node, on_chain=self.on_chain)
        except Invalid as error:
            raise Refused(400, str(error)) from None
        if self.closing:
            raise Refused(503, "orchestrator shutting down")
        runner = self.runners.get(fields.runner_id)
        if runner is None:
            return self._join(authorization, fields, now)
        if runner.credential is None:
            raise Refused(403 if self.node else 400, "static runner cannot heartbeat")
        if not self.node and now - runner.last_beat > self.ttl:
            raise Refused(404, "runner not found")
        if not _equal(authorization, runner.credential):
            raise Refused(401, self._invalid_heartbeat, last=self.node)
        runner.fields, runner.last_beat = fields, now
        return Answer(200, self._beaten(runner))

    @property
    def _invalid_heartbeat(self) -> str:
        return "invalid runner credential" if self.node else "invalid heartbeat authorization"

    def _join(self, authorization: str, fields: Fields, now: float) -> Answer:
        if not _equal(authorization, self.secret):
            text = self._invalid_heartbeat if self.node else "invalid registration authorization"
            raise Refused(401, text, last=self.node)
        if len(self.runners) >= MAX_RUNNERS:
            raise Refused(503, "runner capacity reached")
        runner_id = fields.runner_id or f"runner_{random_id(8)}"
        runner = Runner(runner_id, fields, random_id(52), now)
        runner.o2r = f"{runner_id}-{random_id(16)}-o2r"
        self.runners[runner_id] = runner
        self.effects.append(Effect(Change.JOINED, runner))
        channel = {
            "name": "o2r",
            "channel_name": runner.o2r,
            "url": self.channel_url(runner.o2r, inner=True),
            "mime_type": "application/json",
        }
        first = {"heartbeat_secret": runner.credential, "o2r": channel}
        return Answer(200, self._beaten(runner) | first)

    def _beaten(self, runner: Runner) -> dict[str, Any]:
        ids = list(runner.sessions)
        return {
            "runner_id": runner.runner_id,
            "orchestrator": self.runner_service_url,
            "heartbeat_interval": self.heartbeat_interval,
            "heartbeat_ttl": self.heartbeat_ttl,
            # Node's come from a map: in no order. Backwards is never the order of creation.
            "session_ids": ids[::-1] if self.node else ids,
        }

    def unregister(self, runner_id: str, authorization: str, now: float) -> Answer:
        """Raises Refused."""
        runner = self.runners.get(runner_id)
        expired = runner is not None and runner.credential and self._is_late(runner, now)
        if runner is None or (expired and not self.node):
            raise Refused(404, "runner not found")
        if runner.credential is None and not self.node:
            raise Refused(400, "static runner cannot unregister")
        if not _equal(authorization, runner.credential or ""):
            text = "invalid runner credential" if self.node else "invalid authorization"
            raise Refused(401, text)
        self._leave(runner)
        return self.done()

    def done(self) -> Answer:
        """What is answered to what was done."""
        return Answer(200, {"ok": True}) if self.node else Answer(204)

    def add_static(self, fields: Fields, *, health_url: str = "", health_code: int = 200) -> Runner:
        """A runner that the operator has written down, under `fields.runner_id`; it is polled at
        `health_url`, and without one always healthy. Raises ValueError for an id that is taken."""
        if not fields.runner_id or fields.runner_id in self.runners:
            raise ValueError(f"id of a static runner is {fields.runner_id!r}, expected a new one")
        runner = Runner(fields.runner_id, fields, health_url=health_url, health_code=health_code)
        self.runners[fields.runner_id] = runner
        return runner

    def receive_health(self, runner: Runner, healthy: bool) -> None:
        """The result of a poll. The first failure ends every session."""
        runner.healthy = healthy
        if not healthy:
            self._release_all(runner)

    def sweep(self, now: float) -> None:
        """Forget runners whose time to live has passed."""
        for runner in list(self.runners.values()):
            if runner.credential is not None and self._is_late(runner, now):
                self._leave(runner)

    def restart(self) -> None:
        """Forget everyone but static runners."""
        for runner in list(self.runners.values()):
            if runner.credential is not None:
                self._leave(runner)
            self._release_all(runner)

    def close(self) -> None:
        """As when the orchestrator is told to end: nobody is known any more, and every heartbeat
        gets 401."""
        self.closing = True
        self.restart()

    def usable(self, runner: Runner, now: float) -> bool:
        late = runner.credential is not None and self._is_late(runner, now)
        return runner.fields.status == "ready" and runner.healthy and not (late or self.closing)

    def _is_late(self, runner: Runner, now: float) -> bool:
        return now - runner.last_beat > self.ttl

    def _leave(self, runner: Runner) -> None:
        self._release_all(runner)
        del self.runners[runner.runner_id]
        self.retired.add(runner.credential or "")
        self.effects.append(Effect(Change.LEFT, runner))

    # Sessions

    def reserve(self, runner_id: str, now: float, *, pending: bool = False) -> Session:
        """A place at a persistent runner. pending: not told to it before `activate`. Raises
        Refused."""
        return self._reserve(runner_id, now, single_shot=False, pending=pending)

    def reserve_single(self, runner_id: str, now: float) -> Session:
        """A place for one request at a single-shot runner; `release` it when that has ended. Raises
        Refused."""
        return self._reserve(runner_id, now, single_shot=True, pending=False)

    def _reserve(self, runner_id: str, now: float, *, single_shot: bool, pending: bool) -> Session:
        runner = self.runners.get(runner_id)
        if runner is None or not self.usable(runner, now):
            raise Refused(404, "runner unavailable")
        if runner.fields.single_shot != single_shot:
            raise Refused(400, f"runner is not {'single-shot' if single_shot else 'persistent'}")
        if len(runner.sessions) >= runner.fields.capacity:
            if self.node:
                raise Refused(409, "runner at capacity")
            raise Refused(503, "no capacity available for runner")
        if len(self.sessions) >= MAX_SESSIONS:
            raise Refused(503, "session capacity reached")
        session_id = f"session_{random_id(16 if self.node else 8)}"
        session = Session(session_id, runner_id, random_id(52), now, pending)
        if runner.fields.proxy and not single_shot:
            session.label = random_id(16)
            self.proxies[session.label] = (session_id, "")
        runner.sessions[session_id] = session
        if not pending:
            self.effects.append(Effect(Change.RESERVED, runner, session))
        return session

    def activate(self, session: Session) -> None:
        """It is paid."""
        session.pending = False
        self.effects.append(Effect(Change.RESERVED, self.runners[session.runner_id], session))

    def reserved(self, session: Session) -> Answer:
        """What the client is told of its session."""
        control = f"{self.service_url}/apps/{session.runner_id}/session/{session.session_id}"
        app = f"{self.service_url}/run/{session.label}" if session.label else f"{control}/app"
        document = {"session_id": session.session_id, "app_url": app, "control_url": control}
        return Answer(200, document)

    def stop(self, runner_id: str, session_id: str) -> Answer:
        """By the client. Raises Refused."""
        session = self._session(runner_id, session_id)
        if session is None:
            raise Refused(404, "session not found")
        self.release(session)
        return self.done()

    def release(self, session: Session) -> None:
        """End it; nothing where it has ended already."""
        runner = self.runners.get(session.runner_id)
        if runner is None or runner.sessions.pop(session.session_id, None) is None:
            return
        for label, (session_id, _) in list(self.proxies.items()):
            if session_id == session.session_id:
                del self.proxies[label]
        if not session.pending:
            self.effects.append(Effect(Change.RELEASED, runner, session))

    def _release_all(self, runner: Runner) -> None:
        for session in list(runner.sessions.values()):
            self.release(session)

    def _session(self, runner_id: str, session_id: str) -> Session | None:
        runner = self.runners.get(runner_id)
        return runner.sessions.get(session_id) if runner is not None else None

    def session_target(
        self, runner_id: str, session_id: str, *, now: float
    ) -> tuple[Runner, Session]:
        """Where a request of a session goes. Raises Refused."""
        session = self._session(runner_id, session_id)
        if session is None or session.pending:
            raise Refused(404, "session not found")
        runner = self.runners[runner_id]
        if not self.usable(runner, now):
            raise Refused(404, "runner unavailable")
        return runner, session

    def proxy_target(self, label: str, now: float) -> tuple[Runner, Session | None, str]:
        """Where a request below a generated proxy goes: runner, session (None: a single shot, to be
        reserved) and URL. Raises Refused."""
        runner = self.runners.get(label)
        if runner is not None and runner.fields.proxy and runner.fields.single_shot:
            return runner, None, runner.fields.runner_url
        session_id, target = self.proxies.get(label, ("", ""))
        session = self.sessions.get(session_id)
        if session is None:
            raise Refused(404, "proxy not found")
        runner, session = self.session_target(session.runner_id, session_id, now=now)
        return runner, session, target or runner.fields.runner_url

    # Callbacks of runners

    def authorized(self, runner_id: str, session_id: str, token: str, now: float) -> Session:
        """The session that a runner's callback is about. Raises Refused."""
        session = self._session(runner_id, session_id)
        if not self.node and session is not None and not self.usable(self.runners[runner_id], now):
            raise Refused(404, "session not found")
        if session is None and not self.node:
            raise Refused(404, "session not found")
        if session is None or session.pending or not _equal(token, session.token):
            raise Refused(403 if self.node else 401, "invalid session token")
        return session

    def stop_by_runner(self, runner_id: str, session_id: str, token: str, now: float) -> Answer:
        """Raises Refused."""
        if self._session(runner_id, session_id) is None:
            raise Refused(404, "session not found")
        self.release(self.authorized(runner_id, session_id, token, now))
        return self.done()

    def channel_url(self, name: str, *, inner: bool = False) -> str:
        return f"{self.runner_service_url if inner else self.service_url}/ai/trickle/{name}"

    def control_url(self, session: Session) -> str:
        """What runners call back to."""
        path = f"runner/{session.runner_id}/session/{session.session_id}"
        return f"{self.runner_service_url}/{path}"


def _seconds(duration: str, default: float) -> float:
    try:
        return parse_duration(duration)
    except ValueError:
        return default


def _equal(given: str, expected: str) -> bool:
    """An empty secret never matches."""
    return bool(expected) and compare_digest(given.encode(), expected.encode())
