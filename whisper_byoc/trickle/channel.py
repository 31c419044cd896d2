"""One trickle channel: which segment a request means, and what is kept (pure).

The rules are those of go-livepeer's trickle server, measured on the wire.
"""

from collections.abc import Callable
from typing import Final

NUM_SLOTS: Final = 5
"""Segments that go-livepeer keeps."""

NEXT: Final = -1
"""In place of a seq: the segment that will be written next."""

NEWEST: Final = -2
"""In place of a seq: the segment that was begun last."""


def resolve(asked: int, latest: int) -> int:
    """The seq that is meant; latest: the one that will be written next."""
    if asked == NEXT:
        return latest
    return max(0, latest - 1) if asked == NEWEST else asked


def is_awaited(seq: int, latest: int) -> bool:
    """Whether a GET waits for this seq: it is the next, or the one behind a first that has not come
    yet."""
    return seq == latest or (latest, seq) == (0, 1)


class Segment:
    """One numbered body. It grows while it is open, and is read from any offset."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.closed = False
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def read(self, offset: int = 0) -> bytes:
        """The bytes from `offset` to what is there so far."""
        return bytes(self._data[offset:])


class Channel:
    """The last segments of one stream, by seq modulo the number of slots.

    Driven by whoever serves it; `notify` is called after every change that a reader may wait for.
    Owns its segments: nobody else writes to one. Memory is bounded by the slots, and by `max_bytes`
    where it is given: the oldest segments give way, but never the one that is being written.
    """

    def __init__(
        self,
        *,
        num_slots: int = NUM_SLOTS,
        max_bytes: int | None = None,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        self.closed = False
        self.next_write = 0
        self._notify = notify
        self.num_slots = num_slots
        self._max_bytes = max_bytes
        self._slots: dict[int, Segment] = {}
        self._num_bytes = 0

    def begin(self, asked: int) -> Segment:
        """The segment that a POST to `asked` writes to. Where it is closed, what is written to it
        is dropped."""
        seq = self.next_write if asked == NEXT else asked
        kept = self._kept(seq)
        return kept if kept is not None else self._place(seq)

    def receive_first_byte(self, segment: Segment) -> None:
        """A body for this segment has begun, or has ended without a byte. The segment after it is
        the next to be written, even where that moves the live edge back."""
        self.next_write = segment.seq + 1
        self._notify()

    def write(self, segment: Segment, data: bytes) -> None:
        """Append; what comes for a closed segment is dropped."""
        if segment.closed or not data:
            return
        segment._data += data
        if self._kept(segment.seq) is segment:
            self._num_bytes += len(data)
            self._make_room(segment)
        self._notify()

    def end(self, segment: Segment) -> None:
        segment.closed = True
        self._notify()

    def reset(self, seq: int) -> None:
        """The publisher has begun anew at `seq`. What it left open before will get no end, so it is
        closed."""
        for segment in self._slots.values():
            if segment.seq < seq:
                segment.closed = True
        self._notify()

    def find(self, asked: int) -> Segment | None:
        """The segment that a GET of `asked` reads; None where the channel has none (470).

        One that is about to be written is made, and waits.
        """
        seq = self.resolve(asked)
        kept = self._kept(seq)
        if kept is not None:
            return kept
        return self._place(seq) if is_awaited(seq, self.next_write) else None

    def resolve(self, asked: int) -> int:
        return resolve(asked, self.next_write)

    def first_from(self, seq: int) -> Segment | None:
        """The first segment at or behind `seq` that is there; for readers in this process."""
        behind = [segment for segment in self._slots.values() if segment.seq >= seq]
        return min(behind, key=lambda segment: segment.seq, default=None)

    def forget_before(self, seq: int) -> None:
        """Drop closed segments below `seq`."""
        for slot in self._oldest_first():
            if self._slots[slot].seq < seq and self._slots[slot].closed:
                self._drop(slot)

    def delete(self, seq: int) -> bool:
        """Close one segment; False where there is none."""
        segment = self._kept(seq)
        if segment is None:
            return False
        self.end(segment)
        return True

    def close(self) -> None:
        """End of the stream: every segment ends where it is, and nothing is kept."""
        self.closed = True
        for segment in self._slots.values():
            segment.closed = True
        self._slots.clear()
        self._num_bytes = 0
        self._notify()

    def _kept(self, seq: int) -> Segment | None:
        segment = self._slots.get(seq % self.num_slots)
        return segment if segment is not None and segment.seq == seq else None

    def _place(self, seq: int) -> Segment:
        """A new segment in its slot. The segment that had the slot is closed, so that its readers
        end when they have read the rest of it."""
        self._drop(seq % self.num_slots)
        segment = self._slots[seq % self.num_slots] = Segment(seq)
        return segment

    def _make_room(self, written: Segment) -> None:
        for slot in self._oldest_first():
            if self._max_bytes is None or self._num_bytes <= self._max_bytes:
                return
            if self._slots[slot] is not written:
                self._drop(slot)

    def _oldest_first(self) -> list[int]:
        return sorted(self._slots, key=lambda slot: self._slots[slot].seq)

    def _drop(self, slot: int) -> None:
        segment = self._slots.pop(slot, None)
        if segment is not None:
            self._num_bytes -= len(segment)
            self.end(segment)
