"""What clients of a channel conclude from an answer, without sockets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.trickle.protocol import (
    BEHIND_SECONDS,
    CLOSED,
    LATEST,
    SEQ,
    ChannelEnded,
    ChannelGone,
    GetStep,
    Next,
    PostStep,
    Sent,
    TrickleError,
    after_broken_post,
    after_get,
    after_post,
    back_off,
    channel_end,
    first_seq,
    parse_seq,
)

GO_INTEGERS = [
    pytest.param("0", 0, id="zero"),
    pytest.param("57", 57, id="a number"),
    pytest.param("007", 7, id="leading zeros are allowed"),
    pytest.param("-1", -1, id="the live edge"),
    pytest.param("+3", 3, id="a plus is allowed"),
]
NO_INTEGERS = [
    pytest.param(None, id="nothing"),
    pytest.param("", id="an empty text"),
    pytest.param("abc", id="letters"),
    pytest.param("1.5", id="a fraction"),
    pytest.param(" 1", id="a space before it"),
    pytest.param("1\n", id="a line end behind it"),
    pytest.param("1_000", id="Python's underscores"),
    pytest.param("٣", id="digits of another script"),
    pytest.param("0x10", id="hexadecimal"),
    pytest.param("9" * 19, id="more than 64 bits hold"),
    pytest.param("--1", id="two signs"),
]


@pytest.mark.parametrize(("text", "seq"), GO_INTEGERS)
def test_a_seq_is_a_decimal_integer(text: str, seq: int) -> None:
    assert parse_seq(text) == seq


@pytest.mark.parametrize("text", NO_INTEGERS)
def test_no_seq_is(text: str | None) -> None:
    assert parse_seq(text) is None


@given(st.text())
def test_any_text_is_a_seq_or_none(text: str) -> None:
    assert parse_seq(text) is None or parse_seq(text) == int(text)


@pytest.mark.parametrize(
    ("asked", "status", "headers", "step"),
    [
        pytest.param(
            4, 200, {SEQ: "4"}, GetStep(Next.READ, 5), id="a segment is read, then the next one"
        ),
        pytest.param(
            -2, 200, {SEQ: "4", LATEST: "5"}, GetStep(Next.READ, 5), id="the newest one is named"
        ),
        pytest.param(-1, 200, {SEQ: "9"}, GetStep(Next.READ, 10), id="and so is the next one"),
        pytest.param(
            4,
            200,
            {SEQ: "7"},
            GetStep(Next.READ, 8, skipped=3),
            id="a segment further on counts what it leaves out",
        ),
        pytest.param(4, 200, {}, GetStep(Next.READ, 5), id="without a number it counts on"),
        pytest.param(
            4, 200, {SEQ: "four"}, GetStep(Next.READ, 5), id="with a garbled number it counts on"
        ),
        pytest.param(
            4, 200, {SEQ: "-3"}, GetStep(Next.READ, 5), id="with a negative number it counts on"
        ),
        pytest.param(
            -2,
            200,
            {},
            GetStep(Next.READ, -1),
            id="the newest one without a number is not read twice",
        ),
        pytest.param(
            -2,
            200,
            {LATEST: "7"},
            GetStep(Next.READ, 7),
            id="the newest one without a number is followed by the live edge that is named",
        ),
        pytest.param(
            -1, 200, {}, GetStep(Next.READ, -1), id="at the live edge without a number it stays"
        ),
        pytest.param(4, 200, {SEQ: "4", CLOSED: "terminated"}, GetStep(Next.END), id="closed"),
        pytest.param(4, 200, {SEQ: "4", CLOSED: ""}, GetStep(Next.END), id="closed with no value"),
        pytest.param(4, 404, {}, GetStep(Next.END), id="a channel that is gone has ended"),
        pytest.param(
            3, 470, {LATEST: "9"}, GetStep(Next.ASK, 9, skipped=6), id="late: it jumps and counts"
        ),
        pytest.param(
            4,
            470,
            {LATEST: "3"},
            GetStep(Next.ASK, 4, seconds=BEHIND_SECONDS),
            id="early: it waits and does not go back",
        ),
        pytest.param(
            4,
            470,
            {LATEST: "4"},
            GetStep(Next.ASK, 4, seconds=BEHIND_SECONDS),
            id="at the live edge it waits",
        ),
        pytest.param(
            -2, 470, {LATEST: "6"}, GetStep(Next.ASK, 6), id="nothing was lost before the first one"
        ),
        pytest.param(
            4, 470, {}, GetStep(Next.ASK, -1, BEHIND_SECONDS), id="late, but nobody says how far"
        ),
        pytest.param(
            4,
            470,
            {LATEST: "?"},
            GetStep(Next.ASK, -1, BEHIND_SECONDS),
            id="late, and how far cannot be read",
        ),
        pytest.param(
            4,
            503,
            {},
            GetStep(Next.ASK, 4, seconds=back_off(1), failed=True),
            id="an error is tried again later",
        ),
        pytest.param(
            4,
            204,
            {},
            GetStep(Next.ASK, 4, seconds=back_off(1), failed=True),
            id="a success that trickle does not have is an error",
        ),
    ],
)
def test_after_a_get(asked: int, status: int, headers: dict[str, str], step: GetStep) -> None:
    assert after_get(asked, status, headers, 0) == step


@given(
    asked=st.integers(-2, 1000),
    status=st.sampled_from([200, 404, 470, 500]),
    seq=st.none() | st.integers(-5, 1000).map(str) | st.text(max_size=5),
    latest=st.none() | st.integers(-5, 1000).map(str) | st.text(max_size=5),
    failures=st.integers(0, 10_000),
)
def test_a_subscriber_never_goes_back_nor_asks_in_a_tight_loop(
    asked: int, status: int, seq: str | None, latest: str | None, failures: int
) -> None:
    named = ((SEQ, seq), (LATEST, latest))
    headers = {name: value for name, value in named if value is not None}
    step = after_get(asked, status, headers, failures)
    assert step.skipped >= 0
    assert step.seconds >= 0
    if step.then is Next.READ and asked < 0:
        assert step.seq >= -1
    if step.then is Next.ASK:
        assert step.seconds > 0 or step.seq != asked or step.seq < 0
    if status != 470 and step.then is Next.ASK:
        assert step.seq == asked


def test_failures_in_a_row_are_tried_ever_later() -> None:
    delays = [after_get(3, 500, {}, failures).seconds for failures in range(8)]
    assert delays == sorted(delays)
    assert delays[0] > 0
    assert delays[-1] == delays[-2] <= 5
    assert back_off(100_000) == delays[-1]


@pytest.mark.parametrize(
    ("posted", "status", "headers", "step"),
    [
        pytest.param(4, 200, {SEQ: "4"}, PostStep(5), id="taken: the next one"),
        pytest.param(-1, 200, {SEQ: "4"}, PostStep(5), id="the channel chose the number"),
        pytest.param(4, 200, {}, PostStep(5), id="without a number it counts on"),
        pytest.param(4, 200, {SEQ: "x"}, PostStep(5), id="with a garbled number it counts on"),
        pytest.param(-1, 200, {}, PostStep(-1), id="the channel goes on choosing"),
        pytest.param(4, 404, {}, PostStep(4, ended=True), id="gone"),
        pytest.param(
            4, 200, {CLOSED: "terminated", SEQ: "4"}, PostStep(4, ended=True), id="closed"
        ),
        pytest.param(4, 200, {CLOSED: ""}, PostStep(4, ended=True), id="closed with no value"),
        pytest.param(
            4,
            500,
            {},
            PostStep(5, again=True, seconds=back_off(1)),
            id="refused with the body sent: once more, to the next one",
        ),
        pytest.param(
            -1,
            503,
            {},
            PostStep(-1, again=True, seconds=back_off(1)),
            id="refused where the channel chooses: once more",
        ),
    ],
)
def test_after_a_post(posted: int, status: int, headers: dict[str, str], step: PostStep) -> None:
    assert after_post(posted, status, headers) == step


@pytest.mark.parametrize(
    ("posted", "sent", "seq"),
    [
        pytest.param(4, Sent.NOTHING, 4, id="nothing was taken: the same"),
        pytest.param(4, Sent.SOMETHING, 5, id="something may have been: never the same"),
        pytest.param(-1, Sent.SOMETHING, -1, id="the channel chooses another"),
        pytest.param(-1, Sent.NOTHING, -1, id="the channel still chooses"),
    ],
)
def test_after_a_post_that_broke_off(posted: int, sent: Sent, seq: int) -> None:
    step = after_broken_post(posted, sent, 3)
    assert step == PostStep(seq, again=True, seconds=back_off(3))


@pytest.mark.parametrize(
    ("status", "body", "seq"),
    [
        pytest.param(200, "7", 7, id="the number"),
        pytest.param(200, "7\n", 7, id="the number on a line"),
        pytest.param(200, "0", 0, id="a fresh channel"),
        pytest.param(400, "Invalid idx\n", -1, id="a server that has no such path"),
        pytest.param(404, "404 page not found\n", -1, id="a path that is not there"),
        pytest.param(200, "<html>", -1, id="something else altogether"),
        pytest.param(200, "-4", -1, id="no segment's number"),
        pytest.param(200, "", -1, id="nothing"),
    ],
)
def test_where_a_publisher_begins(status: int, body: str, seq: int) -> None:
    assert first_seq(status, body) == seq


def test_errors_name_their_channel() -> None:
    assert str(TrickleError("http://o/c", "gave up")) == "channel http://o/c: gave up"
    assert issubclass(ChannelEnded, TrickleError)
    assert issubclass(ChannelGone, ChannelEnded)
    assert ChannelEnded.code != TrickleError.code


@pytest.mark.parametrize(("status", "gone"), [(404, True), (200, False)])
def test_a_channel_that_is_not_there_is_told_apart_from_one_that_was_closed(
    status: int, gone: bool
) -> None:
    error = channel_end("http://o/c", status)
    assert isinstance(error, ChannelGone) is gone
    assert str(error) == f"channel http://o/c: ended with status {status}"
