"""What orchestrators send and what they are told, without sockets."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import BadMessage, ForbiddenUrl, InvalidOption
from whisper_byoc.jobs.job import DIRECT, JobKey
from whisper_byoc.jobs.options import JobOptions, ProcessorOptions
from whisper_byoc.orchestrator.messages import (
    KEEPALIVE_LINE,
    Account,
    JobReport,
    StartRequest,
    StreamState,
    data_line,
    heartbeat_event,
    known_options,
    parse_start,
    parse_update,
    status_event,
    wrapped,
)
from whisper_byoc.transcript import (
    MAX_LINE_BYTES,
    End,
    Endpoint,
    EndReason,
    Event,
    Failure,
    Final,
    Partial,
    Payload,
    Word,
)

ANY_HOST: frozenset[str] | None = None
URLS: dict[str, Any] = {
    "subscribe_url": "https://orch:8935/ai/trickle/s",
    "publish_url": "https://orch:8935/ai/trickle/s-out",
    "control_url": "https://orch:8935/ai/trickle/s-control",
    "events_url": "https://orch:8935/ai/trickle/s-events",
    "data_url": "https://orch:8935/ai/trickle/s-data",
}
TEXT = st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


def start(
    hosts: frozenset[str] | None = ANY_HOST, named: str | None = None, **fields: Any
) -> StartRequest:
    return parse_start(json.dumps(fields).encode(), named, hosts)


# Start


def test_a_start_names_its_channels() -> None:
    request = start(gateway_request_id="s", params={"language": "de"}, **URLS)
    assert request == StartRequest("s", params={"language": "de"}, **URLS)


def test_a_start_may_name_only_some() -> None:
    given_ = {name: URLS[name] for name in ("control_url", "events_url")}
    request = start(gateway_request_id="s", params=None, data_url="", publish_url=None, **given_)
    assert request == StartRequest("s", **given_)
    assert request.params == {}


def test_a_start_may_say_more_than_we_know() -> None:
    request = start(gateway_request_id="s", manifest_id="m", enable_video_ingress=True, x=[1])
    assert request == StartRequest("s")


@pytest.mark.parametrize(
    ("fields", "named", "found"),
    [
        pytest.param({"gateway_request_id": "a", "stream_id": "b"}, "c", "a", id="BYOC's first"),
        pytest.param({"stream_id": "b"}, "c", "b", id="then that of live video"),
        pytest.param({"request_id": "b"}, None, "b", id="then PyTrickle's"),
        pytest.param({}, "c", "c", id="then the header's"),
        pytest.param({"gateway_request_id": ""}, "c", "c", id="an empty one is none"),
        pytest.param({"gateway_request_id": None}, "c", "c", id="null is none"),
    ],
)
def test_the_id_is(fields: dict[str, Any], named: str | None, found: str) -> None:
    assert start(named=named, **fields).stream_id == found


@pytest.mark.parametrize(
    ("body", "error"),
    [
        pytest.param(b"", BadMessage, id="nothing"),
        pytest.param(b"stream", BadMessage, id="no JSON"),
        pytest.param(b"[]", BadMessage, id="an array"),
        pytest.param(b'"s"', BadMessage, id="a text"),
        pytest.param(b"null", BadMessage, id="null"),
        pytest.param(b"\xff", BadMessage, id="no UTF-8"),
        pytest.param(b"{}", BadMessage, id="without an id"),
        pytest.param(b"[" * 100_000, BadMessage, id="brackets without end"),
        pytest.param(b'{"stream_id":"s","params":{"x":NaN}}', BadMessage, id="NaN"),
        pytest.param(b'{"stream_id":"s","params":{"x":1e999}}', BadMessage, id="infinity"),
        pytest.param(b'{"stream_id":"\\ud800"}', BadMessage, id="half a character"),
        pytest.param(b'{"stream_id":5}', InvalidOption, id="an id that is no text"),
        pytest.param(
            b'{"stream_id":"' + b"s" * 513 + b'"}', InvalidOption, id="an id that is too long"
        ),
        pytest.param(b'{"stream_id":"s","params":[]}', InvalidOption, id="params as an array"),
        pytest.param(b'{"stream_id":"s","params":"{}"}', InvalidOption, id="params as a text"),
        pytest.param(b'{"stream_id":"s","data_url":7}', InvalidOption, id="a URL as a number"),
    ],
)
def test_no_start_is(body: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_start(body, None, ANY_HOST)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("ftp://orch/c", id="another scheme"),
        pytest.param("file:///etc/passwd", id="a file"),
        pytest.param("http:///c", id="no host"),
        pytest.param("orch:8935/c", id="no scheme"),
        pytest.param("http://[::1/c", id="half an address"),
        pytest.param("http://orch:99999/c", id="no port"),
        pytest.param("http://orch:port/c", id="a port of letters"),
        pytest.param("http://orch\\@evil/c", id="two hosts, according to who reads it"),
        pytest.param("http://or\nch/c", id="a line end inside"),
    ],
)
def test_no_url_of_a_channel_is(url: str) -> None:
    with pytest.raises(ForbiddenUrl, match="data_url"):
        start(gateway_request_id="s", data_url=url)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        pytest.param("https://orch:8935/c", True, id="the host that is allowed"),
        pytest.param("http://ORCH/c", True, id="in capitals"),
        pytest.param("http://orch@evil/c", False, id="another behind its name"),
        pytest.param("http://orch.evil/c", False, id="another that begins like it"),
        pytest.param("http://evil/orch", False, id="another with its name as a path"),
        pytest.param("http://evil#@orch/c", False, id="another with its name as a fragment"),
        pytest.param("http://169.254.169.254/latest", False, id="an address"),
    ],
)
@pytest.mark.parametrize("name", sorted(URLS))
def test_urls_lead_to_allowed_hosts_only(name: str, url: str, allowed: bool) -> None:
    if allowed:
        assert getattr(start(frozenset({"orch"}), "s", **{name: url}), name) == url
        return
    with pytest.raises(ForbiddenUrl, match=name):
        start(frozenset({"orch"}), "s", **{name: url})


@given(st.binary())
def test_any_body_is_a_start_or_an_error_of_ours(body: bytes) -> None:
    with suppress(BadMessage, InvalidOption, ForbiddenUrl):
        parse_start(body, "named", frozenset({"orch"}))


@given(st.dictionaries(st.sampled_from([*URLS, "gateway_request_id", "params", "x"]), JSON))
def test_any_values_are_a_start_or_an_error_of_ours(fields: dict[str, Any]) -> None:
    try:
        request = start(**fields)
    except (BadMessage, InvalidOption, ForbiddenUrl):
        return
    JobKey(request.job_id, DIRECT)


# Job ids


@pytest.mark.parametrize("stream_id", ["stream", "a-b_c.d~e", "57", "x" * 100])
def test_a_plain_id_is_the_job_s(stream_id: str) -> None:
    assert StartRequest(stream_id).job_id == stream_id


@given(st.text(min_size=1, max_size=512).filter(lambda text: text.isprintable()))
def test_any_id_gives_one_of_a_job(stream_id: str) -> None:
    JobKey(StartRequest(stream_id).job_id, DIRECT)


def test_ids_that_differ_in_odd_characters_stay_apart() -> None:
    names = ("a/b", "a?b", "a b", "a_b", "../a_b", "..", ".", "ä", "ö", "x" * 101, "x" * 102)
    assert len({StartRequest(name).job_id for name in names}) == len(names)


# Control and options


@pytest.mark.parametrize(
    ("body", "values"),
    [
        pytest.param(b'{"keep":"alive"}', None, id="a keepalive"),
        pytest.param(b"{}", None, id="nothing"),
        pytest.param(b'{"language":"de"}', {"language": "de"}, id="an update"),
        pytest.param(
            b'{"keep":"alive","language":"de"}',
            {"keep": "alive", "language": "de"},
            id="an update that keeps alive as well",
        ),
    ],
)
def test_a_control_message_is(body: bytes, values: dict[str, Any] | None) -> None:
    assert parse_update(body) == values


@pytest.mark.parametrize("body", [b"", b"keep", b"[]", b"3", b'{"a":1}{"b":2}'])
def test_no_control_message_is(body: bytes) -> None:
    with pytest.raises(BadMessage):
        parse_update(body)


def test_a_job_is_told_the_options_it_knows() -> None:
    values = {"language": "de", "width": 512, "prompt": None}
    assert known_options(JobOptions(), values) == {"language": "de", "prompt": None}
    assert known_options(ProcessorOptions(), values) == values


# Status


ACCOUNT = Account(
    start_time=1_700_000_000.0,
    pipeline="byoc",
    last_input_time=1_700_000_099.0,
    segments_received=50,
    segments_skipped=3,
    segments_relayed=48,
    segments_not_relayed=2,
)
JOB = JobReport(
    params={"language": "en"},
    counters={"audio_seconds": 50.0, "lag_seconds": 1.0, "decode_seconds": 5.0, "words": 7},
    failed=False,
    segments_dropped=2,
    segments_left_out=1,
)
NOW = 1_700_000_100.0


def status(**changes: Any) -> dict[str, Any]:
    """The status event with other values for some fields of the account, or of the job."""
    of_job = {name: changes.pop(name) for name in JobReport.__slots__ if name in changes}
    return status_event(replace(ACCOUNT, **changes), replace(JOB, **of_job), NOW)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        pytest.param({}, StreamState.ONLINE, id="all is well"),
        pytest.param({"last_input_time": None}, StreamState.OFFLINE, id="nothing has come yet"),
        pytest.param(
            {"last_input_time": 1_700_000_080.0}, StreamState.DEGRADED_INPUT, id="input stopped"
        ),
        pytest.param(
            {"counters": {"audio_seconds": 0.0}, "problem": "no audio"},
            StreamState.DEGRADED_INPUT,
            id="what comes has no audio",
        ),
        pytest.param(
            {"problem": "one bad segment"}, StreamState.ONLINE, id="audio came in spite of a fault"
        ),
        pytest.param(
            {"counters": {"audio_seconds": 50.0, "lag_seconds": 31.0}},
            StreamState.DEGRADED_INFERENCE,
            id="words come late",
        ),
        pytest.param({"failed": True}, StreamState.ERROR, id="the job has failed"),
        pytest.param(
            {"failed": True, "last_input_time": None}, StreamState.ERROR, id="failed at once"
        ),
    ],
)
def test_the_state_is(changes: dict[str, Any], state: StreamState) -> None:
    assert status(**changes)["state"] is state


def test_a_problem_keeps_the_time_when_it_was_first_seen() -> None:
    account = Account(start_time=0.0, pipeline="byoc")
    for problem, now in (("no audio", 1.0), ("no audio", 2.0), ("too long", 3.0)):
        account.note_problem(problem, now)
        assert account.problem == problem
        assert account.problem_time == (3.0 if problem == "too long" else 1.0)


def test_a_status_tells_it_all() -> None:
    assert status(problem="out of memory", problem_time=1_700_000_050.0) == {
        "type": "status",
        "pipeline": "byoc",
        "state": "ONLINE",
        "start_time": 1_700_000_000_000,
        "last_state_update_time": 1_700_000_100_000,
        "input_status": {
            "last_input_time": 1_700_000_099_000,
            "fps": 0.0,
            "segments_received": 50,
            "segments_skipped": 3,
            "segments_dropped": 2,
            "segments_left_out": 1,
        },
        "inference_status": {
            "last_output_time": None,
            "fps": 0.0,
            "last_params_update_time": None,
            "last_params": {"language": "en"},
            "last_params_hash": status()["inference_status"]["last_params_hash"],
            "last_error_time": 1_700_000_050_000,
            "last_error": "out of memory",
            "last_restart_time": None,
            "last_restart_logs": None,
            "restart_count": 0,
        },
        "segments_relayed": 48,
        "segments_not_relayed": 2,
        "audio_seconds": 50.0,
        "lag_seconds": 1.0,
        "decode_seconds": 5.0,
        "words": 7,
        "rtf": 0.1,
    }


def test_before_any_audio_there_is_no_real_time_factor() -> None:
    assert status(counters={})["rtf"] is None
    assert status(counters={"audio_seconds": 0.0})["rtf"] is None


def test_the_hash_tells_params_apart_whatever_their_order() -> None:
    def digest(**params: Any) -> str:
        return str(status(params=params)["inference_status"]["last_params_hash"])

    assert digest(a=1, b=2) == digest(b=2, a=1) != digest(a=1, b=3)


@given(st.dictionaries(TEXT, JSON, max_size=3))
def test_an_event_is_one_json_object_in_its_wrapping(params: dict[str, Any]) -> None:
    message = json.loads(wrapped(status(params=params), "queue"))
    assert message.keys() == {"event", "queue_event_type"}
    assert message["queue_event_type"] == "queue"
    assert message["event"]["inference_status"]["last_params"] == params


def test_a_heartbeat_names_the_urls() -> None:
    event = heartbeat_event({"subscribe": "http://orch/s", "publish": None}, NOW)
    assert event["type"] == "heartbeat"
    assert event["timestamp"] == 1_700_000_100_000
    assert event["urls"] == {"subscribe": "http://orch/s", "publish": None}


# Data


def final(text: str, num_words: int = 1) -> Final:
    words = tuple(Word(text[:80], n / 10, (n + 1) / 10, 0.5) for n in range(num_words))
    return Final(3, 0, 0.0, 9.0, text, words, "en")


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        pytest.param(Partial(1, 0, 0.0, 1.0, "he"), "partial", id="a partial"),
        pytest.param(final("hello"), "final", id="a final"),
        pytest.param(Endpoint(2, 0, 1.0), "endpoint", id="an endpoint"),
        pytest.param(End(4, 1.0, EndReason.EOF), "end", id="an end"),
        pytest.param(Failure(5, "decode_failed", "a\nb"), "error", id="an error of two lines"),
        pytest.param(final("a\nb\u2028c\r"), "final", id="a text of several lines"),
    ],
)
def test_a_line_is_one_event(event: Event, kind: str) -> None:
    line = data_line(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line)["type"] == kind


def test_silence_is_a_keepalive() -> None:
    assert data_line(None) == KEEPALIVE_LINE
    assert json.loads(KEEPALIVE_LINE) == {"type": "keepalive"}


def test_a_final_too_long_goes_without_the_times_of_its_words() -> None:
    document = json.loads(data_line(final("word " * 1000, 1000)))
    assert document["text"] == "word " * 1000
    assert "words" not in document


@pytest.mark.parametrize("character", ["a", "é", "語", "🎤", "\x01", '"', "\n"])
@pytest.mark.parametrize("make", [final, lambda text: Partial(1, 0, 0.0, 1.0, text)])
def test_a_text_too_long_loses_its_end(character: str, make: Any) -> None:
    line = data_line(make(character * 100_000))
    assert len(line) <= MAX_LINE_BYTES
    text = json.loads(line)["text"]
    assert len(text) > 7000
    assert set(text) == {character}


def test_an_error_too_long_loses_its_end() -> None:
    line = data_line(Failure(1, "processor_failed", "語" * 100_000))
    assert len(line) <= MAX_LINE_BYTES
    assert json.loads(line)["code"] == "processor_failed"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"ok", {"bytes": 2, "text": "ok"}),
        (b"", {"bytes": 0, "text": ""}),
        (b"two\nlines", {"bytes": 9, "text": "two\nlines"}),
        (b"\xff\x00", {"bytes": 2, "base64": "/wA="}),
    ],
    ids=["text", "nothing", "lines are escaped", "bytes are base64"],
)
def test_a_payload_without_a_media_channel_is_a_line(data: bytes, expected: dict[str, Any]) -> None:
    line = data_line(Payload(3, data))
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"type": "payload", "seq": 3, **expected}


@pytest.mark.parametrize("data", [bytes(100_000), b"\xff" * 50_000, b"a" * 70_000])
def test_a_payload_that_is_too_long_for_a_line_says_so(data: bytes) -> None:
    line = data_line(Payload(3, data))
    assert len(line) <= MAX_LINE_BYTES
    assert "publish_url" in json.loads(line)["left_out"]
