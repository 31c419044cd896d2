"""Which requests form the next batch."""

import math

from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.inference.scheduler import Scheduler


def test_the_earliest_deadline_goes_first() -> None:
    scheduler: Scheduler[str] = Scheduler(max_batch=2)
    for name, deadline in (("late", 9.0), ("early", 1.0), ("middle", 5.0)):
        scheduler.receive_request(name, deadline)
    assert list(scheduler.next_batch().values()) == ["early", "middle"]
    assert list(scheduler.next_batch().values()) == ["late"]
    assert scheduler.next_batch() == {}


def test_equal_deadlines_keep_their_order() -> None:
    scheduler: Scheduler[int] = Scheduler(max_batch=10)
    for number in range(10):
        scheduler.receive_request(number, 0.0)
    assert list(scheduler.next_batch().values()) == list(range(10))


def test_only_requests_of_one_key_go_together() -> None:
    scheduler: Scheduler[str] = Scheduler(max_batch=3)
    for name, key in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        scheduler.receive_request(name, 0.0, key)
    assert list(scheduler.next_batch().values()) == ["a1", "a2"]
    assert list(scheduler.next_batch().values()) == ["b1"]


def test_a_cancelled_request_is_not_served() -> None:
    scheduler: Scheduler[str] = Scheduler(max_batch=3)
    number = scheduler.receive_request("gone", 0.0)
    scheduler.receive_request("kept", 1.0)
    scheduler.receive_cancel(number)
    assert len(scheduler) == 1
    assert list(scheduler.next_batch().values()) == ["kept"]
    scheduler.receive_cancel(number)


def test_those_without_a_deadline_go_behind_all_others() -> None:
    scheduler: Scheduler[str] = Scheduler(max_batch=3, max_patient=2)
    for name in ("file 1", "file 2", "file 3"):
        scheduler.receive_request(name, math.inf)
    assert not scheduler.has_urgent
    scheduler.receive_request("live", 9.0)
    gone = scheduler.receive_request("gone", math.inf)
    assert scheduler.has_urgent
    assert len(scheduler) == 5
    scheduler.receive_cancel(gone)
    assert list(scheduler.next_batch().values()) == ["live"]
    assert scheduler.next_batch() == {}
    assert list(scheduler.next_patient_batch().values()) == ["file 1", "file 2"]
    assert list(scheduler.next_patient_batch().values()) == ["file 3"]
    assert scheduler.next_patient_batch() == {}


steps = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from("ab")))


@given(steps, st.integers(1, 4))
def test_every_request_is_served_once_or_cancelled(
    script: list[tuple[int, int, str]], max_batch: int
) -> None:
    scheduler: Scheduler[tuple[int, str]] = Scheduler(max_batch)
    waiting: set[int] = set()
    served: list[int] = []
    for action, value, key in script:
        if action == 0 and waiting:
            number = sorted(waiting)[value % len(waiting)]
            scheduler.receive_cancel(number)
            waiting.discard(number)
        elif action == 1:
            batch = scheduler.next_batch()
            assert len(batch) <= max_batch
            assert len({key for _, key in batch.values()}) <= 1
            served += batch
            waiting -= batch.keys()
        else:
            waiting.add(scheduler.receive_request((value, key), float(value), key))
        assert len(scheduler) == len(waiting)
    while batch := scheduler.next_batch():
        served += batch
        waiting -= batch.keys()
    assert not waiting
    assert len(served) == len(set(served))
