"""What lives as long as the process: how it comes, what it says of itself, how it goes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn

from tests.conftest import direct
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.app import build_app
from whisper_byoc.cli import EXIT_FAILED, Server, listen, run_server
from whisper_byoc.errors import MissingModel, NotReady, ProcessorError, ServiceError
from whisper_byoc.inference.engine import Engine
from whisper_byoc.jobs.options import ProcessorOptions
from whisper_byoc.orchestrator.messages import StartRequest
from whisper_byoc.service import Health, Service
from whisper_byoc.settings import ModelSettings, ServerSettings, Settings
from whisper_byoc.transcript import EndReason

pytestmark = pytest.mark.anyio
TIMEOUT = 20.0


class Echo:
    """A processor that begins and ends when it is told to, or fails."""

    def __init__(self, *failing: str) -> None:
        self.may_begin = asyncio.Event()
        self.may_begin.set()
        self.failing = failing

    async def initialize(self) -> None:
        await self.may_begin.wait()
        self._fail("initialize")

    async def process(self, data: bytes) -> bytes:
        return data

    async def shutdown(self) -> None:
        self._fail("shutdown")

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise RuntimeError(f"no {name}")


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[Service]:
    async with asyncio.timeout(TIMEOUT), service.serve():
        yield service


def hosting(processor: Echo) -> Service:
    return Service(Settings(), processor=processor)


def gauges(service: Service) -> dict[str, float]:
    lines = service.metrics.exposition().decode().splitlines()
    names = ("whisper_jobs_running ", "whisper_streams_running ", "whisper_ready ",
             "whisper_lag_seconds ", "whisper_windows_waiting ")  # fmt: skip
    found = (line.split() for line in lines if line.startswith(names))
    return {name.removeprefix("whisper_"): float(value) for name, value in found}


NOTHING = {
    "jobs_running": 0.0, "streams_running": 0.0, "ready": 0.0, "lag_seconds": 0.0,
    "windows_waiting": 0.0,
}  # fmt: skip


async def test_while_it_loads_it_says_so_and_has_nothing_yet() -> None:
    processor = Echo()
    processor.may_begin.clear()
    async with serving(hosting(processor)) as service:
        assert (service.health, service.ready) == (Health.LOADING, False)
        assert (service.failure, service.engine, service.model_id) == (None, None, "Echo")
        for ask in (lambda: service.jobs, lambda: service.sessions):
            with pytest.raises(NotReady, match="still loading"):
                ask()
        assert gauges(service) == NOTHING
        await service.drain()
        processor.may_begin.set()
        await service.settled()
        assert (service.health, service.ready) == (Health.IDLE, True)


async def test_health_tells_whether_jobs_run() -> None:
    async with serving(hosting(Echo())) as service:
        await service.settled()
        job = service.jobs.open(direct("a"), ProcessorOptions())
        assert service.health.value == Health.OK
        assert gauges(service) == {**NOTHING, "jobs_running": 1.0, "ready": 1.0}
        await job.stop(EndReason.STOPPED)
        assert service.health.value == Health.IDLE


async def test_its_engine_is_that_of_the_models() -> None:
    async with serving(Service(Settings(), scripted_engine(ScriptedModel()))) as service:
        assert service.model_id == Settings().model.names[0]
        await service.settled()
        assert service.model_id == "scripted"
        assert service.engine is not None
        assert list(service.engine.models) == ["scripted"]


async def test_it_logs_once_when_it_is_ready(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "whisper_byoc.service"):
        async with serving(Service(Settings(), scripted_engine(ScriptedModel()))) as service:
            await service.settled()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("ready after 0.")
    assert line.endswith(", scripted on nowhere (scripted)")


@asynccontextmanager
async def without_weights(settings: ModelSettings) -> AsyncIterator[Engine]:
    raise MissingModel("tiny.en", "it is not there")
    yield


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Service(Settings(), without_weights), MissingModel),
        (lambda: hosting(Echo("initialize")), ProcessorError),
    ],
    ids=["weights are missing", "a processor does not begin"],
)
async def test_what_cannot_begin_is_told_as_a_bare_error(
    make: Callable[[], Service], expected: type[ServiceError]
) -> None:
    async with serving(make()) as service:
        await service.settled()
        assert type(service.failure) is expected
        assert (service.health, service.ready) == (Health.ERROR, False)
        with pytest.raises(NotReady) as caught:
            _ = service.jobs
        assert caught.value.problem is service.failure
        assert gauges(service) == NOTHING
        await service.drain()


async def test_a_part_that_fails_later_ends_the_process(caplog: pytest.LogCaptureFixture) -> None:
    """It would live on, ready for nothing, and no one would start it anew."""
    failing = asyncio.Event()

    @asynccontextmanager
    async def open_engine(settings: ModelSettings) -> AsyncIterator[Engine]:
        async with scripted_engine(ScriptedModel())(settings) as engine, asyncio.TaskGroup() as it:
            it.create_task(fail())
            yield engine

    async def fail() -> None:
        await failing.wait()
        raise RuntimeError("a fault of ours")

    service = Service(Settings(), open_engine)
    server = Server(uvicorn.Config(build_app(service), log_config=None))
    with listen(ServerSettings(host="127.0.0.1", port=0)) as listener:
        async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
            serving = group.create_task(run_server(service, server, listener))
            await service.settled()
            assert service.ready
            failing.set()
    assert serving.result() == EXIT_FAILED
    assert str(service.failure) == "the service has failed: RuntimeError: a fault of ours"
    assert "a part of the service has failed" in caplog.text


async def test_what_fails_while_closing_is_told() -> None:
    service = hosting(Echo("shutdown"))
    async with serving(service):
        await service.settled()
        assert service.health.value == Health.IDLE
    assert isinstance(service.failure, ProcessorError)
    assert service.health.value == Health.ERROR


async def test_a_drain_ends_jobs_and_streams_and_lets_none_begin() -> None:
    async with serving(hosting(Echo())) as service:
        await service.settled()
        job = service.jobs.open(direct("a"), ProcessorOptions())
        session = service.sessions.start(StartRequest("s"))
        assert gauges(service)["streams_running"] == 1.0
        await service.drain()
        assert job.log.end_reason is EndReason.SHUTDOWN
        assert session.job.log.end_reason is EndReason.SHUTDOWN
        assert not service.ready
        assert gauges(service)["ready"] == 0.0
