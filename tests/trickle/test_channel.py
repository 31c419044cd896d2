"""Which segment a request means and what is kept, without sockets."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from whisper_byoc.trickle.channel import NEWEST, NEXT, NUM_SLOTS, Channel, Segment


def publish(channel: Channel, asked: int, data: bytes = b"x") -> Segment:
    """A whole body, as a server takes it."""
    segment = channel.begin(asked)
    channel.receive_first_byte(segment)
    channel.write(segment, data)
    channel.end(segment)
    return segment


def published(count: int) -> Channel:
    """A channel that has taken so many segments, each with its number."""
    channel = Channel()
    for seq in range(count):
        publish(channel, seq, b"%d" % seq)
    return channel


def body(channel: Channel, asked: int) -> bytes | None:
    segment = channel.find(asked)
    return None if segment is None else segment.read()


# Which segment


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        pytest.param(0, True, id="the first"),
        pytest.param(1, True, id="the second, for a preconnecting reader"),
        pytest.param(NEXT, True, id="the next"),
        pytest.param(NEWEST, True, id="the newest"),
        pytest.param(2, False, id="but not the third"),
    ],
)
def test_on_a_fresh_channel_a_reader_waits_for(asked: int, waits: bool) -> None:
    found = Channel().find(asked)
    assert (found is not None) == waits
    if found is not None:
        assert (len(found), found.closed) == (0, False)


def test_a_reader_of_the_second_is_served_when_the_publisher_comes_to_it() -> None:
    channel = Channel()
    early = channel.find(1)
    publish(channel, 0, b"a")
    assert channel.begin(1) is early


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        *(pytest.param(seq, None, id=f"{seq} has given way") for seq in range(4)),
        *(pytest.param(seq, b"%d" % seq, id=f"{seq} is there") for seq in range(4, 9)),
        pytest.param(9, b"", id="9 is waited for"),
        pytest.param(10, None, id="10 is too far ahead"),
        pytest.param(NEWEST, b"8", id="the newest is 8"),
        pytest.param(NEXT, b"", id="the next is waited for"),
        pytest.param(-5, None, id="a negative number is no segment's"),
    ],
)
def test_after_nine_segments(asked: int, found: bytes | None) -> None:
    assert body(published(9), asked) == found


def test_a_leap_ahead_leaves_the_other_slots_alone() -> None:
    channel = published(9)
    publish(channel, 20)
    assert channel.next_write == 21
    assert body(channel, 8) == b"8"
    assert body(channel, 5) is None  # 20 has its slot


def test_a_leap_back_moves_the_live_edge_back() -> None:
    channel = published(9)
    publish(channel, 5)
    assert channel.next_write == 6


def test_a_completed_segment_keeps_its_bytes_and_takes_no_others() -> None:
    channel = published(3)
    publish(channel, 1, b"another")
    assert body(channel, 1) == b"1"
    assert channel.next_write == 2


def test_an_open_segment_goes_on_where_it_broke_off() -> None:
    channel = Channel()
    broken = channel.begin(0)
    channel.receive_first_byte(broken)
    channel.write(broken, b"hello")
    publish(channel, 0, b"-resumed")
    assert body(channel, 0) == b"hello-resumed"


def test_a_body_without_a_byte_moves_the_live_edge_too() -> None:
    channel = published(2)
    publish(channel, NEXT, b"")
    found = channel.find(2)
    assert found is not None
    assert (found.read(), found.closed, channel.next_write) == (b"", True, 3)


def test_the_next_is_where_the_live_edge_is() -> None:
    channel = published(4)
    assert publish(channel, NEXT).seq == 4
    assert channel.resolve(NEXT) == 5
    assert channel.resolve(NEWEST) == 4
    assert Channel().resolve(NEWEST) == 0


# What ends a segment


def test_a_preconnected_publisher_pushes_the_fifth_last_out() -> None:
    channel = Channel()
    oldest = channel.begin(0)
    channel.receive_first_byte(oldest)
    channel.write(oldest, b"never ended")
    for seq in range(1, NUM_SLOTS):
        publish(channel, seq)
    assert not oldest.closed
    channel.begin(NUM_SLOTS)
    assert oldest.closed
    assert oldest.read() == b"never ended"


def test_a_publisher_that_begins_anew_frees_who_waits_below_it_only() -> None:
    channel = Channel()
    opened = [channel.begin(seq) for seq in range(3)]
    channel.receive_first_byte(opened[0])
    channel.write(opened[0], b"Hello")
    channel.reset(1)
    assert [segment.closed for segment in opened] == [True, False, False]
    assert body(channel, 0) == b"Hello"


def test_deleting_a_segment_ends_it() -> None:
    channel = Channel()
    segment = channel.begin(0)
    assert channel.delete(0)
    assert segment.closed
    assert not channel.delete(7)


def test_closing_ends_every_segment_and_keeps_nothing() -> None:
    channel = published(3)
    waiting = channel.find(NEXT)
    channel.close()
    assert waiting is not None
    assert waiting.closed
    assert channel.closed
    assert channel.first_from(0) is None


# What is kept


def test_forgetting_leaves_open_segments_and_those_ahead() -> None:
    channel = Channel()
    for seq in range(2):
        publish(channel, seq)
    opened = channel.begin(2)
    publish(channel, 3)
    channel.forget_before(3)
    assert channel.first_from(0) is opened
    assert body(channel, 3) == b"x"


def test_the_oldest_give_way_when_there_are_too_many_bytes() -> None:
    channel = Channel(num_slots=100, max_bytes=10)
    for seq in range(6):
        publish(channel, seq, b"abc")
    oldest = channel.first_from(0)
    assert oldest is not None
    assert oldest.seq == 3
    assert oldest.read() == b"abc"


def test_a_segment_longer_than_all_that_may_wait_keeps_its_beginning() -> None:
    channel = Channel(num_slots=100, max_bytes=4)
    publish(channel, 0, b"ab")
    assert publish(channel, 1, b"abcdefgh").read() == b"abcdefgh"
    assert channel.find(0) is None


class Model(RuleBasedStateMachine):
    """Any order of requests: the bounds hold, and who reads a segment sees all that it takes."""

    slots = NUM_SLOTS
    max_bytes: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0
        self.channel = Channel(num_slots=self.slots, max_bytes=self.max_bytes, notify=self._notify)
        self.seen: dict[int, tuple[Segment, bytearray]] = {}
        self.largest = 0

    segments = Bundle("segments")

    def _notify(self) -> None:
        self.changes += 1

    def _watched(self, segment: Segment) -> Segment:
        if id(segment) not in self.seen:
            self.seen[id(segment)] = (segment, bytearray(segment.read()))
        return segment

    @rule(target=segments, asked=st.just(NEXT) | st.integers(-1, 12))
    def begin(self, asked: int) -> Segment:
        return self._watched(self.channel.begin(asked))

    @rule(segment=segments)
    def receive_first_byte(self, segment: Segment) -> None:
        self.channel.receive_first_byte(segment)
        assert self.channel.next_write == segment.seq + 1

    @rule(segment=segments, data=st.binary(max_size=6))
    def write(self, segment: Segment, data: bytes) -> None:
        before, changes = segment.closed, self.changes
        self.channel.write(segment, data)
        if not before:
            self.seen[id(segment)][1].extend(data)
            assert self.changes > changes or not data
        self.largest = max(self.largest, len(segment))

    @rule(segment=segments)
    def end(self, segment: Segment) -> None:
        changes = self.changes
        self.channel.end(segment)
        assert segment.closed
        assert self.changes > changes

    @rule(seq=st.integers(0, 12))
    def reset(self, seq: int) -> None:
        self.channel.reset(seq)

    @rule(seq=st.integers(0, 12))
    def forget_before(self, seq: int) -> None:
        self.channel.forget_before(seq)

    @rule(seq=st.integers(0, 12))
    def delete(self, seq: int) -> None:
        self.channel.delete(seq)

    @rule(asked=st.sampled_from([NEXT, NEWEST]) | st.integers(-7, 12))
    def find(self, asked: int) -> None:
        found = self.channel.find(asked)
        if asked in (NEXT, self.channel.next_write):
            assert found is not None
        if found is not None:
            assert found.seq == self.channel.resolve(asked)
            self._watched(found)

    @precondition(lambda self: self.changes > 20)
    @rule()
    def close(self) -> None:
        self.channel.close()
        assert all(self.channel.first_from(seq) is None for seq in range(13))

    @invariant()
    def readers_see_every_byte(self) -> None:
        for segment, written in self.seen.values():
            assert segment.read() == written
            assert segment.read(2) == written[2:]

    @invariant()
    def bounds_hold(self) -> None:
        kept = []
        seq = 0
        while (segment := self.channel.first_from(seq)) is not None:
            kept.append(segment)
            seq = segment.seq + 1
        assert len(kept) <= self.slots
        assert len({segment.seq % self.slots for segment in kept}) == len(kept)
        if self.max_bytes is not None:
            # One segment, that which is being written, may be longer than all that may wait.
            assert sum(map(len, kept)) <= max(self.max_bytes, self.largest)


class Bounded(Model):
    slots = 64
    max_bytes = 16


TestFiveSlots = Model.TestCase
TestFiveSlots.settings = settings(max_examples=60)
TestBoundedByBytes = Bounded.TestCase
TestBoundedByBytes.settings = settings(max_examples=60)


@given(st.lists(st.integers(0, 30), min_size=1))
def test_what_is_read_in_order_never_goes_back(seqs: list[int]) -> None:
    channel = Channel()
    position = 0
    for seq in seqs:
        publish(channel, seq)
        found = channel.first_from(position)
        if found is not None:
            assert found.seq >= position
            position = found.seq + 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda it: it.receive_first_byte(it.begin(1)), id="a body begins"),
        pytest.param(lambda it: it.write(it.begin(1), b"x"), id="bytes come"),
        pytest.param(lambda it: it.end(it.begin(1)), id="a body ends"),
        pytest.param(lambda it: it.reset(9), id="the publisher begins anew"),
        pytest.param(lambda it: it.delete(0), id="a segment is deleted"),
        pytest.param(lambda it: it.begin(5), id="a segment gives way"),
        pytest.param(lambda it: it.forget_before(1), id="a segment is forgotten"),
        pytest.param(lambda it: it.close(), id="the channel is closed"),
    ],
)
def test_readers_are_woken_when(change: Callable[[Channel], object]) -> None:
    told: list[bool] = []
    channel = Channel(notify=lambda: told.append(True))
    publish(channel, 0)
    told.clear()
    change(channel)
    assert told
