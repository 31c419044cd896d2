"""The whole path: a gateway's transport stream through an orchestrator's channels, our worker, and
back to the gateway's reader (docs/wire.md)."""

import asyncio
import csv
import json
import resource
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jiwer
import numpy as np
import pytest
from aiohttp import web
from numpy.typing import NDArray
from whisper.normalizers import EnglishTextNormalizer

from tests.conftest import LOOPBACK, REPOSITORY, Speak, direct, gateway_python, serve_app
from tests.pytrickle_peer import open_publisher, open_subscriber
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.audio.source import open_source
from whisper_byoc.service import Service
from whisper_byoc.settings import JobSettings, Settings, WorkerSettings
from whisper_byoc.trickle.client import ClientOptions, Publisher, open_session
from whisper_sim.orchestrator import (
    Capability,
    Orchestrator,
    Stream,
    Times,
    Watchdog,
    open_orchestrator,
    open_stream,
)
from whisper_sim.transport import transport_segments

pytestmark = pytest.mark.anyio
TIMEOUT = 60.0
TEXT = "The orchestrator sends a transport stream, and the worker answers with the last word."
normalize = EnglishTextNormalizer()
Audio = NDArray[np.float32]


def padded(samples: Audio, before: float = 0.5, after: float = 0.2) -> Audio:
    edges = round(before * 16_000), round(after * 16_000)
    return np.pad(samples, edges)


async def send(stream: Stream, segments: Sequence[bytes]) -> None:
    """At the pace of a gateway: a segment when it is complete, one a second."""
    for segment in segments:
        await stream.publish(segment)
        await asyncio.sleep(1)  # the pace, and nothing is waited for


def check_words(text: str, expected: str, limit: float) -> None:
    found, wanted = normalize(text), normalize(expected)
    assert jiwer.wer(wanted, found) <= limit, found
    assert found.split()[-1] == wanted.split()[-1]


@pytest.fixture(scope="module")
async def worker() -> AsyncIterator[tuple[str, Service]]:
    async with serve_app() as opened:
        yield opened


@pytest.mark.model
@pytest.mark.parametrize("codec", ["libopus", "aac"])
async def test_case_118_the_text_of_a_stream_is_right_to_its_last_word(
    worker: tuple[str, Service], speak: Speak, codec: str
) -> None:
    """Stopped as soon as the last segment is sent: its words are still to be heard."""
    url, _ = worker
    segments = await transport_segments(padded(speak(TEXT)), codec=codec)
    async with open_orchestrator() as orchestrator:
        capability = Capability("whisper", url)
        async with open_stream(
            orchestrator, capability, f"stream-{codec}", egress=True, params={"language": "en"}
        ) as stream:
            await send(stream, segments)
            await stream.stop()
    assert stream.watchdog is None
    assert stream.stopped_with is not None
    assert stream.stopped_with[0] == 200
    check_words(stream.text, TEXT, 0.1)
    assert stream.lines[-1]["type"] == "end"
    # The first words came long before the stream was over, and the picture came back.
    first = next(line for line in stream.lines if line["type"] in ("partial", "final"))
    assert stream.line_times[stream.lines.index(first)] < stream.line_times[-1] - 3
    assert stream.outputs == segments[-len(stream.outputs) :]
    assert len(stream.outputs) >= len(segments) - 1
    assert stream.status["state"] == "ONLINE"
    assert stream.status["audio_seconds"] == pytest.approx(len(padded(speak(TEXT))) / 16e3, abs=0.2)


async def decode(data: bytes) -> Audio:
    async with open_source(None) as source, asyncio.TaskGroup() as group:

        async def feed() -> None:
            await source.send(data)
            await source.send_eof()

        group.create_task(feed())
        return np.concatenate([block async for block in source])


RECORDINGS = (
    "en/accent/arctic-aew_a0003.flac",
    "en/accent/speechocean-000360034.flac",
    "en/accent/vctk-p238_165.flac",
    "en/accent/speechocean-010290152.flac",
)


@pytest.mark.model
async def test_four_streams_of_recorded_speech_at_once(
    worker: tuple[str, Service], speech_dir: Path
) -> None:
    """Each says all four recordings, beginning with another one."""
    with (speech_dir / "manifest.tsv").open() as file:
        references = {
            row["file"]: row["reference text"] for row in csv.DictReader(file, dialect="excel-tab")
        }
    clips = {
        name: padded(await decode((speech_dir / name).read_bytes()), 0.2, 0.8)
        for name in RECORDINGS
    }
    url, service = worker

    async def one(orchestrator: Orchestrator, number: int) -> tuple[Stream, str]:
        order = RECORDINGS[number:] + RECORDINGS[:number]
        codec = ("libopus", "aac")[number % 2]
        segments = await transport_segments(
            np.concatenate([clips[name] for name in order]), codec=codec
        )
        async with open_stream(
            orchestrator, Capability("whisper", url), f"four-{number}"
        ) as stream:
            await send(stream, segments)
            await stream.stop()
        return stream, " ".join(references[name] for name in order)

    async with open_orchestrator() as orchestrator, asyncio.timeout(TIMEOUT):
        results = await asyncio.gather(*(one(orchestrator, number) for number in range(4)))
    assert not service.sessions.running
    errors = jiwer.process_words(
        [normalize(expected) for _, expected in results],
        [normalize(stream.text) for stream, _ in results],
    )
    assert errors.wer <= 0.2, [stream.text for stream, _ in results]
    for stream, expected in results:
        assert stream.watchdog is None
        assert normalize(stream.text).split()[-1] == normalize(expected).split()[-1], stream.text
        assert stream.status["input_status"]["segments_skipped"] == 0


@pytest.mark.model
@pytest.mark.skipif(
    gateway_python() is None, reason="livepeer-gateway needs Python 3.12: run make gateway-peer"
)
async def test_case_119_livepeer_gateways_clients_as_gateway(
    worker: tuple[str, Service], speak: Speak, tmp_path: Path
) -> None:
    url, _ = worker
    for number, segment in enumerate(await transport_segments(padded(speak(TEXT)))):
        (tmp_path / f"{number:03}.ts").write_bytes(segment)
    async with open_orchestrator() as orchestrator, asyncio.timeout(TIMEOUT):
        async with open_stream(orchestrator, Capability("whisper", url), "gateway") as stream:
            channels = [orchestrator.channel_url(name) for name in ("gateway", "gateway-data")]
            peer = await asyncio.create_subprocess_exec(
                str(gateway_python()), str(REPOSITORY / "tests" / "gateway_peer.py"),
                *channels, str(tmp_path), stdin=PIPE, stdout=PIPE,
            )  # fmt: skip
            # It deletes its channel when it is told to end: the session ends by itself then.
            await stream.until(
                lambda: any("last" in line.get("text", "") for line in stream.lines), TIMEOUT
            )
            assert peer.stdin is not None
            peer.stdin.write(b"\n")
            await peer.stdin.drain()
            await stream.until(lambda: bool(stream.lines) and stream.lines[-1]["type"] == "end")
        output, _ = await peer.communicate()
    assert peer.returncode == 0
    lines = [json.loads(line) for line in output.splitlines()]
    finals = [line["text"] for line in lines if line["type"] == "final"]
    check_words(" ".join(finals), TEXT, 0.1)
    assert lines[-1]["type"] == "end"


@pytest.mark.model
@pytest.mark.filterwarnings("ignore:verify_ssl is deprecated:DeprecationWarning")
async def test_pytrickles_clients_as_gateway(worker: tuple[str, Service], speak: Speak) -> None:
    """Its publisher writes the input and its subscriber reads the data, a line a segment."""
    url, _ = worker
    lines: list[dict[str, Any]] = []

    async def read(channel: str) -> None:
        async with open_subscriber(channel) as reading:
            while (segment := await reading.next()) is not None:
                body = b""
                while chunk := await segment.read():
                    body += chunk
                lines.append(json.loads(body))

    segments = await transport_segments(padded(speak(TEXT)))
    async with open_orchestrator() as orchestrator, asyncio.timeout(TIMEOUT):
        async with open_stream(orchestrator, Capability("whisper", url), "pytrickle") as stream:
            reading = asyncio.create_task(read(orchestrator.channel_url("pytrickle-data")))
            async with open_publisher(orchestrator.channel_url("pytrickle")) as sending:
                for segment in segments:
                    async with await sending.next() as writer:
                        await writer.write(segment)
                    await asyncio.sleep(1)  # the pace of a gateway
            await stream.stop()
        await reading
    check_words(" ".join(it["text"] for it in lines if it["type"] == "final"), TEXT, 0.1)
    assert lines[-1]["type"] == "end"


@pytest.mark.model
async def test_case_120_a_swap_counts_from_the_start_of_the_session(
    worker: tuple[str, Service], speak: Speak
) -> None:
    """Segment 57, and a clock of 100 s: times in the text begin at 0."""
    url, _ = worker
    segments = await transport_segments(padded(speak(TEXT)), first_time=100.0)
    async with open_orchestrator() as orchestrator:
        capability = Capability("whisper", url)
        orchestrator.trickle.create("swapped", "video/MP2T").next_write = 57
        async with open_stream(orchestrator, capability, "swapped") as stream:
            await send(stream, segments)
            await stream.stop()
    check_words(stream.text, TEXT, 0.1)
    finals = [line for line in stream.lines if line["type"] == "final"]
    assert 0.2 < finals[0]["start"] < 2.0
    assert finals[-1]["end"] < len(padded(speak(TEXT))) / 16_000 + 0.1


async def test_case_121_video_without_audio_is_no_error_and_audio_may_come_later(
    speak: Speak,
) -> None:
    speech = padded(speak(TEXT))
    silent = await transport_segments(np.zeros(48_000, np.float32), codec=None)
    spoken = await transport_segments(speech, first_time=3.0)
    settings = Settings(orchestrator=LOOPBACK, worker=WorkerSettings(heartbeat_seconds=0.2))
    async with (
        serve_app(scripted_engine(ScriptedModel()), settings) as (url, service),
        open_orchestrator() as orchestrator,
        open_stream(orchestrator, Capability("whisper", url)) as stream,
    ):
        for segment in silent:
            await stream.publish(segment)
        await stream.until(lambda: stream.status.get("state") == "DEGRADED_INPUT")
        assert stream.status["input_status"]["segments_left_out"] >= 1
        assert "without an audio stream" in stream.status["inference_status"]["last_error"]
        beats = len(stream.events)
        await stream.until(lambda: len(stream.events) > beats)
        for segment in spoken:
            before = stream.status["input_status"]["segments_received"]
            await stream.publish(segment)
            await stream.until(
                lambda before=before: (  # type: ignore[misc]
                    stream.status["input_status"]["segments_received"] > before
                )
            )
        await stream.stop()
        assert service.health == "IDLE"
    assert stream.watchdog is None
    assert stream.status["audio_seconds"] == pytest.approx(len(speech) / 16_000, abs=0.2)
    assert any(line["type"] == "final" for line in stream.lines)


async def test_case_122_a_long_stream_loses_nothing_and_its_memory_is_flat(speak: Speak) -> None:
    """Scaled: ten minutes as fast as they are taken. Half an hour at 1× is run by hand
    (docs/livepeer.md)."""
    sentence = padded(speak(TEXT), 1.0, 1.0)
    minute = np.concatenate([sentence, np.zeros(60 * 16_000 - len(sentence), np.float32)])
    segments = await transport_segments(minute, 2.0, video=False)
    settings = Settings(
        orchestrator=LOOPBACK,
        worker=WorkerSettings(heartbeat_seconds=0.05, data_keepalive_seconds=0.5),
    )
    times = Times(events=10, line_reader=0.001)
    async with (
        serve_app(scripted_engine(ScriptedModel()), settings) as (url, _),
        open_orchestrator(times) as orchestrator,
        open_stream(orchestrator, Capability("whisper", url)) as stream,
    ):
        sizes = []
        for _ in range(10):
            for segment in segments:
                received = stream.status.get("input_status", {}).get("segments_received", 0)
                await stream.publish(segment)
                # No more than three on their way, as a gateway allows.
                if stream._seq - received > 3:
                    wanted = stream._seq - 3
                    await stream.until(
                        lambda wanted=wanted: (  # type: ignore[misc]
                            stream.status.get("input_status", {}).get("segments_received", 0)
                            >= wanted
                        )
                    )
            sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        await stream.stop()
    assert stream.watchdog is None
    assert stream.status["input_status"]["segments_skipped"] == 0
    assert stream.status["input_status"]["segments_dropped"] == 0
    assert stream.status["audio_seconds"] == pytest.approx(600, abs=3)
    assert sizes[-1] - sizes[3] < 40_000  # kB of the peak


@asynccontextmanager
async def mortal_orchestrator() -> AsyncIterator[tuple[str, Process]]:
    """A trickle server in a process of its own: the base of its channels."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.trickle.double", "--port", "0", "--autocreate",
        cwd=REPOSITORY, stdout=PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip(), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_case_123_an_orchestrator_that_dies_leaves_nothing_behind(speak: Speak) -> None:
    """Killed in mid-stream: what was heard is flushed, the slot is free, the next start works."""
    settings = Settings(
        orchestrator=LOOPBACK,
        jobs=JobSettings(max_jobs=1),
        worker=WorkerSettings(retry_seconds=0.5, heartbeat_seconds=0.1),
    )
    # With the silence that ends an utterance, so that there are words before the stream ends.
    samples = padded(speak(TEXT), after=2.0)
    segments, seconds = await transport_segments(samples), len(samples) / 16_000
    async with (
        asyncio.timeout(TIMEOUT),
        serve_app(scripted_engine(ScriptedModel()), settings) as (url, service),
        aiohttp.ClientSession() as http,
    ):
        async with mortal_orchestrator() as (base, process):
            names = {"subscribe_url": "s", "control_url": "c", "events_url": "e", "data_url": "d"}
            for name in names.values():
                await http.post(base + name)
            urls = {key: base + name for key, name in names.items()}
            start = {"gateway_request_id": "dies", **urls}
            async with http.post(f"{url}/stream/start", json=start) as answer:
                assert answer.status == 200
            [session] = service.sessions.running

            async def until(reached: Callable[[dict[str, Any]], bool]) -> None:
                while not reached(session.status()):
                    async with http.get(f"{base}e/-1") as answer:  # the next event
                        await answer.read()

            for seq, segment in enumerate(segments):
                await http.post(f"{base}s/{seq}", data=segment)
                # A channel keeps five, so a reader that is further behind would lose some.
                await until(lambda it, seq=seq: it["input_status"]["segments_received"] > seq)  # type: ignore[misc]
            await until(lambda it: it["audio_seconds"] > seconds - 0.2)
            async with http.get(f"{base}d/0") as answer:
                assert json.loads(await answer.read())["type"] in ("partial", "final")
            job = service.jobs.get(direct("dies"))
            process.kill()
            await job.until_ended()
        while service.sessions.running:
            await service.sessions.stop("dies")
        assert service.health == "IDLE"
        assert job.work.audio_seconds == pytest.approx(seconds, abs=0.2)
        async with (
            open_orchestrator() as orchestrator,
            open_stream(orchestrator, Capability("whisper", url)),
        ):
            assert len(service.sessions.running) == 1


# The double itself


@pytest.fixture
async def idle_worker() -> AsyncIterator[str]:
    """Accepts every stream and does nothing for it."""

    async def accept(request: web.Request) -> web.Response:
        return web.json_response({"status": "success"})

    app = web.Application()
    app.router.add_post("/{path:.*}", accept)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.name
    finally:
        await runner.cleanup()


async def test_a_worker_that_tells_nothing_is_ended_for_want_of_events(idle_worker: str) -> None:
    times = Times(events=0.3, output=5)
    async with (
        open_orchestrator(times) as orchestrator,
        open_stream(orchestrator, Capability("idle", idle_worker)) as stream,
        asyncio.timeout(TIMEOUT),
    ):
        await stream.ended.wait()
    assert stream.watchdog is Watchdog.EVENTS


async def test_a_worker_without_output_is_ended_while_input_flows(idle_worker: str) -> None:
    times = Times(events=20, output=0.3)
    async with (
        open_orchestrator(times) as orchestrator,
        open_stream(orchestrator, Capability("idle", idle_worker), egress=True) as stream,
        asyncio.timeout(TIMEOUT),
    ):
        await stream.publish(b"G" * 188)
        await stream.ended.wait()
    assert stream.watchdog is Watchdog.OUTPUT


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([b"x" * 65_536 + b"\n"], Watchdog.LINE),
        ([b"{}\n" * 9], Watchdog.BURST),
        ([b'{"type":"a"}\n', b'{"type":"b"}\n'], None),
    ],
    ids=["a line of 64 KiB", "nine lines at once", "one line a segment"],
)
async def test_lines_that_break_a_gateway_are_told(
    idle_worker: str, segments: list[bytes], expected: Watchdog | None
) -> None:
    times = Times(reader_delay=0.0, line_reader=0.05)
    async with (
        open_orchestrator(times) as orchestrator,
        open_stream(orchestrator, Capability("idle", idle_worker)) as stream,
        open_session(ClientOptions()) as http,
        asyncio.timeout(TIMEOUT),
    ):
        await stream.until(lambda: stream.reading_data)
        publisher = Publisher(orchestrator.channel_url("stream-data"), http, "application/jsonl")
        for segment in segments:
            await publisher.publish(segment)
        if expected is None:
            await stream.until(lambda: len(stream.lines) == 2)
        else:
            await stream.ended.wait()
        assert stream.watchdog is expected


async def test_a_data_channel_that_is_swept_ends_the_stream(idle_worker: str) -> None:
    times = Times(idle=0.2, sweep=0.1)
    async with (
        open_orchestrator(times) as orchestrator,
        open_stream(orchestrator, Capability("idle", idle_worker)) as stream,
        asyncio.timeout(TIMEOUT),
    ):
        await stream.ended.wait()
    assert stream.watchdog is Watchdog.DATA_CLOSED
