"""A session of a Livepeer orchestrator: discover, reserve, and always stop."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from whisper_byoc.client.connection import AT_ONCE, ClientError, Connection, Tls

logger = logging.getLogger(__name__)

_PERSISTENT = "persistent"
_FIELDS = ("session_id", "app_url", "control_url")


@dataclass(frozen=True, slots=True)
class Session:
    """A place at a runner of an orchestrator. Whoever knows the URLs has it, so none is shown.

    app_url: where the runner's paths begin, for `LiveClient` and `ProcessorClient`. control_url:
    of the session itself, below which it is stopped.
    """

    session_id: str = field(repr=False)
    app_url: str = field(repr=False)
    control_url: str = field(repr=False)


@asynccontextmanager
async def reserve(orchestrator: str, app: str, *, tls: Tls = True) -> AsyncIterator[Session]:
    """A session of the first persistent runner of `app` that has a place; stopped at exit, however
    that comes about, since an orchestrator keeps the place for ever otherwise.

    orchestrator: its URL, with its base path if it has one. tls: as clients take it, to be given
    to the client of `app_url`, too.
    Raises ClientError.
    """
    listed = await _listed(orchestrator, tls)
    held: list[Session] = []
    try:
        refusals: list[str] = []
        for url in session_urls(listed, app):
            try:
                await _to_its_end(_take(url, tls, held))
                break
            except ClientError as error:
                if error.status == 402:
                    raise
                refusals.append(str(error))
        if not held:
            problems = "; ".join(dict.fromkeys(refusals))
            raise ClientError(
                f"no runner of {app} gave a session, expected one of them to: {problems}"
            )
        yield held[0]
    finally:
        for session in held:
            await _to_its_end(_stop(session, tls))


async def _listed(orchestrator: str, tls: Tls) -> Any:
    async with Connection(orchestrator, tls) as client:
        try:
            return await client.ask("GET", "/discovery")
        except ClientError as error:
            if error.status is None:
                raise
            raise ClientError(
                f"/discovery is answered {error.message!r}, expected what a Livepeer orchestrator"
                " with Live Runners lists",
                error.status,
            ) from error


def session_urls(listed: Any, app: str) -> list[str]:
    """Where an orchestrator says that sessions of `app` are reserved, in its order (pure).

    listed: the document of its `/discovery`. Raises ClientError where there is no such place.
    """
    try:
        runners = [runner for entry in listed for runner in entry["runners"] or ()]
        apps = [(it["app"], it.get("mode") or _PERSISTENT) for it in runners]
        urls = [str(it["url"]) for it in runners]
        places = [it.get("capacity_available") for it in runners]
    except (KeyError, TypeError, AttributeError) as error:
        found = json.dumps(listed)[:160]
        raise ClientError(
            f'/discovery has {found}, expected [{{"address": …, "runners": […]}}]'
        ) from error
    asked = [number for number, it in enumerate(apps) if it == (app, _PERSISTENT)]
    if not asked:
        others = ", ".join(sorted({f"{name} ({mode})" for name, mode in apps})) or "none at all"
        # node does not list a runner that is full.
        raise ClientError(
            f"app {app} ({_PERSISTENT}) is not listed, or has no place left, expected one that is:"
            f" {others}"
        )
    free = [urls[number] for number in asked if places[number] != 0]
    if not free:
        raise ClientError(f"all {len(asked)} runners of {app} are full, expected one with a place")
    return free


async def _take(url: str, tls: Tls, held: list[Session]) -> None:
    """Put a new session into `held`. Raises ClientError."""
    async with Connection(url, tls) as client:
        try:
            answer = await client.ask("POST")
        except ClientError as error:
            if error.status == 402:
                raise ClientError(
                    f"the orchestrator wants to be paid: {error.message}; expected one that is"
                    " off-chain: livepeer-gateway's reserve_session pays",
                    402,
                ) from error
            raise
    given = answer if isinstance(answer, dict) else {}
    if not all(isinstance(given.get(name), str) for name in _FIELDS):
        found = ", ".join(given) or "no fields"  # their names only: the values are secrets
        raise ClientError(f"the session has {found}, expected texts: {', '.join(_FIELDS)}")
    held.append(Session(*(given[name] for name in _FIELDS)))


async def _stop(session: Session, tls: Tls) -> None:
    try:
        async with (
            Connection(session.control_url, tls) as client,
            client.request("POST", "/stop", timeout=AT_ONCE),
        ):
            pass
    except ClientError as error:
        if error.status != 404:  # it was over before
            logger.warning("the session was not stopped and keeps its place: %s", error)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, which has a time limit, to its end, also when cancelled meanwhile: a place that
    was taken while nobody waited for it any more could never be given back."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
