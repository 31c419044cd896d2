"""Discovery of runners, and what a runner may ask for its sessions: channels and proxies (pure)."""

import math
from fractions import Fraction
from typing import Any, Final

from whisper_sim.go_rules import random_id
from whisper_sim.heartbeat_fields import Fields
from whisper_sim.runner_entries import Answer, Refused, Runner, Session
from whisper_sim.runner_registry import Registry

MAX_CHANNELS: Final = 768
"""Of all sessions and runners."""
MAX_PROXIES: Final = 25
"""Of a session."""


def discovery(registry: Registry, now: float) -> Answer:
    listed = [
        _listed(registry, runner)
        for runner in registry.runners.values()
        if registry.usable(runner, now)
        and not (registry.node and len(runner.sessions) >= runner.fields.capacity)
    ]
    return Answer(200, [{"address": registry.service_url, "runners": listed}])


def _listed(registry: Registry, runner: Runner) -> dict[str, Any]:
    fields, used = runner.fields, len(runner.sessions)
    base = f"{registry.service_url}/apps/{runner.runner_id}"
    url = f"{base}/app" if fields.single_shot else f"{base}/session"
    if fields.single_shot and fields.proxy:
        url = f"{registry.service_url}/run/{runner.runner_id}"
    document: dict[str, Any] = {"url": url, "app": fields.app, "mode": fields.mode}
    optional = {"version": fields.version, "metadata": fields.metadata, "gpu": fields.gpu}
    document |= {name: value for name, value in optional.items() if value}
    document |= {
        "capacity": fields.capacity,
        "capacity_used": used,
        "capacity_available": fields.capacity - used,
    }
    return document | ({"price_info": _price(registry, fields)} if registry.on_chain else {})


def _price(registry: Registry, fields: Fields) -> dict[str, Any]:
    dollars = Fraction(str(fields.price)) / (3600 if fields.unit == "hour" else 1)
    return {
        "price": math.ceil(dollars * registry.wei_per_usd),
        "price_usd": float(dollars),
        "currency": "wei",
        "unit": "seconds" if fields.unit == "hour" else "fixed",
    }


def add_channels(
    registry: Registry, session: Session, asked: list[dict[str, str]]
) -> list[dict[str, str]]:
    """What each channel asked for is called and where it is; one that is there stays. Raises
    Refused."""
    if not all(it.get("name") for it in asked):
        raise Refused(400, "channel name required")
    new = {it["name"] for it in asked} - session.channels.keys()
    taken = sum(1 + len(it.channels) for it in registry.sessions.values()) - len(registry.sessions)
    taken += sum(bool(it.o2r) for it in registry.runners.values())
    if taken + len(new) > MAX_CHANNELS:
        raise Refused(503, "too many channels")
    for it in asked:
        mime = it.get("mime_type") or "application/octet-stream"
        suffix = f"-{it['name']}" if _is_word(it["name"]) else ""
        session.channels.setdefault(it["name"], (f"channel_{random_id(16)}{suffix}", mime))
    return [_channel(registry, it["name"], *session.channels[it["name"]]) for it in asked]


def remove_channels(registry: Registry, session: Session, names: list[str]) -> dict[str, str]:
    """Those that were there, by their own names: what they were called in their URLs."""
    by_either = {full: name for name, (full, _) in session.channels.items()}
    by_either |= {name: name for name in session.channels}
    own = [by_either[name] for name in names if name in by_either]
    if len(own) < len(names) and not registry.node:
        raise Refused(404, "channel not found")
    return {name: session.channels.pop(name)[0] for name in dict.fromkeys(own)}


def add_proxy(registry: Registry, session: Session, target: str) -> dict[str, str]:
    """target: an absolute URL, or empty for the runner's own. Raises Refused."""
    if sum(it == session.session_id for it, _ in registry.proxies.values()) >= MAX_PROXIES:
        raise Refused(403 if registry.node else 401, "invalid session token")
    label = random_id(16)
    registry.proxies[label] = (session.session_id, target)
    return {"proxy_id": label, "url": f"{registry.service_url}/run/{label}"}


def _channel(registry: Registry, name: str, full: str, mime: str) -> dict[str, str]:
    return {
        "name": name,
        "channel_name": full,
        "url": registry.channel_url(full),
        "internal_url": registry.channel_url(full, inner=True),
        "mime_type": mime,
    }


def _is_word(name: str) -> bool:
    return name.isascii() and name.replace("-", "").replace("_", "").isalnum()
