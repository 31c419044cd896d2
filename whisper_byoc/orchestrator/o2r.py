"""The channel on which a Live Runner's orchestrator tells of sessions (o2r, "orchestrator to
runner")."""

import logging
import ssl
from collections.abc import Callable

from whisper_byoc.orchestrator.runner import RunnerEntry, parse_session_event
from whisper_byoc.orchestrator.runner_sessions import RunnerSessions
from whisper_byoc.trickle.client import ClientOptions, Subscriber, open_session
from whisper_byoc.trickle.protocol import ChannelEnded, TrickleError

_MAX_MESSAGE_BYTES = 65536

logger = logging.getLogger(__name__)


async def follow(
    url: str,
    runner: RunnerEntry,
    sessions: RunnerSessions,
    tls: ssl.SSLContext | bool,
    over: Callable[[], None],
) -> None:
    """Read the channel from its beginning to its end, and note what it tells of the runner's
    sessions. What is lost or cannot be read does not matter for long: every beat's answer has the
    whole list.

    over: called when the channel is gone, with which the registration is in doubt.
    """
    name = f"o2r of {runner.what} at {runner.url}"  # the channel's URL is its secret
    options = ClientOptions(tls=tls, shown_as=name)
    seq, runner_id, noted = 0, runner.runner_id, False
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
                    problem = _note(bytes(message), runner_id, sessions)
                    # Once: anyone who has the channel's URL may write to it.
                    if problem and not noted:
                        noted = True
                        logger.warning("%s: a message is %s", name, problem)
            break
        except ChannelEnded:
            break
        except TrickleError as error:  # an outage: beats say whether the registration outlives it
            logger.info("%s: %s", name, error.problem)
    over()


def _note(message: bytes, runner_id: str, sessions: RunnerSessions) -> str:
    """What is wrong with the message; empty when nothing is."""
    try:
        event = parse_session_event(message)
    except ValueError as error:
        return str(error)
    if event is not None and event.released:
        sessions.release(event.session_id)
    elif event is not None:
        sessions.note_reserved(runner_id, event.session_id)
    return ""
