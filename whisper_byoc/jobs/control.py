"""Control messages: the JSON objects by which a caller changes a job while it runs (pure)."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from whisper_byoc.errors import BadMessage, InvalidOption

MAX_CONTROL_BYTES = 65536
_NAME = "control message"


class Control(StrEnum):
    """What a control message asks for, as its `type` says it."""

    START = "start"
    """Begin a job with these options; its audio follows."""
    OPTIONS = "options"
    """Change some options, from now on."""
    FINALIZE = "finalize"
    """Make all that was said so far final; the stream goes on."""
    KEEPALIVE = "keepalive"
    """Put off the idle limit."""
    CLOSE = "close"
    """Take no more audio, and flush."""


def parse_object(
    body: bytes, example: str, name: str | None = None, *, repeatable: bool = True
) -> dict[str, Any]:
    """The JSON object in `body`.

    example: of such an object, for the error. name: what the error calls it. repeatable: refuse
    what Python reads and could not write as JSON again (NaN, half of a surrogate pair), since
    options come back in status documents.
    Raises InvalidOption of `name` for anything else, or BadMessage where there is no name.
    """
    try:
        message = json.loads(body)
        if repeatable:
            json.dumps(message, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict):
        return message
    found, expected = body[:80].decode("utf-8", "replace"), f"a JSON object such as {example}"
    if name is not None:
        raise InvalidOption(name, found, expected)
    raise BadMessage(repr(found) if body else "empty", expected)


def parse_control(body: bytes) -> dict[str, Any]:
    """The JSON object of a control message. Raises InvalidOption when the body is none."""
    return parse_object(body, '{"type": "finalize"}', _NAME)


def too_long(found: str, expected: str) -> InvalidOption:
    """The refusal of a control message for its length."""
    return InvalidOption(_NAME, found, expected)


def read_control(message: Mapping[str, Any]) -> tuple[Control, dict[str, Any]]:
    """What a control message asks for, and the options it brings. Raises InvalidOption."""
    asked = str(message.get("type"))
    if asked not in list(Control):
        raise InvalidOption("type", asked, "one of " + ", ".join(Control))
    kind = Control(asked)
    names = ("type", "options") if kind in (Control.START, Control.OPTIONS) else ("type",)
    for name in message:
        if name not in names:
            raise InvalidOption(_NAME, name, "no more than " + " and ".join(names))
    values = message.get("options", {})
    if not isinstance(values, dict):
        raise InvalidOption("options", json.dumps(values), "a JSON object")
    return kind, values
