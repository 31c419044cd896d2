"""One stream of an orchestrator: its channels around one job."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import aiohttp

from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.errors import BadMessage, RequestError, ServiceError, SlowReader
from whisper_byoc.jobs.job import Job
from whisper_byoc.jobs.jobs import Jobs
from whisper_byoc.jobs.work import Activity, JobLog
from whisper_byoc.metrics import Metrics
from whisper_byoc.orchestrator import messages
from whisper_byoc.orchestrator.tls import tls_of
from whisper_byoc.settings import Settings
from whisper_byoc.transcript import EndReason, Event, Failure, Payload
from whisper_byoc.trickle.client import ClientOptions, Publisher, Subscriber, open_session
from whisper_byoc.trickle.local import LocalChannel, LocalReader
from whisper_byoc.trickle.protocol import ChannelEnded, ChannelGone, TrickleError

logger = logging.getLogger(__name__)

_MAX_WAITING_SEGMENTS = 4096
"""An hour of segments of one second; `max_waiting_bytes` is mostly reached before."""
_MAX_WAITING_EVENTS = 64
_MAX_CONTROL_BYTES = 1 << 20
"""Of one control message; a longer one is given up, since it may have no end at all."""
_HOLD_SECONDS = 0.5
"""From the start to the first line of data: a gateway begins to read the channel shortly after our
answer to its start, and misses what was written before."""
_GAP_SECONDS = 0.05
"""Between two lines of data: a gateway has room for five lines that its client has not read yet,
and cuts the client off when there are more."""
_SETTLE_SECONDS = 0.25
"""Between the last words and the answer to a stop: the orchestrator closes the channels as soon as
it has the answer, and the gateway needs a moment to read the last words before that."""
_HEARTBEATS, _STATUS, _TRACE = "stream_heartbeat", "ai_stream_status", "stream_trace"
_EVENTS = "ai_stream_events"

Part = Callable[[aiohttp.ClientSession], Awaitable[None]]
"""What a session does beside the others, on the connections of its channels."""


class Session:
    """Reads the input of one stream, has a job work on it, and tells of both.

    Owned by `Sessions`: `run` is its one task, which ends by `stop`, by the end or loss of a
    channel, by the end of the job, or by silence; all of them flush. Its tasks and connections end
    with it. Input waits in a channel of this process: the oldest segments give way when the job is
    too slow, and they are counted. Events wait for their channel, the newest 64.
    """

    def __init__(
        self,
        request: messages.StartRequest,
        job: Job,
        audio_format: AudioFormat | None,
        jobs: Jobs,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        """audio_format: of segments that are no container; None lets their first bytes say. jobs:
        that the job is one of."""
        self.request = request
        self.job = job
        self.stopping = asyncio.Event()
        self._flushed = False
        self._done = asyncio.Event()
        self._jobs = jobs
        self._settings = settings.worker
        self._options = ClientOptions(
            settings.worker.retry_seconds, tls=tls_of(settings.orchestrator)
        )
        self._audio_format = audio_format
        self._metrics = metrics
        self._reason = EndReason.STOPPED
        self._input = LocalChannel(
            num_slots=_MAX_WAITING_SEGMENTS, max_bytes=settings.worker.max_waiting_bytes
        )
        self._to_job = LocalReader(self._input)
        self._events: deque[bytes] = deque(maxlen=_MAX_WAITING_EVENTS)
        self._event_came = asyncio.Event()
        self._activity = Activity()
        self._account = messages.Account(time.time(), settings.capability.pipeline)
        self._logger = JobLog(logger, {"job": job.job_id})

    async def stop(self, reason: EndReason) -> None:
        """Take no more input and flush; returns when the last words have been published, or when
        `stop_seconds` are over."""
        self._end(reason)
        await self._done.wait()

    def update(self, values: Mapping[str, Any]) -> None:
        """Other values for some options. Raises RequestError; the stream goes on."""
        self._jobs.change(self.job, messages.known_options(self.job.options, values))
        self._activity.note()
        self._account.last_params_time = time.time()
        self._tell({"type": "params_updated", "params": self._params()}, _EVENTS)

    def _params(self) -> dict[str, Any]:
        """The options that were given. Other parameters are not told: clients may send megabytes
        of them."""
        return self.job.options.model_dump(mode="json", exclude_unset=True)

    def status(self) -> dict[str, Any]:
        """What is known of the stream now, as its status event."""
        job, now = self.job, time.time()
        if problem := job.failure or job.problem:
            self._account.note_problem(str(problem), now)
        report = messages.JobReport(
            params=self._params(),
            counters=job.work.counters(),
            failed=job.failure is not None,
            segments_dropped=self._to_job.num_skipped,
            segments_left_out=job.num_problems,
        )
        return messages.status_event(self._account, report, now)

    async def run(self, lost: Callable[[str], None]) -> None:
        """Serve the stream to its end. Cancelling it ends the stream without a flush.

        lost: called once, with its URL, when a channel is not there any more while the stream runs:
        its orchestrator has begun anew, and knows neither the stream nor us."""
        self._logger.info("stream %s started", self.request.stream_id)
        self._tell({"type": "runner_receive_stream_request"}, _TRACE)
        try:
            async with open_session(self._options) as http, asyncio.TaskGroup() as group:

                def begin(*parts: Part) -> list[asyncio.Task[None]]:
                    return [group.create_task(self._guard(part, http, lost)) for part in parts]

                telling = begin(self._tell_events)
                listening = begin(self._read_input, self._read_control, self._watch)
                working = begin(self._feed, self._relay, self._write_output)
                await self.stopping.wait()
                for task in listening:
                    task.cancel()
                self._input.finish()
                try:
                    await self._flush(working, telling)
                finally:
                    for task in (*telling, *working):
                        task.cancel()
                if self._reason is EndReason.SHUTDOWN:
                    await self._leave(http)
        finally:
            self._done.set()
            self._metrics.segments_dropped.inc(self._to_job.num_skipped)
            self._logger.info(
                "stream ended, reason %s, %d segments, %d skipped, %d dropped, %d relayed",
                self._reason,
                self._account.segments_received,
                self._account.segments_skipped,
                self._to_job.num_skipped,
                self._account.segments_relayed,
            )

    async def _flush(
        self, working: Sequence[asyncio.Task[None]], telling: Sequence[asyncio.Task[None]]
    ) -> None:
        """Return when the last words, and then the last events, have been published and read."""
        try:
            async with asyncio.timeout(self._settings.stop_seconds):
                await asyncio.wait(working)
                self._flushed = True
                self._tell({"type": "stream_stopped", "reason": self._reason}, _EVENTS)
                await asyncio.wait(telling)
                await asyncio.sleep(_SETTLE_SECONDS)
        except TimeoutError:
            self._logger.warning("not flushed within %.1f s", self._settings.stop_seconds)

    async def _leave(self, http: aiohttp.ClientSession) -> None:
        """End the data channel, behind the last words: its gateway takes that for the loss of its
        worker and swaps to another at once, where it would wait 30 s for events."""
        data = self._publisher(http, self.request.data_url, "application/jsonl")
        if data is not None:
            await data.delete()

    def _end(self, reason: EndReason) -> None:
        if not self.stopping.is_set():
            self._reason = reason
            self.stopping.set()
            self._event_came.set()

    async def _guard(
        self, part: Part, http: aiohttp.ClientSession, lost: Callable[[str], None]
    ) -> None:
        """Run one part; when it ends, for whatever reason, the stream is ended with a flush. The
        part is called in here and not by `run`: a task may be cancelled before its first step, and
        a coroutine that `run` had made would then never be awaited."""
        reason = EndReason.EOF
        try:
            await part(http)
        except ChannelEnded as ended:
            self._logger.info("%s", ended)
            # Behind a stop, or behind the end of another channel, it is the end of the stream.
            if isinstance(ended, ChannelGone) and not self.stopping.is_set():
                lost(ended.url)
        except ServiceError as error:
            self._logger.warning("%s", error)
            self._account.note_problem(str(error), time.time())
            unreachable = isinstance(error, TrickleError)
            reason = EndReason.DISCONNECTED if unreachable else EndReason.ERROR
        self._end(reason)

    def _tell(self, event: Mapping[str, Any], queue: str) -> None:
        self._events.append(messages.wrapped(event, queue))
        self._event_came.set()

    # Input

    async def _read_input(self, http: aiohttp.ClientSession) -> None:
        """Take segments as fast as they come, whatever the job does with them."""
        if self.request.subscribe_url is None:
            await asyncio.Event().wait()  # until the stream is stopped
            return
        account = self._account
        async with Subscriber(self.request.subscribe_url, http, self._options) as subscriber:
            async for segment in subscriber:
                account.segments_received += 1
                self._metrics.segments_received.inc()
                if account.segments_received == 1:
                    self._tell({"type": "runner_receive_first_ingest_segment"}, _TRACE)
                self._metrics.segments_skipped.inc(
                    subscriber.num_skipped - account.segments_skipped
                )
                account.segments_skipped = subscriber.num_skipped
                await self._keep(segment.chunks())

    async def _keep(self, chunks: AsyncIterator[bytes]) -> None:
        kept = self._input.begin(self._input.next_write)
        self._input.receive_first_byte(kept)
        try:
            async for chunk in chunks:
                self._account.last_input_time = time.time()
                self._activity.note()
                if len(kept) + len(chunk) > self._settings.max_segment_bytes:
                    self._input.end(kept)
                    kept = self._input.begin(self._input.next_write)
                    self._input.receive_first_byte(kept)
                self._input.write(kept, chunk)
        finally:
            self._input.end(kept)

    async def _feed(self, http: aiohttp.ClientSession) -> None:
        """The input into the job, then its end."""
        await self.job.receive_segments(self._to_job, self._audio_format)
        if not self.stopping.is_set():  # the job has ended by itself
            self._end(EndReason.ERROR if self.job.failure else EndReason.EOF)
        await self.job.stop(self._reason)

    async def _relay(self, http: aiohttp.ClientSession) -> None:
        """Publish the input as it came, for gateways that want media back. A relay that fails is
        given up, and the words go on without it."""
        url = self.request.publish_url
        if url is None or not self.job.work.relays_input:
            await self.stopping.wait()
            return
        reader = LocalReader(self._input)
        publisher = Publisher(url, http, "video/MP2T", self._options)
        try:
            async for chunks in reader:
                await publisher.publish(b"".join([chunk async for chunk in chunks]))
                self._account.segments_relayed += 1
                self._account.segments_not_relayed = reader.num_skipped
        except TrickleError as error:
            self._logger.warning("relay: %s", error)
            reader.close()
            await self.stopping.wait()

    # Output

    async def _write_output(self, http: aiohttp.ClientSession) -> None:
        """Every event of the job to the channel it belongs to, until the last."""
        data = self._publisher(http, self.request.data_url, "application/jsonl")
        media = None
        if self.request.publish_url and not self.job.work.relays_input:
            media = self._publisher(http, self.request.publish_url, "video/MP2T")
        keepalive = self._settings.data_keepalive_seconds
        pace = _Pace()
        async for event in self._events_of_job(keepalive):
            if isinstance(event, Payload) and media is not None:
                await media.publish(event.data)
            elif data is not None:
                await pace.wait()
                await data.publish(messages.data_line(event))
            if isinstance(event, Failure):
                self._tell({"type": "error", "error": event.message}, _EVENTS)
            if event is not None:
                if self._account.last_output_time is None:
                    self._tell({"type": "runner_send_first_processed_segment"}, _TRACE)
                self._account.last_output_time = time.time()

    async def _events_of_job(self, idle_seconds: float) -> AsyncIterator[Event | None]:
        """The job's events; None after each idle time. Where the data channel is slower than the
        job, events that the log keeps no longer are left out."""
        after = -1
        while True:
            try:
                async for event in self.job.log.read(after, idle_seconds):
                    if event is not None:
                        after = event.seq
                    yield event
                return
            except SlowReader as error:
                self._logger.warning("data channel: %s", error)
                self._metrics.slow_readers.inc()

    def _publisher(
        self, http: aiohttp.ClientSession, url: str | None, mime: str
    ) -> Publisher | None:
        return None if url is None else Publisher(url, http, mime, self._options)

    async def _tell_events(self, http: aiohttp.ClientSession) -> None:
        """Heartbeats and status from the first second to the last, and what happens between."""
        publisher = self._publisher(http, self.request.events_url, "application/json")
        while True:
            self._event_came.clear()  # first, so that nothing from here on is missed
            last = self._flushed
            urls = {"subscribe": self.request.subscribe_url, "publish": self.request.publish_url}
            heartbeat = messages.heartbeat_event(urls, time.time())
            await _publish(publisher, messages.wrapped(heartbeat, _HEARTBEATS))
            await _publish(publisher, messages.wrapped(self.status(), _STATUS))
            while self._events:
                await _publish(publisher, self._events.popleft())
            if last:
                return
            try:
                async with asyncio.timeout(self._settings.heartbeat_seconds):
                    await self._event_came.wait()
            except TimeoutError:
                pass

    # Control

    async def _read_control(self, http: aiohttp.ClientSession) -> None:
        if self.request.control_url is None:
            await asyncio.Event().wait()  # until the stream is stopped
            return
        async with Subscriber(self.request.control_url, http, self._options) as subscriber:
            async for segment in subscriber:
                self._activity.note()
                body = bytearray()
                async with aclosing(segment.chunks()) as chunks:
                    async for chunk in chunks:
                        body += chunk
                        if len(body) > _MAX_CONTROL_BYTES:
                            break
                try:
                    self._obey(bytes(body))
                except RequestError as error:
                    self._logger.warning("control: %s", error)
                    self._tell({"type": "warning", "message": str(error)}, _EVENTS)

    def _obey(self, body: bytes) -> None:
        if len(body) > _MAX_CONTROL_BYTES:
            raise BadMessage(f"at least {len(body)} bytes", f"at most {_MAX_CONTROL_BYTES}")
        if body and (values := messages.parse_update(body)) is not None:
            self.update(values)

    async def _watch(self, http: aiohttp.ClientSession) -> None:
        """End the stream when nothing has come from the orchestrator for `silence_seconds`: no
        input, no control message, no update. A request that waits is no sign of life: channels
        outlive the gateway that made them by minutes. A stream without audio may go on: its control
        channel brings a keepalive every ten seconds."""
        limit = self._settings.silence_seconds
        await self._activity.until_idle(limit)
        self._logger.warning("nothing from the orchestrator for %.0f s", limit)
        self._end(EndReason.IDLE)


async def _publish(publisher: Publisher | None, data: bytes) -> None:
    if publisher is not None:
        await publisher.publish(data)


class _Pace:
    """Keeps lines apart, and the first one from the start."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = self._loop.time() + _HOLD_SECONDS

    async def wait(self) -> None:
        await asyncio.sleep(self._free - self._loop.time())
        self._free = self._loop.time() + _GAP_SECONDS
