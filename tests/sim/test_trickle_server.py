"""What an orchestrator's trickle server keeps of a channel beside its segments, without sockets.
What it answers is in tests/trickle/test_conformance.py."""

import pytest

from whisper_sim.trickle_server import ServedChannel


@pytest.mark.parametrize(
    ("now", "idle"),
    [
        pytest.param(10.0, False, id="at the limit it is not"),
        pytest.param(10.5, True, id="behind it is"),
    ],
)
def test_a_channel_is_idle_from_the_first_byte_of_its_last_segment(now: float, idle: bool) -> None:
    time = -100.0
    channel = ServedChannel("video/MP2T", lambda: time)
    segment = channel.begin(0)
    time = 5.0
    channel.receive_first_byte(segment)
    time = now
    channel.write(segment, b"on and on")
    assert channel.is_idle(5.0) == idle
