"""The double's registry in both dialects: statuses, texts, what follows (reference, 1 to 4)."""

import json
from typing import Any

import pytest

from whisper_sim.heartbeat_fields import Fields
from whisper_sim.runner_callbacks import (
    MAX_CHANNELS,
    MAX_PROXIES,
    add_channels,
    add_proxy,
    discovery,
    remove_channels,
)
from whisper_sim.runner_entries import Answer, Change, Refused, Session
from whisper_sim.runner_registry import MAX_RUNNERS, MAX_SESSIONS, Registry

TTL = 1.0
SECRET = "bootstrap"
INVALID = "invalid runner credential"


def make(node: bool = True, **options: Any) -> Registry:
    return Registry(
        SECRET,
        "http://clients",
        "http://runners/x",
        node=node,
        heartbeat_interval="200ms",
        heartbeat_ttl="1s",
        **options,
    )


def beat(
    registry: Registry, secret: str = SECRET, now: float = 0.0, **fields: Any
) -> dict[str, Any]:
    body = {"runner_url": "http://whisper:8000", "app": "a/b", "capacity": 2} | fields
    answer = registry.heartbeat(secret, json.dumps(body).encode(), now)
    assert answer.status == 200
    document = answer.document
    assert isinstance(document, dict)
    return document


def join(registry: Registry, now: float = 0.0, **fields: Any) -> tuple[str, str]:
    """Id and credential."""
    first = beat(registry, now=now, **fields)
    return first["runner_id"], first["heartbeat_secret"]


def refused(status: int, text: str) -> Any:
    return pytest.raises(Refused, match=rf"\({status}, '{text}'\)")


def changes(registry: Registry) -> list[str]:
    return [effect.change for effect in registry.take_effects()]


both = pytest.mark.parametrize("node", [True, False], ids=["node", "go-livepeer"])


def test_the_first_answer_has_what_a_runner_needs() -> None:
    registry = make()
    first = beat(registry)
    runner_id = first["runner_id"]
    assert runner_id.startswith("runner_")
    assert len(runner_id) == len("runner_") + 8
    assert len(first["heartbeat_secret"]) == 52
    assert first["orchestrator"] == "http://runners/x"
    assert (first["heartbeat_interval"], first["heartbeat_ttl"]) == ("200ms", "1s")
    assert first["session_ids"] == []
    o2r = first["o2r"]
    assert o2r["url"] == f"http://runners/x/ai/trickle/{o2r['channel_name']}"
    assert o2r["channel_name"].startswith(f"{runner_id}-")
    assert o2r["channel_name"].endswith("-o2r")
    assert (o2r["name"], o2r["mime_type"]) == ("o2r", "application/json")
    assert "internal_url" not in o2r
    later = beat(registry, first["heartbeat_secret"], runner_id=runner_id)
    assert not {"heartbeat_secret", "o2r"} & later.keys()
    assert changes(registry) == ["joined"]


def test_a_beat_replaces_all_fields() -> None:
    registry = make()
    runner_id, secret = join(registry, label="l", capacity=2, status="draining")
    beat(registry, secret, runner_id=runner_id, capacity=None)
    fields = registry.runners[runner_id].fields
    assert (fields.label, fields.capacity, fields.status) == ("", 1, "ready")


def test_node_looks_at_the_credential_before_anything_else() -> None:
    registry = make()
    with refused(401, INVALID) as it:
        registry.heartbeat("wrong", b"{", 0.0)
    assert it.value.answer.last
    with refused(401, INVALID):
        registry.heartbeat("", b"{", 0.0)
    with refused(400, "invalid heartbeat JSON"):
        registry.heartbeat(SECRET, b"{", 0.0)


def test_go_livepeer_looks_at_the_body_first() -> None:
    registry = make(node=False)
    with refused(400, "invalid heartbeat JSON"):
        registry.heartbeat("wrong", b"{", 0.0)
    with refused(401, "invalid registration authorization"):
        beat(registry, "wrong")
    with refused(404, "dynamic live runner registration is disabled"):
        beat(Registry("", "", "", node=False))


@pytest.mark.parametrize(
    ("node", "text"), [(True, INVALID), (False, "invalid heartbeat authorization")]
)
def test_an_id_that_is_held_takes_its_own_credential_only(node: bool, text: str) -> None:
    registry = make(node)
    runner_id, _ = join(registry)
    with refused(401, text):
        beat(registry, SECRET, runner_id=runner_id)
    _, other = join(registry)
    with refused(401, text):
        beat(registry, other, runner_id=runner_id)
    if node:  # known, but no bootstrap secret
        with refused(401, text):
            beat(registry, other, runner_id="new")


@pytest.mark.parametrize(("node", "status"), [(True, 403), (False, 400)])
def test_a_static_runner_does_not_beat(node: bool, status: int) -> None:
    registry = make(node)
    registry.add_static(Fields("http://h", "a", runner_id="written-down"))
    with refused(status, "static runner cannot heartbeat"):
        beat(registry, runner_id="written-down")
    with pytest.raises(ValueError, match="expected a new one"):
        registry.add_static(Fields("http://h", "a", runner_id="written-down"))


def test_node_revives_an_entry_between_its_ttl_and_the_sweep() -> None:
    registry = make()
    runner_id, secret = join(registry)
    session = registry.reserve(runner_id, 0.5)
    with refused(404, "runner unavailable"):
        registry.reserve(runner_id, TTL + 0.1)
    again = beat(registry, secret, TTL + 0.1, runner_id=runner_id)
    assert again["session_ids"] == [session.session_id]
    registry.sweep(2 * TTL)
    assert registry.usable(registry.runners[runner_id], 2 * TTL)


def test_go_livepeer_does_not_revive() -> None:
    registry = make(node=False)
    runner_id, secret = join(registry)
    with refused(404, "runner not found"):
        beat(registry, secret, TTL + 0.1, runner_id=runner_id)


@both
def test_a_sweep_forgets_who_is_late(node: bool) -> None:
    registry = make(node)
    late, secret = join(registry, 0.0)
    on_time, _ = join(registry, 0.5)
    session = registry.reserve(late, 0.5)
    registry.sweep(TTL)
    assert len(registry.runners) == 2
    registry.take_effects()
    registry.sweep(TTL + 0.1)
    assert list(registry.runners) == [on_time]
    assert [(it.change, it.session) for it in registry.take_effects()] == [
        (Change.RELEASED, session),
        (Change.LEFT, None),
    ]
    assert secret in registry.retired
    text = INVALID if node else "invalid registration authorization"
    with refused(401, text):
        beat(registry, secret, TTL + 0.1, runner_id=late)
    assert join(registry, TTL + 0.1, runner_id=late)[0] == late  # it may have its old id


@both
def test_after_a_restart_nobody_is_known(node: bool) -> None:
    registry = make(node)
    runner_id, secret = join(registry)
    registry.restart()
    with refused(401, ".*"):
        beat(registry, secret, runner_id=runner_id)
    join(registry)


def test_a_closing_orchestrator_answers_401_to_all() -> None:
    registry = make()
    _, secret = join(registry)
    registry.close()
    for credential in (SECRET, secret):
        with refused(401, INVALID):
            beat(registry, credential)
    assert discovery(registry, 0.0).document[0]["runners"] == []


def test_there_is_room_for_so_many_runners() -> None:
    registry = make()
    for _ in range(MAX_RUNNERS):
        join(registry)
    with refused(503, "runner capacity reached"):
        join(registry)


@both
def test_unregistering(node: bool) -> None:
    registry = make(node)
    runner_id, secret = join(registry)
    session = registry.reserve(runner_id, 0.0)
    with refused(404, "runner not found"):
        registry.unregister("runner_other", secret, 0.0)
    with refused(401, INVALID if node else "invalid authorization"):
        registry.unregister(runner_id, SECRET, 0.0)
    registry.take_effects()
    done = registry.unregister(runner_id, secret, 0.0)
    assert done == (Answer(200, {"ok": True}) if node else Answer(204))
    assert [it.change for it in registry.effects] == [Change.RELEASED, Change.LEFT]
    assert registry.effects[0].session is session
    with refused(404, "runner not found"):
        registry.unregister(runner_id, secret, 0.0)


@pytest.mark.parametrize(("node", "status"), [(True, 401), (False, 400)])
def test_a_static_runner_cannot_unregister(node: bool, status: int) -> None:
    registry = make(node)
    registry.add_static(Fields("http://h", "a", runner_id="s"))
    with refused(status, ".*"):
        registry.unregister("s", SECRET, 0.0)


@both
def test_reserving(node: bool) -> None:
    registry = make(node)
    runner_id, secret = join(registry, capacity=2)
    sessions = [registry.reserve(runner_id, float(n)) for n in range(2)]
    assert all(len(it.session_id) == len("session_") + (16 if node else 8) for it in sessions)
    base = f"http://clients/apps/{runner_id}/session/{sessions[0].session_id}"
    assert registry.reserved(sessions[0]).document == {
        "session_id": sessions[0].session_id,
        "app_url": f"{base}/app",
        "control_url": base,
    }
    full = (409, "runner at capacity") if node else (503, "no capacity available for runner")
    with refused(*full):
        registry.reserve(runner_id, 2.0 - TTL)
    with refused(404, "runner unavailable"):
        registry.reserve("runner_other", 0.0)
    with refused(400, "runner is not single-shot"):
        registry.reserve_single(runner_id, 0.0)
    ids = beat(registry, secret, runner_id=runner_id)["session_ids"]
    created = [it.session_id for it in sessions]
    assert ids == (created[::-1] if node else created)
    assert registry.stop(runner_id, created[0]) == registry.done()
    with refused(404, "session not found"):
        registry.stop(runner_id, created[0])
    assert changes(registry) == ["joined", "reserved", "reserved", "released"]


def test_there_is_room_for_so_many_sessions() -> None:
    registry = make()
    runner_id, _ = join(registry, capacity=MAX_SESSIONS)
    other, _ = join(registry)
    runner = registry.runners[runner_id]
    runner.sessions = {str(n): Session(str(n), runner_id, "", 0.0) for n in range(MAX_SESSIONS)}
    with refused(503, "session capacity reached"):
        registry.reserve(other, 0.0)


def test_single_shots_reserve_too() -> None:
    registry = make()
    runner_id, _ = join(registry, mode="single-shot", capacity=1)
    with refused(400, "runner is not persistent"):
        registry.reserve(runner_id, 0.0)
    session = registry.reserve_single(runner_id, 0.0)
    with refused(409, "runner at capacity"):
        registry.reserve_single(runner_id, 0.0)
    registry.release(session)
    registry.release(session)  # nothing more
    assert changes(registry) == ["joined", "reserved", "released"]


def test_a_runner_that_is_not_ready_is_hidden_and_its_sessions_get_no_requests() -> None:
    registry = make()
    runner_id, secret = join(registry)
    session = registry.reserve(runner_id, 0.0)
    registry.session_target(runner_id, session.session_id, now=0.0)
    beat(registry, secret, runner_id=runner_id, status="draining")
    assert discovery(registry, 0.0).document[0]["runners"] == []
    with refused(404, "runner unavailable"):
        registry.reserve(runner_id, 0.0)
    with refused(404, "runner unavailable"):
        registry.session_target(runner_id, session.session_id, now=0.0)
    # Its callbacks go on.
    assert registry.authorized(runner_id, session.session_id, session.token, 0.0) is session


def test_go_livepeer_takes_no_callbacks_of_a_runner_that_is_not_ready() -> None:
    registry = make(node=False)
    runner_id, secret = join(registry)
    session = registry.reserve(runner_id, 0.0)
    beat(registry, secret, runner_id=runner_id, status="draining")
    with refused(404, "session not found"):
        registry.authorized(runner_id, session.session_id, session.token, 0.0)


def test_health_hides_and_releases_at_the_first_failure() -> None:
    registry = make()
    runner = registry.add_static(Fields("http://h", "a", runner_id="s"), health_url="http://h/r")
    registry.reserve("s", 99.0)  # it has no time to live
    registry.receive_health(runner, True)
    assert registry.sessions
    registry.receive_health(runner, False)
    assert not registry.sessions
    with refused(404, "runner unavailable"):
        registry.reserve("s", 99.0)
    registry.receive_health(runner, True)
    registry.reserve("s", 99.0)


@both
def test_discovery(node: bool) -> None:
    registry = make(node)
    runner_id, _ = join(registry, version="1", gpu={"name": "H100"}, capacity=1)
    single, _ = join(registry, mode="single-shot", proxy=True)
    [entry] = discovery(registry, 0.0).document
    assert entry["address"] == "http://clients"
    first, second = entry["runners"]
    assert first == {
        "url": f"http://clients/apps/{runner_id}/session",
        "app": "a/b",
        "mode": "persistent",
        "version": "1",
        "gpu": {"name": "H100"},
        "capacity": 1,
        "capacity_used": 0,
        "capacity_available": 1,
    }
    assert second["url"] == f"http://clients/run/{single}"
    registry.reserve(runner_id, 0.0)
    listed = discovery(registry, 0.0).document[0]["runners"]
    assert len(listed) == (1 if node else 2)


@pytest.mark.parametrize(
    ("price", "unit", "wei", "told"),
    [
        (3.6, "hour", 300_000_000_000, "seconds"),
        (1e-15, "hour", 1, "seconds"),
        (0.5, "fixed", 150_000_000_000_000, "fixed"),
    ],
)
def test_prices_are_told_in_wei_rounded_up(price: float, unit: str, wei: int, told: str) -> None:
    registry = make(on_chain=True)
    join(registry, price_info={"price": price, "unit": unit})
    [runner] = discovery(registry, 0.0).document[0]["runners"]
    assert (runner["price_info"]["price"], runner["price_info"]["unit"]) == (wei, told)
    assert runner["price_info"]["currency"] == "wei"


def test_a_pending_session_is_listed_and_not_told() -> None:
    registry = make(on_chain=True)
    runner_id, secret = join(registry, price_info={"price": 1})
    session = registry.reserve(runner_id, 0.0, pending=True)
    listed = beat(registry, secret, runner_id=runner_id, price_info={"price": 1})["session_ids"]
    assert listed == [session.session_id]
    with refused(404, "session not found"):
        registry.session_target(runner_id, session.session_id, now=0.0)
    with refused(403, "invalid session token"):
        registry.authorized(runner_id, session.session_id, session.token, 0.0)
    assert changes(registry) == ["joined"]
    registry.activate(session)
    registry.session_target(runner_id, session.session_id, now=0.0)
    assert changes(registry) == ["reserved"]
    other = registry.reserve(runner_id, 0.0, pending=True)
    registry.release(other)
    assert changes(registry) == []


@pytest.mark.parametrize(("node", "wrong", "missing"), [(True, 403, 403), (False, 401, 404)])
def test_callbacks_need_the_sessions_token(node: bool, wrong: int, missing: int) -> None:
    registry = make(node)
    runner_id, _ = join(registry)
    session = registry.reserve(runner_id, 0.0)
    for token in ("", "wrong"):
        with refused(wrong, "invalid session token"):
            registry.authorized(runner_id, session.session_id, token, 0.0)
    with refused(missing, ".*"):
        registry.authorized(runner_id, "session_other", session.token, 0.0)
    with refused(wrong, "invalid session token"):
        registry.stop_by_runner(runner_id, session.session_id, "wrong", 0.0)
    done = registry.stop_by_runner(runner_id, session.session_id, session.token, 0.0)
    assert done.status == (200 if node else 204)
    with refused(404, "session not found"):
        registry.stop_by_runner(runner_id, session.session_id, session.token, 0.0)


def test_channels_have_urls_for_both_sides_and_stay() -> None:
    registry = make()
    runner_id, _ = join(registry)
    session = registry.reserve(runner_id, 0.0)
    asked = [{"name": "out", "mime_type": "video/MP2T"}, {"name": "a b"}]
    named, spaced = add_channels(registry, session, asked)
    assert named["channel_name"].startswith("channel_")
    assert named["channel_name"].endswith("-out")
    assert named["url"] == f"http://clients/ai/trickle/{named['channel_name']}"
    assert named["internal_url"] == f"http://runners/x/ai/trickle/{named['channel_name']}"
    assert named["mime_type"] == "video/MP2T"
    assert len(spaced["channel_name"]) == len("channel_") + 16
    assert spaced["mime_type"] == "application/octet-stream"
    assert add_channels(registry, session, [{"name": "out"}]) == [named]
    with refused(400, "channel name required"):
        add_channels(registry, session, [{}])
    other = registry.reserve(runner_id, 0.0)
    assert remove_channels(registry, other, ["out"]) == {}
    removed = remove_channels(registry, session, [spaced["channel_name"], "out", "out", "gone"])
    assert list(removed) == ["a b", "out"]
    assert session.channels == {}


def test_go_livepeer_misses_a_channel_that_is_not_there() -> None:
    registry = make(node=False)
    runner_id, _ = join(registry)
    with refused(404, "channel not found"):
        remove_channels(registry, registry.reserve(runner_id, 0.0), ["gone"])


def test_there_is_room_for_so_many_channels_and_proxies() -> None:
    registry = make()
    runner_id, _ = join(registry)
    session = registry.reserve(runner_id, 0.0)
    names = [{"name": str(n)} for n in range(MAX_CHANNELS)]
    with refused(503, "too many channels"):
        add_channels(registry, session, names)  # o2r is one of them
    assert len(add_channels(registry, session, names[1:])) == MAX_CHANNELS - 1
    for _ in range(MAX_PROXIES):
        add_proxy(registry, session, "")
    with refused(403, "invalid session token"):
        add_proxy(registry, session, "")


def test_generated_proxies_lead_to_their_session_until_it_ends() -> None:
    registry = make()
    runner_id, _ = join(registry, proxy=True)
    session = registry.reserve(runner_id, 0.0)
    assert registry.reserved(session).document["app_url"] == f"http://clients/run/{session.label}"
    own = add_proxy(registry, session, "http://other:1/x")
    assert own["url"] == f"http://clients/run/{own['proxy_id']}"
    assert registry.proxy_target(session.label, 0.0)[1:] == (session, "http://whisper:8000")
    assert registry.proxy_target(own["proxy_id"], 0.0)[2] == "http://other:1/x"
    registry.release(session)
    for label in (session.label, own["proxy_id"], "other"):
        with refused(404, "proxy not found"):
            registry.proxy_target(label, 0.0)


def test_a_nonsense_interval_is_told_and_counts_as_its_default() -> None:
    registry = make()
    registry.heartbeat_interval = "soon"
    assert beat(registry)["heartbeat_interval"] == "soon"
    assert registry.interval == 5.0
