"""The channel on which a Live Runner's orchestrator tells of sessions (o2r, "orchestrator to
runner")."""

import logging
import ssl
from collections.abc import Callable

from whisper_byoc.orchestrator.runner import parse_session_event
from whisper_byoc.orchestrator.runner_sessions import RunnerSessions
from whisper_byoc.trickle.client import ClientOptions, Subscriber, open_session
from whisper_byoc.trickle.protocol import TrickleError

_MAX_MESSAGE_BYTES = 65536

logger = logging.getLogger(__name__)


async def follow(
    url: str,
    runner_id: str,
    sessions: RunnerSessions,
    tls: ssl.SSLContext | bool,
    over: Callable[[], None],
) -> None:
    """Read the channel from its beginning to its end, and note what it tells of sessions. What is
    lost or cannot be read does not matter for long: every beat's answer has the whole list.

    over: called when the channel is gone, with which the registration is in doubt.
    """
    options = ClientOptions(tls=tls, shown_as=f"o2r of runner {runner_id}")
    seq, said = 0, set[str]()
    while True:
        try:
            async with (
                open_session(options) as http,
                Subscriber(url, http, options, start=seq) as channel,
            ):
                async for segment in channel:
                    seq = segment.seq + 1
                    message = bytearray()
                    async for chunk in segment.chunks():
                        message += chunk[: _MAX_MESSAGE_BYTES - len(message)]
                    _note(bytes(message), runner_id, sessions, said)
            over()
            return
        except TrickleError as error:  # an outage: beats say whether the registration outlives it
            logger.info("o2r of runner %s: %s", runner_id, error.problem)  # the URL is its secret


def _note(message: bytes, runner_id: str, sessions: RunnerSessions, said: set[str]) -> None:
    try:
        event = parse_session_event(message)
    except ValueError as error:
        if not said:  # once a channel: anyone who has its URL may write to it
            said.add(str(error))
            logger.warning("o2r of runner %s: a message is %s", runner_id, error)
        return
    if event is None:
        return
    if event.released:
        sessions.release(event.session_id)
    else:
        sessions.note_reserved(runner_id, event.session_id)
