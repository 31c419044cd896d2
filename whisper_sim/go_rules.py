"""What Go's library does to durations, paths and headers that pass through an orchestrator (pure).

The rules are those of `time`, `net/url`, `net/http` and `httputil.ReverseProxy`.
"""

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

Headers = list[tuple[bytes, bytes]]

_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_UNESCAPED: Final = "/-_.~$&+,:;=@"
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_HOP: Final = {
    *(b"connection", b"proxy-connection", b"keep-alive", b"proxy-authenticate"),
    *(b"proxy-authorization", b"te", b"transfer-encoding", b"upgrade"),
}
_FORWARDED: Final = {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}


def random_id(length: int) -> str:
    """So many characters of base32 in lower case, as node makes its ids and secrets."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(length))


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `1m0s`, `1.5s` or `200ms`. Raises ValueError."""
    unsigned = text.removeprefix("-") if text[:1] == "-" else text.removeprefix("+")
    if unsigned == "0":
        return 0.0
    parts, end = 0.0, 0
    for part in _PART.finditer(unsigned):
        if part.start() != end:
            break
        parts += float(part[1]) * _UNITS[part[2]]
        end = part.end()
    if not unsigned or end != len(unsigned):
        raise ValueError(f"duration is {text!r}, expected one of Go's such as 1m30s or 200ms")
    return (-parts if text[0] == "-" else parts) / 1e9


def format_duration(seconds: float) -> str:
    """As Go prints a duration: `200ms`, `1.5s`, `1h0m0s`."""
    nanoseconds = abs(round(seconds * 1e9))
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds == 0:
        return "0s"
    for unit in ("ns", "µs", "ms"):
        if nanoseconds < _UNITS[unit] * 1_000:
            return sign + _decimal(nanoseconds, _UNITS[unit]) + unit
    minutes, rest = divmod(nanoseconds, _UNITS["m"])
    text = _decimal(rest, _UNITS["s"]) + "s"
    if minutes >= 60:
        text = f"{minutes // 60}h{minutes % 60}m{text}"
    elif minutes:
        text = f"{minutes}m{text}"
    return sign + text


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    return f"{whole}.{rest:0{len(str(unit)) - 1}}".rstrip("0").rstrip(".") if rest else str(whole)


def decode_path(escaped: bytes) -> bytes:
    """The bytes that a path of a request stands for. Raises ValueError for a broken escape."""
    if _BAD_ESCAPE.search(escaped):
        raise ValueError(f"path is {escaped!r}, expected two hex digits behind %")
    return unquote_to_bytes(escaped)


def encode_path(path: bytes) -> str:
    """A decoded path as Go writes it into a request line: `%2F` has become `/`."""
    return quote_from_bytes(path, safe=_UNESCAPED)


def clean_path(escaped: str) -> str:
    """Without doubled slashes, `.` and `..`; a trailing slash stays."""
    parts: list[str] = []
    for part in escaped.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    cleaned = "/" + "/".join(parts)
    return cleaned + "/" if escaped.endswith("/") and parts else cleaned


def climbs(path: bytes) -> bool:
    """Whether a decoded path has `..` in it, which node refuses."""
    return b".." in path.split(b"/")


def target_of(base: str, path: bytes, query: str) -> str:
    """The request target at a runner: `path`, decoded, behind the path of its URL `base`, and the
    query of both."""
    url = urlsplit(base)
    joined = decode_path(url.path.encode()).rstrip(b"/") + b"/" + path.lstrip(b"/")
    queries = "&".join(filter(None, (url.query, query)))
    return encode_path(joined) + (f"?{queries}" if queries else "")


def address_of(url: str) -> tuple[str, int, bool]:
    """Host, port, and whether it is https. Raises ValueError for what is not absolute http(s)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"URL is {url!r}, expected an absolute one of http or https")
    tls = parts.scheme == "https"
    return parts.hostname, parts.port or (443 if tls else 80), tls


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Without those of one connection: the known ones, and what `Connection` names."""
    given = list(headers)
    named = _named(given)
    kept = [(n, v) for n, v in given if n.lower() not in _HOP and n.lower() not in named]
    if any(n.lower() == b"te" and b"trailers" in v.lower() for n, v in given):
        kept.append((b"Te", b"trailers"))
    return kept


def _named(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """What the `Connection` headers name, in lower case."""
    values = b",".join(v for n, v in headers if n.lower() == b"connection")
    return {name.strip().lower() for name in values.split(b",")} - {b""}


def upgrade_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The protocol that is asked for or agreed to, such as `websocket`."""
    if b"upgrade" not in _named(headers):
        return None
    return next((v for n, v in headers if n.lower() == b"upgrade"), None)


def request_headers(
    received: Sequence[tuple[bytes, bytes]], own: Headers, host: str, *, gzip: bool
) -> Headers:
    """What reaches a runner. own: headers that are set over the client's. gzip: whether it is asked
    for where the client has not chosen."""
    replaced = {name.lower() for name, _ in own} | _FORWARDED | {b"host"}
    kept = [(n, v) for n, v in end_to_end(received) if n.lower() not in replaced]
    if any(n.lower() == b"transfer-encoding" for n, _ in received):
        kept.append((b"Transfer-Encoding", b"chunked"))
    if (protocol := upgrade_of(received)) is not None:
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", protocol)]
    if gzip:
        kept.append((b"Accept-Encoding", b"gzip"))
    return [(b"Host", host.encode()), *kept, *own]


def response_headers(received: Sequence[tuple[bytes, bytes]], *, unzipped: bool) -> Headers:
    """What reaches a client. unzipped: whether the body is sent without the runner's gzip."""
    lost = {b"content-encoding", b"content-length"} if unzipped else set()
    return [(n, v) for n, v in end_to_end(received) if n.lower() not in lost]
