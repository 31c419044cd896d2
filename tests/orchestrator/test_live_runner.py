"""Registration with a Live Runner orchestrator, in node's dialect and in go-livepeer's. Cases are
numbered as in docs/live-runner.md."""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.orchestrator.log import Log
from tests.orchestrator.registry import serve_registry
from tests.orchestrator.test_registration import SLACK, open_registration
from whisper_byoc.orchestrator.entry import Identity
from whisper_byoc.orchestrator.o2r import follow
from whisper_byoc.orchestrator.registration import Registration
from whisper_byoc.orchestrator.runner import RunnerEntry, offers
from whisper_byoc.orchestrator.runner_sessions import SESSION_HEADER, RunnerSessions
from whisper_byoc.settings import (
    CapabilitySettings,
    JobSettings,
    OrchestratorSettings,
    RunnerSettings,
    Settings,
)
from whisper_sim.live_runner import LiveRunner, open_live_runner
from whisper_sim.runner_records import TIMEOUT, Drop, Hang, Lose, Told

pytestmark = pytest.mark.anyio
RUNNER = "runner live-transcription/tiny.en (persistent)"

each_dialect = pytest.mark.parametrize("node", [True, False], ids=["node", "go-livepeer"])


def settings_for(*urls: str, runner: dict[str, Any] | None = None, **orchestrator: Any) -> Settings:
    orchestrator = {"urls": ",".join(urls), "secret": "secret"} | orchestrator
    return Settings(
        orchestrator=OrchestratorSettings.model_validate(orchestrator),
        capability=CapabilitySettings(url="http://127.0.0.1:8000/"),
        runner=RunnerSettings.model_validate(runner or {}),
        jobs=JobSettings(max_jobs=3),
    )


@asynccontextmanager
async def quick(node: bool = True, **options: Any) -> AsyncIterator[LiveRunner]:
    """An orchestrator with short times."""
    times = {"heartbeat_interval": "200ms", "heartbeat_ttl": "1s", "keepalive_seconds": 0.1}
    async with open_live_runner(node=node, **{**times, **options}) as opened:
        yield opened


class Ends:
    """Notes which sessions end."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.one = asyncio.Event()

    async def end(self, session_id: str) -> None:
        self.ended.append(session_id)
        self.one.set()


@asynccontextmanager
async def registering(
    settings: Settings, ends: Ends | None = None
) -> AsyncIterator[tuple[Registration, RunnerSessions]]:
    """A registration that runs, with its sessions; cancelled at the end."""
    sessions = RunnerSessions(settings)
    registration = open_registration(settings, sessions)
    async with (
        asyncio.timeout(2 * TIMEOUT),
        sessions.serve((ends or Ends()).end),
        asyncio.TaskGroup() as group,
    ):
        running = group.create_task(registration.run())
        try:
            yield registration, sessions
        finally:
            running.cancel()


def bodies(it: LiveRunner) -> list[dict[str, Any]]:
    return [beat.request.fields for beat in it.records.beats]


async def until_beats(it: LiveRunner, count: int) -> None:
    await it.records.until(lambda: len(it.records.beats) >= count)


@each_dialect
async def test_case_r01_and_r03_registers_and_goes_on_with_the_heartbeat_secret(
    node: bool, log: Log
) -> None:
    async with quick(node) as it, registering(settings_for(it.url)):
        runner = await it.registered()
        await until_beats(it, 4)
    first, *later = it.records.beats
    assert first.request.authorization == "secret"
    assert "runner_id" not in first.request.fields
    fields = first.request.fields
    assert fields["runner_url"] == "http://127.0.0.1:8000"
    assert (fields["app"], fields["mode"]) == ("live-transcription/tiny.en", "persistent")
    assert (fields["status"], fields["capacity"]) == ("ready", 3)
    assert {beat.status for beat in it.records.beats} == {200}
    assert {beat.request.fields["runner_id"] for beat in later} == {runner.runner_id}
    assert len({beat.request.authorization for beat in later} - {"secret"}) == 1
    assert max(it.records.gaps(runner.runner_id)) >= 0.2 * SLACK
    assert log.at(logging.INFO) == [f"registered {RUNNER} with {it.url}"]
    assert not it.records.stale


@each_dialect
@pytest.mark.parametrize("how", ["restart", "sweep"])
async def test_case_r05_what_forgot_us_is_registered_with_at_once(
    node: bool, how: str, log: Log
) -> None:
    ends = Ends()
    async with quick(node) as it, registering(settings_for(it.url), ends) as (_, sessions):
        runner = await it.registered()
        session = it.reserve(runner.runner_id)
        await it.records.until(lambda: sessions.knows(session.session_id))
        if how == "restart":
            it.restart()
        else:
            it.registry.runners[runner.runner_id].last_beat -= 10
            it.sweep()
        await it.records.until(lambda: runner.runner_id not in it.registry.runners)
        other = await it.registered()
        await ends.one.wait()
    assert other.runner_id != runner.runner_id
    assert ends.ended == [session.session_id]
    assert sum("is not known any more" in text for text in log.at(logging.WARNING)) == 1
    refused = next(beat for beat in it.records.beats if beat.status in (401, 404))
    again = next(b for b in it.records.beats if b.time > refused.time)
    assert again.request.authorization == "secret"
    assert "runner_id" not in again.request.fields


async def test_case_r06_an_expired_entry_of_go_livepeer_is_registered_anew(log: Log) -> None:
    async with (
        quick(node=False, sweeps=False) as it,
        registering(settings_for(it.url)),
    ):
        runner = await it.registered()
        it.registry.runners[runner.runner_id].last_beat -= 10
        await it.registered(2)
    assert 404 in {beat.status for beat in it.records.beats}
    assert [beat.request.authorization for beat in it.records.beats].count("secret") == 2


async def test_between_the_time_to_live_and_the_sweep_node_takes_a_beat_as_ever() -> None:
    async with (
        quick(sweeps=False, heartbeat_ttl="250ms") as it,
        registering(settings_for(it.url)),
    ):
        await it.registered()
        it.next_answers["heartbeat"] = [Drop()] * 3
        await it.records.until(lambda: len(it.records.late_beats) == 1)
        await until_beats(it, len(it.records.beats) + 2)
    assert {beat.status for beat in it.records.beats} == {200}
    assert len(it.registry.runners) == 1


@each_dialect
async def test_case_r07_a_wrong_secret_is_said_once_and_never_shown(node: bool, log: Log) -> None:
    async with (
        quick(node) as it,
        registering(settings_for(it.url, secret="another", interval=0.2)),
    ):
        await log.until("is rejected", 3)
    (error,) = log.at(logging.ERROR)
    assert "ORCH_SECRET" in error
    assert "another" not in log.all()


async def test_case_r08_a_former_self_holds_the_id() -> None:
    async with quick() as it:
        settings = settings_for(it.url, runner={"id": "whisper"})
        async with registering(settings):
            await it.registered()
        before = len(it.records.beats)
        async with registering(settings):  # started anew, before the old entry is swept
            await it.records.until(
                lambda: any(beat.status == 200 for beat in list(it.records.beats)[before:])
            )
    statuses = [beat.status for beat in list(it.records.beats)[before:]]
    assert statuses[0] == 401
    assert statuses[-1] == 200
    assert {body["runner_id"] for body in bodies(it)} == {"whisper"}


@each_dialect
async def test_case_r09_an_id_of_a_static_runner_is_given_up(node: bool, log: Log) -> None:
    async with quick(node) as it:
        it.add_static("whisper", "http://127.0.0.1:1", "live-transcription/tiny.en")
        async with registering(settings_for(it.url, runner={"id": "whisper"})):
            await it.registered(2)
    assert "static runner cannot heartbeat" in log.at(logging.ERROR)[0]
    assert "whisper" in it.registry.runners


async def test_case_r10_a_body_that_is_refused_is_sent_again_slowly(log: Log) -> None:
    refusal = Told(400, '{"error":"720p pricing is unsupported"}')
    async with quick() as it:
        it.next_answers["heartbeat"] = [refusal] * 3
        async with registering(settings_for(it.url, interval=0.3)):
            await it.registered()
    assert len(log.at(logging.ERROR)) == 1
    assert "720p pricing is unsupported" in log.at(logging.ERROR)[0]
    times = [request.time for request in it.records.to("/runners/heartbeat")]
    assert min(b - a for a, b in itertools.pairwise(times)) >= 0.3 * SLACK


@pytest.mark.parametrize(
    "trouble", ["server busy", "no answer", "refused"], ids=lambda name: name.replace(" ", "_")
)
async def test_case_r11_a_short_outage_costs_no_session(trouble: str, log: Log) -> None:
    ends = Ends()
    async with (
        quick(heartbeat_ttl="5s") as it,
        registering(settings_for(it.url), ends) as (_, sessions),
    ):
        runner = await it.registered()
        session = it.reserve(runner.runner_id)
        await it.records.until(lambda: sessions.knows(session.session_id))
        num = len(it.records.beats)
        match trouble:
            case "server busy":
                it.next_answers["heartbeat"] = [Told(503, "server busy")] * 3
            case "no answer":
                it.next_answers["heartbeat"] = [Hang(0.6)] * 3
            case "refused":
                async with it.refusing():
                    await log.until("could not be registered")
        await until_beats(it, num + 3)
        tried = it.records.to("/runners/heartbeat")
    assert runner.runner_id in it.registry.runners
    assert session.session_id in it.registry.sessions
    assert not ends.ended
    assert not it.records.late_beats
    assert {request.authorization for request in tried[1:]} == {tried[1].authorization}
    assert sum("could not be registered" in text for text in log.at(logging.WARNING)) <= 1


async def test_case_r12_before_it_is_registered_it_backs_off() -> None:
    async with quick() as it:
        it.next_answers["heartbeat"] = [Told(503, "server busy")] * 3
        async with registering(settings_for(it.url)):
            await it.registered()
    times = [request.time for request in it.records.to("/runners/heartbeat")]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    for gap, delay in zip(gaps, (0.5, 1.0, 2.0), strict=True):
        assert gap >= delay * SLACK


async def test_asking_for_sessions_hurries_none_that_does_not_know_us() -> None:
    """Anyone may make us ask, by headers that are forged."""
    async with (
        quick() as it,
        registering(settings_for(it.url, secret="wrong")) as (registration, _),
    ):
        await until_beats(it, 1)
        registration.ask_sessions()
        await asyncio.sleep(0.3)
        assert len(it.records.beats) == 1


async def test_case_r13_too_many_requests_are_answered_by_waiting() -> None:
    async with quick(heartbeat_ttl="1m") as it, registering(settings_for(it.url)):
        await it.registered()
        it.next_answers["heartbeat"] = [Told(429, "slow down", {"Retry-After": "2"})]
        await until_beats(it, len(it.records.beats) + 2)
    times = [request.time for request in it.records.to("/runners/heartbeat")]
    assert max(after - before for before, after in itertools.pairwise(times)) >= 2 * SLACK


@pytest.mark.parametrize("status", [301, 307])
async def test_case_r14_the_secret_follows_no_redirect(status: int, log: Log) -> None:
    async with quick() as it, quick() as other:
        location = {"Location": f"{other.url}/runners/heartbeat"}
        it.next_answers["heartbeat"] = [Told(status, "moved", location)]
        async with registering(settings_for(it.url, interval=0.3)):
            await it.registered()
    assert not other.records.requests
    assert str(status) in log.at(logging.ERROR)[0]


async def test_case_r15_an_orchestrator_without_byoc(log: Log) -> None:
    async with quick() as it, registering(settings_for(it.url, interfaces="byoc")):
        await log.until("could not be registered", 2)
    (warning,) = log.at(logging.WARNING)
    assert "WHISPER_ORCHESTRATOR_INTERFACES=live-runner" in warning


async def test_case_r16_a_dead_orchestrator_delays_no_other() -> None:
    async with (
        quick() as it,
        quick() as dead,
        dead.silent(),
        registering(settings_for(dead.url, it.url)),
    ):
        runner = await it.registered()
        await until_beats(it, 6)
    assert len(it.records.gaps(runner.runner_id)) >= 5
    assert not it.records.late_beats


async def test_case_r17_a_base_path_stays_before_every_call() -> None:
    async with quick() as it:
        base = f"{it.url}/x"
        it.registry.service_url = it.registry.runner_service_url = base
        async with registering(settings_for(base)) as (registration, _):
            runner = await it.registered()
            await it.records.until(lambda: any("trickle" in r.path for r in it.records.requests))
            await registration.withdraw()
            assert runner.runner_id not in it.registry.runners
    assert all(request.path.startswith("/x/") for request in it.records.requests)


async def test_case_r18_an_orchestrator_on_a_chain_wants_a_price(log: Log) -> None:
    async with quick(on_chain=True) as it:
        async with registering(settings_for(it.url)):
            await log.until("WHISPER_RUNNER_PRICE")
        priced = {"price": 0.1, "price_unit": "fixed"}
        async with registering(settings_for(it.url, runner=priced)):
            await it.registered()
    price = bodies(it)[-1]["price_info"]
    assert (price["price"], price["unit"]) == (0.1, "fixed")


@each_dialect
async def test_case_r19_both_modes_are_two_registrations(node: bool) -> None:
    both = {"modes": "persistent,single-shot", "price": 0.5, "single_shot_price": 0.25}
    async with (
        quick(node) as it,
        registering(settings_for(it.url, runner=both)) as (registration, _),
    ):
        await it.registered(2)
        modes = {runner.fields.mode for runner in it.registry.runners.values()}
        await registration.withdraw()
        assert not it.registry.runners
    assert modes == {"persistent", "single-shot"}
    assert {body["price_info"]["price"] for body in bodies(it)} == {0.5, 0.25}
    assert len(it.records.departures) == 2


async def test_a_first_answer_that_is_lost_leaves_a_ghost_and_no_more() -> None:
    async with quick() as it:
        it.next_answers["heartbeat"] = [Lose()]
        async with registering(settings_for(it.url)):
            await it.registered(2)
            await it.records.until(lambda: len(it.registry.runners) == 1)  # the ghost is swept


async def test_draining_is_told_before_leaving_and_goes_on() -> None:
    async with quick() as it, registering(settings_for(it.url)) as (registration, _):
        runner = await it.registered()
        await registration.drain()
        assert bodies(it)[-1]["status"] == "draining"
        num = len(it.records.beats)
        await until_beats(it, num + 2)
        assert {body["status"] for body in bodies(it)[num:]} == {"draining"}
        assert runner.runner_id in it.registry.runners
        await registration.withdraw()
    assert [departure.status for departure in it.records.departures] == [200]


@pytest.mark.parametrize(
    "fault",
    [None, Told(204), Told(404, "runner not found"), Told(401, "no"), Hang()],
    ids=["200", "204", "404", "401", "hangs"],
)
async def test_case_r22_whatever_unregister_answers_we_leave(fault: Any, log: Log) -> None:
    async with quick() as it, registering(settings_for(it.url)) as (registration, _):
        await it.registered()
        it.next_answers["unregister"] = [fault] if fault else []
        began = time.monotonic()
        await registration.withdraw()
        took = time.monotonic() - began
        (request,) = [r for r in it.records.requests if r.path.endswith("/unregister")]
    assert request.authorization not in ("", "secret")
    assert took < 3 + TIMEOUT / 4
    fine = fault is None or fault == Told(204)
    assert bool(log.at(logging.WARNING)) != fine
    assert log.at(logging.WARNING if not fine else logging.INFO)


@each_dialect
async def test_case_116_requests_are_told_and_the_runner_unregisters(
    node: bool,
) -> None:
    async with (
        quick(node) as it,
        registering(settings_for(it.url)) as (registration, sessions),
    ):
        runner = await it.registered()
        with sessions.request({SESSION_HEADER: "session-1"}):
            await it.records.until(lambda: bodies(it)[-1]["session_ids"] == ["session-1"])
        await registration.withdraw()
        (departure,) = it.records.departures
        assert (departure.runner_id, departure.status) == (runner.runner_id, 200 if node else 204)
        assert not it.registry.runners


async def test_case_116_both_interfaces_of_one_worker() -> None:
    async with quick() as it, serve_registry(secret="secret") as byoc:
        settings = settings_for(it.url, byoc.url, interfaces="byoc,live-runner")
        async with registering(settings) as (registration, _):
            await it.registered()
            await byoc.until(lambda: bool(byoc.capabilities))
            await registration.drain()
            assert not byoc.capabilities, "it gets no new streams"
            assert it.registry.runners, "its sessions would be cut"
            await registration.withdraw()
            assert not it.registry.runners


async def test_leaving_byoc_is_tried_once(log: Log) -> None:
    async with (
        serve_registry(secret="secret") as byoc,
        registering(settings_for(byoc.url, interfaces="byoc")) as (registration, _),
    ):
        await log.until("registered capability")
        byoc.next_answers["/capability/unregister"] = [500, 500]
        await registration.drain()
        await registration.withdraw()
        assert len(byoc.to("/capability/unregister")) == 1
    assert sum("may still be registered" in text for text in log.at(logging.WARNING)) == 1


async def test_a_capability_is_registered_at_once_where_a_channel_is_lost() -> None:
    async with (
        serve_registry(secret="secret") as byoc,
        registering(settings_for(byoc.url, interfaces="byoc")) as (registration, _),
    ):
        await byoc.until(lambda: bool(byoc.capabilities))
        byoc.restart()
        registration.tell_now()
        await byoc.until(lambda: bool(byoc.capabilities))


# Sessions


async def test_case_r23_a_release_is_told_on_the_channel() -> None:
    ends = Ends()
    async with quick() as it, registering(settings_for(it.url), ends) as (_, sessions):
        runner = await it.registered()
        held = it.reserve(runner.runner_id)
        session = it.reserve(runner.runner_id)
        await it.records.until(lambda: sessions.knows(session.session_id))
        it.release(session)
        await ends.one.wait()
        assert ends.ended == [session.session_id]
        assert sessions.knows(held.session_id)


@each_dialect
async def test_case_r24_a_session_that_is_missing_twice_is_over(node: bool) -> None:
    """Without the channel."""
    ends = Ends()
    async with quick(node) as it, registering(settings_for(it.url), ends) as (_, sessions):
        runner = await it.registered()
        it.trickle.delete(runner.o2r)
        session, held = it.reserve(runner.runner_id), it.reserve(runner.runner_id)
        await it.records.until(
            lambda: sessions.knows(session.session_id) and sessions.knows(held.session_id)
        )
        it.release(session)
        await ends.one.wait()
        num = len(it.records.beats)
        await until_beats(it, num + 3)
        assert ends.ended == [session.session_id]


async def test_case_r25_the_channel_may_hold_anything(log: Log) -> None:
    ends = Ends()
    async with quick() as it, registering(settings_for(it.url), ends) as (_, sessions):
        runner = await it.registered()
        for message in (b"nonsense", b'{"event":"paused"}', b"\xff", b'{"keep":"alive"}'):
            it.tell(runner, message)
        session = it.reserve(runner.runner_id)
        await it.records.until(lambda: sessions.knows(session.session_id))
        it.release(session)
        await ends.one.wait()
    assert sum("a message is" in text for text in log.at(logging.WARNING)) == 1


async def test_a_channel_at_a_host_that_cannot_be_looked_up_harms_nothing() -> None:
    """An empty variable in a name leaves such a host."""
    async with (
        quick(runner_service_url="http://orchestrator..svc:8935") as it,
        registering(settings_for(it.url)),
    ):
        await it.registered()
        await until_beats(it, 4)
    assert {beat.status for beat in it.records.beats} == {200}


async def test_case_r25_a_burst_of_events_is_made_good_by_the_list() -> None:
    ends = Ends()
    async with quick() as it, registering(settings_for(it.url), ends) as (_, sessions):
        runner = await it.registered()
        session = it.reserve(runner.runner_id)
        await it.records.until(lambda: sessions.knows(session.session_id))
        it.release(session)
        for _ in range(20):
            it.tell(runner, json.dumps({"keep": "alive"}).encode())
        await ends.one.wait()
        assert ends.ended == [session.session_id]


async def test_case_r25_a_channel_that_is_gone_makes_us_beat_and_a_new_one_is_read() -> None:
    ends = Ends()
    async with (
        quick(heartbeat_interval="1m", heartbeat_ttl="10m") as it,
        registering(settings_for(it.url), ends) as (_, sessions),
    ):
        first = await it.registered()
        await it.records.until(lambda: any("trickle" in r.path for r in it.records.requests))
        it.restart()  # the channel ends, long before the next beat
        await it.records.until(lambda: first.runner_id not in it.registry.runners)
        second = await it.registered()
        session = it.reserve(second.runner_id)
        await it.records.until(lambda: sessions.knows(session.session_id))
        read = [r.path for r in it.records.requests if second.o2r in r.path]
    assert read
    assert first.o2r not in "".join(read)


async def test_case_r25_a_channel_that_is_not_there_puts_the_registration_in_doubt() -> None:
    """404, not the end of an answer: the reader came too late."""
    told = asyncio.Event()
    async with quick() as it:
        settings = settings_for(it.url)
        runner = RunnerEntry(settings, it.url, Identity("tiny.en", "1"), offers(settings)[0])
        url = f"{it.url}/ai/trickle/nobody-o2r"
        await follow(url, runner, RunnerSessions(settings), True, told.set)
        assert told.is_set()
        assert len([r for r in it.records.requests if "nobody" in r.path]) <= 2
