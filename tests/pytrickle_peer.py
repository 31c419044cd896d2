"""PyTrickle's own classes, to speak with ours as an outside witness.

Its packages import everything they have, codecs and image libraries too, when they are entered;
only single modules are wanted. So both packages are entered here as empty ones with its folders.
"""

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

_SECONDS = 10.0


def publisher() -> Any:
    """TricklePublisher."""
    return _module("pytrickle.publisher").TricklePublisher


def subscriber() -> Any:
    """TrickleSubscriber."""
    return _module("pytrickle.subscriber").TrickleSubscriber


def register_capability() -> Any:
    """RegisterCapability."""
    return _module("pytrickle.utils.register").RegisterCapability


@asynccontextmanager
async def open_publisher(url: str, **arguments: Any) -> AsyncIterator[Any]:
    opened = publisher()(url, **arguments)
    await opened.start()
    try:
        yield opened
    finally:
        # Its preconnected POST ends by itself once it is told to stop; `close` would cancel it, and
        # then aiohttp's own task writes to a closed connection, with nobody to see the error.
        await opened.shutdown()
        async with asyncio.timeout(_SECONDS):
            await asyncio.gather(*opened._background_tasks)
        await opened.close()


@asynccontextmanager
async def open_subscriber(url: str, **arguments: Any) -> AsyncIterator[Any]:
    """From the newest segment on, unless `start_seq` says otherwise."""
    opened = subscriber()(url, **arguments)
    await opened.start()
    try:
        yield opened
    finally:
        await opened.close()


def _module(name: str) -> ModuleType:
    """Raises ModuleNotFoundError without PyTrickle."""
    _enter("pytrickle")
    _enter("pytrickle.utils")
    return importlib.import_module(name)


def _enter(package: str) -> None:
    if package in sys.modules:
        return
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no {package}, expected it of constraints-dev.txt", name=package)
    module = ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[package] = module
