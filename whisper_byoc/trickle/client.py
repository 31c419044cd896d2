"""Both ends of a channel as a client of its server: `Subscriber` reads it, `Publisher` writes it.

The rules are in `protocol`; here are the sockets. No request has a total time-out: a segment may
take as long as its sender does. Redirects are failures: they could lead anywhere.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import aiohttp

from whisper_byoc.trickle import protocol
from whisper_byoc.trickle.channel import NEWEST

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
REISSUE_SECONDS = 20.0
"""After which a GET that waits is asked anew: what stands between may forget a silent one."""
ANSWER_SECONDS = 20.0
"""For the answer to a POST whose body is sent."""
DELETE_SECONDS = 2.0
"""For the answer to a DELETE."""

_BROKEN = (aiohttp.ClientError, OSError, TimeoutError, UnicodeError)
"""The last is what a host's name raises that no resolver can be asked for."""


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """retry_seconds: of failures in a row, after which a channel is given up. tls: how certificates
    are checked, as aiohttp's `ssl`. shown_as: in the log, for a channel whose URL is a secret."""

    retry_seconds: float = 12.0
    reissue_seconds: float = REISSUE_SECONDS
    tls: ssl.SSLContext | bool = True
    shown_as: str = ""


@asynccontextmanager
async def open_session(options: ClientOptions) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections for any number of channels; all are closed at exit."""
    connector = aiohttp.TCPConnector(limit=0, ssl=options.tls)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


def _problem_of(error: Exception) -> str:
    """Without the URL, which aiohttp shows of an answer that is no HTTP, and which may be a
    secret."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.message
    return str(error) or type(error).__name__


class _Failures:
    """Failures in a row, and since when."""

    def __init__(self, options: ClientOptions) -> None:
        self.num = 0
        self._since = 0.0
        self._limit = options.retry_seconds

    def reset(self) -> None:
        self.num = 0

    def count(self, url: str, problem: str) -> None:
        """Raises TrickleError when they have lasted too long."""
        now = asyncio.get_running_loop().time()
        if not self.num:
            self._since = now
        self.num += 1
        if now - self._since >= self._limit:
            raise protocol.TrickleError(
                url, f"{self.num} failures in {now - self._since:.1f} s, last {problem}"
            )


class RemoteSegment:
    """One segment that is being read. `broken` says that its body ended before its end."""

    def __init__(self, seq: int, response: aiohttp.ClientResponse) -> None:
        self.seq = seq
        self.broken = False
        self._response = response

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """As they come. What came before a connection broke is kept: nobody can tell what is
        missing, and the next segment is whole again."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except _BROKEN as error:
            self.broken = True
            logger.debug("segment %d broke off: %s", self.seq, error)
        finally:
            self._response.close()


class Subscriber:
    """Reads a channel, segment after segment, and asks for the next one while it reads.

    `num_skipped` counts segments that the channel had dropped before we came to them. One task
    iterates. Use it as an async context manager: leaving closes its connections.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        options: ClientOptions | None = None,
        start: int = NEWEST,
    ) -> None:
        self.url = url.rstrip("/")
        self.num_skipped = 0
        self.num_requests = 0
        self._session = session
        self._options = options or ClientOptions()
        self._seq = start
        self._failures = _Failures(self._options)
        self._preconnect: asyncio.Task[RemoteSegment] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._cancel_preconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RemoteSegment:
        """The next segment, empty ones left out. Ends when the channel is closed; raises
        ChannelGone when it is not there, TrickleError when it cannot be reached any more."""
        if self._preconnect is None:
            self._preconnect = asyncio.create_task(self._open())
        try:
            segment = await asyncio.shield(self._preconnect)
        except protocol.ChannelGone:
            raise
        except protocol.ChannelEnded:
            raise StopAsyncIteration from None
        self._preconnect = asyncio.create_task(self._open())
        return segment

    async def _cancel_preconnect(self) -> None:
        task, self._preconnect = self._preconnect, None
        if task is None:
            return
        task.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, RemoteSegment):
            outcome._response.close()

    async def _open(self) -> RemoteSegment:
        """Ask until there is a segment with data. Raises ChannelEnded and TrickleError."""
        while True:
            try:
                response = await self._get()
            except _BROKEN as error:
                self._failures.count(self.url, _problem_of(error))
                await asyncio.sleep(protocol.back_off(self._failures.num))
                continue
            if response is None:
                self._failures.reset()  # a server that keeps a request waiting is alive
                continue
            step = protocol.after_get(
                self._seq, response.status, response.headers, self._failures.num
            )
            segment = await self._follow(step, response)
            if segment is not None:
                return segment

    async def _get(self) -> aiohttp.ClientResponse | None:
        """The head of the answer to a GET of the next segment; None after `reissue_seconds` without
        one, when the GET is to be sent again."""
        self.num_requests += 1
        try:
            async with asyncio.timeout(self._options.reissue_seconds) as limit:
                return await self._session.get(f"{self.url}/{self._seq}", allow_redirects=False)
        except TimeoutError:
            if limit.expired():
                return None
            raise

    async def _follow(
        self, step: protocol.GetStep, response: aiohttp.ClientResponse
    ) -> RemoteSegment | None:
        if step.failed:
            self._failures.count(self.url, f"status {response.status}")
        else:
            self._failures.reset()
        self.num_skipped += step.skipped
        if step.skipped:
            shown = self._options.shown_as or f"channel {self.url}"
            logger.warning("%s: %d segments skipped", shown, step.skipped)
        # Answers without a number are no channel's: they may come at once, for ever.
        blind = step.then is protocol.Next.READ and protocol.SEQ not in response.headers
        if step.then is protocol.Next.READ:
            self._seq = step.seq
            if response.content_length != 0:
                await asyncio.sleep(protocol.BEHIND_SECONDS if blind else 0)
                return RemoteSegment(step.seq - 1, response)
        response.close()
        if step.then is protocol.Next.END:
            raise protocol.channel_end(self.url, response.status)
        self._seq = step.seq
        await asyncio.sleep(protocol.BEHIND_SECONDS if blind else step.seconds)
        return None


class Publisher:
    """Writes a channel, one message a segment.

    It asks the channel where to begin, and resets what a publisher before it left open. `publish`
    leaves the channel there when it has ended: who made it deletes it, and `delete` is for a
    publisher that has to go while its readers would wait for more. One task publishes at a time;
    cancelling it may lose the message.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        mime: str,
        options: ClientOptions | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.num_published = 0
        self._session = session
        self._mime = mime
        self._options = options or ClientOptions()
        self._seq: int | None = None
        self._reset = True
        self._failures = _Failures(self._options)
        self._ended: protocol.TrickleError | None = None

    async def publish(self, data: bytes) -> None:
        """Send one segment and wait for its answer.

        Raises ChannelEnded when the channel is over, ChannelGone when it is not there, and
        TrickleError when it cannot be reached any more, from then on at every call.
        """
        if self._ended is not None:
            raise self._ended
        try:
            while not await self._send(data):
                pass
            self.num_published += 1
        except protocol.TrickleError as error:
            self._ended = error
            raise

    async def delete(self) -> None:
        """End the channel for its readers, at once. Tries once, and raises nothing: who made the
        channel deletes it in the end."""
        try:
            async with (
                asyncio.timeout(DELETE_SECONDS),
                self._session.delete(self.url, allow_redirects=False) as response,
            ):
                problem = f"status {response.status}" if response.status != 200 else ""
        except _BROKEN as error:
            problem = _problem_of(error)
        if problem:
            logger.warning("channel %s: not deleted: %s", self.url, problem)

    async def _send(self, data: bytes) -> bool:
        """Whether the message was taken."""
        if self._seq is None:
            self._seq = await self._ask_first()
        taken = protocol.Sent.NOTHING

        async def body() -> AsyncIterator[bytes]:
            nonlocal taken
            taken = protocol.Sent.SOMETHING
            yield data

        headers = {"Content-Type": self._mime, "Content-Length": str(len(data))}
        if self._reset:
            headers[protocol.RESET] = "1"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async with self._session.post(
                    f"{self.url}/{self._seq}",
                    data=body() if data else b"",
                    headers=headers,
                    allow_redirects=False,
                ) as response:
                    step = protocol.after_post(self._seq, response.status, response.headers)
                    problem = f"status {response.status}"
                    if step.ended:
                        raise protocol.channel_end(self.url, response.status)
        except _BROKEN as error:
            problem = _problem_of(error)
            step = protocol.after_broken_post(self._seq, taken, self._failures.num + 1)
        return await self._follow(step, problem)

    async def _follow(self, step: protocol.PostStep, problem: str) -> bool:
        self._seq = step.seq
        if step.again:
            # The failed request may have opened a segment that will get no end: the reset closes
            # it, so that its readers go on.
            self._reset = True
            self._failures.count(self.url, problem)
            await asyncio.sleep(step.seconds)
            return False
        self._reset = False
        self._failures.reset()
        return True

    async def _ask_first(self) -> int:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async with self._session.get(f"{self.url}/next", allow_redirects=False) as response:
                    body = await response.read()
                    return protocol.first_seq(response.status, body.decode("ascii", "replace"))
        except _BROKEN as error:
            logger.debug("channel %s: no answer to /next: %s", self.url, error)
            return -1
