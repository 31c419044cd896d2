"""What a trickle server does on the wire: cases 1 to 36 of the project's checklist, and some more.

They were measured on the go-livepeer server and know nothing of ours; conftest.py says how to run
them against another server.
"""

import asyncio
import random

import pytest

from tests.trickle.conftest import StartDouble, Trickle
from tests.trickle.wire import TIMEOUT, Answer, Exchange
from whisper_sim.trickle_server import Refused, TrickleServer

pytestmark = pytest.mark.anyio

SILENT_SECONDS = 0.3
SILENT_SECONDS_EXTERNAL = 2.0
INTERIM_SECONDS = 12.0
"""s until the first `100 Continue`, which the reference server sends after 10."""

RESET = {"Lp-Trickle-Reset": "1"}


def seq_of(answer: Answer | Exchange) -> str | None:
    return answer.headers.get("lp-trickle-seq")


def latest_of(answer: Answer | Exchange) -> str | None:
    return answer.headers.get("lp-trickle-latest")


def closed_of(answer: Answer | Exchange) -> str | None:
    return answer.headers.get("lp-trickle-closed")


def assert_data(answer: Answer, body: bytes, seq: int, latest: int | None) -> None:
    """A segment with data, read from a channel that goes on."""
    assert answer.status == 200
    assert answer.body == body
    assert seq_of(answer) == str(seq)
    assert latest_of(answer) == (None if latest is None else str(latest))
    assert closed_of(answer) is None


def assert_no_entry(answer: Answer, seq: int, latest: int) -> None:
    assert answer.status == 470
    assert answer.body.strip() == b"Entry not found"
    assert seq_of(answer) == str(seq)
    assert latest_of(answer) == str(latest)
    assert closed_of(answer) is None


def assert_no_stream(answer: Answer) -> None:
    assert answer.status == 404
    assert answer.body.startswith(b"Stream not found")


def assert_empty(answer: Answer, seq: int) -> None:
    """A segment that ended without a byte, in a channel that goes on."""
    assert (answer.status, answer.body) == (200, b"")
    assert seq_of(answer) == str(seq)
    assert latest_of(answer) is not None
    assert closed_of(answer) is None
    assert "content-type" not in answer.headers


def assert_published(answer: Answer, seq: int) -> None:
    assert (answer.status, answer.body) == (200, b"")
    assert seq_of(answer) == str(seq)
    assert closed_of(answer) is None


def segment_body(seq: int) -> bytes:
    return b"segment %d" % seq


async def publish_segments(trickle: Trickle, channel: str, num_segments: int) -> None:
    for seq in range(num_segments):
        assert_published(await trickle.publish(channel, seq, segment_body(seq)), seq)


async def publish_hello_and_read_it(trickle: Trickle, channel: str) -> tuple[Exchange, Exchange]:
    """Segment 0 holds `Hello` and is open: its publisher, and a reader that hangs on it."""
    publisher = await trickle.start("POST", f"{channel}/0", streamed=True)
    await publisher.send(b"Hello")
    reader = await trickle.start("GET", f"{channel}/0")
    assert await reader.until(5) == b"Hello"
    return publisher, reader


async def test_case_001_create_of_a_missing_channel_is_404(trickle: Trickle) -> None:
    if trickle.autocreate:
        pytest.skip("needs a server that does not autocreate, so TRICKLE_CREATE set")
    headers = {"Expect-Content": "video/MP2T"}
    answer = await trickle.request("POST", trickle.new_name(), headers=headers, body=b"")
    assert_no_stream(answer)


async def test_case_002_publish_to_a_missing_channel_is_404_and_closes(trickle: Trickle) -> None:
    if trickle.autocreate:
        pytest.skip("needs a server that does not autocreate, so TRICKLE_CREATE set")
    exchange = await trickle.start("POST", f"{trickle.new_name()}/0", body=b"data")
    assert_no_stream(await exchange.answer())
    await exchange.assert_closed_by_server()


async def test_case_003_autocreate_takes_the_type_from_expect_content(
    autocreating: Trickle,
) -> None:
    channel = autocreating.new_name()
    headers = {"Expect-Content": "application/json"}
    answer = await autocreating.request("POST", channel, headers=headers, body=b"")
    assert (answer.status, answer.body) == (200, b"")
    await autocreating.publish(channel, 0, b"{}", {"Content-Type": "text/plain"})
    answer = await autocreating.get(f"{channel}/0")
    assert answer.headers["content-type"] == "application/json"
    assert_data(answer, b"{}", 0, 1)


async def test_case_004_autocreate_by_a_segment_takes_its_content_type(
    autocreating: Trickle,
) -> None:
    channel = autocreating.new_name()
    answer = await autocreating.publish(channel, 0, b"words", {"Content-Type": "text/x"})
    assert_published(answer, 0)
    answer = await autocreating.get(f"{channel}/0")
    assert answer.headers["content-type"] == "text/x"
    assert_data(answer, b"words", 0, 1)


async def test_case_005_create_of_an_existing_channel_changes_nothing(trickle: Trickle) -> None:
    channel = await trickle.create("video/MP2T")
    await publish_segments(trickle, channel, 2)
    headers = {"Expect-Content": "text/plain"}
    answer = await trickle.request("POST", channel, headers=headers, body=b"")
    assert (answer.status, answer.body) == (200, b"")
    assert await trickle.next_write(channel) == 2
    for seq in range(2):
        answer = await trickle.get(f"{channel}/{seq}")
        assert answer.headers["content-type"] == "video/MP2T"
        assert_data(answer, segment_body(seq), seq, 2)


async def test_case_006_next_of_a_fresh_channel_is_0(trickle: Trickle) -> None:
    channel = await trickle.create()
    answer = await trickle.get(f"{channel}/next")
    assert (answer.status, answer.body) == (200, b"0")
    assert latest_of(answer) == "0"
    assert closed_of(answer) is None
    assert answer.headers["content-type"].startswith("text/plain")
    answer = await trickle.request("HEAD", f"{channel}/next")
    assert (answer.status, answer.body) == (200, b"")
    assert latest_of(answer) == "0"


async def test_case_007_segment_2_of_a_fresh_channel_is_470(trickle: Trickle) -> None:
    channel = await trickle.create()
    assert_no_entry(await trickle.get(f"{channel}/2"), 2, 0)


@pytest.mark.parametrize(("asked", "seq"), [("0", 0), ("1", 1), ("-1", 0), ("-2", 0)])
async def test_case_008_segments_about_to_come_are_waited_for_in_silence(
    trickle: Trickle, asked: str, seq: int
) -> None:
    channel = await trickle.create()
    reader = await trickle.start("GET", f"{channel}/{asked}")
    # The one place where a time passes: nothing is what is expected.
    await reader.assert_silent(SILENT_SECONDS_EXTERNAL if trickle.external else SILENT_SECONDS)
    await trickle.publish(channel, seq, b"at last")
    assert_data(await reader.answer(), b"at last", seq, None if seq == 0 else 0)


async def test_case_009_a_waiting_reader_gets_each_piece_as_it_comes(trickle: Trickle) -> None:
    channel = await trickle.create("video/MP2T")
    reader = await trickle.start("GET", f"{channel}/-1")
    await trickle.arrived(channel)
    await reader.assert_silent()
    publisher = await trickle.start("POST", f"{channel}/0", streamed=True)
    await publisher.send(b"hello")
    await reader.head()
    assert reader.status == 200
    assert reader.headers["content-type"] == "video/MP2T"
    assert reader.headers["transfer-encoding"] == "chunked"
    assert seq_of(reader) == "0"
    assert latest_of(reader) is None
    assert closed_of(reader) is None
    assert await reader.until(5) == b"hello"
    await publisher.send(b" world")
    assert await reader.until(6) == b" world"
    await publisher.finish()
    assert await reader.rest() == b""


async def test_case_010_the_publishers_answer_is_200_with_the_seq(trickle: Trickle) -> None:
    channel = await trickle.create()
    publisher = await trickle.start("POST", f"{channel}/0", streamed=True)
    await publisher.send(b"hello")
    await publisher.send(b" world")
    await publisher.finish()
    assert_published(await publisher.answer(), 0)


async def test_case_011_what_was_written_can_be_read_again_in_any_order(trickle: Trickle) -> None:
    channel = await trickle.create()
    await trickle.publish(channel, 0, segment_body(0))
    assert_data(await trickle.get(f"{channel}/0"), segment_body(0), 0, 1)
    assert_data(await trickle.get(f"{channel}/-2"), segment_body(0), 0, 1)
    for seq in range(1, 4):
        await trickle.publish(channel, seq, segment_body(seq))
    for seq in (0, 1, 2, 3, 3, 2, 1, 0):
        assert_data(await trickle.get(f"{channel}/{seq}"), segment_body(seq), seq, 4)
    assert_data(await trickle.get(f"{channel}/-2"), segment_body(3), 3, 4)


async def test_case_012_publish_to_minus_1_goes_to_the_next_seq(trickle: Trickle) -> None:
    channel = await trickle.create()
    await publish_segments(trickle, channel, 2)
    assert_published(await trickle.publish(channel, -1, b"the next"), 2)
    assert await trickle.next_write(channel) == 3
    assert_data(await trickle.get(f"{channel}/2"), b"the next", 2, 3)


@pytest.mark.parametrize("streamed", [False, True], ids=["of length 0", "of no chunks"])
async def test_case_013_an_empty_segment_counts(trickle: Trickle, streamed: bool) -> None:
    channel = await trickle.create()
    body = None if streamed else b""
    publisher = await trickle.start("POST", f"{channel}/2", streamed=streamed, body=body)
    if streamed:
        await publisher.finish()
    assert_published(await publisher.answer(), 2)
    await publisher.assert_closed_by_server()
    answer = await trickle.get(f"{channel}/2")
    assert_empty(answer, 2)
    assert latest_of(answer) == "3"
    assert await trickle.next_write(channel) == 3


async def test_case_014_a_channel_keeps_five_segments(trickle: Trickle) -> None:
    channel = await trickle.create()
    await publish_segments(trickle, channel, 9)
    for seq in range(4):
        assert_no_entry(await trickle.get(f"{channel}/{seq}"), seq, 9)
    for seq in range(4, 9):
        assert_data(await trickle.get(f"{channel}/{seq}"), segment_body(seq), seq, 9)
    reader = await trickle.start("GET", f"{channel}/9")
    assert_no_entry(await trickle.get(f"{channel}/10"), 10, 9)
    await trickle.arrived(channel)
    await reader.assert_silent()
    await trickle.publish(channel, 9, segment_body(9))
    assert_data(await reader.answer(), segment_body(9), 9, None)


async def test_case_015_a_publisher_may_jump_forward(trickle: Trickle) -> None:
    channel = await trickle.create()
    await publish_segments(trickle, channel, 9)
    assert_published(await trickle.publish(channel, 20, segment_body(20)), 20)
    assert await trickle.next_write(channel) == 21
    assert_data(await trickle.get(f"{channel}/8"), segment_body(8), 8, 21)
    assert_data(await trickle.get(f"{channel}/20"), segment_body(20), 20, 21)


async def test_case_016_a_publisher_may_jump_back(trickle: Trickle) -> None:
    channel = await trickle.create()
    await publish_segments(trickle, channel, 9)
    await trickle.publish(channel, 20, segment_body(20))
    assert_published(await trickle.publish(channel, 5, b"again"), 5)
    assert await trickle.next_write(channel) == 6
    assert_data(await trickle.get(f"{channel}/5"), b"again", 5, 6)
    assert_no_entry(await trickle.get(f"{channel}/20"), 20, 6)


async def test_case_017_a_completed_segment_keeps_its_first_bytes(either: Trickle) -> None:
    trickle = either
    channel = await trickle.create()
    await publish_segments(trickle, channel, 4)
    publisher = await trickle.start("POST", f"{channel}/1", body=b"other bytes")
    answer = await publisher.answer()
    assert (answer.status, answer.body) == (200, b"")
    await publisher.assert_closed_by_server()
    latest = 4 if trickle.node else 2
    assert await trickle.next_write(channel) == latest
    assert_data(await trickle.get(f"{channel}/1"), segment_body(1), 1, latest)


async def test_case_018_a_segment_that_broke_off_is_appended_to(trickle: Trickle) -> None:
    channel = await trickle.create()
    publisher = await trickle.start("POST", f"{channel}/0", streamed=True)
    await publisher.send(b"hello")
    reader = await trickle.start("GET", f"{channel}/0")
    assert await reader.until(5) == b"hello"
    await publisher.close()
    await trickle.arrived(channel)
    await reader.assert_silent()
    assert_published(await trickle.publish(channel, 0, b"-resumed"), 0)
    assert await reader.rest() == b"-resumed"
    assert_data(await trickle.get(f"{channel}/0"), b"hello-resumed", 0, 1)


@pytest.mark.parametrize("gone", [False, True], ids=["publisher is there", "publisher is gone"])
async def test_case_019_a_reset_frees_the_readers_of_older_segments(
    either: Trickle, gone: bool
) -> None:
    trickle = either
    channel = await trickle.create()
    publisher, reader = await publish_hello_and_read_it(trickle, channel)
    if gone:
        await publisher.close()
        await trickle.arrived(channel)
        await reader.assert_silent()
    assert_published(await trickle.publish(channel, -1, b"new", RESET), 1)
    assert await reader.rest() == b""
    assert_data(await trickle.get(f"{channel}/0"), b"Hello", 0, 2)
    assert_data(await trickle.get(f"{channel}/1"), b"new", 1, 2)
    if trickle.node and not gone:
        assert_published(await publisher.answer(), 0)  # interrupted in its body


async def test_case_020_a_reset_keeps_the_segment_preconnected_ahead(trickle: Trickle) -> None:
    channel = await trickle.create()
    _, reader = await publish_hello_and_read_it(trickle, channel)
    preconnected = await trickle.start("POST", f"{channel}/2", streamed=True)
    await trickle.arrived(channel)
    waiting = await trickle.start("GET", f"{channel}/2")
    await trickle.arrived(channel)
    assert_published(await trickle.publish(channel, -1, b"new", RESET), 1)
    assert await reader.rest() == b""
    await waiting.assert_silent()
    await preconnected.send(b"ahead")
    assert await waiting.until(5) == b"ahead"
    await preconnected.finish()
    assert_published(await preconnected.answer(), 2)
    assert_data(await waiting.answer(), b"", 2, 1)
    assert_data(await trickle.get(f"{channel}/2"), b"ahead", 2, 3)


async def test_case_021_a_preconnected_publisher_is_held_until_it_has_data(
    trickle: Trickle,
) -> None:
    channel = await trickle.create()
    publisher = await trickle.start("POST", f"{channel}/0", streamed=True)
    if trickle.external:
        assert await publisher.interim(INTERIM_SECONDS) == 100
    else:
        # An ASGI application has no way to send interim answers.
        await trickle.arrived(channel)
        await publisher.assert_silent()
    await publisher.send(b"at last")
    await publisher.finish()
    assert_published(await publisher.answer(), 0)
    assert_data(await trickle.get(f"{channel}/0"), b"at last", 0, 1)


async def test_case_022_delete_releases_a_preconnected_publisher(either: Trickle) -> None:
    trickle = either
    channel = await trickle.create()
    publisher = await trickle.start("POST", f"{channel}/0", streamed=True)
    await trickle.arrived(channel)
    await publisher.assert_silent()
    assert (await trickle.delete(channel)).status == 200
    answer = await publisher.answer()
    assert (answer.status, answer.body) == (200, b"")
    assert closed_of(answer) == (None if trickle.node else "terminated")
    assert seq_of(answer) == "0"
    await publisher.assert_closed_by_server()


async def test_case_023_delete_releases_a_waiting_reader(trickle: Trickle) -> None:
    channel = await trickle.create()
    reader = await trickle.start("GET", f"{channel}/-1")
    await trickle.arrived(channel)
    await reader.assert_silent()
    assert (await trickle.delete(channel)).status == 200
    answer = await reader.answer()
    assert (answer.status, answer.body) == (200, b"")
    assert closed_of(answer) == "terminated"
    assert (seq_of(answer), latest_of(answer)) == ("0", "0")
    assert "content-type" not in answer.headers


async def test_case_024_delete_ends_a_body_cleanly(trickle: Trickle) -> None:
    channel = await trickle.create()
    _, reader = await publish_hello_and_read_it(trickle, channel)
    assert (await trickle.delete(channel)).status == 200
    assert await reader.rest() == b""
    assert_no_stream(await trickle.get(f"{channel}/1"))


async def test_case_025_the_second_delete_is_400(either: Trickle) -> None:
    trickle = either
    channel = await trickle.create()
    answer = await trickle.delete(channel)
    assert (answer.status, answer.body) == (200, b"")
    answer = await trickle.delete(channel)
    text = b"invalid stream" if trickle.node else b"Invalid stream"
    assert (answer.status, answer.body.strip()) == (400, text)


@pytest.mark.parametrize(
    ("method", "segment"), [("GET", "0"), ("GET", "-1"), ("GET", "next"), ("DELETE", "0")]
)
async def test_case_026_a_deleted_channel_is_404(
    trickle: Trickle, method: str, segment: str
) -> None:
    channel = await trickle.create()
    await publish_segments(trickle, channel, 1)
    await trickle.delete(channel)
    assert_no_stream(await trickle.request(method, f"{channel}/{segment}"))


async def test_case_026_publish_to_a_deleted_channel_is_404(trickle: Trickle) -> None:
    if trickle.autocreate:
        pytest.skip("needs a server that does not autocreate, so TRICKLE_CREATE set")
    channel = await trickle.create()
    await publish_segments(trickle, channel, 1)
    await trickle.delete(channel)
    publisher = await trickle.start("POST", f"{channel}/1", body=b"data")
    assert_no_stream(await publisher.answer())
    await publisher.assert_closed_by_server()


@pytest.mark.parametrize(
    ("segment", "text"),
    [("7", b"Nonexistent segment"), ("abc", b"Invalid idx"), ("-1", b"Nonexistent segment")],
)
async def test_case_027_delete_of_no_segment_is_400(
    either: Trickle, segment: str, text: bytes
) -> None:
    trickle = either
    if trickle.node and segment == "-1":
        text = b"Invalid idx"
    channel = await trickle.create()
    answer = await trickle.delete(f"{channel}/{segment}")
    assert (answer.status, answer.body.strip()) == (400, text)


async def test_case_028_delete_of_a_segment_releases_its_waiting_reader(trickle: Trickle) -> None:
    channel = await trickle.create()
    reader = await trickle.start("GET", f"{channel}/0")
    await trickle.arrived(channel)
    await reader.assert_silent()
    assert (await trickle.delete(f"{channel}/0")).status == 200
    assert_empty(await reader.answer(), 0)
    assert await trickle.next_write(channel) == 0


async def test_case_028_delete_of_a_segment_ends_its_body(either: Trickle) -> None:
    trickle = either
    channel = await trickle.create()
    publisher, reader = await publish_hello_and_read_it(trickle, channel)
    assert (await trickle.delete(f"{channel}/0")).status == 200
    assert await reader.rest() == b""
    if not trickle.node:  # which interrupts it
        await publisher.send(b" more")
        await publisher.finish()
    assert_published(await publisher.answer(), 0)


@pytest.mark.parametrize(
    ("method", "segment", "body"),
    [("GET", "abc", None), ("POST", "abc", b"data"), ("POST", "-2", b"data"), ("GET", "-5", None)],
)
async def test_case_029_a_seq_is_a_number_that_can_be(
    either: Trickle, method: str, segment: str, body: bytes | None
) -> None:
    trickle = either
    channel = await trickle.create()
    answer = await trickle.request(method, f"{channel}/{segment}", body=body)
    if segment == "-5" and not trickle.node:  # it is one that go-livepeer has not got
        assert_no_entry(answer, -5, 0)
        return
    assert (answer.status, answer.body.strip()) == (400, b"Invalid idx")


@pytest.mark.parametrize(
    ("method", "segment", "allowed"),
    [("PUT", "/0", {"DELETE", "GET", "HEAD", "POST"}), ("GET", "", {"DELETE", "POST"})],
    ids=["put of a segment", "get of a channel"],
)
async def test_case_030_other_methods_are_405(
    trickle: Trickle, method: str, segment: str, allowed: set[str]
) -> None:
    channel = await trickle.create()
    answer = await trickle.request(method, channel + segment, body=b"")
    assert answer.status == 405
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed


async def test_case_031_an_idle_channel_is_swept(start_double: StartDouble) -> None:
    trickle = await start_double(TrickleServer(idle_seconds=1.0, sweep_seconds=0.1))
    channel = await trickle.create()
    reader = await trickle.start("GET", f"{channel}/0")
    answer = await reader.answer()
    assert (answer.status, answer.body) == (200, b"")
    assert closed_of(answer) == "terminated"
    assert seq_of(answer) == "0"
    assert_no_stream(await trickle.get(f"{channel}/0"))


async def test_case_032_a_segment_longer_than_the_idle_time_is_swept_while_written(
    start_double: StartDouble,
) -> None:
    trickle = await start_double(TrickleServer(idle_seconds=1.0, sweep_seconds=0.1))
    channel = await trickle.create()
    publisher, reader = await publish_hello_and_read_it(trickle, channel)
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        reading = group.create_task(reader.rest())
        written = b""
        while not reading.done():
            await publisher.send(b".")
            written += b"."
            await asyncio.wait([reading], timeout=0.25)
    assert written.startswith(reading.result())
    assert reading.result()
    await publisher.finish()
    assert_published(await publisher.answer(), 0)
    assert_no_stream(await trickle.get(f"{channel}/next"))


async def test_case_033_a_reader_may_leave_while_it_waits(either: Trickle) -> None:
    trickle = either
    channel = await trickle.create()
    leaving = await trickle.start("GET", f"{channel}/0")
    staying = await trickle.start("GET", f"{channel}/0")
    await trickle.arrived(channel)
    await leaving.close()
    publisher = await trickle.start("POST", f"{channel}/0", streamed=True)
    await publisher.send(b"hello")
    assert await staying.until(5) == b"hello"
    await publisher.send(b" world")
    await publisher.finish()
    assert_published(await publisher.answer(), 0)
    assert await staying.rest() == b" world"
    assert_data(await trickle.get(f"{channel}/0"), b"hello world", 0, 1)


async def test_case_034_a_reader_that_joins_later_gets_the_same_bytes(trickle: Trickle) -> None:
    channel = await trickle.create()
    publisher, first = await publish_hello_and_read_it(trickle, channel)
    await publisher.send(b", all")
    assert await first.until(5) == b", all"
    second = await trickle.start("GET", f"{channel}/-2")
    assert await second.until(10) == b"Hello, all"
    await publisher.send(b" of you")
    await publisher.finish()
    assert await first.rest() == b" of you"
    assert_data(await second.answer(), b" of you", 0, 1)


async def test_case_035_eight_mebibytes_arrive_unchanged(either: Trickle) -> None:
    trickle = either
    channel = await trickle.create()
    body = random.Random(1).randbytes(8 << 20)
    reader = await trickle.start("GET", f"{channel}/0")
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(reader.answer())
        assert_published(await trickle.publish(channel, 0, body), 0)
    assert seq_of(reading.result()) == "0"
    # Compared as truth values: a difference of this length is nothing to print.
    assert (reading.result().body == body) is True
    assert ((await trickle.get(f"{channel}/0")).body == body) is True


async def test_node_takes_ten_million_bytes_and_not_one_more(node: Trickle) -> None:
    channel = await node.create()
    await node.publish(channel, 0, bytes(10_000_000))
    assert len((await node.get(f"{channel}/0")).body) == 10_000_000
    reader = await node.start("GET", f"{channel}/1")
    publisher = await node.start("POST", f"{channel}/1", body=bytes(10_000_001))
    answer = await publisher.answer()
    assert (answer.status, answer.body.strip()) == (413, b"segment exceeds maximum size")
    assert seq_of(answer) == "1"
    await publisher.assert_closed_by_server()
    assert 0 < len((await reader.answer()).body) <= 10_000_000
    assert await node.next_write(channel) == 2


async def test_node_interrupts_a_publisher_whose_slot_is_taken(node: Trickle) -> None:
    channel = await node.create()
    publisher, reader = await publish_hello_and_read_it(node, channel)
    await node.publish(channel, 5, b"takes its slot")
    assert await reader.rest() == b""
    assert_published(await publisher.answer(), 0)


async def test_node_sweeps_no_channel(start_double: StartDouble) -> None:
    server = TrickleServer(idle_seconds=0.0, sweep_seconds=0.0, node=True)
    trickle = await start_double(server)
    channel = await trickle.create()
    for _ in range(20):  # each a turn of the server's loop, in which go-livepeer's would sweep
        assert await trickle.next_write(channel) == 0


def refusal(status: int | None) -> Exception:
    return ValueError("broken hook") if status is None else Refused(status, "not you")


REFUSALS = pytest.mark.parametrize(
    ("refused", "status"),
    [(401, 401), (429, 429), (302, 400), (503, 400), (None, 500)],
    ids=["401", "429", "302 is none", "503 is none", "plain error"],
)


@REFUSALS
async def test_case_036_the_create_hook_refuses(
    start_double: StartDouble, refused: int | None, status: int
) -> None:
    asked = []

    def refuse_new(channel: str) -> None:
        asked.append(channel)
        if channel.startswith("new"):
            raise refusal(refused)

    trickle = await start_double(TrickleServer(autocreate=True, before_create=refuse_new))
    assert (await trickle.request("POST", "new", body=b"")).status == status
    assert_no_stream(await trickle.get("new/next"))
    assert (await trickle.request("POST", "other", body=b"")).status == 200
    assert await trickle.next_write("other") == 0
    assert asked == ["new", "other"]


@REFUSALS
async def test_case_036_the_delete_hook_refuses_and_the_channel_remains(
    start_double: StartDouble, refused: int | None, status: int
) -> None:
    asked = []

    def refuse(channel: str) -> None:
        asked.append(channel)
        raise refusal(refused)

    trickle = await start_double(TrickleServer(before_delete=refuse))
    channel = await trickle.create()
    await publish_segments(trickle, channel, 1)
    assert (await trickle.delete(channel)).status == status
    assert asked == [channel]
    assert_data(await trickle.get(f"{channel}/0"), segment_body(0), 0, 1)


async def test_next_moves_with_the_first_byte_not_with_the_preconnect(trickle: Trickle) -> None:
    channel = await trickle.create()
    publisher = await trickle.start("POST", f"{channel}/4", streamed=True)
    await trickle.arrived(channel)
    assert await trickle.next_write(channel) == 0
    reader = await trickle.start("GET", f"{channel}/4")
    await publisher.send(b"x")
    assert await reader.until(1) == b"x"
    assert await trickle.next_write(channel) == 5


async def test_a_reader_of_an_evicted_segment_is_released(trickle: Trickle) -> None:
    channel = await trickle.create()
    reader = await trickle.start("GET", f"{channel}/0")
    await trickle.arrived(channel)
    await trickle.publish(channel, 5, b"takes its slot")
    assert_empty(await reader.answer(), 0)


async def test_a_preconnect_evicts_the_segment_five_before(trickle: Trickle) -> None:
    channel = await trickle.create()
    await publish_segments(trickle, channel, 5)
    await trickle.start("POST", f"{channel}/5", streamed=True)
    await trickle.arrived(channel)
    assert_no_entry(await trickle.get(f"{channel}/0"), 0, 5)
    assert_data(await trickle.get(f"{channel}/1"), segment_body(1), 1, 5)


async def test_head_of_a_segment_is_its_headers_only(trickle: Trickle) -> None:
    channel = await trickle.create()
    await publish_segments(trickle, channel, 1)
    assert_data(await trickle.request("HEAD", f"{channel}/0"), b"", 0, 1)


async def test_the_sweep_leaves_names_with_an_underscore(start_double: StartDouble) -> None:
    server = TrickleServer(idle_seconds=1.0, sweep_seconds=0.1)
    server.create("_kept", "text/plain")
    trickle = await start_double(server)
    channel = await trickle.create()
    reader = await trickle.start("GET", f"{channel}/0")
    assert closed_of(await reader.answer()) == "terminated"
    assert await trickle.next_write("_kept") == 0


async def test_the_sweep_leaves_a_channel_where_segments_begin(start_double: StartDouble) -> None:
    trickle = await start_double(TrickleServer(idle_seconds=2.0, sweep_seconds=0.1))
    busy = await trickle.create()
    idle = await trickle.create()
    reader = await trickle.start("GET", f"{idle}/0")
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        released = group.create_task(reader.answer())
        while not released.done():
            await trickle.publish(busy, -1, b".")
            await asyncio.wait([released], timeout=0.1)
    assert closed_of(released.result()) == "terminated"
    assert await trickle.next_write(busy) > 0


async def test_nothing_stays_behind_when_waiting_clients_leave(trickle: Trickle) -> None:
    channel = await trickle.create()
    reader = await trickle.start("GET", f"{channel}/0")
    publisher = await trickle.start("POST", f"{channel}/1", streamed=True)
    await trickle.arrived(channel)
    await reader.close()
    await publisher.close()
    # The rest is seen at the server's end, in double.py: their requests have ended.
    assert await trickle.next_write(channel) == 0
