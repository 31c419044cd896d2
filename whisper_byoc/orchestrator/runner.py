"""Live Runner's registration: the heartbeats of livepeer/node, and of go-livepeer from 0.9 on
(pure). docs/live-runner.md has its cases, R1 to R26."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

from whisper_byoc.orchestrator.entry import (
    ANSWER_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    Answer,
    Entry,
    Identity,
    Load,
    Request,
    Step,
)
from whisper_byoc.settings import PriceUnit, RunnerMode, Settings

DEFAULT_HEARTBEAT_SECONDS = 5.0
DEFAULT_TTL_SECONDS = 30.0
MIN_HEARTBEAT_SECONDS = 0.2
MAX_HEARTBEAT_SECONDS = 3600.0
_PATHS = ("/live/{job}/source", "/live/{job}/output", "/transcribe", "/v1/audio/transcriptions")
_UNIT_SECONDS = {
    "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9,
}  # fmt: skip
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(h|ms|us|µs|ns|m|s)")
_ANSWERED_WITHIN = 0.8
"""Of the interval: a beat without an answer by then is given up, so that the next is on time."""
_HELD_STEP = 0.1
"""Of the time that an id has been asked for: what passes until it is asked for again."""
_HELD_SECONDS = (0.1, 5.0)
"""The least and the most of that."""

_NO_RUNNERS = (
    "is this URL an orchestrator with Live Runners? expected livepeer/node,"
    " or go-livepeer from 0.9 on with -useLiveRunners"
)
_OTHER_SECRET = (
    "we sent ORCH_SECRET: compare it with the orchestrator's bootstrap secret, and mind a line end"
    " in its file, which no one can send"
)
_MAYBE_HELD = "a former self may still hold the id, or ORCH_SECRET is not the orchestrator's"
_NO_PRICE = "set WHISPER_RUNNER_PRICE"


def heartbeat_seconds(duration: object, default: float = DEFAULT_HEARTBEAT_SECONDS) -> float:
    """s of a Go duration such as "1m30s", within bounds; the default when it is not one."""
    parts = _DURATION_PART.findall(duration) if isinstance(duration, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        return default
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    return min(max(seconds, MIN_HEARTBEAT_SECONDS), MAX_HEARTBEAT_SECONDS)


@dataclass(frozen=True, slots=True)
class Offer:
    """One registration: a mode has an entry of its own. runner_id: asked for; empty lets the
    orchestrator choose. price: USD."""

    mode: RunnerMode
    runner_id: str
    price: float
    price_unit: PriceUnit


def offers(settings: Settings) -> list[Offer]:
    """One for each mode; the single-shot settings are for when there are two."""
    runner = settings.runner
    first = Offer(runner.modes[0], runner.id, runner.price, runner.price_unit)
    modes = list(dict.fromkeys(runner.modes))
    if len(modes) == 1:
        return [first]
    price, unit = runner.single_shot_price, runner.single_shot_price_unit
    single_shot = replace(
        first,
        mode=RunnerMode.SINGLE_SHOT,
        runner_id=runner.single_shot_id,
        price=runner.price if price is None else price,
        price_unit=unit or runner.price_unit,
    )
    return [replace(first, mode=RunnerMode.PERSISTENT), single_shot]


def runner_body(settings: Settings, identity: Identity, offer: Offer) -> dict[str, object]:
    """What `/runners/heartbeat` takes, but for the fields that change. Every beat replaces them
    all."""
    capability = settings.capability
    body: dict[str, object] = {
        "label": capability.name,
        "runner_url": capability.url,
        "version": identity.version,
        # At most 1024 bytes, and public.
        "metadata": json.dumps({"model": identity.model_name, "paths": _PATHS}),
        "mode": offer.mode,
        "app": settings.app_id(identity.model_name),
        "capacity": capability.capacity or settings.jobs.max_jobs,
        "proxy": settings.runner.proxy,
        "price_info": {"price": offer.price, "currency": "usd", "unit": offer.price_unit},
    }
    return body | ({"gpu": dict(identity.gpu)} if identity.gpu else {})


class RunnerEntry(Entry):
    """The orchestrator forgets it when beats stop, and cuts its sessions when it is withdrawn.

    `runner_id` is empty until there is a registration. `o2r_url` is the channel on which the
    orchestrator tells of sessions; empty where it gave none.
    """

    cuts = True

    def __init__(self, settings: Settings, url: str, identity: Identity, offer: Offer) -> None:
        body = runner_body(settings, identity, offer)
        super().__init__(settings, url, f"runner {body['app']} ({offer.mode})")
        self.runner_id = ""
        self.o2r_url = ""
        self._body = body
        self._asked_id = offer.runner_id
        self._held_seconds = 0.0
        self._heartbeat_secret = ""
        self._secret_was_right = False
        self._beat = DEFAULT_HEARTBEAT_SECONDS
        self._ttl = DEFAULT_TTL_SECONDS

    @property
    def answer_seconds(self) -> float:
        return (
            min(ANSWER_SECONDS, self._beat * _ANSWERED_WITHIN) if self.runner_id else ANSWER_SECONDS
        )

    def next_request(self, load: Load) -> Request:
        status = "draining" if load.draining else "ready"
        body = self._body | {"status": status, "session_ids": list(load.session_ids)}
        if runner_id := self.runner_id or self._asked_id:
            body["runner_id"] = runner_id
        authorization = self._heartbeat_secret or self._secret
        return Request("/runners/heartbeat", authorization, json.dumps(body))

    def next_withdrawal(self) -> Request:
        path = f"/runners/{quote(self.runner_id, safe='')}/unregister"
        return Request(path, self._heartbeat_secret, "")

    def receive_answer(self, answer: Answer) -> Step:
        if answer.ok:
            return self._receive_heartbeat(answer.text)
        if answer.status == 429:
            return self._receive_too_many(answer)
        return self._receive_beat_refusal(answer) if self.runner_id else self._refused(answer)

    @property
    def _longest_retry(self) -> float:
        """While registered no outage may cost the time to live; and an orchestrator that had us is
        expected back."""
        return self._beat if self._secret_was_right else self._interval

    def _receive_heartbeat(self, text: str) -> Step:
        fields = _parse_fields(text)
        runner_id = fields.get("runner_id") or self.runner_id
        secret = fields.get("heartbeat_secret") or self._heartbeat_secret  # a new one replaces it
        if not (_fits_header(runner_id) and _fits_header(secret)):
            return self.receive_failure("the answer has no runner_id and heartbeat_secret to use")
        self.runner_id, self._heartbeat_secret = str(runner_id), str(secret)
        self._held_seconds, self._secret_was_right = 0.0, True
        self._beat = heartbeat_seconds(fields.get("heartbeat_interval"))
        self._ttl = heartbeat_seconds(fields.get("heartbeat_ttl"), DEFAULT_TTL_SECONDS)
        self.o2r_url = _o2r_url(fields.get("o2r")) or self.o2r_url
        return self._accepted(self._beat, _session_ids(fields.get("session_ids")))

    def _receive_too_many(self, answer: Answer) -> Step:
        step = self.receive_failure(answer.problem)
        if re.fullmatch(r"[0-9]{1,9}", answer.retry_after):
            return replace(step, delay=min(float(answer.retry_after), MAX_RETRY_AFTER_SECONDS))
        return step

    def _receive_beat_refusal(self, answer: Answer) -> Step:
        """A restarted orchestrator, and one that has missed our beats for the time to live, knows
        the heartbeat secret no more: 401, in go-livepeer also 404."""
        if answer.status == 401 or (answer.status == 404 and "runner not found" in answer.text):
            return self._forgotten(answer)
        if answer.status in (400, 403):
            return self._rejected(answer)
        return self.receive_failure(answer.problem)

    def _forgotten(self, answer: Answer) -> Step:
        step = self._step(0, logging.WARNING, "is not known any more", answer.problem)
        lost, self.runner_id, self._heartbeat_secret, self.o2r_url = self.runner_id, "", "", ""
        self.registered = False
        return replace(step, lost_runner=lost)

    def _refused(self, answer: Answer) -> Step:
        """The answer to an attempt to register."""
        if answer.status == 401 and self._asked_id:
            return self._maybe_held(answer)
        is_static = answer.status == 403 or "static runner" in answer.text  # go-livepeer: 400
        if is_static and self._asked_id:
            self._asked_id = ""
            return self._step(0, logging.ERROR, "cannot have its id", answer.problem)
        if answer.status == 401 and not self._secret_was_right:
            return self._rejected(answer, _OTHER_SECRET)
        if answer.status == 404 and "page not found" in answer.text:
            return self._rejected(answer, _NO_RUNNERS)
        if answer.status == 400 and "price must be positive" in answer.text:
            return self._rejected(answer, _NO_PRICE)
        if answer.status < 500 and answer.status != 401:
            return self._rejected(answer)
        # 401: one that shuts down answers so to everybody.
        return self.receive_failure(answer.problem)

    def _maybe_held(self, answer: Answer) -> Step:
        """A former self holds its id until its time to live has passed; so does a registration
        whose answer was lost. After that, we take any id."""
        self._num_failures = 0
        least, most = _HELD_SECONDS
        delay = min(max(self._held_seconds * _HELD_STEP, least), most)
        if self._held_seconds >= self._ttl + self._beat:
            self._asked_id = ""
            return self._step(0, logging.WARNING, "cannot have its id", answer.problem)
        self._held_seconds += delay
        return self._step(delay, logging.WARNING, "has to wait", answer.problem, _MAYBE_HELD)

    @property
    def _secrets(self) -> tuple[str, ...]:
        return *super()._secrets, self._heartbeat_secret


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """What the o2r channel tells: a session was reserved, or released."""

    session_id: str
    released: bool


def parse_session_event(message: bytes) -> SessionEvent | None:
    """One message of the o2r channel; None for a keepalive. Raises ValueError, naming what was
    found, for anything that is neither; a part of a message may hold a session's id."""
    fields = _parse_fields(message)
    if not fields:
        raise ValueError(f"{len(message)} bytes, expected a JSON object")
    event, session_id = fields.get("event"), fields.get("session")
    if event is None and "keep" in fields:
        return None
    if event not in ("reserved", "released") or not isinstance(session_id, str):
        found = f"an event {str(event)[:40]!r} with a session of {type(session_id).__name__}"
        raise ValueError(f"{found}, expected reserved or released, and a session")
    return SessionEvent(session_id, event == "released")


def _parse_fields(text: str | bytes) -> Mapping[str, object]:
    """Of a JSON object; none when it is anything else."""
    with suppress(ValueError, RecursionError):  # deep nesting raises the latter
        fields = json.loads(text)
        if isinstance(fields, dict):
            return fields
    return {}


def _fits_header(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()


def _session_ids(value: object) -> Sequence[str] | None:
    """None where the answer has no list, which says nothing of sessions."""
    return [it for it in value if isinstance(it, str)] if isinstance(value, list) else None


def _o2r_url(value: object) -> str:
    url = value.get("internal_url") or value.get("url") if isinstance(value, dict) else None
    if not isinstance(url, str):
        return ""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            return url
    return ""
