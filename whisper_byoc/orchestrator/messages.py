"""What an orchestrator sends to a worker, and what a worker tells it (pure).

The shapes are those of go-livepeer's byoc package, PyTrickle and ai-runner.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

from whisper_byoc import transcript
from whisper_byoc.errors import BadMessage, ForbiddenUrl, InvalidOption
from whisper_byoc.jobs.control import parse_object
from whisper_byoc.jobs.options import Options

KEEPALIVE_LINE: Final = b'{"type":"keepalive"}\n'
_MAX_TEXT: Final = transcript.MAX_LINE_BYTES // 8
"""Characters that fit into a line, however they are written: JSON may take six bytes for one."""
_URLS: Final = ("subscribe_url", "publish_url", "control_url", "events_url", "data_url")
_IDS: Final = ("gateway_request_id", "stream_id", "request_id")
_LAG_SECONDS = 28.0
"""A larger lag says that decoding is too slow: an utterance may last for 28 s, and words need not
be final before it ends."""
_QUIET_SECONDS = 15.0
"""Without input for longer, the input counts as degraded."""


@dataclass(frozen=True, slots=True)
class StartRequest:
    """One stream: the channels that were made for it. Any of them may be missing."""

    stream_id: str
    subscribe_url: str | None = None
    publish_url: str | None = None
    control_url: str | None = None
    events_url: str | None = None
    data_url: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        """The stream's name as a job id: odd characters are replaced, and told apart by a hash."""
        safe = re.sub(r"[^A-Za-z0-9._~-]", "_", self.stream_id)[:100]
        if safe == self.stream_id and safe.strip("."):
            return safe
        digest = hashlib.sha256(self.stream_id.encode()).hexdigest()[:8]
        return f"{safe.strip('.') or 'stream'}-{digest}"


def parse_start(body: bytes, named: str | None, hosts: frozenset[str] | None) -> StartRequest:
    """The start request in `body`; named: the stream's id where the body has none.

    hosts: that URLs may name; None means any. Unknown keys are ignored.
    Raises BadMessage, InvalidOption and ForbiddenUrl.
    """
    message = parse_object(body, '{"gateway_request_id": "...", "subscribe_url": "..."}')
    found = next((message[name] for name in _IDS if message.get(name)), named)
    if not found:
        raise BadMessage("without an id", "gateway_request_id, or X-Stream-Id in the headers")
    if not isinstance(found, str) or len(found) > 512:
        raise InvalidOption("gateway_request_id", json.dumps(found), "a text of at most 512")
    params = message.get("params")
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise InvalidOption("params", json.dumps(params), "a JSON object or null")
    urls = {name: _url(name, message.get(name), hosts) for name in _URLS}
    return StartRequest(found, params=params, **urls)


def parse_update(body: bytes) -> dict[str, Any] | None:
    """The update in one message of the control channel; None for a keepalive. Raises BadMessage."""
    message = parse_object(body, '{"language": "de"}')
    return message if message.keys() - {"keep"} else None


def _url(name: str, value: object, hosts: frozenset[str] | None) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidOption(name, json.dumps(value), "a URL")
    try:
        parts = urlsplit(value)
        host = (parts.hostname or "").lower()
        _ = parts.port  # is parsed when it is asked for
    except ValueError:
        raise ForbiddenUrl(name, value, "a URL") from None
    if re.search(r"[\s\\]", value):  # one reader may find another host in it than the next
        raise ForbiddenUrl(name, value, "a URL")
    if parts.scheme not in ("http", "https") or not host:
        raise ForbiddenUrl(name, value, "http:// or https:// and a host")
    if hosts is not None and host not in hosts:
        allowed = ", ".join(sorted(hosts)) or "none is, see WHISPER_ORCHESTRATOR_ALLOWED_HOSTS"
        raise ForbiddenUrl(name, value, f"a host that is allowed: {allowed}")
    return value


def known_options(options: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that jobs of this kind understand: clients send others, such as sizes of
    pictures."""
    if options.model_config.get("extra") == "allow":
        return dict(values)
    return {name: values[name] for name in type(options).model_fields if name in values}


class StreamState(StrEnum):
    """ai-runner's words, which dashboards know."""

    OFFLINE = "OFFLINE"
    """Nothing has come yet."""
    ONLINE = "ONLINE"
    DEGRADED_INPUT = "DEGRADED_INPUT"
    """What comes has no audio, cannot be decoded, or has stopped coming."""
    DEGRADED_INFERENCE = "DEGRADED_INFERENCE"
    """Words come late."""
    ERROR = "ERROR"


@dataclass(slots=True)
class Account:
    """What a session notes and counts of its stream; times in s since the epoch, None for never."""

    start_time: float
    pipeline: str
    last_input_time: float | None = None
    last_output_time: float | None = None
    last_params_time: float | None = None
    problem: str | None = None
    problem_time: float | None = None
    segments_received: int = 0
    segments_skipped: int = 0
    """Gone from their channel before they were asked for."""
    segments_relayed: int = 0
    segments_not_relayed: int = 0

    def note_problem(self, problem: str, now: float) -> None:
        """Remember the latest problem, and since when it is there."""
        if problem != self.problem:
            self.problem, self.problem_time = problem, now


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a stream's status tells of its job at one moment."""

    params: Mapping[str, Any]
    """The options that were given."""
    counters: Mapping[str, Any]
    failed: bool
    segments_dropped: int
    """Given up before the job took them, which was too slow."""
    segments_left_out: int
    """Taken by the job, which could not use them."""


def stream_state(account: Account, job: JobReport, now: float) -> StreamState:
    """now: s since the epoch."""
    if job.failed:
        return StreamState.ERROR
    if account.last_input_time is None:
        return StreamState.OFFLINE
    without_audio = not job.counters.get("audio_seconds") and account.problem is not None
    if without_audio or now - account.last_input_time > _QUIET_SECONDS:
        return StreamState.DEGRADED_INPUT
    if job.counters.get("lag_seconds", 0.0) > _LAG_SECONDS:
        return StreamState.DEGRADED_INFERENCE
    return StreamState.ONLINE


def status_event(account: Account, job: JobReport, now: float) -> dict[str, Any]:
    """The answer of a gateway to `GET /process/stream/{id}/status`, which passes this event on as
    it is. now: s since the epoch."""
    return {
        "type": "status",
        "pipeline": account.pipeline,
        "state": stream_state(account, job, now),
        "start_time": _ms(account.start_time),
        "last_state_update_time": _ms(now),
        "input_status": {
            "last_input_time": _ms(account.last_input_time),
            "fps": 0.0,
            "segments_received": account.segments_received,
            "segments_skipped": account.segments_skipped,
            "segments_dropped": job.segments_dropped,
            "segments_left_out": job.segments_left_out,
        },
        "inference_status": {
            "last_output_time": _ms(account.last_output_time),
            "fps": 0.0,
            "last_params_update_time": _ms(account.last_params_time),
            "last_params": dict(job.params),
            "last_params_hash": _digest(job.params),
            "last_error_time": _ms(account.problem_time),
            "last_error": account.problem,
            "last_restart_time": None,
            "last_restart_logs": None,
            "restart_count": 0,
        },
        "segments_relayed": account.segments_relayed,
        "segments_not_relayed": account.segments_not_relayed,
        **job.counters,
        "rtf": _rtf(job.counters),
    }


def data_line(event: transcript.Event | None) -> bytes:
    """One segment of the data channel: the event as a line of JSON, and for None, which stands for
    silence, a keepalive. A line that would be too long loses the times of its words, and if that is
    not enough the end of its text."""
    if event is None:
        return KEEPALIVE_LINE
    if isinstance(event, transcript.Payload):
        return _payload_line(event)
    line = _written(event)
    if len(line) > transcript.MAX_LINE_BYTES:
        line = _written(event, words=False)
    if len(line) <= transcript.MAX_LINE_BYTES:
        return line
    match event:
        case transcript.Partial() | transcript.Final():
            return _written(replace(event, text=event.text[:_MAX_TEXT]), words=False)
        case transcript.Failure():
            return _written(replace(event, message=event.message[:_MAX_TEXT]))
    return line


def _payload_line(event: transcript.Payload) -> bytes:
    """A processor's output where there is no channel for media: text as text, else base64."""
    document: dict[str, Any] = {"type": "payload", "seq": event.seq, "bytes": len(event.data)}
    try:
        content = {"text": event.data.decode()}
    except UnicodeDecodeError:
        content = {"base64": base64.b64encode(event.data).decode()}
    line = json.dumps(document | content, ensure_ascii=False).encode() + b"\n"
    if len(line) > transcript.MAX_LINE_BYTES:
        content = {"left_out": "too long for a line, expected a start with publish_url"}
        line = json.dumps(document | content).encode() + b"\n"
    return line


def _written(event: transcript.Event, *, words: bool = True) -> bytes:
    return transcript.event_line(event, words=words).encode() + b"\n"


def heartbeat_event(urls: Mapping[str, str | None], now: float) -> dict[str, Any]:
    """As PyTrickle sends it. now: s since the epoch."""
    return {"type": "heartbeat", "timestamp": _ms(now), "urls": dict(urls), "fps": {}}


def wrapped(event: Mapping[str, Any], queue: str) -> bytes:
    """One segment of the events channel."""
    return json.dumps({"event": event, "queue_event_type": queue}, ensure_ascii=False).encode()


def _rtf(counters: Mapping[str, Any]) -> float | None:
    seconds = counters.get("audio_seconds")
    return round(counters.get("decode_seconds", 0.0) / seconds, 4) if seconds else None


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _digest(params: Mapping[str, Any]) -> str:
    text = json.dumps(dict(params), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
