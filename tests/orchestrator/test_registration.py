"""Registration: its rules, against a scripted registry, and in the real process.

Cases are numbered as in the protocol's checklist (docs/wire.md).
"""

import asyncio
import logging
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import pytest

from tests import pytrickle_peer
from tests.conftest import MODELS
from tests.orchestrator.log import Log
from tests.orchestrator.registry import (
    SECRET,
    TIMEOUT,
    Mishap,
    Received,
    Registry,
    Told,
    serve_registry,
)
from tests.orchestrator.scripted_channel import self_signed_context
from tests.test_main import command, read_until
from whisper_byoc.orchestrator.entry import ANSWER_SECONDS, Identity
from whisper_byoc.orchestrator.registration import Registration
from whisper_byoc.orchestrator.runner_sessions import RunnerSessions
from whisper_byoc.settings import (
    CapabilitySettings,
    JobSettings,
    OrchestratorSettings,
    Settings,
)

pytestmark = pytest.mark.anyio
REGISTER, UNREGISTER = "/capability/register", "/capability/unregister"
NAME = "whisper-of-the-tests"
TOKEN = "token-of-the-doors"
SLACK = 0.9
"""Of a delay: the clocks of timers and of the test are not the same."""


def settings_for(*urls: str, **orchestrator: Any) -> Settings:
    orchestrator = {
        "urls": ",".join(urls), "secret": SECRET, "interval": 0.1, "interfaces": "byoc",
    } | orchestrator  # fmt: skip
    return Settings(
        orchestrator=OrchestratorSettings.model_validate(orchestrator),
        capability=CapabilitySettings(name=NAME, url="http://worker:8000", price_per_unit=7),
        jobs=JobSettings(max_jobs=9),
    )


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with serve_registry() as registry:
        yield registry


def open_registration(
    settings: Settings, sessions: RunnerSessions | None = None, num_streams: int = 0
) -> Registration:
    sessions = sessions or RunnerSessions(settings)
    return Registration(settings, Identity("tiny.en", "1.2.3"), sessions, lambda: num_streams)


@asynccontextmanager
async def registering(
    settings: Settings, sessions: RunnerSessions | None = None
) -> AsyncIterator[Registration]:
    """A registration that runs; cancelled at the end."""
    registration = open_registration(settings, sessions)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(registration.run())
        try:
            yield registration
        finally:
            running.cancel()


def gaps(requests: Sequence[Received]) -> list[float]:
    return [later.time - earlier.time for earlier, later in pairwise(requests)]


# Against a registry


async def test_case_099_registers_with_the_bare_secret_and_the_whole_body(
    registry: Registry, log: Log
) -> None:
    async with registering(settings_for(registry.url, interval=60.0, token=TOKEN)):
        await log.until("registered capability")
    (request,) = registry.requests
    assert (request.method, request.path) == ("POST", REGISTER)
    assert request.authorization == SECRET
    assert request.headers["Content-Type"] == "application/json"
    assert registry.capabilities == {
        NAME: {
            "name": NAME,
            "description": "live speech to text",
            "url": "http://worker:8000",
            "capacity": 9,
            "price_per_unit": 7,
            "price_scaling": 1,
            "currency": "wei",
            "token": TOKEN,
        }
    }
    assert log.at(logging.INFO) == [f"registered capability {NAME} with {registry.url}"]


async def test_case_100_sends_urls_without_a_trailing_slash(registry: Registry) -> None:
    settings = settings_for(registry.url + "/").model_copy(
        update={"capability": CapabilitySettings(url="http://worker:8000/base/")}
    )
    async with registering(settings):
        (request, *_) = await registry.received(REGISTER)
    assert request.fields["url"] == "http://worker:8000/base"
    assert "token" not in request.fields


async def test_case_101_registers_again_after_the_interval(registry: Registry, log: Log) -> None:
    async with registering(settings_for(registry.url, interval=0.3)):
        requests = await registry.received(REGISTER, 4)
    assert min(gaps(requests)) >= 0.3 * SLACK
    assert len(log.at(logging.INFO)) == 1  # not every beat


async def test_case_102_a_rejection_is_logged_without_secrets_and_retried_slowly(
    registry: Registry, log: Log
) -> None:
    rejections: list[Told] = [(400, f"no {SECRET} nor\n{TOKEN} {word}") for word in "aab"]
    registry.next_answers[REGISTER] = rejections
    async with registering(settings_for(registry.url, interval=0.8, token=TOKEN)):
        requests = await registry.received(REGISTER, 4)
        await log.until("registered capability")
    assert min(gaps(requests)) >= 0.8 * SLACK  # a failure would have been retried after 0.5 s
    first, second = log.at(logging.ERROR)
    assert "400 no *** nor *** a" in first
    assert "400 no *** nor *** b" in second
    assert SECRET not in log.all()
    assert TOKEN not in log.all()


async def test_case_102_a_wrong_secret_is_never_logged(registry: Registry, log: Log) -> None:
    async with registering(settings_for(registry.url, secret="another-secret")):
        await log.until("invalid authorization", 3)
    assert len(log.at(logging.ERROR)) == 1
    assert "another-secret" not in log.all()
    assert not registry.capabilities


@pytest.mark.parametrize("told", [500, 503, 302, 404, Mishap.DROP], ids=str)
async def test_case_103_what_fails_is_retried_with_backoff(
    registry: Registry, log: Log, told: Told
) -> None:
    registry.next_answers[REGISTER] = [told, told]
    async with registering(settings_for(registry.url, interval=60.0)):
        requests = await registry.received(REGISTER, 3)
        await log.until("registered capability")
    first, second = gaps(requests)
    assert first >= 0.5 * SLACK
    assert second >= 1.0 * SLACK
    assert len(log.at(logging.WARNING)) == 1
    assert SECRET not in log.all()


async def test_case_103_a_refused_connection_is_retried(log: Log) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # refuses until it listens
        async with registering(settings_for(f"http://127.0.0.1:{listener.getsockname()[1]}")):
            await log.until("could not be registered", 3)
            assert len(log.at(logging.WARNING)) == 1
            async with serve_registry(listener=listener) as registry:
                await registry.until(lambda: NAME in registry.capabilities)


async def test_case_103_an_orchestrator_that_does_not_answer_is_asked_again(
    registry: Registry, log: Log
) -> None:
    registry.next_answers[REGISTER] = [Mishap.HANG]
    async with registering(settings_for(registry.url)):
        first, second, *_ = await registry.received(REGISTER, 2)
    assert second.time - first.time >= ANSWER_SECONDS * SLACK
    assert "no answer within 5 s" in log.at(logging.WARNING)[0]


async def test_case_103_a_secret_that_no_header_can_carry_is_not_fatal(
    registry: Registry, log: Log
) -> None:
    settings = settings_for(registry.url, secret="line\r\nbreak: and more")
    async with registering(settings):
        await log.until("cannot be sent", 2)
    assert "break" not in log.all()
    assert not registry.requests


async def test_a_secret_is_sent_without_the_line_end_of_its_file(registry: Registry) -> None:
    async with registering(settings_for(registry.url, secret=SECRET + "\n")):
        await registry.until(lambda: NAME in registry.capabilities)


@pytest.fixture(scope="session")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return self_signed_context(tmp_path_factory.mktemp("certificate"))


async def test_case_104_a_self_signed_certificate_is_taken_by_setting(
    self_signed: ssl.SSLContext,
) -> None:
    async with (
        serve_registry(self_signed) as registry,
        registering(settings_for(registry.url, verify_tls=False)),
    ):
        await registry.until(lambda: NAME in registry.capabilities)


async def test_case_104_a_self_signed_certificate_is_refused(
    self_signed: ssl.SSLContext, log: Log
) -> None:
    async with (
        serve_registry(self_signed) as registry,
        registering(settings_for(registry.url)),
    ):
        await log.until("could not be registered", 2)
    assert "certificate" in log.at(logging.WARNING)[0].lower()
    assert not registry.requests


async def test_case_105_without_orchestrators_nothing_is_asked(log: Log) -> None:
    registration = open_registration(settings_for(secret=""))
    async with asyncio.timeout(TIMEOUT):
        await registration.run()
        await registration.withdraw()
    assert not log.records


async def test_an_empty_secret_is_warned_of_and_not_sent(log: Log) -> None:
    async with (
        serve_registry(secret="") as registry,
        registering(settings_for(registry.url, secret="")),
    ):
        await registry.until(lambda: NAME in registry.capabilities)
    assert "Authorization" not in registry.requests[0].headers
    assert log.at(logging.WARNING) == [
        "ORCH_SECRET is empty: expected what the orchestrators know us by"
    ]


async def test_case_106_withdrawing_unregisters_by_the_bare_name(
    registry: Registry, log: Log
) -> None:
    async with registering(settings_for(registry.url)) as registration:
        await registry.received(REGISTER, 2)
        await registration.withdraw()
        request = registry.requests[-1]
        assert (request.path, request.body) == (UNREGISTER, NAME)
        assert request.headers["Content-Type"].startswith("text/plain")
        assert request.authorization == SECRET
        assert not registry.capabilities
    assert registry.requests[-1] is request  # `run` has ended without another
    assert log.at(logging.INFO)[-1] == f"unregistered capability {NAME} from {registry.url}"


async def test_case_106_after_withdrawing_run_returns_and_registers_nothing(
    registry: Registry,
) -> None:
    registration = open_registration(settings_for(registry.url))
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        running = group.create_task(registration.run())
        await registry.received(REGISTER)
        await registration.withdraw()
        await running
        num_requests = len(registry.requests)
        await registration.run()
        await registration.withdraw()
    assert len(registry.requests) == num_requests


async def test_case_106_a_registration_under_way_is_withdrawn_too(registry: Registry) -> None:
    answering = asyncio.Event()

    async def wait() -> None:
        await answering.wait()

    registry.before[REGISTER] = wait
    async with (
        registering(settings_for(registry.url)) as registration,
        asyncio.TaskGroup() as group,
    ):
        await registry.received(REGISTER)
        withdrawing = group.create_task(registration.withdraw())
        answering.set()
        await withdrawing
        assert [request.path for request in registry.requests] == [REGISTER, UNREGISTER]
        assert not registry.capabilities


@pytest.mark.parametrize("told", [500, 400, Mishap.DROP, Mishap.HANG], ids=str)
async def test_case_106_a_withdrawal_that_fails_does_not_raise_nor_block(
    registry: Registry, log: Log, told: Told
) -> None:
    registry.next_answers[UNREGISTER] = [told]
    async with registering(settings_for(registry.url)) as registration:
        await log.until("registered capability")
        async with asyncio.timeout(TIMEOUT):
            await registration.withdraw()
    assert "may still be registered" in log.at(logging.WARNING)[-1]


async def test_case_106_only_where_a_registration_succeeded(registry: Registry, log: Log) -> None:
    registry.next_answers[REGISTER] = [400] * 100
    async with registering(settings_for(registry.url)) as registration:
        await log.until("rejected", 2)
        await registration.withdraw()
    assert not registry.to(UNREGISTER)


async def test_case_107_a_dead_orchestrator_does_not_delay_a_live_one(log: Log) -> None:
    async with serve_registry() as dead, serve_registry() as live:
        dead.next_answers[REGISTER] = [Mishap.HANG] * 10
        async with registering(settings_for(dead.url, live.url, interval=0.2)) as registration:
            await dead.received(REGISTER)
            await live.received(REGISTER, 3)
            assert len(dead.requests) == 1
            async with asyncio.timeout(TIMEOUT):
                await registration.withdraw()
            assert not live.capabilities
            assert not dead.to(UNREGISTER)


async def test_case_108_an_orchestrator_that_forgot_us_knows_us_after_the_interval(
    registry: Registry,
) -> None:
    async with registering(settings_for(registry.url, interval=0.3)):
        await registry.until(lambda: NAME in registry.capabilities)
        registry.restart()
        await registry.until(lambda: NAME in registry.capabilities)


# The registry has a witness from outside


# It gives aiohttp its time-out as a number.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("secret", [SECRET, "another"], ids=["right secret", "wrong secret"])
async def test_pytrickle_registers_with_the_registry(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("CAPABILITY_URL", "http://pytrickle:8000")
    registered = await pytrickle_peer.register_capability().register(
        orch_url=registry.url,
        orch_secret=secret,
        capability_name="theirs",
        capability_desc="of PyTrickle",
        capability_capacity=2,
        capability_price_per_unit=3,
        capability_price_scaling=4,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
    )
    assert len(registry.requests) == 1  # a 400 ends it
    assert bool(registered) == (secret == SECRET)
    if registered:
        assert registry.capabilities["theirs"] == {
            "name": "theirs",
            "description": "of PyTrickle",
            "url": "http://pytrickle:8000",
            "capacity": 2,
            "price_per_unit": 3,
            "price_scaling": 4,
        }


# The real process

SERVE = ("serve", "--host", "127.0.0.1", "--port", "0")


def variables(url: str, **more: str) -> dict[str, str]:
    return {
        "WHISPER_MODEL_DIRECTORY": str(MODELS),
        "WHISPER_ORCHESTRATOR_INTERVAL": "0.5",
        "WHISPER_ORCHESTRATOR_INTERFACES": "byoc",
        "ORCH_URL": url,
        "ORCH_SECRET": SECRET,
        "CAPABILITY_NAME": NAME,
        "CAPABILITY_URL": "http://worker:8000/",
    } | more


@pytest.mark.model
async def test_case_099_registers_once_ready_with_the_bare_secret(registry: Registry) -> None:
    async with command(*SERVE, **variables(registry.url)) as process:
        await read_until(process, "listening on")
        said = await read_until(process, "ready after|registered capability")
        assert said == "ready after"
        first, *_ = await registry.received(REGISTER, 2)
        assert first.authorization == SECRET
        assert first.fields["name"] == NAME
        assert first.fields["url"] == "http://worker:8000"
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert SECRET.encode() not in errors


@pytest.mark.model
async def test_case_106_sigterm_unregisters_before_the_listener_closes(registry: Registry) -> None:
    reached: list[int] = []
    async with command(*SERVE, **variables(registry.url)) as process:
        url = await read_until(process, r"http://127.0.0.1:\d+")

        async def ask() -> None:
            async with aiohttp.ClientSession() as session, session.get(url + "/health") as answer:
                reached.append(answer.status)

        registry.before[UNREGISTER] = ask
        await read_until(process, "registered capability")
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    assert reached == [200]
    assert [(r.body, r.authorization) for r in registry.to(UNREGISTER)] == [(NAME, SECRET)]
    assert registry.requests[-1].path == UNREGISTER
    assert not registry.capabilities


@pytest.mark.model
async def test_case_106_an_orchestrator_that_hangs_does_not_block_the_exit(
    registry: Registry,
) -> None:
    registry.next_answers[UNREGISTER] = [Mishap.HANG] * 10
    async with command(*SERVE, **variables(registry.url)) as process:
        await read_until(process, "registered capability")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert time.monotonic() - began < 20  # 3 s of it are the withdrawal's
    assert b"may still be registered" in errors
    assert b"Traceback" not in errors


@pytest.mark.model
async def test_case_103_the_service_works_while_its_orchestrator_is_gone() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # refuses, as it does not listen
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        async with (
            command(*SERVE, **variables(dead)) as process,
            aiohttp.ClientSession() as session,
        ):
            url = await read_until(process, r"http://127.0.0.1:\d+")
            await read_until(process, "could not be registered")
            async with session.put(url + "/live/j/source?final=true", data=bytes(32_000)) as put:
                assert put.status == 200
            process.send_signal(signal.SIGTERM)
            _, errors = await process.communicate()
        assert process.returncode == 0
        assert b"Traceback" not in errors


@pytest.mark.model
async def test_case_108_after_we_answered_401_the_next_interval_restores_us(
    registry: Registry,
) -> None:
    async with (
        command(*SERVE, **variables(registry.url, AUTH_TOKEN=TOKEN)) as process,
        aiohttp.ClientSession() as session,
    ):
        url = await read_until(process, r"http://127.0.0.1:\d+")
        await read_until(process, "registered capability")
        assert registry.capabilities[NAME]["token"] == TOKEN
        wrong = {"Authorization": "Bearer of something else"}
        async with session.post(url + "/stream/start", json={}, headers=wrong) as answer:
            assert answer.status == 401
        del registry.capabilities[NAME]  # as an orchestrator does on any 401
        await registry.until(lambda: NAME in registry.capabilities)
