"""What a runner says of itself in a heartbeat, and what of it is refused with 400 (pure).

The rules are those of livepeer/node, or of go-livepeer where `node` is false.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

MAX_BODY_BYTES: Final = 1 << 20
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_ID_TEXT: Final = (
    "runner_id must contain only ASCII letters, digits, underscores, and hyphens"
    " and be at most 128 characters"
)
_INVALID: Final = "invalid heartbeat JSON"
_NUMBER: Final = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)


class Invalid(Exception):
    """What 400 is answered with."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Of a runner, with defaults in place. price: USD an hour, or a request where `unit` is fixed.
    gpu: `id`, `name`, `vram_mb`, those that are there."""

    runner_url: str
    app: str
    runner_id: str = ""
    capacity: int = 1
    mode: str = "persistent"
    status: str = "ready"
    label: str = ""
    version: str = ""
    metadata: str = ""
    gpu: dict[str, str | int] | None = None
    proxy: bool = False
    price: float = 0.0
    unit: str = "hour"

    @property
    def single_shot(self) -> bool:
        return self.mode == "single-shot"


def read_object(body: bytes) -> dict[str, Any]:
    """One JSON object, its names in lower case: a later duplicate takes an earlier one's place, and
    `null` is as absent. Raises Invalid."""
    try:
        read = json.loads(
            body[: MAX_BODY_BYTES + 1].decode("utf-8", "replace"),
            object_pairs_hook=lambda pairs: {n.lower(): v for n, v in pairs if v is not None},
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        raise Invalid(_INVALID) from None
    if read is None:
        return {}
    if len(body) > MAX_BODY_BYTES or not isinstance(read, dict):
        raise Invalid(_INVALID)
    return read


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def read_fields(body: bytes, *, node: bool = True, on_chain: bool = False) -> Fields:
    """Raises Invalid with the text of the answer."""
    given = read_object(body)
    strings = _read_all(given, str, "runner_id", "runner_url", "app", "mode", "status", "label")
    strings |= _read_all(given, str, "version", "metadata")
    ids = given.get("session_ids", [])
    if not (isinstance(ids, list) and all(isinstance(it, str | None) for it in ids)):
        raise Invalid(_INVALID)
    price, unit, price_text = _price(given.get("price_info", {}))
    fields = Fields(
        runner_url=strings.pop("runner_url", ""),
        app=strings.pop("app", ""),
        capacity=_read_all(given, int, "capacity").get("capacity", 0) or 1,
        gpu=_gpu(given.get("gpu"), node),
        proxy=_read_all(given, bool, "proxy").get("proxy", False),
        price=price,
        unit=unit or "hour",
        **{name: value for name, value in strings.items() if value},
    )
    if not node:
        fields = _as_go_livepeer(fields)
    _check(fields, node)
    _check_price(fields, price_text, node=node, on_chain=on_chain)
    return fields


def _read_all(given: dict[str, Any], kind: type, *names: str) -> dict[str, Any]:
    """Those of the names that are there; a value of another type is Go's error. (Python's `true`
    is an int; Go's is not.)"""
    found = {name: given[name] for name in names if name in given}
    if not all(type(value) is kind for value in found.values()):
        raise Invalid(_INVALID)
    return found


def _gpu(given: Any, node: bool) -> dict[str, str | int] | None:
    if given is None:
        return None
    if type(given) is int:
        if given < 0 and node:
            raise Invalid(_INVALID)
        return {"id": str(given)}
    if not isinstance(given, dict):
        raise Invalid(_INVALID)
    gpu = _read_all(given, str, "id", "name") | _read_all(given, int, "vram_mb")
    if gpu.get("vram_mb", 0) < 0:
        raise Invalid(_INVALID)
    return {name: value for name, value in gpu.items() if value}


def _price(given: Any) -> tuple[float, str, str]:
    """The price, its unit, and its currency."""
    if not isinstance(given, dict):
        raise Invalid(_INVALID)
    texts = _read_all(given, str, "currency", "unit")
    price = given.get("price", 0)
    if isinstance(price, str) and _NUMBER.fullmatch(price):
        price = float(price)
    if type(price) not in (int, float) or not math.isfinite(price):
        raise Invalid(_INVALID)
    return float(price), texts.get("unit", ""), texts.get("currency", "").strip().lower()


def _as_go_livepeer(fields: Fields) -> Fields:
    """Its alias of a mode, ids trimmed, and no query behind the URL."""
    return replace(
        fields,
        mode="single-shot" if fields.mode == "single_shot" else fields.mode,
        runner_id=fields.runner_id.strip(),
        runner_url=fields.runner_url.partition("?")[0],
    )


def _check(fields: Fields, node: bool) -> None:
    if node and fields.runner_id and not _ID.fullmatch(fields.runner_id):
        raise Invalid(_ID_TEXT)
    if not _is_absolute(fields.runner_url):
        text = "runner_url must be an absolute HTTP or HTTPS URL"
        raise Invalid(text if node else "invalid runner_url")
    limit: Callable[[int], bool] = (lambda n: 1 <= n <= 10_000) if node else (lambda n: n >= 1)
    if not (fields.app and limit(fields.capacity)):
        raise Invalid("app and capacity between 1 and 10000 are required")
    if fields.mode not in ("persistent", "single-shot"):
        raise Invalid("mode must be persistent or single-shot")


def _is_absolute(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _check_price(fields: Fields, currency: str, *, node: bool, on_chain: bool) -> None:
    if not (node or on_chain):
        return  # go-livepeer does not look at it
    if fields.unit == "720p" and node:
        raise Invalid("720p pricing is unsupported")
    if fields.unit not in ("hour", "fixed", "720p"):
        raise Invalid("price_info.unit must be hour or fixed")
    if on_chain and fields.price <= 0:
        raise Invalid("runner price must be positive in on-chain mode")
    if fields.price < 0:
        raise Invalid("runner price must be nonnegative")
    if fields.price and currency not in ("", "usd"):
        raise Invalid("runner price currency must be USD")
