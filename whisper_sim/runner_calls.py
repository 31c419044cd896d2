"""The short calls of a scripted Live Runner orchestrator: of runners, and of clients about their
sessions."""

import json
from collections.abc import Callable
from typing import Any, Final

from whisper_sim.go_rules import address_of
from whisper_sim.heartbeat_fields import Invalid, read_object
from whisper_sim.runner_callbacks import add_channels, add_proxy, discovery, remove_channels
from whisper_sim.runner_entries import Answer, Refused, Session
from whisper_sim.runner_hub import Hub
from whisper_sim.runner_records import Beat, Departure, Received

_TOKEN: Final = "livepeer-session-token"
_MAX_CHANNELS: Final = 25


def answer_call(hub: Hub, name: str, received: Received, ids: tuple[str, ...]) -> Answer:
    """The answer to a call, with all that follows from it done. name: of the route."""
    try:
        answer = _CALLS[name](hub, received, *ids)
    except Refused as refused:
        answer = refused.answer
    finally:
        hub.carry_out()
    if name == "heartbeat":
        _record_beat(hub, received, answer)
    return answer


def _heartbeat(hub: Hub, received: Received) -> Answer:
    return hub.registry.heartbeat(received.authorization, received.body or b"", received.time)


def _record_beat(hub: Hub, received: Received, answer: Answer) -> None:
    try:
        asked = str(read_object(received.body or b"").get("runner_id", ""))
    except Invalid:
        asked = ""
    runner_id = answer.document["runner_id"] if answer.status == 200 else asked
    earlier = next((it for it in reversed(hub.records.beats) if it.runner_id == runner_id), None)
    known = earlier is not None and earlier.status == 200 and bool(asked)
    late = known and received.time - earlier.time > hub.registry.ttl  # type: ignore[union-attr]
    hub.records.beats.append(Beat(received, runner_id, answer.status, late))
    hub.records.notify()


def _unregister(hub: Hub, received: Received, runner_id: str) -> Answer:
    runner = hub.registry.runners.get(runner_id)
    held = runner.sessions if runner is not None else {}
    running = tuple(it for it in hub.records.running if it.session_id in held)
    status = 0
    try:
        answer = hub.registry.unregister(runner_id, received.authorization, received.time)
        status = answer.status
        return answer
    except Refused as refused:
        status = refused.answer.status
        raise
    finally:
        hub.records.departures.append(Departure(received.time, runner_id, running, status))


def _session(hub: Hub, received: Received, runner_id: str, session_id: str) -> Session:
    token = received.headers.get(_TOKEN, "")
    return hub.registry.authorized(runner_id, session_id, token, received.time)


def _channels(hub: Hub, received: Received, runner_id: str, session_id: str) -> Answer:
    session = _session(hub, received, runner_id, session_id)
    asked = _read(received).get("channels")
    of_kind = dict if received.method == "POST" else str
    if not (isinstance(asked, list) and 0 < len(asked) <= _MAX_CHANNELS):
        raise Refused(400, "invalid channels request")
    if not all(isinstance(it, of_kind) for it in asked):
        raise Refused(400, "invalid channels request")
    if received.method == "DELETE":
        deleted = remove_channels(hub.registry, session, asked)
        for name in deleted.values():
            hub.trickle.delete(name)
        return Answer(200, {"deleted": list(deleted)})
    channels = add_channels(hub.registry, session, asked)
    for channel in channels:
        hub.trickle.create(channel["channel_name"], channel["mime_type"])
    return Answer(200, {"channels": channels})


def _proxy(hub: Hub, received: Received, runner_id: str, session_id: str) -> Answer:
    session = _session(hub, received, runner_id, session_id)
    if not received.body and hub.options.node:
        raise Refused(400, "invalid proxy request")
    target = str(_read(received).get("target_url", "")) if received.body else ""
    runner = hub.registry.runners[runner_id]
    if target:
        try:
            address = address_of(target)
        except ValueError:
            raise Refused(400, "target_url must be an absolute HTTP or HTTPS URL") from None
        if not hub.options.node and address[0] != address_of(runner.fields.runner_url)[0]:
            raise Refused(400, "target_url must have the host of runner_url")
    elif not hub.registry.usable(runner, received.time):
        raise Refused(400, "runner unavailable")
    return Answer(200, add_proxy(hub.registry, session, target))


def _stop(hub: Hub, received: Received, runner_id: str, session_id: str) -> Answer:
    token = received.headers.get(_TOKEN, "")
    return hub.registry.stop_by_runner(runner_id, session_id, token, received.time)


def _client_stop(hub: Hub, received: Received, runner_id: str, session_id: str) -> Answer:
    return hub.registry.stop(runner_id, session_id)


def _discovery(hub: Hub, received: Received) -> Answer:
    return discovery(hub.registry, received.time)


def _reserve(hub: Hub, received: Received, runner_id: str) -> Answer:
    """On-chain in three steps, as the network has them: a payer is named, the challenge (402) holds
    a pending session, and the call that carries its payment makes it one. What is in a payment is
    not looked at: any will do."""
    registry = hub.registry
    if not registry.on_chain:
        return registry.reserved(registry.reserve(runner_id, received.time))
    if not received.headers.get("livepeer-payer-address"):
        raise Refused(402, "Livepeer-Payer-Address is required")
    paid_for = received.headers.get("livepeer-segment", "")
    session = registry.sessions.get(paid_for)
    if "livepeer-payment" in received.headers and session is not None and session.pending:
        registry.activate(session)
        return registry.reserved(session)
    session = registry.reserve(runner_id, received.time, pending=True)
    return Answer(402, {"manifest_id": session.session_id})


def _read(received: Received) -> dict[str, Any]:
    """Of a callback: its JSON object. Raises Refused."""
    try:
        found = json.loads(received.body or b"")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(400, f"invalid {received.path.rpartition('/')[2]} request")
    return found


_CALLS: Final[dict[str, Callable[..., Answer]]] = {
    "heartbeat": _heartbeat,
    "unregister": _unregister,
    "channels": _channels,
    "proxy": _proxy,
    "stop": _stop,
    "client-stop": _client_stop,
    "discovery": _discovery,
    "reserve": _reserve,
}
