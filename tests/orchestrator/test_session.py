"""The worker as a client of an orchestrator's channels (docs/wire.md).

Faults are played by `ScriptedChannels`; whole streams go through the scripted orchestrator.
"""

import asyncio
import itertools
import json
import random
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak, pcm, serve_app
from tests.orchestrator.scripted_channel import (
    Exchange,
    Play,
    ScriptedChannels,
    answer,
    breaks_off,
    open_channels,
    redirect,
    segment,
    self_signed_context,
    takes,
    takes_and_breaks_off,
    text,
    waits,
)
from tests.scripted import ScriptedModel, scripted_engine, spoken
from whisper_byoc.errors import DecodeError
from whisper_byoc.orchestrator.messages import StartRequest
from whisper_byoc.orchestrator.session import Session
from whisper_byoc.orchestrator.sessions import Sessions
from whisper_byoc.service import Service
from whisper_byoc.settings import (
    JobSettings,
    ModelSettings,
    OrchestratorSettings,
    Settings,
    WorkerSettings,
)
from whisper_byoc.transcript import MAX_LINE_BYTES, EndReason
from whisper_byoc.trickle.client import ClientOptions, Publisher, Subscriber, open_session
from whisper_byoc.trickle.local import LocalReader
from whisper_byoc.trickle.protocol import ChannelEnded, TrickleError
from whisper_sim.orchestrator import (
    Capability,
    Orchestrator,
    Stream,
    Times,
    Watchdog,
    open_orchestrator,
    open_stream,
)

pytestmark = pytest.mark.anyio
TIMEOUT = 30
QUICK = 0.1
"""s between heartbeats, so that whoever waits for a status gets one soon."""
RAW = {"content_type": "audio/pcm"}
SENTENCE = "The train to the harbour leaves at nine."


@pytest.fixture(autouse=True)
async def limit() -> AsyncIterator[None]:
    async with asyncio.timeout(TIMEOUT):
        yield


@pytest.fixture
async def channels() -> AsyncIterator[ScriptedChannels]:
    async with open_channels() as opened:
        yield opened


@pytest.fixture(scope="session")
def sentence(speak: Speak) -> NDArray[np.float32]:
    return speak(SENTENCE)


@pytest.fixture(scope="session")
def speech(sentence: NDArray[np.float32]) -> bytes:
    """One utterance and the pause behind it."""
    return pcm(np.concatenate([sentence, np.zeros(24_000, dtype=np.float32)]))


@asynccontextmanager
async def subscriber(
    channels: ScriptedChannels, channel: str = "c", **options: Any
) -> AsyncIterator[Subscriber]:
    settings = ClientOptions(**options)
    async with (
        open_session(settings) as http,
        Subscriber(channels.url(channel), http, settings) as opened,
    ):
        yield opened


@asynccontextmanager
async def publisher(channels: ScriptedChannels, **options: Any) -> AsyncIterator[Publisher]:
    settings = ClientOptions(**options)
    async with open_session(settings) as http:
        yield Publisher(channels.url(), http, "application/json", settings)


async def read(subscriber: Subscriber) -> tuple[int, bytes]:
    found = await anext(subscriber)
    return found.seq, b"".join([chunk async for chunk in found.chunks()])


@dataclass(frozen=True)
class Worker:
    """The real service with scripted words."""

    url: str
    service: Service
    model: ScriptedModel

    @property
    def capability(self) -> Capability:
        return Capability("whisper", self.url)

    @property
    def session(self) -> Session:
        [running] = self.service.sessions.running
        return running

    async def start(self, stream_id: str = "stream", **fields: Any) -> Session:
        body = {"gateway_request_id": stream_id, "params": RAW, **fields}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.url}/stream/start", json=body) as response,
        ):
            assert response.status == 200, await response.text()
        return self.session

    async def get(self, path: str) -> str:
        async with aiohttp.ClientSession() as http, http.get(self.url + path) as response:
            assert response.status == 200
            return await response.text()


@asynccontextmanager
async def open_worker(
    model: ScriptedModel | None = None,
    jobs: dict[str, Any] | None = None,
    verify_tls: bool = False,
    **worker: Any,
) -> AsyncIterator[Worker]:
    settings = Settings(
        model=ModelSettings(directory=MODELS),
        jobs=JobSettings(**(jobs or {})),
        orchestrator=OrchestratorSettings(verify_tls=verify_tls, allowed_hosts=("127.0.0.1",)),
        worker=WorkerSettings(**{"heartbeat_seconds": QUICK, **worker}),
    )
    model = model or ScriptedModel()
    async with serve_app(scripted_engine(model), settings) as (url, service):
        try:
            yield Worker(url, service, model)
        finally:
            model.gate.set()


async def ended_by_itself(session: Session) -> None:
    """Waits for the stream to end without having been told to, and for all it still publishes."""
    await session.stopping.wait()
    await session.stop(EndReason.STOPPED)


def events_in(bodies: list[bytes], kind: str) -> list[dict[str, Any]]:
    found = [json.loads(body)["event"] for body in bodies]
    return [event for event in found if event["type"] == kind]


def told(stream: Stream, kind: str) -> list[dict[str, Any]]:
    return [it["event"] for it in stream.events if it["event"]["type"] == kind]


def finals(lines: list[bytes]) -> str:
    events = [json.loads(line) for line in lines]
    return " ".join(event["text"] for event in events if event["type"] == "final")


# Reading


async def test_case_037_reading_begins_with_what_is_there() -> None:
    async with open_orchestrator() as orchestrator, open_session(ClientOptions()) as http:
        channel = orchestrator.trickle.create("c", "video/MP2T")
        for seq in range(5):
            publish(channel, seq, b"%d" % seq)
        async with Subscriber(orchestrator.channel_url("c"), http) as subscriber:
            assert await read(subscriber) == (4, b"4")
            publish(channel, 5, b"5")
            assert await read(subscriber) == (5, b"5")
            assert subscriber.num_skipped == 0


def publish(channel: Any, seq: int, data: bytes) -> None:
    begun = channel.begin(seq)
    channel.receive_first_byte(begun)
    channel.write(begun, data)
    channel.end(begun)


async def test_case_038_a_jump_is_counted(channels: ScriptedChannels) -> None:
    channels.script("GET c/-2", segment(2, b"two"))
    channels.script("GET c/3", answer(470, b"Entry not found", latest="9", seq="3"))
    channels.script("GET c/9", segment(9, b"nine"))
    async with subscriber(channels) as it:
        assert [await read(it), await read(it)] == [(2, b"two"), (9, b"nine")]
        assert it.num_skipped == 6
        await channels.until(lambda: channels.asked("GET") == ["-2", "3", "9", "10"])


async def test_case_038_a_jump_shows_in_status_and_metrics(channels: ScriptedChannels) -> None:
    channels.script("GET in/-2", segment(2, b"\0" * 640))
    channels.script("GET in/3", answer(470, latest="9", seq="3"))
    channels.script("GET in/9", segment(9, b"\0" * 640))
    async with open_worker() as worker:
        await worker.start(subscribe_url=channels.url("in"), events_url=channels.url("events"))

        def skipped() -> bool:
            inputs = [it["input_status"] for it in events_in(channels.posted("events"), "status")]
            return any(it["segments_skipped"] == 6 for it in inputs)

        await channels.until(skipped)
        assert "whisper_segments_skipped_total 6.0" in await worker.get("/metrics")
        assert json.loads(await worker.get("/stream/status"))["streams"][0]["input_status"][
            "segments_skipped"
        ] == 6  # fmt: skip


async def test_case_039_who_is_early_waits_and_does_not_go_back(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET c/-2", segment(3, b"three"))
    channels.script("GET c/4", answer(470, latest="3", seq="4"), segment(4, b"four"))
    async with subscriber(channels) as it:
        assert [await read(it), await read(it)] == [(3, b"three"), (4, b"four")]
        assert it.num_skipped == 0
        assert channels.asked("GET")[:3] == ["-2", "4", "4"]
        first, second = channels.exchanges[1:3]
        assert second.began - first.began > 0.2


async def test_case_040_a_channel_that_is_not_there_ends_the_stream_at_once(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET in/-2", answer(404, b"Stream not found"))
    async with open_worker() as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), events_url=channels.url("events")
        )
        await ended_by_itself(session)
        assert channels.asked("GET", "in") == ["-2"]
        assert events_in(channels.posted("events"), "error") == []
        assert events_in(channels.posted("events"), "stream_stopped")


async def test_case_041_the_end_of_the_input_flushes_the_last_words(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    channels.script("GET in/1", answer(200, seq="1", latest="1", closed="terminated"))
    async with open_worker() as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), data_url=channels.url("data")
        )
        await ended_by_itself(session)
        lines = channels.posted("data")
        assert finals(lines).startswith("w0 w1")
        assert json.loads(lines[-1])["type"] == "end"
        assert json.loads(lines[-1])["reason"] == "eof"
        assert channels.asked("GET", "in") == ["-2", "1"]


async def test_case_042_an_empty_segment_is_left_out(channels: ScriptedChannels) -> None:
    channels.script("GET c/-2", segment(4, b"four"))
    channels.script("GET c/5", answer(200, seq="5", latest="6"))
    channels.script("GET c/6", segment(6, b"six"))
    async with subscriber(channels) as it:
        assert [await read(it), await read(it)] == [(4, b"four"), (6, b"six")]
        assert it.num_skipped == 0


async def test_case_043_a_silent_get_is_asked_anew_and_is_no_failure(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET c/-2", waits, waits, waits, waits, segment(0, b"at last"))
    # Many times longer than failures may last.
    async with subscriber(channels, reissue_seconds=0.1, retry_seconds=0.01) as it:
        assert await read(it) == (0, b"at last")
        assert channels.asked("GET")[:5] == ["-2"] * 5
        await channels.until(lambda: channels.num_open == 1)  # those given up are closed


async def test_case_043_a_quiet_stream_lives_on(channels: ScriptedChannels) -> None:
    async with open_worker(jobs={"idle_seconds": 0.3}, heartbeat_seconds=0.1) as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), events_url=channels.url("events")
        )
        heartbeats = 12  # a second and more, so several times the idle limit
        await channels.until(
            lambda: len(events_in(channels.posted("events"), "heartbeat")) >= heartbeats
        )
        assert not session.stopping.is_set()
        assert session.job.state == "receiving"
        assert events_in(channels.posted("events"), "error") == []
        assert all(
            event["inference_status"]["last_error"] is None
            for event in events_in(channels.posted("events"), "status")
        )


async def test_a_stream_that_nobody_holds_any_more_ends(channels: ScriptedChannels) -> None:
    async with open_worker(silence_seconds=0.3) as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), events_url=channels.url("events")
        )
        await ended_by_itself(session)
        [stopped] = events_in(channels.posted("events"), "stream_stopped")
        assert stopped["reason"] == "idle"


async def test_a_request_that_waits_is_no_sign_of_life(channels: ScriptedChannels) -> None:
    """Channels are there for five minutes when the gateway that made them has crashed."""
    for name in ("in", "control"):
        channels.script(f"GET {name}/-2", answer(470, latest="0", seq="1"))
        channels.script(f"GET {name}/0", answer(470, latest="0", seq="0"))
    async with open_worker(silence_seconds=1.0) as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"),
            control_url=channels.url("control"),
            events_url=channels.url("events"),
        )
        await ended_by_itself(session)
        assert len(channels.asked("GET", "control")) > 1
        [stopped] = events_in(channels.posted("events"), "stream_stopped")
        assert stopped["reason"] == "idle"


async def test_a_keepalive_is_a_sign_of_life(channels: ScriptedChannels) -> None:
    """The time without one is counted from the last."""
    loop = asyncio.get_running_loop()
    sent: list[float] = []

    async def keeps_alive(exchange: Exchange) -> None:
        await asyncio.sleep(0.5)  # so that it makes a difference; the limit is far
        sent.append(loop.time())
        await segment(0, b'{"keep":"alive"}')(exchange)

    channels.script("GET control/-2", keeps_alive)
    async with open_worker(silence_seconds=3.0) as worker:
        session = await worker.start(control_url=channels.url("control"))
        await session.stopping.wait()
        assert loop.time() - sent[0] >= 2.99
        await ended_by_itself(session)
        assert session.job.log.end_reason is EndReason.IDLE


async def test_three_of_a_gateways_keepalives_may_be_lost() -> None:
    assert 3 * Times().control < WorkerSettings().silence_seconds <= 60


async def test_case_044_what_came_before_a_connection_broke_is_used(
    channels: ScriptedChannels,
) -> None:
    read_some = asyncio.Event()
    channels.script("GET c/-2", breaks_off(4, b"begun", after=read_some))
    channels.script("GET c/5", segment(5, b"five"))
    async with subscriber(channels) as it:
        found = await anext(it)
        chunks = []
        async for chunk in found.chunks():
            chunks.append(chunk)
            read_some.set()
        assert (found.seq, b"".join(chunks), found.broken) == (4, b"begun", True)
        assert await read(it) == (5, b"five")
        assert channels.asked("GET").count("4") <= 1
        assert channels.asked("GET").count("5") == 1


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_case_045_errors_are_asked_again_ever_later(
    channels: ScriptedChannels, status: int
) -> None:
    channels.script("GET c/-2", answer(status), answer(status, b"what"), segment(0, b"zero"))
    async with subscriber(channels) as it:
        assert await read(it) == (0, b"zero")
        first, second, third = channels.exchanges[:3]
        assert second.began - first.began > 0.2
        assert third.began - second.began > 0.4


async def test_errors_that_do_not_end_are_given_up(channels: ScriptedChannels) -> None:
    channels.script("GET c/-2", answer(500))
    async with subscriber(channels, retry_seconds=0.5) as it:
        with pytest.raises(TrickleError, match="status 500"):
            await anext(it)
        num_asked = len(channels.exchanges)
        with pytest.raises(TrickleError):
            await anext(it)
        assert len(channels.exchanges) == num_asked <= 4


@pytest.mark.parametrize("status", [200, 470])
async def test_an_answer_without_a_number_is_not_asked_for_without_a_pause(
    channels: ScriptedChannels, status: int
) -> None:
    channels.script("GET c/-2", answer(status))
    channels.script("GET c/-1", answer(status))
    async with subscriber(channels) as it:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.6):
                await anext(it)
    assert 2 <= len(channels.exchanges) <= 4


async def test_failures_count_only_in_a_row(channels: ScriptedChannels) -> None:
    """A wait between them is as good as an answer."""
    channels.script("GET c/-2", answer(500), waits, answer(500), segment(0, b"zero"))
    async with subscriber(channels, retry_seconds=0.4, reissue_seconds=0.5) as it:
        assert await read(it) == (0, b"zero")


async def test_a_redirect_is_not_followed(channels: ScriptedChannels) -> None:
    """It could lead to a host that is not allowed."""
    channels.script("GET c/-2", redirect("/other/0"))
    async with subscriber(channels, retry_seconds=0.3) as it:
        with pytest.raises(TrickleError, match="status 307"):
            await anext(it)
    assert {exchange.channel for exchange in channels.exchanges} == {"c"}


async def test_a_page_that_is_no_channel_is_not_read_as_fast_as_it_comes(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET c/-2", answer(200, b"<html>"))
    channels.script("GET c/-1", answer(200, b"<html>"))
    async with subscriber(channels) as it:
        for _ in range(3):
            await read(it)
    times = [exchange.began for exchange in channels.exchanges[:3]]
    assert all(later - before > 0.2 for before, later in itertools.pairwise(times))


async def test_what_is_no_http_is_told_without_the_url(channels: ScriptedChannels) -> None:
    """Of some channels it is the secret."""
    channels.script("GET c/-2", nonsense)
    async with subscriber(channels, retry_seconds=0) as it:
        with pytest.raises(TrickleError) as caught:
            await anext(it)
    assert "Bad status line" in caught.value.problem
    assert channels.url() not in caught.value.problem


async def nonsense(exchange: Exchange) -> None:
    await exchange.send(b"nonsense\r\n\r\n")


async def test_a_channel_that_cannot_be_reached_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ClientOptions(retry_seconds=0.4)
    async with open_session(options) as http:
        url = f"http://127.0.0.1:{port}/c"
        async with Subscriber(url, http, options) as it:
            with pytest.raises(TrickleError, match=r"failures in [0-9.]+ s, last Cannot"):
                await anext(it)
        with pytest.raises(TrickleError, match=r"failures in [0-9.]+ s"):
            await Publisher(url, http, "text/plain", options).publish(b"x")


async def test_an_input_that_fails_for_long_ends_the_stream_and_says_so(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET in/-2", answer(502))
    async with open_worker(retry_seconds=0.4) as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), events_url=channels.url("events")
        )
        await ended_by_itself(session)
        [stopped] = events_in(channels.posted("events"), "stream_stopped")
        assert stopped["reason"] == "disconnected"
        last = events_in(channels.posted("events"), "status")[-1]
        assert "status 502" in last["inference_status"]["last_error"]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="missing"),
        pytest.param({"seq": "five"}, id="letters"),
        pytest.param({"seq": "-7"}, id="negative"),
        pytest.param({"seq": "9" * 40}, id="too large"),
        pytest.param({"seq": "", "latest": "ÿ"}, id="empty"),
    ],
)
async def test_case_046_without_a_number_it_counts_on(
    channels: ScriptedChannels, headers: dict[str, str]
) -> None:
    channels.script("GET c/-2", segment(4, b"four"))
    channels.script("GET c/5", answer(200, b"five", **headers))
    channels.script("GET c/6", answer(200, b"six", **headers))
    async with subscriber(channels) as it:
        bodies = [(await read(it))[1] for _ in range(3)]
        assert bodies == [b"four", b"five", b"six"]
        assert it.num_skipped == 0


async def test_case_046_a_channel_without_any_number_repeats_nothing(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET c/-2", answer(200, b"newest"))
    channels.script("GET c/-1", answer(200, b"next"), waits)
    async with subscriber(channels) as it:
        bodies = [(await read(it))[1] for _ in range(2)]
        assert bodies == [b"newest", b"next"]


async def test_case_047_slow_words_do_not_slow_the_reader(speech: bytes) -> None:
    async with (
        open_orchestrator(Times(reader_delay=0)) as orchestrator,
        open_worker(max_waiting_bytes=2 * len(speech) + 100) as worker,
    ):
        worker.model.gate.clear()
        async with open_stream(orchestrator, worker.capability, params=RAW) as stream:
            num_published = 14
            for count in range(1, num_published + 1):
                await stream.publish(speech)

                def fetched(count: int = count) -> bool:
                    inputs = stream.status.get("input_status", {})
                    return bool(inputs.get("segments_received") == count)

                await stream.until(fetched)
            inputs = stream.status["input_status"]
            assert inputs["segments_skipped"] == 0
            worker.model.gate.set()
            await stream.until(lambda: stream.status["input_status"]["segments_dropped"] > 0)
            dropped = stream.status["input_status"]["segments_dropped"]
            assert 0 < dropped < num_published - 2
            assert stream.status["segments_relayed"] == 0
        assert stream.stopped_with is not None
        assert stream.stopped_with[0] == 200
        assert f"whisper_segments_dropped_total {dropped}.0" in await worker.get("/metrics")
        assert stream.watchdog is None
        assert len(stream.text.split()) >= 2 * (num_published - dropped)


async def test_case_047_words_that_come_late_show_in_the_state(sentence: NDArray[Any]) -> None:
    async with (
        open_orchestrator(Times(reader_delay=0)) as orchestrator,
        open_worker() as worker,
    ):
        worker.model.gate.clear()
        async with open_stream(orchestrator, worker.capability, params=RAW) as stream:
            await stream.publish(pcm(np.tile(sentence, 1 + 40 * 16_000 // len(sentence))))
            await stream.until(lambda: stream.status.get("state") == "DEGRADED_INFERENCE")
            worker.model.gate.set()
            await stream.publish(bytes(64_000))  # the pause that makes them final
            await stream.until(lambda: stream.status.get("state") == "ONLINE")


# Writing


async def test_case_048_a_publisher_asks_where_to_begin_and_says_it_is_new(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET c/next", text(200, b"7\n"))
    async with publisher(channels) as it:
        await it.publish(b"first")
        await it.publish(b"second")
        assert it.num_published == 2
    asked, first, second = channels.exchanges
    assert (asked.method, asked.path) == ("GET", "/c/next")
    assert [first.path, second.path] == ["/c/7", "/c/8"]
    assert [first.body, second.body] == [b"first", b"second"]
    assert first.headers["lp-trickle-reset"] == "1"
    assert "lp-trickle-reset" not in second.headers
    assert first.headers["content-length"] == "5"
    assert first.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "next_answer",
    [
        pytest.param(text(400, b"Invalid idx\n"), id="takes next for a number"),
        pytest.param(text(404, b"404 page not found\n"), id="has no such route"),
        pytest.param(text(405, b""), id="does not allow it"),
        pytest.param(text(200, b"\xff\xfe\x00"), id="answers what is no text"),
        pytest.param(text(200, b"<html>hello</html>"), id="answers something else"),
        pytest.param(text(500, b"oh"), id="fails"),
        pytest.param(breaks_off(0), id="breaks off"),
    ],
)
async def test_case_049_an_older_server_chooses_where_to_begin(
    channels: ScriptedChannels, next_answer: Play
) -> None:
    channels.script("GET c/next", next_answer)
    channels.script("POST c/-1", answer(200, seq="12"))
    async with publisher(channels) as it:
        await it.publish(b"first")
        await it.publish(b"second")
    assert channels.asked("POST") == ["-1", "13"]
    assert channels.posted("c") == [b"first", b"second"]


async def test_case_049_with_real_channels_too() -> None:
    async with open_orchestrator() as orchestrator, open_session(ClientOptions()) as http:
        channel = orchestrator.trickle.create("c", "application/json")
        for seq in range(3):
            publish(channel, seq, b"%d" % seq)
        await Publisher(orchestrator.channel_url("c"), http, "application/json").publish(b"three")
        found = channel.find(3)
        assert found is not None
        assert found.read() == b"three"


class Refusals:
    """Of connections, as the client meets them; the server listens again after the first."""

    def __init__(self, channels: ScriptedChannels) -> None:
        self.count = 0
        self._channels = channels

    async def note(self, session: Any, context: Any, parameters: Any) -> None:
        self.count += 1
        if self.count == 1:
            await self._channels.listen()


async def test_case_050_what_was_not_sent_is_sent_again_to_the_same(
    channels: ScriptedChannels,
) -> None:
    async def says_seven_and_goes(exchange: Exchange) -> None:
        channels.refuse()
        await exchange.head(200, {"Content-Length": "1", "Connection": "close"})
        await exchange.send(b"7")

    channels.script("GET c/next", says_seven_and_goes)
    refusals = Refusals(channels)
    trace = aiohttp.TraceConfig()
    trace.on_request_exception.append(refusals.note)
    async with aiohttp.ClientSession(trace_configs=[trace]) as http:
        it = Publisher(channels.url(), http, "application/json")
        await it.publish(b"message")
    assert refusals.count == 1
    assert channels.asked("POST") == ["7"]
    assert channels.posted("c") == [b"message"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(takes_and_breaks_off, id="the connection breaks"),
        pytest.param(answer(500), id="the server fails"),
        pytest.param(answer(503, b"busy"), id="the server is busy"),
    ],
)
async def test_case_050_what_may_have_been_taken_goes_to_the_next(
    channels: ScriptedChannels, fault: Play
) -> None:
    channels.script("GET c/next", text(200, b"7"))
    channels.script("POST c/8", fault)
    async with publisher(channels) as it:
        for message in (b"first", b"second", b"third"):
            await it.publish(message)
    assert channels.asked("POST") == ["7", "8", "9", "10"]
    assert channels.posted("c") == [b"first", b"second", b"second", b"third"]
    posts = [it for it in channels.exchanges if it.method == "POST"]
    # Who waits for the rest of 8 is set free.
    assert ["lp-trickle-reset" in it.headers for it in posts] == [True, False, True, False]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(answer(404, b"Stream not found"), id="gone"),
        pytest.param(answer(200, seq="1", closed="terminated"), id="closed"),
    ],
)
async def test_case_051_a_publisher_stops_for_good_at_the_end(
    channels: ScriptedChannels, end: Play
) -> None:
    channels.script("POST c/1", end)
    async with publisher(channels) as it:
        await it.publish(b"zero")
        for _ in range(3):
            with pytest.raises(ChannelEnded):
                await it.publish(b"one")
        assert it.num_published == 1
    assert channels.asked("POST") == ["0", "1"]


@pytest.mark.parametrize("channel", ["events", "data"])
async def test_case_051_a_channel_of_output_that_ends_ends_the_stream(
    channels: ScriptedChannels, channel: str, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    channels.script(f"POST {channel}/0", answer(404, b"Stream not found"))
    async with open_worker() as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"),
            events_url=channels.url("events"),
            data_url=channels.url("data"),
        )
        await ended_by_itself(session)
        assert len(channels.posted(channel)) == 1


async def test_case_052_interim_answers_are_taken(channels: ScriptedChannels) -> None:
    async def continues(exchange: Exchange) -> None:
        for _ in range(3):
            await exchange.interim()
        await takes(exchange)

    async def continues_and_answers(exchange: Exchange) -> None:
        for _ in range(3):
            await exchange.interim()
        await segment(0, b"zero")(exchange)

    channels.script("POST c/0", continues)
    channels.script("GET in/-2", continues_and_answers)
    async with publisher(channels) as it:
        await it.publish(b"message")
        await it.publish(b"another")
    assert channels.posted("c") == [b"message", b"another"]
    async with subscriber(channels, "in") as reading:
        assert await read(reading) == (0, b"zero")


@pytest.fixture
async def tls_channels(tmp_path: Path) -> AsyncIterator[ScriptedChannels]:
    async with open_channels(self_signed_context(tmp_path)) as opened:
        yield opened


async def test_case_053_a_self_signed_certificate_is_taken_by_setting(
    tls_channels: ScriptedChannels,
) -> None:
    tls_channels.script("GET c/-2", segment(0, b"zero"))
    async with publisher(tls_channels, tls=False) as it:
        await it.publish(b"message")
    async with subscriber(tls_channels, tls=False) as reading:
        assert await read(reading) == (0, b"zero")
    assert tls_channels.posted("c") == [b"message"]


async def test_case_053_a_self_signed_certificate_is_refused(
    tls_channels: ScriptedChannels,
) -> None:
    async with publisher(tls_channels, tls=True, retry_seconds=0.1) as it:
        with pytest.raises(TrickleError, match="certificate"):
            await it.publish(b"message")
    async with subscriber(tls_channels, tls=True, retry_seconds=0.1) as reading:
        with pytest.raises(TrickleError, match="certificate"):
            await anext(reading)
    assert tls_channels.exchanges == []


@pytest.mark.parametrize("verify_tls", [False, True], ids=["taken by setting", "refused"])
async def test_case_053_a_whole_stream_over_a_self_signed_certificate_is(
    tls_channels: ScriptedChannels, verify_tls: bool
) -> None:
    tls_channels.script("GET in/-2", answer(200, closed="terminated"))
    async with open_worker(verify_tls=verify_tls, retry_seconds=0.3) as worker:
        session = await worker.start(
            subscribe_url=tls_channels.url("in"), events_url=tls_channels.url("events")
        )
        await ended_by_itself(session)
    assert bool(tls_channels.posted("events")) != verify_tls


# What a stream tells


STATUS_FIELDS = {
    "type", "pipeline", "start_time", "state", "last_state_update_time",
    "input_status", "inference_status",
}  # fmt: skip
INFERENCE_FIELDS = {
    "last_output_time", "fps", "last_params_update_time", "last_params", "last_params_hash",
    "last_error_time", "last_error", "last_restart_time", "last_restart_logs", "restart_count",
}  # fmt: skip


async def test_case_054_every_event_is_one_json_object(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    channels.script("GET in/1", answer(404))
    async with open_worker() as worker:
        fields = {name: channels.url(name) for name in ("events", "data")}
        session = await worker.start(
            subscribe_url=channels.url("in"),
            events_url=fields["events"],
            data_url=fields["data"],
            params={**RAW, "language": "en", "width": 512},
        )
        await ended_by_itself(session)
    posted = channels.posted("events")
    for body in posted:
        message = json.loads(body)
        assert isinstance(message["event"]["type"], str)
        assert isinstance(message["queue_event_type"], str)
    kinds = {json.loads(body)["event"]["type"] for body in posted}
    assert kinds >= {
        "heartbeat",
        "status",
        "runner_receive_stream_request",
        "runner_receive_first_ingest_segment",
        "runner_send_first_processed_segment",
        "stream_stopped",
    }


async def test_case_055_events_begin_at_once_and_go_on_while_inference_hangs(
    speech: bytes,
) -> None:
    assert WorkerSettings().heartbeat_seconds <= 10
    async with (
        open_orchestrator(Times(reader_delay=0, events=10)) as orchestrator,
        open_worker() as worker,
    ):
        worker.model.gate.clear()
        async with open_stream(orchestrator, worker.capability, params=RAW) as stream:
            await stream.until(lambda: bool(stream.events), 10)
            await stream.publish(speech)
            await asyncio.to_thread(worker.model.asked.wait, TIMEOUT)
            num_events = len(stream.events)
            await stream.until(lambda: len(stream.events) > num_events + 10)
            assert worker.model.requests == []
            worker.model.gate.set()
        assert stream.watchdog is None
        gaps = np.diff(stream.event_times)
        assert gaps.max() < 10


async def test_case_056_status_has_the_fields_that_dashboards_know(
    channels: ScriptedChannels,
) -> None:
    async with open_worker() as worker:
        await worker.start(
            subscribe_url=channels.url("in"),
            events_url=channels.url("events"),
            params={**RAW, "language": "en"},
        )
        await channels.until(lambda: len(events_in(channels.posted("events"), "status")) >= 3)
    first_events = [json.loads(body)["event"]["type"] for body in channels.posted("events")[:3]]
    assert "status" in first_events
    for status in events_in(channels.posted("events"), "status"):
        assert status.keys() >= STATUS_FIELDS
        assert status["input_status"].keys() >= {"last_input_time", "fps", "segments_skipped"}
        assert status["inference_status"].keys() >= INFERENCE_FIELDS
        assert status["state"] == "OFFLINE"
        assert status["start_time"] > 1_700_000_000_000
        assert status["inference_status"]["last_params"]["language"] == "en"
        assert status.keys() >= {"audio_seconds", "lag_seconds", "rtf"}


def is_one_line(body: bytes) -> bool:
    return body.endswith(b"\n") and body.count(b"\n") == 1 and len(body) < MAX_LINE_BYTES


def unlike_words(count: int, length: int) -> list[str]:
    """That no filter takes for a loop."""
    letters = random.Random(7)
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(letters.choices(alphabet, k=length)) for _ in range(count)]


@pytest.mark.parametrize(
    ("num_words", "length"),
    [
        pytest.param(200, 10, id="as long as speech gets"),
        pytest.param(700, 60, id="too long with the times of its words"),
        pytest.param(200, 400, id="too long without them, too"),
    ],
)
async def test_case_057_every_line_is_short_enough_for_a_gateway(
    channels: ScriptedChannels, speech: bytes, num_words: int, length: int
) -> None:
    words = unlike_words(num_words, length)
    model = ScriptedModel(lambda _: spoken(*words, seconds=2.0))
    channels.script("GET in/-2", segment(0, speech))
    channels.script("GET in/1", answer(404))
    async with open_worker(model) as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), data_url=channels.url("data")
        )
        await ended_by_itself(session)
    lines = channels.posted("data")
    assert all(is_one_line(line) for line in lines)
    assert " ".join(words).startswith(finals(lines))
    assert len(finals(lines)) >= min(num_words * length, 7000)


async def test_case_058_lines_are_kept_apart(channels: ScriptedChannels, speech: bytes) -> None:
    channels.script("GET in/-2", segment(0, speech * 6))
    channels.script("GET in/1", answer(404))
    async with open_worker() as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), data_url=channels.url("data")
        )
        await ended_by_itself(session)
    times = [it.began for it in channels.exchanges if (it.method, it.channel) == ("POST", "data")]
    assert len(times) > 10
    assert all(later - first > 0.1 for first, later in zip(times, times[5:], strict=False))


async def test_case_059_silence_is_filled_with_keepalives(channels: ScriptedChannels) -> None:
    assert WorkerSettings().data_keepalive_seconds <= 60
    async with open_worker(data_keepalive_seconds=0.1) as worker:
        await worker.start(subscribe_url=channels.url("in"), data_url=channels.url("data"))
        await channels.until(lambda: len(channels.posted("data")) >= 3)
        lines = channels.posted("data")
        assert {json.loads(line)["type"] for line in lines} == {"keepalive"}
        assert all(is_one_line(line) for line in lines)


async def test_case_060_the_input_is_relayed_as_it_is() -> None:
    noise = random.Random(3)
    segments = [noise.randbytes(noise.randrange(1, 40_000)) for _ in range(12)]
    async with (
        open_orchestrator(Times(reader_delay=0)) as orchestrator,
        open_worker() as worker,
        open_stream(orchestrator, worker.capability, egress=True, params=RAW) as stream,
    ):
        output = orchestrator.trickle.channels[stream.channels["publish_url"]]
        reader = LocalReader(output)
        for seq, data in enumerate(segments):
            await stream.publish(data)
            async with asyncio.timeout(10):
                relayed = b"".join([chunk async for chunk in await anext(reader)])
            assert relayed == data
            assert reader.position == seq + 1
        assert reader.num_skipped == 0
        assert output.mime == "video/MP2T"
        await stream.until(lambda: stream.status.get("segments_relayed") == len(segments))


async def test_case_060_a_relay_that_ends_leaves_the_words(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("POST out/0", answer(404))
    channels.script("GET in/-2", segment(0, speech))
    async with open_worker() as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"),
            publish_url=channels.url("out"),
            data_url=channels.url("data"),
        )
        await channels.until(lambda: finals(channels.posted("data")) != "")
        assert not session.stopping.is_set()
        assert channels.asked("POST", "out") == ["0"]


async def test_case_061_what_was_not_asked_for_is_not_published(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    async with open_worker() as worker:
        await worker.start(
            subscribe_url=channels.url("in"), events_url=channels.url("events"), data_url=""
        )

        def has_words() -> bool:
            statuses = events_in(channels.posted("events"), "status")
            return bool(statuses) and statuses[-1]["words"] > 0

        await channels.until(has_words)
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{worker.url}/live/stream/output") as output,
        ):
            assert (await output.content.readany()).startswith(b"w0")
    assert {it.channel for it in channels.exchanges} == {"in", "events"}


# Control


@asynccontextmanager
async def controlled(seconds: float = 600.0) -> AsyncIterator[tuple[Worker, Stream]]:
    """A stream with its first keepalive sent; seconds: between it and the next."""
    model = ScriptedModel(languages=frozenset({"en", "de"}))
    async with (
        open_orchestrator(Times(reader_delay=0, control=seconds)) as orchestrator,
        open_worker(model) as worker,
        open_stream(orchestrator, worker.capability, params=RAW) as stream,
    ):
        await stream.until(lambda: bool(stream.events))
        yield worker, stream


def has_language(worker: Worker, language: str) -> bool:
    return bool(worker.session.job.document()["options"]["language"] == language)


async def test_case_062_keepalives_are_no_updates() -> None:
    async with controlled(seconds=0.1) as (_, stream):
        await stream.until(lambda: len(told(stream, "heartbeat")) > 10)
        assert told(stream, "params_updated") == told(stream, "warning") == []


async def test_case_062_an_update_is_applied_and_told() -> None:
    async with controlled() as (worker, stream):
        await stream.control(b'{"language":"de","width":512}')
        await stream.until(lambda: bool(told(stream, "params_updated")))
        assert has_language(worker, "de")
        assert told(stream, "params_updated")[0]["params"] == {"language": "de"}
        await stream.until(
            lambda: stream.status["inference_status"]["last_params"] == {"language": "de"}
        )
        assert stream.status["inference_status"]["last_params_update_time"] is not None


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        pytest.param(b'{"language":', "JSON object", id="broken JSON"),
        pytest.param(b"\xff\xfe", "JSON object", id="no text"),
        pytest.param(b"[1]", "JSON object", id="an array"),
        pytest.param(b'{"language":"de","x":NaN}', "JSON object", id="no number"),
        pytest.param(b'{"x":"\\ud800"}', "JSON object", id="half a character"),
        pytest.param(b'{"language":5}', "language", id="a value of the wrong kind"),
        pytest.param(b'{"partial_interval":-1}', "partial_interval", id="a value out of range"),
        pytest.param(b" " * (1 << 21), "at most", id="more than two million spaces"),
        pytest.param(b"[" * 100_000, "JSON object", id="brackets without end"),
    ],
)
async def test_case_062_a_bad_update_is_told_and_the_stream_lives(
    message: bytes, problem: str
) -> None:
    async with controlled() as (worker, stream):
        await stream.control(message)
        await stream.until(lambda: bool(told(stream, "warning")))
        assert problem in told(stream, "warning")[0]["message"]
        assert has_language(worker, "en")
        await stream.control(b'{"language":"de"}')
        await stream.until(lambda: bool(told(stream, "params_updated")))
        assert has_language(worker, "de")


async def test_case_062_an_update_without_end_is_given_up(channels: ScriptedChannels) -> None:
    async def never_ends(exchange: Exchange) -> None:
        await exchange.head(200, {"Lp-Trickle-Seq": "0", "Transfer-Encoding": "chunked"})
        while exchange.open:
            await exchange.chunk(b" " * 65_536)
            await asyncio.sleep(0)

    channels.script("GET control/-2", never_ends)
    channels.script("GET control/1", segment(1, b'{"language":"en"}'), waits)
    async with open_worker() as worker:
        await worker.start(control_url=channels.url("control"), events_url=channels.url("events"))
        await channels.until(lambda: bool(events_in(channels.posted("events"), "params_updated")))
        [warning] = events_in(channels.posted("events"), "warning")
        assert "at most" in warning["message"]


async def test_case_062_a_long_update_is_read_whole() -> None:
    async with controlled() as (worker, stream):
        note = "x" * 100 * 1024
        await stream.control(json.dumps({"note": note, "language": "de"}).encode())
        await stream.until(lambda: bool(told(stream, "params_updated")))
        assert has_language(worker, "de")
        assert told(stream, "warning") == []
        assert max(len(json.dumps(event)) for event in stream.events) < 10_000


async def test_case_063_the_end_of_control_ends_the_stream(speech: bytes) -> None:
    async with (
        open_orchestrator(Times(reader_delay=0, control=60)) as orchestrator,
        open_worker() as worker,
        open_stream(orchestrator, worker.capability, params=RAW) as stream,
    ):
        await stream.publish(speech)
        await stream.until(lambda: bool(stream.text))
        session = worker.session
        orchestrator.trickle.delete(stream.channels["control_url"])
        async with asyncio.timeout(10):  # 2 s on a machine that has nothing else to do
            await ended_by_itself(session)
        await stream.until(lambda: stream.lines[-1]["type"] == "end")
        assert stream.lines[-1]["reason"] == "eof"


async def test_case_063_a_control_channel_that_is_not_there_ends_it_too(
    channels: ScriptedChannels,
) -> None:
    channels.script("GET control/-2", answer(404))
    async with open_worker() as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"), control_url=channels.url("control")
        )
        await ended_by_itself(session)
        assert channels.asked("GET", "control") == ["-2"]


# An orchestrator that has begun anew


@asynccontextmanager
async def open_sessions(
    lost: list[str], **worker: Any
) -> AsyncIterator[tuple[Sessions, ScriptedModel]]:
    """Sessions that tell `lost` which channels were forgotten."""
    async with open_worker(**worker) as opened:
        service = opened.service
        sessions = Sessions(service.jobs, service.settings, service.metrics, lost.append)
        async with sessions.serve():
            yield sessions, opened.model


def start_request(channels: ScriptedChannels, *names: str) -> StartRequest:
    urls = {f"{name}_url": channels.url(name) for name in names}
    return StartRequest("stream", params=RAW, **urls)


async def test_a_channel_that_is_forgotten_in_mid_stream_is_told_at_once(
    channels: ScriptedChannels, speech: bytes
) -> None:
    """All of them answer 404 then; it is told of once, and before the words are flushed."""
    forgotten = asyncio.Event()
    lost: list[str] = []

    async def not_found(exchange: Exchange) -> None:
        await forgotten.wait()
        await answer(404, b"Stream not found")(exchange)

    channels.script("GET subscribe/-2", segment(0, speech))
    channels.script("GET subscribe/1", not_found)
    channels.script("GET control/-2", not_found)
    async with open_sessions(lost) as (sessions, model):
        model.gate.clear()
        session = sessions.start(start_request(channels, "subscribe", "control", "data"))
        await asyncio.to_thread(model.asked.wait)
        assert lost == []
        forgotten.set()
        await session.stopping.wait()
        assert lost in ([channels.url("subscribe")], [channels.url("control")])
        model.gate.set()
        await ended_by_itself(session)
        assert len(lost) == 1
        assert session.job.work.counters()["words"] > 0


async def test_a_channel_of_output_that_is_forgotten_is_told_too(
    channels: ScriptedChannels,
) -> None:
    lost: list[str] = []
    channels.script("POST events/0", answer(404, b"Stream not found"))
    async with open_sessions(lost) as (sessions, _):
        await ended_by_itself(sessions.start(start_request(channels, "events")))
    assert lost == [channels.url("events")]


@pytest.mark.parametrize("end", ["closed", "stop"])
async def test_channels_that_go_behind_the_end_of_a_stream_are_not_lost(
    channels: ScriptedChannels, speech: bytes, end: str
) -> None:
    ending = asyncio.Event()
    lost: list[str] = []

    async def closes(exchange: Exchange) -> None:
        await ending.wait()
        await answer(200, seq="1", latest="1", closed="terminated")(exchange)

    async def not_found(exchange: Exchange) -> None:
        await ending.wait()
        await answer(404, b"Stream not found")(exchange)

    channels.script("GET subscribe/-2", segment(0, speech))
    channels.script("GET subscribe/1", closes)
    channels.script("POST data/0", not_found)
    async with open_sessions(lost) as (sessions, model):
        model.gate.clear()
        session = sessions.start(start_request(channels, "subscribe", "data"))
        await asyncio.to_thread(model.asked.wait)
        if end == "stop":
            stopping = asyncio.create_task(sessions.stop("stream"))
            await session.stopping.wait()
            ending.set()
        else:
            ending.set()
            await session.stopping.wait()
            stopping = asyncio.create_task(sessions.stop("stream"))
        model.gate.set()
        await stopping
    assert channels.posted("data")
    assert lost == []


# Ends


async def whole_stream(orchestrator: Orchestrator, worker: Worker, speech: bytes) -> Stream:
    async with open_stream(orchestrator, worker.capability, egress=True, params=RAW) as stream:
        await stream.publish(speech)
        await stream.until(lambda: bool(stream.text))
    assert stream.stopped_with is not None
    assert stream.stopped_with[0] == 200
    return stream


async def test_case_064_a_channel_is_deleted_by_who_made_it(
    channels: ScriptedChannels, speech: bytes
) -> None:
    async with (
        open_orchestrator(Times(reader_delay=0)) as orchestrator,
        open_worker() as worker,
    ):
        await whole_stream(orchestrator, worker, speech)
        assert orchestrator.deletions == []
        names = ("subscribe", "publish", "control", "events", "data")
        session = await worker.start(
            "another", **{f"{name}_url": channels.url(name) for name in names}
        )
        await channels.until(lambda: bool(channels.posted("events")))
        await session.stop(EndReason.STOPPED)
        assert {it.method for it in channels.exchanges} == {"GET", "POST"}


async def test_case_064_but_a_worker_that_leaves_ends_the_data_channel_behind_the_last_word(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    channels.script("DELETE data", answer(200))
    async with open_worker() as worker:
        names = ("publish", "control", "events", "data")
        urls = {f"{name}_url": channels.url(name) for name in names}
        await worker.start(subscribe_url=channels.url("in"), **urls)
        await channels.until(lambda: finals(channels.posted("data")) != "")
        await worker.service.drain()
        assert worker.service.sessions.running == []
    deleted = [it for it in channels.exchanges if it.method == "DELETE"]
    assert [it.path for it in deleted] == ["/data"]
    *_, last, end = [it for it in channels.exchanges if it.channel == "data"]
    assert end is deleted[0]
    assert json.loads(last.body) == {**json.loads(last.body), "type": "end", "reason": "shutdown"}
    assert last.answered
    assert events_in(channels.posted("events"), "stream_stopped")
    assert channels.exchanges[-1] is end


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(answer(400, b"Invalid stream"), id="refused"),
        pytest.param(takes_and_breaks_off, id="broken off"),
        pytest.param(waits, id="hung"),
    ],
)
async def test_a_data_channel_that_cannot_be_ended_holds_nobody_up(
    channels: ScriptedChannels, fault: Play, caplog: pytest.LogCaptureFixture
) -> None:
    channels.script("DELETE data", fault)
    async with open_worker() as worker:
        session = await worker.start(data_url=channels.url("data"))
        await worker.service.drain()
        assert session.job.log.end_reason is EndReason.SHUTDOWN
    assert set(channels.asked("DELETE", "data")) == {"data"}
    assert "not deleted" in caplog.text


async def test_a_gateway_swaps_at_once_when_its_worker_leaves(speech: bytes) -> None:
    async with (
        open_orchestrator(Times(reader_delay=0)) as orchestrator,
        open_worker() as worker,
        open_stream(orchestrator, worker.capability, params=RAW) as stream,
    ):
        await stream.until(lambda: stream.reading_data)
        await stream.publish(speech)
        await stream.until(lambda: bool(stream.text))
        await worker.service.drain()
        await stream.ended.wait()
    assert stream.watchdog is Watchdog.DATA_CLOSED
    assert orchestrator.deletions == ["stream-data"]
    assert stream.lines[-1]["type"] == "end"
    assert stream.lines[-1]["reason"] == "shutdown"


HOWS = [
    pytest.param("stop", id="a stop"),
    pytest.param("closed", id="the end of its input"),
    pytest.param("lost", id="the loss of its input"),
    pytest.param("cut", id="the service's end"),
]


@pytest.mark.parametrize("how", HOWS)
async def test_case_065_nothing_is_left_after(
    channels: ScriptedChannels,
    speech: bytes,
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # others write to the usual one
    going = asyncio.Event()

    async def ends(exchange: Exchange) -> None:
        await going.wait()
        if how == "closed":
            await answer(200, seq="1", closed="terminated")(exchange)
        exchange.reset()

    channels.script("GET in/-2", segment(0, speech))
    channels.script("GET in/1", ends, answer(500))
    tasks = asyncio.all_tasks()
    async with open_worker(retry_seconds=0.3, stop_seconds=5) as worker:
        idle = asyncio.all_tasks()
        names = {"publish_url": "out", "control_url": "control", "events_url": "events"}
        session = await worker.start(
            subscribe_url=channels.url("in"),
            data_url=channels.url("data"),
            **{name: channels.url(channel) for name, channel in names.items()},
        )
        await channels.until(lambda: finals(channels.posted("data")) != "")
        assert channels.num_open > 0
        if how != "cut":
            going.set()
            if how == "stop":
                await session.stop(EndReason.STOPPED)
            else:
                await ended_by_itself(session)
            await channels.until(lambda: channels.num_open == 0)
            assert worker.service.sessions.running == []
            assert worker.service.jobs.num_running == 0
            ours = {it for it in asyncio.all_tasks() - idle if not of_a_server(it)}
            assert ours == set()
            assert files_in(tmp_path) == []
    await channels.until(lambda: channels.num_open == 0)
    left = {it for it in asyncio.all_tasks() - tasks if not of_a_server(it)}
    assert left == set()
    assert files_in(tmp_path) == []


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def of_a_server(task: asyncio.Task[Any]) -> bool:
    """Of the double, or of uvicorn for a request whose answer is still on its way."""
    name = getattr(task.get_coro(), "__qualname__", "")
    return name.startswith(("ScriptedChannels.", "RequestResponseCycle."))


async def test_a_failed_decode_is_told_before_the_end(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    async with open_worker(ScriptedModel(lambda _: DecodeError("out of memory"))) as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"),
            events_url=channels.url("events"),
            data_url=channels.url("data"),
        )
        await ended_by_itself(session)
    posted = channels.posted("events")
    [error] = events_in(posted, "error")
    assert "out of memory" in error["error"]
    [stopped] = events_in(posted, "stream_stopped")
    assert stopped["reason"] == "error"
    assert events_in(posted, "status")[-1]["state"] == "ERROR"
    assert [json.loads(line)["type"] for line in channels.posted("data")][-2:] == ["error", "end"]


async def test_a_stop_is_answered_a_moment_after_the_last_words(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    async with open_worker() as worker:
        session = await worker.start(
            subscribe_url=channels.url("in"),
            events_url=channels.url("events"),
            data_url=channels.url("data"),
        )
        await channels.until(lambda: finals(channels.posted("data")) != "")
        await session.stop(EndReason.STOPPED)
        answered = asyncio.get_running_loop().time()
        # What is published before is read by the gateway before the channels go.
        assert answered - max(it.began for it in channels.exchanges) > 0.2
        assert json.loads(channels.posted("data")[-1])["type"] == "end"
        assert events_in(channels.posted("events"), "stream_stopped")


async def test_a_stop_waits_for_the_last_words_only_so_long(
    channels: ScriptedChannels, speech: bytes
) -> None:
    channels.script("GET in/-2", segment(0, speech))
    async with open_worker(stop_seconds=0.3) as worker:
        worker.model.gate.clear()
        session = await worker.start(
            subscribe_url=channels.url("in"), data_url=channels.url("data")
        )
        await asyncio.to_thread(worker.model.asked.wait, TIMEOUT)
        async with asyncio.timeout(10):
            await session.stop(EndReason.STOPPED)
