"""A scripted orchestrator's runners and sessions, what it answers, what follows from it (pure)."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from whisper_sim.heartbeat_fields import Fields


@dataclass(frozen=True, slots=True)
class Answer:
    """document: of JSON; None is an empty body. text: of an error, in place of a document. plain:
    whether the text is Go's own, and no JSON in any dialect. last: whether the connection is closed
    behind it."""

    status: int
    document: Any = None
    text: str | None = None
    plain: bool = False
    last: bool = False


class Refused(Exception):
    """A call is answered with an error."""

    def __init__(self, status: int, text: str, *, last: bool = False) -> None:
        super().__init__(status, text)
        self.answer = Answer(status, text=text, last=last)


@dataclass
class Session:
    """token: for the runner's callbacks. pending: not paid yet. channels: by the name that the
    runner gave, what each is called in its URL. label: of its generated proxy, empty without."""

    session_id: str
    runner_id: str
    token: str
    created: float
    pending: bool = False
    label: str = ""
    channels: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Runner:
    """credential: its heartbeat secret, None of a static one. healthy: of static ones, what their
    last poll found. o2r: the name of its channel."""

    runner_id: str
    fields: Fields
    credential: str | None = None
    last_beat: float = 0.0
    healthy: bool = True
    health_url: str = ""
    health_code: int = 200
    o2r: str = ""
    sessions: dict[str, Session] = field(default_factory=dict)


class Change(StrEnum):
    JOINED = "joined"
    """A runner has registered: its o2r channel begins."""
    RESERVED = "reserved"
    RELEASED = "released"
    """The session is over: its requests are cut, its channels closed."""
    LEFT = "left"
    """A runner is gone: its o2r channel ends."""


@dataclass(frozen=True, slots=True)
class Effect:
    change: Change
    runner: Runner
    session: Session | None = None
