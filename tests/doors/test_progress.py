"""How far a recording has come: places in, percentages out."""

import pytest

from whisper_byoc.doors.progress import Place, Progress


@pytest.mark.parametrize(
    ("place", "percent"),
    [
        pytest.param(Place(0, 0, 0, False), 0, id="nothing yet"),
        pytest.param(Place(10, 20, 500, False), 25, id="half of the bytes, half of those heard"),
        pytest.param(Place(20, 20, 999, False), 99, id="all heard but for the last byte"),
        pytest.param(Place(30, 40, 1000, True), 75, id="all bytes"),
        pytest.param(Place(40, 40, 1100, True), 100, id="the end, and more bytes than were told"),
        pytest.param(Place(0, 0, 1000, True), 0, id="no audio at all"),
    ],
)
def test_the_length_is_judged_by_the_bytes_until_they_are_all_there(
    place: Place, percent: int
) -> None:
    assert Progress(1000).receive_place(place) == percent


def test_it_is_not_known_how_far_a_body_of_no_told_length_has_come() -> None:
    progress = Progress(None)
    assert progress.receive_place(Place(10, 20, 500, False)) is None
    assert progress.receive_place(Place(10, 20, 500, True)) == 50


def test_it_never_falls() -> None:
    progress = Progress(1000)
    assert progress.receive_place(Place(20, 20, 500, False)) == 50
    assert progress.receive_place(Place(20, 40, 600, False)) == 50


def test_every_tenth_is_to_be_logged_once() -> None:
    progress = Progress(100)
    logged = []
    for number in range(101):
        progress.receive_place(Place(number, 100, 100, True))
        logged.append(progress.percent_to_log())
    assert [it for it in logged if it is not None] == list(range(10, 101, 10))
