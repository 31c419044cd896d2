"""What a scripted Live Runner orchestrator does by itself and at its runners' calls: effects on
requests and channels, sweeps, polls of health, keepalives."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp

from whisper_sim.heartbeat_fields import Fields
from whisper_sim.runner_entries import Change, Effect, Runner, Session
from whisper_sim.runner_proxy import ProxyOptions
from whisper_sim.runner_records import Records
from whisper_sim.runner_registry import Registry
from whisper_sim.trickle_server import TrickleServer

KEEPALIVE: Final = b'{"keep":"alive"}'
HEALTH_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """How an orchestrator is set up. In s, but for the two Go durations.

    secret: the bootstrap secret. node: its dialect, else go-livepeer's. service_url,
    runner_service_url: what clients and runners are told, None for where it listens; they may have
    a path. keepalive_seconds: between two on an o2r channel. sweeps: whether runners are swept and
    polled by time; `LiveRunner.sweep` and `poll` do it at once. control_places, streaming_places:
    of requests at a time.
    """

    secret: str = "secret"
    node: bool = True
    heartbeat_interval: str = "5s"
    heartbeat_ttl: str = "30s"
    on_chain: bool = False
    service_url: str | None = None
    runner_service_url: str | None = None
    keepalive_seconds: float = 10.0
    sweeps: bool = True
    control_places: int = 64
    streaming_places: int = 256
    proxy: ProxyOptions = field(default_factory=ProxyOptions)


class Hub:
    """The registry, the trickle channels, and the requests that run through the orchestrator.

    Driven by the orchestrator's handlers and by `serve`, all in one event loop.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.records = Records()
        self.registry = Registry(
            options.secret,
            options.service_url or "",
            options.runner_service_url or options.service_url or "",
            node=options.node,
            heartbeat_interval=options.heartbeat_interval,
            heartbeat_ttl=options.heartbeat_ttl,
            on_chain=options.on_chain,
        )
        self.trickle = TrickleServer(node=options.node)

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    def add_static(
        self,
        runner_id: str,
        runner_url: str,
        app: str,
        *,
        health_url: str = "",
        health_code: int = 200,
        **fields: Any,
    ) -> Runner:
        """A runner that does not register. fields: others of `Fields`. Raises ValueError where the
        id is taken."""
        static = Fields(runner_url=runner_url, app=app, runner_id=runner_id, **fields)
        runner = self.registry.add_static(static, health_url=health_url, health_code=health_code)
        self.records.notify()
        return runner

    def sweep(self) -> None:
        """Now, whatever the interval."""
        self.registry.sweep(self.now())
        self.carry_out()

    def restart(self) -> None:
        """Forget and cut everything, as an orchestrator does that is started anew."""
        self.registry.restart()
        self.carry_out()

    def close(self) -> None:
        """Cut everything, and know nobody any more: 401."""
        self.registry.close()
        self.carry_out()

    def release(self, session: Session) -> None:
        self.registry.release(session)
        self.carry_out()

    def reserve(self, runner_id: str) -> Session:
        """As for a client that asks for it. Raises runner_entries.Refused."""
        session = self.registry.reserve(runner_id, self.now())
        self.carry_out()
        return session

    def carry_out(self) -> None:
        """What the registry has left to be done."""
        for effect in self.registry.take_effects():
            self._carry_out(effect)
        self.records.notify()

    def _carry_out(self, effect: Effect) -> None:
        runner, session = effect.runner, effect.session
        match effect.change:
            case Change.JOINED:
                self.trickle.create(runner.o2r, "application/json")
            case Change.LEFT:
                self.trickle.delete(runner.o2r)
            case Change.RESERVED | Change.RELEASED:
                assert session is not None
                stamp = datetime.now(UTC).isoformat().replace("+00:00", "Z")
                event = {"event": effect.change, "session": session.session_id, "timestamp": stamp}
                self.tell(runner, json.dumps(event).encode())
                if effect.change is Change.RELEASED:
                    self._end(session)

    def _end(self, session: Session) -> None:
        for name, _ in session.channels.values():
            self.trickle.delete(name)
        if not self.options.node:
            return  # go-livepeer lets requests go on
        for exchange in list(self.records.running):
            if exchange.session_id == session.session_id and not exchange.over:
                self.records.cuts.append(exchange)
                exchange.cut()

    def tell(self, runner: Runner, message: bytes) -> None:
        """Write a segment to its o2r channel; nothing where that is gone."""
        channel = self.trickle.channels.get(runner.o2r)
        if channel is None:
            return
        segment = channel.begin(-1)
        channel.receive_first_byte(segment)
        channel.write(segment, message)
        channel.end(segment)

    async def poll(self) -> None:
        """The health of every static runner, now."""
        statics = [it for it in self.registry.runners.values() if it.health_url]
        timeout = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            for runner in statics:
                self.registry.receive_health(runner, await _is_healthy(http, runner))
                self.carry_out()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Sweep, poll and keep channels alive while inside; leaving closes every channel."""
        async with self.trickle.serve(), asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._keep_alive())]
            if self.options.sweeps:
                tasks.append(group.create_task(self._sweep()))
                tasks.append(group.create_task(self._poll()))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.registry.interval)
            self.sweep()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.registry.interval)
            await self.poll()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self.options.keepalive_seconds)
            for runner in list(self.registry.runners.values()):
                self.tell(runner, KEEPALIVE)


async def _is_healthy(http: aiohttp.ClientSession, runner: Runner) -> bool:
    try:
        async with http.get(runner.health_url) as answer:
            return answer.status == runner.health_code
    except (aiohttp.ClientError, TimeoutError):
        return False
