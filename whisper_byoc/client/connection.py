"""What all clients are: connections to one server, and what went wrong there as ClientError."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from whisper_byoc.errors import ServiceError

_CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 20.0
"""For what is answered at once, while streams may last for days."""
AT_ONCE = aiohttp.ClientTimeout(total=ANSWER_SECONDS, connect=_CONNECT_SECONDS)

Tls = ssl.SSLContext | bool
"""How certificates are checked: True by the known authorities, a context by its own, False not."""


class ClientError(ServiceError):
    """The server answered with an error, or could not be reached, or broke off."""

    code = "client_error"
    text = "{message} (HTTP {status})"

    message: str
    status: int | None = None

    def __str__(self) -> str:
        return self.message if self.status is None else super().__str__()


class Connection:
    """What all clients are: one pool of connections to one server while the async context manager
    is entered. There are no total time-outs: a stream may last for days.

    The path of `url` is the only secret of a session, so errors show dots in its place.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", tls: Tls = True) -> None:
        self._url = url.rstrip("/")
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS)
        # A stream holds two connections while it lasts; aiohttp's limit of 100 lets others wait.
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *exception: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @asynccontextmanager
    async def exchange(self, method: str, path: str) -> AsyncIterator[aiohttp.ClientSession]:
        """The pool, for one exchange whose failures are ClientError."""
        if self._session is None:
            raise ClientError("the client is not open, expected it in an `async with`")
        try:
            yield self._session
        except (aiohttp.ClientError, TimeoutError) as error:
            status = error.status if isinstance(error, aiohttp.WSServerHandshakeError) else None
            text = f"{method} {self._url}{path}: {_problem_of(error)}"
            secret = urlsplit(self._url).path
            raise ClientError(text.replace(secret, "/…") if secret else text, status) from error

    @asynccontextmanager
    async def request(
        self, method: str, path: str = "", **arguments: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request whose failures, also while its answer is read, are ClientError."""
        async with (
            self.exchange(method, path) as session,
            session.request(method, self._url + path, **arguments) as response,
        ):
            if response.status >= 400:
                raise await _error_of(response)
            yield response

    async def ask(self, method: str, path: str = "", **arguments: Any) -> Any:
        """The JSON of an answer that comes at once, None where it is empty. Raises ClientError."""
        async with self.request(method, path, timeout=AT_ONCE, **arguments) as response:
            return await json_of(response)


async def json_of(response: aiohttp.ClientResponse) -> Any:
    body = await response.read()
    try:
        return json.loads(body) if body else None
    except ValueError:
        raise ClientError(
            f"the server answered {body[:80]!r}, expected JSON", response.status
        ) from None


async def _error_of(response: aiohttp.ClientResponse) -> ClientError:
    """An answer's error: our document, node's `{"error": TEXT}`, or the plain text of others."""
    body = (await response.read()).decode("utf-8", "replace")
    try:
        error = json.loads(body)["error"]
        message = error if isinstance(error, str) else error["message"]
    except (ValueError, KeyError, TypeError):
        plain = response.content_type == "text/plain" and body.strip()
        message = plain[:160] if plain else f"the server answered {response.reason}"
    return ClientError(str(message), response.status)


def _problem_of(error: Exception) -> str:
    """What went wrong, without the URL of the request where aiohttp's text has it."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorCertificateError():
            found = error.certificate_error
            return f"certificate is not trusted ({found}), expected one of a known authority"
        case aiohttp.ClientConnectorError():
            return f"cannot connect: {error.os_error}"
        case aiohttp.WSServerHandshakeError():
            behind = ", as by an orchestrator that cannot reach its runner"
            return f"the WebSocket was refused{behind if error.status == 502 else ''}"
        case aiohttp.ClientResponseError():
            return error.message
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return "expected a URL that begins with http:// or https://"
    return str(error) or type(error).__name__
