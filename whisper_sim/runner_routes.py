"""Which call of a Live Runner orchestrator a request is (pure)."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

ANY: Final = "*"
_ROUTES: Final = (
    ("heartbeat", ("POST",), "runners/heartbeat"),
    ("unregister", ("POST",), "runners/{}/unregister"),
    ("channels", ("POST", "DELETE"), "runner/{}/session/{}/channels"),
    ("proxy", ("POST",), "runner/{}/session/{}/proxy"),
    ("stop", ("POST",), "runner/{}/session/{}/stop"),
    ("trickle", (ANY,), "ai/trickle/..."),
    ("discovery", ("GET", "HEAD"), "discovery"),
    ("reserve", ("POST",), "apps/{}/session"),
    ("client-stop", ("POST",), "apps/{}/session/{}/stop"),
    ("app", (ANY,), "apps/{}/session/{}/app..."),
    ("single", (ANY,), "apps/{}/app..."),
    ("run", (ANY,), "run/{}..."),
    ("run", (ANY,), "proxy/{}..."),
)
STREAMING: Final = frozenset({"trickle", "app", "single", "run"})


@dataclass(frozen=True, slots=True)
class Route:
    """name: of the call. ids: those in the path, decoded. rest: what follows, escaped, from its
    slash on. allowed: where the method is another, those that are, and no name."""

    name: str = ""
    ids: tuple[str, ...] = ()
    rest: str = ""
    allowed: tuple[str, ...] = ()


def strip_base(path: str, bases: tuple[str, ...]) -> str | None:
    """The path below the longest of the bases that it is under; None where it is under none."""
    for base in sorted(bases, key=len, reverse=True):
        if path == base or path.startswith(base + "/"):
            return path.removeprefix(base) or "/"
    return None


def is_streaming(path: str) -> bool:
    """Whether a request takes one of the places for those that may last."""
    streams = path.startswith(("/ai/trickle/", "/run/", "/proxy/"))
    return streams or "/app/" in path or path.endswith("/app")


def find_route(method: str, path: str) -> Route | None:
    """The call; None where there is none of this path."""
    allowed: tuple[str, ...] = ()
    for name, methods, pattern in _ROUTES:
        matched = _match(pattern, path)
        if matched is None:
            continue
        if ANY in methods or method in methods:
            return Route(name, *matched)
        allowed += methods
    return Route(allowed=allowed) if allowed else None


def _match(pattern: str, path: str) -> tuple[tuple[str, ...], str] | None:
    open_ended = pattern.endswith("...")
    wanted = pattern.removesuffix("...").rstrip("/").split("/")
    given = path[1:].split("/", len(wanted)) if open_ended else path[1:].split("/")
    if len(given) < len(wanted) or (len(given) > len(wanted) and not open_ended):
        return None
    ids = []
    for want, found in zip(wanted, given, strict=False):
        if want == "{}" and found:
            ids.append(unquote(found))
        elif want != found:
            return None
    rest = given[len(wanted) :]
    return tuple(ids), ("/" + rest[0] if rest else "")
