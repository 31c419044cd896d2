"""Control messages, and the JSON objects that they are."""

import json
from typing import Any

import pytest

from whisper_byoc.errors import BadMessage, InvalidOption
from whisper_byoc.jobs.control import Control, parse_control, parse_object, read_control


@pytest.mark.parametrize(
    ("body", "found"),
    [
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b"[1]", "'[1]'", id="a list"),
        pytest.param(b'{"a":1}{"b":2}', '\'{"a":1}{"b":2}\'', id="two objects"),
        pytest.param(b'{"a":NaN}', "'{\"a\":NaN}'", id="a number that JSON has not"),
        pytest.param(b'{"a":"\\ud800"}', "ud800", id="half of a surrogate pair"),
        pytest.param(b"\xff", "'\ufffd'", id="bytes that are no text"),
        pytest.param(b"[" * 100_000, "[[[", id="lists nested too deep"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_beginning(body: bytes, found: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse_object(body, '{"a": 1}')
    assert found in str(caught.value)
    assert str(caught.value).endswith('expected a JSON object such as {"a": 1}')
    assert len(str(caught.value)) < 200


def test_what_is_not_to_be_written_again_may_hold_anything() -> None:
    assert parse_object(b'{"a":"\\ud800"}', "{}", repeatable=False) == {"a": "\ud800"}


def test_a_json_object_is_read() -> None:
    assert parse_object(b'{"a": {"b": [1, "\xc3\xa4"]}}', "{}") == {"a": {"b": [1, "ä"]}}


def test_a_control_message_that_is_none_is_named() -> None:
    with pytest.raises(InvalidOption, match=r"^control message is 'keep', expected a JSON object"):
        parse_control(b"keep")


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"type": "finalize"}, (Control.FINALIZE, {})),
        ({"type": "start"}, (Control.START, {})),
        ({"type": "options", "options": {"words": "no"}}, (Control.OPTIONS, {"words": "no"})),
    ],
    ids=["finalize", "start without options", "options with their values"],
)
def test_a_control_message_asks_for(
    message: dict[str, Any], read: tuple[Control, dict[str, Any]]
) -> None:
    assert read_control(parse_control(json.dumps(message).encode())) == read


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({}, "type is 'None', expected one of start, options, finalize, keepalive, close"),
        ({"type": ["start"]}, "type is \"['start']\", expected one of"),
        ({"type": "close", "options": {}}, "'options', expected no more than type"),
        ({"type": "start", "more": 1}, "'more', expected no more than type and options"),
        ({"type": "start", "options": [1]}, "options is '[1]', expected a JSON object"),
    ],
    ids=["without a type", "of a strange type", "with options", "with more", "with a list"],
)
def test_a_control_message_is_refused(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        read_control(message)
    assert problem in str(caught.value)
