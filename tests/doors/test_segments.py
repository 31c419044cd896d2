"""The live door in trickle's terms, with PyTrickle's clients and with plain requests."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import Speak, direct, pcm, serve_app
from tests.pytrickle_peer import open_publisher, open_subscriber
from tests.scripted import ScriptedModel, scripted_engine
from whisper_byoc.settings import JobSettings, Settings, WorkerSettings

pytestmark = pytest.mark.anyio
TIMEOUT = 30.0


@pytest.fixture
async def url() -> AsyncIterator[str]:
    settings = Settings(
        jobs=JobSettings(output_grace_seconds=0.2), worker=WorkerSettings(max_segment_bytes=200_000)
    )
    async with serve_app(scripted_engine(ScriptedModel()), settings) as (url, _):
        yield url


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session


@pytest.fixture(scope="module")
def sentence(speak: Speak) -> NDArray[np.float32]:
    return speak("Every segment is a piece of one stream, and none of it is lost.")


def pieces(samples: NDArray[np.float32], count: int) -> list[bytes]:
    """Of odd lengths: what is divided goes on in the next segment."""
    audio = pcm(samples)
    step = len(audio) // count | 1
    return [audio[n : n + step] for n in range(0, len(audio), step)]


async def read_all(http: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    """Every event, from segment 0 to the end of the channel."""
    events: list[dict[str, Any]] = []
    seq = 0
    while True:
        async with http.get(f"{url}/{seq}") as answer:
            assert answer.status == 200, await answer.text()
            if "Lp-Trickle-Closed" in answer.headers:
                return events
            assert answer.headers["Lp-Trickle-Seq"] == str(seq)
            if body := await answer.read():
                assert answer.content_type == "application/x-ndjson"
                events.append(json.loads(body))
        seq += 1


async def until_next(http: aiohttp.ClientSession, source: str, seq: int) -> None:
    """Return when `seq` is what a publisher would write next, and what is before it has ended."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            async with http.get(f"{source}/next") as answer:
                if int(await answer.text()) >= seq:
                    return


async def test_segments_are_one_stream_and_every_event_can_be_read(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    for seq, piece in enumerate(pieces(sentence, 4)):
        async with http.post(f"{url}/live/j/source/{seq}", data=piece) as answer:
            assert answer.status == 200
            assert answer.headers["Lp-Trickle-Seq"] == str(seq)
    async with http.get(f"{url}/live/j/source/next") as answer:
        assert await answer.text() == answer.headers["Lp-Trickle-Latest"] == str(seq + 1)
    async with http.delete(f"{url}/live/j/source") as answer:
        assert answer.status == 200
    events = await read_all(http, f"{url}/live/j/output")
    assert events[-1]["type"] == "end"
    assert events[-1]["audio_seconds"] == pytest.approx(len(sentence) / 16_000, abs=0.001)
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers))
    async with http.get(f"{url}/live/j/output?format=text") as answer:
        text = await answer.text()
    assert text.split() == [
        word for event in events if event["type"] == "final" for word in str(event["text"]).split()
    ]


async def test_a_segment_that_is_overtaken_is_waited_for(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    first, second = pieces(sentence, 2)[:2]
    async with http.post(f"{url}/live/j/source/1", data=second) as answer:
        assert answer.status == 200
    async with http.post(f"{url}/live/j/source/0", data=first) as answer:
        assert answer.status == 200
    async with http.delete(f"{url}/live/j/source"):
        events = await read_all(http, f"{url}/live/j/output")
    seconds = (len(first) + len(second)) / 32_000
    assert events[-1]["audio_seconds"] == pytest.approx(seconds, abs=0.001)


async def test_a_get_waits_for_the_next_event_and_a_later_one_is_470(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    async with http.post(f"{url}/live/j/source/0", data=b""):
        pass
    async with http.get(f"{url}/live/j/output/7") as answer:
        assert answer.status == 470
        assert answer.headers["Lp-Trickle-Latest"] == "0"

    async def first_event() -> bytes:
        async with http.get(f"{url}/live/j/output/-1") as answer:
            return await answer.read()

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(first_event())
        for seq, piece in enumerate(pieces(sentence, 3), start=1):
            async with http.post(f"{url}/live/j/source/{seq}", data=piece):
                pass
        async with http.delete(f"{url}/live/j/source"):
            pass
    assert json.loads(waiting.result())["seq"] == 0


async def test_an_unknown_job_has_no_output_and_a_bad_seq_is_refused(
    url: str, http: aiohttp.ClientSession
) -> None:
    for method, path, status in [
        ("GET", "/live/none/output/0", 404),
        ("GET", "/live/none/output/next", 404),
        ("GET", "/live/none/output/x", 400),
        ("GET", "/live/none/output/-3", 400),
        ("POST", "/live/none/source/x", 400),
        ("DELETE", "/live/none/source", 400),
        ("GET", "/live/none/source/next", 200),
        ("PUT", "/live/..%2f/source/0", 400),
    ]:
        async with http.request(method, url + path) as answer:
            assert answer.status == status, path


async def test_a_segment_over_the_limit_is_413_and_what_came_is_kept(
    url: str, http: aiohttp.ClientSession
) -> None:
    async with http.post(f"{url}/live/j/source/0", data=bytes(300_000)) as answer:
        assert answer.status == 413
        assert "200000" in (await answer.json())["error"]["message"]
    async with http.get(f"{url}/live/j") as answer:
        assert (await answer.json())["state"] == "receiving"


async def test_a_job_that_has_ended_takes_no_segments(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    async with http.put(f"{url}/live/j/source", data=pcm(sentence)):
        pass
    async with http.post(f"{url}/live/j/source/1", data=b"\0\0") as answer:
        assert answer.status == 404
        assert "Lp-Trickle-Closed" in answer.headers


async def test_segments_and_a_body_do_not_mix(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    async with http.post(f"{url}/live/j/source/0", data=pcm(sentence)[:32_000]):
        pass
    async with http.put(f"{url}/live/j/source", data=pcm(sentence)) as answer:
        assert answer.status == 409


async def test_a_late_reader_is_sent_to_what_is_kept(
    http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    settings = Settings(jobs=JobSettings(max_events=10))
    async with serve_app(scripted_engine(ScriptedModel()), settings) as (url, service):
        silence = np.zeros(24_000, np.float32)
        speech = np.concatenate([np.concatenate([sentence[:20_000], silence]) for _ in range(12)])
        async with http.put(f"{url}/live/j/source", data=io.BytesIO(pcm(speech))):
            pass
        await service.jobs.get(direct("j")).until_ended()  # the answer does not wait for the flush
        async with http.get(f"{url}/live/j/output/0") as answer:
            assert answer.status == 470
            latest = int(answer.headers["Lp-Trickle-Latest"])
        async with http.get(f"{url}/live/j/output/{latest - 1}") as answer:
            assert json.loads(await answer.read())["type"] == "end"


@pytest.mark.filterwarnings("ignore:verify_ssl is deprecated:DeprecationWarning")
async def test_pytrickles_publisher_and_subscriber_work_against_us(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    """Its publisher cannot end the stream: whoever runs it does, here by DELETE. It must not be
    hurried either: asked for a writer before it has preconnected, it posts to one seq twice."""
    source = f"{url}/live/j/source"
    async with open_publisher(source, mime_type="audio/pcm") as sending:
        for seq, piece in enumerate(pieces(sentence, 4), start=1):
            async with await sending.next() as segment:
                await segment.write(piece)
            await until_next(http, source, seq)
        async with http.delete(source):
            pass
    events = []
    async with open_subscriber(f"{url}/live/j/output", start_seq=0) as reading:
        async with asyncio.timeout(TIMEOUT):
            while (segment := await reading.next()) is not None:
                body = b""
                while chunk := await segment.read():
                    body += chunk
                if body:
                    events.append(json.loads(body))
    assert events[-1]["type"] == "end"
    assert events[-1]["audio_seconds"] == pytest.approx(len(sentence) / 16_000, abs=0.001)
    assert any(event["type"] == "final" for event in events)


async def test_what_was_taken_is_heard_before_a_job_is_stopped(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    piece = pcm(np.tile(sentence, 3)[: 5 * 16_000])
    for seq in range(8):
        async with http.post(f"{url}/live/j/source/{seq}", data=piece) as answer:
            assert answer.status == 200
    async with http.delete(f"{url}/live/j") as answer:
        document = await answer.json()
    assert document["audio_seconds"] == pytest.approx(8 * len(piece) / 32_000, abs=0.01)
    assert (document["state"], document["reason"]) == ("ended", "stopped")


async def test_a_segment_without_audio_is_told_and_holds_nothing_up(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    nulls = (b"\x47\x1f\xff\x10" + bytes(184)) * 40
    async with http.post(f"{url}/live/j/source/0", data=nulls) as answer:
        assert answer.status == 200
    async with asyncio.timeout(TIMEOUT), http.delete(f"{url}/live/j") as answer:
        document = await answer.json()
    assert document["state"] == "ended"
    assert document["problems"] == 1
    assert "MPEG-TS" in document["problem"]


async def test_a_label_of_raw_audio_counts(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    headers = {"Content-Type": "audio/pcm;rate=8000"}
    async with http.post(f"{url}/live/j/source/0", data=bytes(32_000), headers=headers):
        pass
    async with http.delete(f"{url}/live/j") as answer:
        assert (await answer.json())["audio_seconds"] == pytest.approx(2.0, abs=0.05)


async def test_a_publisher_that_begins_anew_is_heard_where_it_says_so(
    url: str, http: aiohttp.ClientSession, sentence: NDArray[np.float32]
) -> None:
    """Without a reset its first segments are those that were complete, as in any channel."""
    second = bytes(32_000)
    for seq in (0, 1):
        async with http.post(f"{url}/live/j/source/{seq}", data=second):
            pass
        await until_heard(http, f"{url}/live/j", seq + 1.0)
    async with http.post(f"{url}/live/j/source/0", data=second) as answer:
        assert answer.status == 200
    async with http.get(f"{url}/live/j/source/next") as answer:
        assert await answer.text() == "2"
    headers = {"Lp-Trickle-Reset": "1"}
    async with http.post(f"{url}/live/j/source/0", data=second, headers=headers):
        pass
    await until_heard(http, f"{url}/live/j", 3.0)
    async with http.post(f"{url}/live/j/source/40", data=second):  # a leap
        pass
    await until_heard(http, f"{url}/live/j", 4.0)
    async with http.delete(f"{url}/live/j") as answer:
        assert (await answer.json())["audio_seconds"] == 4.0


async def until_heard(http: aiohttp.ClientSession, job: str, seconds: float) -> None:
    async with asyncio.timeout(TIMEOUT):
        while True:
            async with http.get(job) as answer:
                if (await answer.json())["audio_seconds"] >= seconds:
                    return
