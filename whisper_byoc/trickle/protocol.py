"""What the server of a channel answers, and what its client does then (pure).

`Subscriber` and `Publisher` hand every outcome of a request to one of these functions and do what
the step that it returns says.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from whisper_byoc.errors import ServiceError

SEQ: Final = "Lp-Trickle-Seq"
LATEST: Final = "Lp-Trickle-Latest"
CLOSED: Final = "Lp-Trickle-Closed"
RESET: Final = "Lp-Trickle-Reset"
EXPECT_CONTENT: Final = "Expect-Content"
TERMINATED: Final = "terminated"
NO_SEGMENT: Final = 470
"""The channel is there, this segment is not. No registered status, so no HTTPStatus."""

BEHIND_SECONDS: Final = 0.25
"""Before a segment that the channel has not come to yet is asked for again."""
_FIRST_DELAY, _MAX_DELAY = 0.25, 4.0


class TrickleError(ServiceError):
    """A channel cannot be used any longer; `url` names it."""

    code = "trickle_failed"
    text = "channel {url}: {problem}"

    url: str
    problem: str


class ChannelEnded(TrickleError):
    """The clean end: the channel is closed, or gone."""

    code = "channel_ended"


class ChannelGone(ChannelEnded):
    """The server knows no such channel: it was deleted before, or the server has begun anew and
    knows none of those it had."""

    code = "channel_gone"


def channel_end(url: str, status: int) -> ChannelEnded:
    """What to raise when an answer with this status was the end of a channel."""
    ended = ChannelGone if status == 404 else ChannelEnded
    return ended(url, f"ended with status {status}")


def parse_seq(text: str | None) -> int | None:
    """A decimal integer as Go's Atoi takes it; None for anything else."""
    if text is None or not re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII):
        return None
    return int(text)


def back_off(failures: int) -> float:
    """Seconds before the next try, after so many failures in a row."""
    return float(min(_FIRST_DELAY * 2 ** min(failures - 1, 16), _MAX_DELAY))


class Next(Enum):
    """What a client does after a request."""

    READ = auto()
    """This segment has data: read it, then ask for `seq`."""
    ASK = auto()
    """Ask for `seq`, after `seconds`."""
    END = auto()
    """The channel is over."""


@dataclass(frozen=True, slots=True)
class GetStep:
    """`skipped`: segments that were lost on the way to `seq`."""

    then: Next
    seq: int = 0
    seconds: float = 0.0
    skipped: int = 0
    failed: bool = False


def after_get(asked: int, status: int, headers: Mapping[str, str], failures: int) -> GetStep:
    """What a subscriber does with an answer to `GET {channel}/{asked}`.

    asked: a seq, or -1 or -2. headers: looked up by their names above. failures: in a row before
    this one.
    """
    latest = parse_seq(headers.get(LATEST))
    if status == 200:
        if headers.get(CLOSED) is not None:
            return GetStep(Next.END)
        # Where the answer has no number, the number asked for counts; where that was -1 or -2, the
        # next request asks for the live edge.
        seq = parse_seq(headers.get(SEQ))
        seq = asked if seq is None or seq < 0 else seq
        skipped = seq - asked if 0 <= asked < seq else 0
        edge = -1 if latest is None or latest < 0 else latest
        return GetStep(Next.READ, seq + 1 if seq >= 0 else edge, skipped=skipped)
    if status == 404:
        return GetStep(Next.END)
    if status == NO_SEGMENT:
        if latest is None:
            return GetStep(Next.ASK, -1, seconds=BEHIND_SECONDS)
        if latest > asked:
            return GetStep(Next.ASK, latest, skipped=latest - asked if asked >= 0 else 0)
        return GetStep(Next.ASK, asked, seconds=BEHIND_SECONDS)
    return GetStep(Next.ASK, asked, seconds=back_off(failures + 1), failed=True)


class Sent(Enum):
    """How far a POST came before it failed."""

    NOTHING = auto()
    SOMETHING = auto()


@dataclass(frozen=True, slots=True)
class PostStep:
    """`again`: the same message is to be sent once more, to `seq`."""

    seq: int
    again: bool = False
    ended: bool = False
    seconds: float = 0.0


def after_post(posted: int, status: int, headers: Mapping[str, str]) -> PostStep:
    """What a publisher does with an answer to `POST {channel}/{posted}`; posted may be -1."""
    if status == 404 or headers.get(CLOSED) is not None:
        return PostStep(posted, ended=True)
    following = posted + 1 if posted >= 0 else posted
    if status == 200:
        seq = parse_seq(headers.get(SEQ))
        return PostStep(seq + 1 if seq is not None and seq >= 0 else following)
    return PostStep(following, again=True, seconds=back_off(1))


def after_broken_post(posted: int, sent: Sent, failures: int) -> PostStep:
    """What a publisher does after a POST without an answer: it sends the message again, to the same
    segment where no byte was taken, and else to the next. A server would append the message to a
    segment that holds something, or drop it without a word.

    failures: in a row, this one included.
    """
    same = sent is Sent.NOTHING or posted < 0
    return PostStep(posted if same else posted + 1, again=True, seconds=back_off(failures))


def first_seq(status: int, body: str) -> int:
    """Where a publisher begins, by the answer to `GET {channel}/next`. An orchestrator before
    go-livepeer 0.8.11 does not know the path: -1 lets it choose."""
    seq = parse_seq(body.strip())
    return seq if status == 200 and seq is not None and seq >= 0 else -1
