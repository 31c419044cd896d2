"""Processors in place of Whisper: every door, real frames, and what goes wrong in them."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from examples.grayscale import Grayscale
from examples.green_tint import GreenTint
from examples.passthrough import Passthrough
from tests.conftest import LOOPBACK, direct, serve_app
from whisper_byoc.client import ClientError, ProcessorClient
from whisper_byoc.errors import ConfigurationError
from whisper_byoc.jobs.processing import Processor, load_processor
from whisper_byoc.service import Service
from whisper_byoc.settings import JobSettings, Settings, WorkerSettings
from whisper_sim.orchestrator import Capability, open_orchestrator, open_stream

pytestmark = pytest.mark.anyio
TIMEOUT = 30.0
Frame = NDArray[np.uint8]


@pytest.fixture(scope="module")
def frame() -> Frame:
    """1280 × 720 RGB, with every value of green."""
    pixels = np.random.default_rng(1).integers(0, 256, (720, 1280, 3), np.uint8)
    pixels[0, :256, 1] = np.arange(256)
    return pixels


# A gateway hears nothing of a stream before its first status behind the beginning.
SETTINGS = Settings(orchestrator=LOOPBACK, worker=WorkerSettings(heartbeat_seconds=0.1))


def serve_processor(
    processor: Processor, settings: Settings = SETTINGS
) -> AbstractAsyncContextManager[tuple[str, Service]]:
    return serve_app(settings=settings, processor=processor)


def tinted(pixels: Frame) -> Frame:
    """What the tutorial wants, in the arithmetic of whole numbers."""
    wide = pixels.astype(int)
    wide[..., 1] += 80
    return np.asarray(np.minimum(wide, 255), np.uint8)


def gray(pixels: Frame) -> Frame:
    luma = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
    return np.asarray(np.stack([np.rint(luma)] * 3, axis=2), np.uint8)


CASES = [(Passthrough, lambda pixels: pixels), (GreenTint, tinted), (Grayscale, gray)]


@pytest.mark.parametrize(("example", "expected"), CASES, ids=lambda it: getattr(it, "__name__", ""))
async def test_an_example_gets_a_frame_and_gives_one(example, expected, frame: Frame) -> None:  # type: ignore[no-untyped-def]
    async with serve_processor(example()) as (url, _), ProcessorClient(url) as client:
        result = await client.process_frame(frame.tobytes())
    found = np.frombuffer(result, np.uint8).reshape(frame.shape)
    # Half values may be rounded either way in single precision.
    assert np.abs(found.astype(int) - expected(frame).astype(int)).max() <= (example is Grayscale)


async def test_an_empty_payload_is_a_keepalive_and_comes_back_empty() -> None:
    async with serve_processor(GreenTint()) as (url, _):
        assert await ProcessorClient(url).process_frame(b"") == b""


async def test_another_model_is_404_and_the_served_one_is_named() -> None:
    async with serve_processor(GreenTint()) as (url, _):
        client = ProcessorClient(url, model_id="other")
        with pytest.raises(ClientError, match="GreenTint") as caught:
            await client.process_frame(b"abc")
        assert caught.value.status == 404
        assert await ProcessorClient(url, model_id="GreenTint").process_frame(b"\0\0\0") == b"\0P\0"


async def test_frames_in_segments_come_out_in_segments(frame: Frame) -> None:
    frames = [(frame + n).astype(np.uint8) for n in range(7)]
    async with serve_processor(GreenTint()) as (url, _), aiohttp.ClientSession() as http:
        for seq, pixels in enumerate(frames):
            async with http.post(
                f"{url}/live/j/source/{seq}", data=io.BytesIO(pixels.tobytes())
            ) as answer:
                assert answer.status == 200
            async with http.get(f"{url}/live/j/output/{seq}") as answer:
                assert answer.headers["Content-Type"] == "application/octet-stream"
                assert await answer.read() == tinted(pixels).tobytes()
        async with http.delete(f"{url}/live/j/source"):
            pass
        async with http.get(f"{url}/live/j/output/-1") as answer:
            assert "Lp-Trickle-Closed" in answer.headers


async def test_a_body_and_the_output_are_the_tutorials_pair_of_calls(frame: Frame) -> None:
    async with serve_processor(GreenTint()) as (url, _), aiohttp.ClientSession() as http:
        async with http.put(f"{url}/live/j/source", data=io.BytesIO(frame.tobytes())) as answer:
            assert answer.status == 200
            assert answer.headers["X-Model-Id"] == "GreenTint"
        async with http.get(f"{url}/live/j/output") as answer:
            assert await answer.read() == tinted(frame).tobytes()


async def test_a_stream_of_an_orchestrator_is_processed_segment_by_segment(frame: Frame) -> None:
    frames = [(frame + n).astype(np.uint8).tobytes() for n in range(6)]
    async with serve_processor(Passthrough()) as (url, _), open_orchestrator() as orchestrator:
        capability = Capability("frames", url)
        async with open_stream(orchestrator, capability, egress=True) as stream:
            await stream.until(lambda: bool(stream.events))  # the gateway is reading
            for data in frames:
                before = len(stream.outputs)
                await stream.publish(data)
                await stream.until(lambda before=before: len(stream.outputs) > before)  # type: ignore[misc]
    assert stream.outputs == frames
    assert stream.watchdog is None


class Faulty:
    """Fails on one input, tells wrong things for another, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.params: list[dict[str, object]] = []

    async def initialize(self) -> None:
        self.calls.append("initialize")

    async def process(self, data: bytes) -> bytes:
        self.calls.append(data.decode())
        if data == b"boom":
            raise ValueError("no such frame")
        if data == b"text":
            return "text"  # type: ignore[return-value]
        return data.upper()

    async def update_params(self, params: dict[str, object]) -> None:
        self.params.append(params)

    async def shutdown(self) -> None:
        self.calls.append("shutdown")


async def test_a_processor_is_initialized_once_and_shut_down_once() -> None:
    processor = Faulty()
    async with serve_processor(processor) as (url, service), ProcessorClient(url) as client:
        assert service.health == "IDLE"
        assert await client.process_frame(b"a") == b"A"
        assert await client.process_frame(b"b") == b"B"
    assert processor.calls == ["initialize", "a", "b", "shutdown"]


@pytest.mark.parametrize(
    ("data", "message"), [(b"boom", "no such frame"), (b"text", "expected bytes")]
)
async def test_a_failure_is_one_answer_and_harms_nothing_else(data: bytes, message: str) -> None:
    async with serve_processor(Faulty()) as (url, service), ProcessorClient(url) as client:
        with pytest.raises(ClientError, match=message) as caught:
            await client.process_frame(data)
        assert caught.value.status == 500
        assert await client.process_frame(b"next") == b"NEXT"
        assert service.health == "IDLE"


async def test_a_segment_that_fails_is_left_out_and_the_stream_goes_on() -> None:
    async with serve_processor(Faulty()) as (url, _), aiohttp.ClientSession() as http:
        for seq, data in enumerate([b"a", b"boom", b"c"]):
            async with http.post(f"{url}/live/j/source/{seq}", data=data):
                pass
        async with http.delete(f"{url}/live/j/source"):
            pass
        async with http.get(f"{url}/live/j/output") as answer:
            assert await answer.read() == b"AC"


async def test_parameters_reach_the_processor_before_the_next_input() -> None:
    processor = Faulty()
    async with (
        serve_processor(processor) as (url, _),
        open_orchestrator() as orchestrator,
        open_stream(orchestrator, Capability("x", url), egress=True, params={"level": 1}) as stream,
    ):
        await stream.until(lambda: bool(stream.events))
        status, _ = await stream.update(b'{"level": 2}')
        assert status == 200
        await stream.publish(b"a")
        await stream.until(lambda: bool(stream.outputs))
    assert processor.params == [{"level": 1}, {"level": 2}]


async def test_output_beyond_its_bound_gives_way_and_the_newest_is_kept() -> None:
    settings = Settings(jobs=JobSettings(max_output_bytes=2048))
    async with (
        serve_processor(Passthrough(), settings) as (url, _),
        aiohttp.ClientSession() as http,
    ):
        for seq in range(4):
            async with http.post(f"{url}/live/j/source/{seq}", data=bytes([seq]) * 1000):
                pass
            async with http.get(f"{url}/live/j/output/{seq}") as answer:
                assert await answer.read() == bytes([seq]) * 1000
        async with http.get(f"{url}/live/j/output/0") as answer:
            assert answer.status == 470


async def test_a_body_over_the_limit_is_413() -> None:
    settings = Settings(worker=WorkerSettings(max_segment_bytes=1024))
    async with (
        serve_processor(Passthrough(), settings) as (url, _),
        aiohttp.ClientSession() as http,
        http.put(f"{url}/live/j/source", data=bytes(5000)) as answer,
    ):
        assert answer.status == 413


async def test_an_input_that_stalls_does_not_hold_its_job() -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.Event().wait()

    async with (
        asyncio.timeout(TIMEOUT),
        serve_processor(Passthrough()) as (url, service),
        aiohttp.ClientSession() as http,
    ):
        sending = asyncio.ensure_future(http.put(f"{url}/live/j/source", data=stalled()))
        job = await service.jobs.wait_for(direct("j"))
        async with http.delete(f"{url}/live/j") as answer:
            assert (await answer.json())["state"] == "ended"
        assert (await sending).status == 200
        assert job.work.counters()["payloads"] == 0  # a part of an input is none


async def test_a_failed_input_ends_no_job_that_goes_on() -> None:
    async with serve_processor(Faulty()) as (url, _), aiohttp.ClientSession() as http:
        source = f"{url}/live/j/source?final=false"
        for data, status in [(b"a", 200), (b"boom", 500), (b"c", 200)]:
            async with http.put(source, data=data) as answer:
                assert answer.status == status
        async with http.delete(f"{url}/live/j"):
            pass
        async with http.get(f"{url}/live/j/output") as answer:
            assert await answer.read() == b"AC"


async def test_a_failed_segment_is_an_empty_one_so_that_numbers_go_on_together() -> None:
    async with serve_processor(Faulty()) as (url, _), aiohttp.ClientSession() as http:
        found = []
        for seq, data in enumerate([b"a", b"boom", b"c"]):
            async with http.post(f"{url}/live/j/source/{seq}", data=data):
                pass
            async with http.get(f"{url}/live/j/output/{seq}") as answer:
                found.append(await answer.read())
    assert found == [b"A", b"", b"C"]


@pytest.mark.parametrize("name", ["copy", "json", "dict", "changed", "model_dump"])
async def test_parameters_may_have_any_name(name: str) -> None:
    async with (
        serve_processor(Passthrough()) as (url, _),
        open_orchestrator() as orchestrator,
        open_stream(orchestrator, Capability("x", url), params={name: 1}) as stream,
    ):
        assert (await stream.update(b'{"other": 2}'))[0] == 200
        await stream.until(
            lambda: (
                stream.status.get("inference_status", {}).get("last_params")
                == {name: 1, "other": 2}
            )
        )


class Endless(Passthrough):
    async def initialize(self) -> None:
        await asyncio.Event().wait()


async def test_a_processor_that_never_begins_does_not_keep_the_service_from_closing() -> None:
    async with asyncio.timeout(TIMEOUT), Service(Settings(), processor=Endless()).serve():
        pass


class Unready:
    async def initialize(self) -> None:
        raise RuntimeError("no weights")

    async def process(self, data: bytes) -> bytes:
        return data

    async def shutdown(self) -> None: ...


async def test_a_processor_that_cannot_begin_is_told() -> None:
    service = Service(Settings(), processor=Unready())
    async with service.serve():
        await service.settled()
        assert service.health == "ERROR"
        assert "no weights" in str(service.failure)


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("examples.green_tint:GreenTint", None),
        ("examples.green_tint", "expected module:Class"),
        ("examples.nothing:It", "cannot be made"),
        ("examples.green_tint:Nothing", "cannot be made"),
        ("pathlib:PurePath", "no initialize and no process and no shutdown"),
    ],
)
def test_a_processor_is_loaded_by_name_or_refused(reference: str, problem: str | None) -> None:
    if problem is None:
        assert isinstance(load_processor(reference), GreenTint)
    else:
        with pytest.raises(ConfigurationError, match=problem):
            load_processor(reference)
