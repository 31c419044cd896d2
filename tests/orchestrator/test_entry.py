"""The rules of registering: what is sent, what an answer means, when it is sent again (pure)."""

import json
import logging
from typing import Any

import pytest

from whisper_byoc.orchestrator.capability import CapabilityEntry
from whisper_byoc.orchestrator.entry import Answer, Entry, Identity, Load, retry_delay, shown
from whisper_byoc.orchestrator.registration import entries
from whisper_byoc.orchestrator.runner import (
    RunnerEntry,
    SessionEvent,
    heartbeat_seconds,
    offers,
    parse_session_event,
)
from whisper_byoc.settings import (
    CapabilitySettings,
    JobSettings,
    OrchestratorSettings,
    RunnerMode,
    RunnerSettings,
    Settings,
)

NAME = "whisper-of-the-tests"
SECRET = "orchestrators-know-us-by-this"
IDENTITY = Identity("tiny.en", "1.2.3")
READY = Load()


def settings_for(runner: dict[str, Any] | None = None, **orchestrator: Any) -> Settings:
    orchestrator = {"urls": "http://o", "secret": SECRET} | orchestrator
    return Settings(
        orchestrator=OrchestratorSettings.model_validate(orchestrator),
        capability=CapabilitySettings(name=NAME, url="http://worker:8000", price_per_unit=7),
        runner=RunnerSettings.model_validate(runner or {}),
        jobs=JobSettings(max_jobs=9),
    )


def names(steps: list[Any]) -> list[str]:
    return [logging.getLevelName(step.level) for step in steps]


# Both interfaces


def test_retries_come_later_and_later_up_to_the_interval() -> None:
    delays = [retry_delay(n, 60.0) for n in (1, 2, 3, 4, 7, 8, 9, 100_000)]
    assert delays == [0.5, 1, 2, 4, 32, 60, 60, 60]
    assert retry_delay(1, 0.1) == 0.1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("invalid authorization\n", "invalid authorization"),
        ("you sent s3cret.", "you sent ***."),
        ("you sent s3cret-longer.", "you sent ***."),
        ('{"sent": "a\\"b"}', '{"sent": "***"}'),
        ("x" * 195 + "s3cret", "x" * 195 + "***"),
        ("x" * 197 + "s3cret", "x" * 197 + "***"),
        ("y" * 300, "y" * 200),
        ("two\r\nlines\x1b[2J", "two lines?[2J"),
    ],
)
def test_what_others_say_is_shown_short_and_without_secrets(text: str, line: str) -> None:
    assert shown(text, ("", "s3cret", "s3cret-longer", 'a"b')) == line


@pytest.mark.parametrize(
    ("interfaces", "kinds"),
    [
        ("live-runner", [RunnerEntry, RunnerEntry]),
        ("byoc", [CapabilityEntry, CapabilityEntry]),
        (
            "byoc,live-runner,byoc",
            [CapabilityEntry, RunnerEntry, CapabilityEntry, RunnerEntry],
        ),
    ],
)
def test_there_is_an_entry_for_each_orchestrator_and_interface(
    interfaces: str, kinds: list[type[Entry]]
) -> None:
    settings = settings_for(urls="http://a, http://b/, http://a", interfaces=interfaces)
    found = list(entries(settings, IDENTITY))
    assert [type(entry) for entry in found] == kinds
    assert [entry.url for entry in found] == sorted(["http://a", "http://b"] * (len(kinds) // 2))


def test_what_went_wrong_is_said_once_until_it_changes() -> None:
    entry = CapabilityEntry(settings_for(), "http://o")
    answers = [(500, "a"), (500, "a"), (400, "a"), (400, "a"), (400, "b"), (200, ""), (200, "")]
    steps = [entry.receive_answer(Answer(*answer)) for answer in answers]
    assert names(steps) == ["WARNING", "DEBUG", "ERROR", "DEBUG", "ERROR", "INFO", "DEBUG"]
    assert [step.delay for step in steps] == [0.5, 1.0, 60, 60, 60, 60, 60]
    assert entry.receive_failure("gone").delay == 0.5
    assert entry.registered  # it may well come back and know us still


# BYOC


@pytest.mark.parametrize(("num_streams", "free"), [(0, 9), (2, 7), (9, 0), (11, 0)])
def test_a_capability_has_what_is_free_as_its_capacity(num_streams: int, free: int) -> None:
    """It sets the orchestrator's count, which would forget the streams that run."""
    request = CapabilityEntry(settings_for(), "http://o").next_request(
        Load(num_streams=num_streams)
    )
    assert json.loads(request.body)["capacity"] == free


def test_a_capacity_of_its_own_counts_before_the_number_of_jobs() -> None:
    settings = settings_for().model_copy(update={"capability": CapabilitySettings(capacity=30)})
    for entry in (
        CapabilityEntry(settings, "http://o"),
        RunnerEntry(settings, "http://o", IDENTITY, offers(settings)[0]),
    ):
        assert json.loads(entry.next_request(READY).body)["capacity"] == 30


@pytest.mark.parametrize("status", [201, 302, 400, 401, 404, 405, 500, 503])
def test_only_what_an_operator_must_mend_makes_a_capability_wait_the_whole_interval(
    status: int,
) -> None:
    entry = CapabilityEntry(settings_for(), "http://o")
    delay = entry.receive_answer(Answer(status, "")).delay
    assert delay == (60.0 if status in (201, 400) else 0.5)


def test_case_r15_an_orchestrator_without_byoc_is_told_in_one_line_with_what_to_set() -> None:
    entry = CapabilityEntry(settings_for(interfaces="byoc"), "http://o")
    steps = [entry.receive_answer(Answer(404, "404 page not found\n")) for _ in range(3)]
    assert names(steps) == ["WARNING", "DEBUG", "DEBUG"]
    assert "no BYOC" in steps[0].text
    assert "WHISPER_ORCHESTRATOR_INTERFACES=live-runner" in steps[0].text
    assert "\n" not in steps[0].text


# Live Runner


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("1h0m0.5s", 3600.0),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("10000000µs", 10.0),
        ("0s", 0.2),
        ("1ns", 0.2),
        ("9" * 400 + "h", 3600.0),
        ("", 5.0),
        ("5", 5.0),
        ("-5s", 5.0),
        ("5 s", 5.0),
        ("soon", 5.0),
        ("7s!", 5.0),
        ("٣s", 5.0),
        (None, 5.0),
        (7, 5.0),
    ],
)
def test_a_heartbeat_interval_is_a_go_duration(duration: object, seconds: float) -> None:
    assert heartbeat_seconds(duration) == pytest.approx(seconds)


def runner_entry(
    runner: dict[str, Any] | None = None, index: int = 0, **fields: Any
) -> RunnerEntry:
    settings = settings_for(runner, **fields)
    return RunnerEntry(settings, "http://o", IDENTITY, offers(settings)[index])


def registered(entry: RunnerEntry, **fields: Any) -> RunnerEntry:
    document = {
        "runner_id": "r1", "heartbeat_secret": "of-the-beats", "heartbeat_interval": "2s",
        "heartbeat_ttl": "30s", "o2r": {"url": "http://o/ai/trickle/r1-o2r"}, "session_ids": [],
    }  # fmt: skip
    entry.receive_answer(Answer(200, json.dumps(document | fields)))
    assert entry.registered
    return entry


def body_of(entry: RunnerEntry, load: Load = READY) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(entry.next_request(load).body)
    return body


def test_case_r01_the_first_beat_is_what_the_orchestrator_decodes() -> None:
    request = runner_entry().next_request(READY)
    assert (request.path, request.authorization) == ("/runners/heartbeat", SECRET)
    body = json.loads(request.body)
    metadata = body.pop("metadata")
    assert len(metadata.encode()) <= 1024
    assert json.loads(metadata)["model"] == "tiny.en"
    assert body == {
        "label": NAME,
        "runner_url": "http://worker:8000",
        "version": "1.2.3",
        "status": "ready",
        "mode": "persistent",
        "app": "live-transcription/tiny.en",
        "capacity": 9,
        "proxy": False,
        "price_info": {"price": 0.0, "currency": "usd", "unit": "hour"},
        "session_ids": [],
    }
    assert isinstance(body["capacity"], int)


def test_a_gpu_is_told_where_there_is_one() -> None:
    gpu = {"id": "0", "name": "NVIDIA H200", "vram_mb": 143771}
    settings = settings_for()
    entry = RunnerEntry(settings, "http://o", Identity("tiny.en", "1", gpu), offers(settings)[0])
    assert body_of(entry)["gpu"] == gpu


def test_case_r03_later_beats_have_the_id_and_the_heartbeat_secret() -> None:
    entry = registered(runner_entry())
    assert entry.next_request(READY).authorization == "of-the-beats"
    assert body_of(entry)["runner_id"] == "r1"
    assert body_of(entry, Load(["s"], draining=True))["status"] == "draining"


@pytest.mark.parametrize(
    ("interval", "delay"), [("200ms", 0.2), ("1m0s", 60.0), ("1.5s", 1.5), ("soon", 5.0), (None, 5)]
)
def test_case_r03_the_next_beat_comes_after_the_interval_that_was_given(
    interval: object, delay: float
) -> None:
    entry = runner_entry()
    document = {"runner_id": "r", "heartbeat_secret": "s", "heartbeat_interval": interval}
    assert entry.receive_answer(Answer(200, json.dumps(document))).delay == delay


def test_case_r04_a_heartbeat_secret_may_change_and_is_never_shown() -> None:
    entry = runner_entry()
    for secret in ("first-secret", "second-secret"):
        registered(entry, runner_id="r/1", heartbeat_secret=secret)
        assert entry.next_request(READY).authorization == secret
    assert entry.next_withdrawal().path == "/runners/r%2F1/unregister"
    assert entry.next_withdrawal().authorization == "second-secret"
    assert "second-secret" not in entry.receive_answer(Answer(500, "second-secret")).text
    assert "second-secret" not in entry.receive_answer(Answer(401, "second-secret")).text
    assert entry.next_request(READY).authorization == SECRET


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, '{"error":"invalid runner credential"}'),
        (401, "invalid heartbeat authorization"),
        (404, "runner not found"),
    ],
    ids=["r05, node", "r05, go-livepeer", "r06"],
)
def test_case_r05_and_r06_a_runner_that_was_forgotten_begins_anew_at_once(
    status: int, text: str
) -> None:
    entry = registered(runner_entry())
    step = entry.receive_answer(Answer(status, text))
    assert (step.delay, step.level, step.lost_runner) == (0, logging.WARNING, "r1")
    assert "not known any more" in step.text
    assert (entry.registered, entry.runner_id, entry.o2r_url) == (False, "", "")
    assert entry.next_request(READY).authorization == SECRET
    assert "runner_id" not in body_of(entry)


def test_an_orchestrator_that_shuts_down_is_asked_again_soon() -> None:
    """It answers 401 to everybody, and our secret was right before."""
    entry = registered(runner_entry())
    steps = [entry.receive_answer(Answer(401, "invalid runner credential")) for _ in range(12)]
    assert max(step.delay for step in steps) <= 5.0
    assert "ERROR" not in names(steps)


def test_case_r07_a_wrong_secret_is_said_once_with_what_to_compare() -> None:
    entry = runner_entry()
    steps = [entry.receive_answer(Answer(401, f"invalid {SECRET}")) for _ in range(3)]
    assert names(steps) == ["ERROR", "DEBUG", "DEBUG"]
    assert [step.delay for step in steps] == [60.0] * 3
    assert "ORCH_SECRET" in steps[0].text
    assert "line end" in steps[0].text
    assert SECRET not in steps[0].text


def test_case_r08_an_id_that_a_former_self_holds_is_asked_for_until_it_is_free() -> None:
    entry = runner_entry({"id": "whisper"})
    waited = 0.0
    while waited < 1.2:
        assert body_of(entry)["runner_id"] == "whisper"
        step = entry.receive_answer(Answer(401, "invalid runner credential"))
        waited += step.delay
    assert waited <= 1.4
    assert "former self" in step.text
    registered(entry, runner_id="whisper")
    assert body_of(entry)["runner_id"] == "whisper"


def test_case_r08_an_id_that_stays_held_is_given_up_after_the_time_to_live() -> None:
    entry = runner_entry({"id": "whisper"})
    waited, num_asked = 0.0, 0
    while "runner_id" in body_of(entry):
        waited += entry.receive_answer(Answer(401, "invalid runner credential")).delay
        num_asked += 1
    assert 35 <= waited <= 41  # the time to live and an interval, as long as none was told
    assert num_asked < 100
    assert names([entry.receive_answer(Answer(401, "invalid runner credential"))]) == ["ERROR"]


def test_case_r09_an_id_that_is_a_static_runners_is_given_up() -> None:
    entry = runner_entry({"id": "whisper"})
    step = entry.receive_answer(Answer(403, "static runner cannot heartbeat"))
    assert (step.delay, step.level) == (0, logging.ERROR)
    assert "static runner cannot heartbeat" in step.text
    assert "runner_id" not in body_of(entry)
    assert entry.receive_answer(Answer(403, "static runner cannot heartbeat")).delay == 60


@pytest.mark.parametrize(
    "text",
    [
        "invalid heartbeat JSON",
        "runner_id must contain only ASCII letters, digits, _ and -",
        "runner_url must be an absolute HTTP or HTTPS URL",
        "app and capacity between 1 and 10000 are required",
        "mode must be persistent or single-shot",
        "runner price must be positive in on-chain mode",
        "runner price must be nonnegative",
        "runner price currency must be USD",
        "price_info.unit must be hour or fixed",
        "720p pricing is unsupported",
        "converted wei price exceeds supported range",
    ],
)
def test_case_r10_what_is_wrong_with_our_body_is_said_once(text: str) -> None:
    entry = runner_entry()
    steps = [entry.receive_answer(Answer(400, json.dumps({"error": text}))) for _ in range(3)]
    assert names(steps) == ["ERROR", "DEBUG", "DEBUG"]
    assert [step.delay for step in steps] == [60.0] * 3
    assert text in steps[0].text
    assert registered(entry).registered


@pytest.mark.parametrize("status", [301, 307, 404, 405, 409, 413])
def test_what_an_operator_must_mend_is_tried_again_slowly(status: int) -> None:
    step = runner_entry().receive_answer(Answer(status, "registration is disabled"))
    assert (step.delay, step.level) == (60.0, logging.ERROR)
    assert "registration is disabled" in step.text


def test_a_server_that_is_no_orchestrator_is_called_one() -> None:
    step = runner_entry().receive_answer(Answer(404, "404 page not found\n"))
    assert "Live Runners" in step.text


@pytest.mark.parametrize("status", [301, 404, 409, 500, 503])
def test_case_r11_while_registered_no_failure_costs_more_than_an_interval(status: int) -> None:
    entry = registered(runner_entry(), heartbeat_interval="5s")
    delays = [entry.receive_answer(Answer(status, "server busy")).delay for _ in range(9)]
    delays += [entry.receive_failure("no answer").delay for _ in range(3)]
    assert delays == [0.5, 1, 2, 4, *[5] * 8]
    assert entry.registered
    assert entry.answer_seconds < 5


def test_case_r12_before_it_is_registered_it_backs_off_to_a_minute() -> None:
    entry = runner_entry()
    delays = [entry.receive_answer(Answer(503, "server busy")).delay for _ in range(9)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert entry.answer_seconds == 5


@pytest.mark.parametrize(
    ("retry_after", "delay"), [("2", 2.0), ("999999", 3600.0), ("", 0.5), ("soon", 0.5)]
)
def test_case_r13_too_many_requests_are_answered_by_waiting(retry_after: str, delay: float) -> None:
    entry = registered(runner_entry())
    assert entry.receive_answer(Answer(429, "slow down", retry_after)).delay == delay


def test_case_r18_a_price_is_a_number_with_its_unit() -> None:
    entry = runner_entry({"price": 0.1, "price_unit": "fixed"})
    assert body_of(entry)["price_info"] == {"price": 0.1, "currency": "usd", "unit": "fixed"}
    refused = Answer(400, "runner price must be positive in on-chain mode")
    assert "WHISPER_RUNNER_PRICE" in entry.receive_answer(refused).text


def test_case_r19_each_mode_is_an_offer_of_its_own() -> None:
    runner = {
        "modes": "single-shot,persistent", "id": "live", "single_shot_id": "batch",
        "price": 0.1, "single_shot_price": 0.002, "single_shot_price_unit": "fixed",
    }  # fmt: skip
    live, batch = (body_of(runner_entry(runner, index)) for index in (0, 1))
    assert (live["mode"], live["runner_id"]) == ("persistent", "live")
    assert live["price_info"] == {"price": 0.1, "currency": "usd", "unit": "hour"}
    assert (batch["mode"], batch["runner_id"]) == ("single-shot", "batch")
    assert batch["price_info"] == {"price": 0.002, "currency": "usd", "unit": "fixed"}


def test_a_runner_of_one_mode_has_the_first_id_and_price() -> None:
    runner = {"modes": "single-shot", "id": "only", "price": 0.1, "app": "me/mine", "proxy": True}
    body = body_of(runner_entry(runner))
    assert (body["mode"], body["runner_id"], body["app"]) == (
        RunnerMode.SINGLE_SHOT,
        "only",
        "me/mine",
    )
    assert (body["price_info"]["price"], body["proxy"]) == (0.1, True)


@pytest.mark.parametrize(
    ("listed", "sessions"),
    [(["b", "a"], ["b", "a"]), ([], []), (None, None), ("a", None), (["a", 5], ["a"])],
)
def test_case_r26_a_list_of_sessions_that_is_none_says_nothing(
    listed: object, sessions: list[str] | None
) -> None:
    entry = registered(runner_entry())
    answer = Answer(200, json.dumps({"runner_id": "r1", "session_ids": listed}))
    assert entry.receive_answer(answer).sessions == sessions
    assert entry.receive_answer(Answer(200, '{"runner_id": "r1"}')).sessions is None


@pytest.mark.parametrize(
    "text",
    [
        "ok",
        "[]",
        "[" * 60_000,
        "{}",
        '{"runner_id": "r"}',
        '{"runner_id": "r", "heartbeat_secret": "line\\nbreak"}',
        '{"runner_id": 5, "heartbeat_secret": "s"}',
        '{"runner_id": "r", "heartbeat_secret": "\\ud800"}',
    ],
    ids=lambda text: text[:40],
)
def test_a_first_answer_without_id_and_secret_is_tried_again(text: str) -> None:
    entry = runner_entry()
    step = entry.receive_answer(Answer(200, text))
    assert (step.delay, step.level, entry.registered) == (0.5, logging.WARNING, False)
    assert entry.next_request(READY).authorization == SECRET


@pytest.mark.parametrize(
    ("o2r", "url"),
    [
        ({"url": "http://o/c"}, "http://o/c"),
        ({"url": "http://o/c", "internal_url": "http://inside/c"}, "http://inside/c"),
        ({"url": "ftp://o/c"}, ""),
        ({"url": "http://[::1/c"}, ""),
        ({"url": 5}, ""),
        ({}, ""),
        ("http://o/c", ""),
        (None, ""),
    ],
)
def test_an_orchestrators_channel_is_a_url_or_none(o2r: object, url: str) -> None:
    assert registered(runner_entry(), o2r=o2r).o2r_url == url


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (b'{"keep":"alive"}', None),
        (b'{"event":"reserved","session":"s1","timestamp":"t"}', SessionEvent("s1", False)),
        (b'{"event":"released","session":"s1"}', SessionEvent("s1", True)),
    ],
)
def test_case_r25_the_channel_tells_of_sessions(message: bytes, event: SessionEvent | None) -> None:
    assert parse_session_event(message) == event


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"event":"paused","session":"s"}',
        b'{"event":"released"}',
        b"[" * 9999,
    ],
    ids=lambda message: repr(message[:30]),
)
def test_case_r25_what_is_no_event_is_named(message: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_session_event(message)


@pytest.mark.parametrize(
    "message",
    [b'{"event":"reserved","session":"hidden', b'{"event":"paused","session":"hidden"}'],
    ids=["broken off", "unknown"],
)
def test_case_r27_what_is_no_event_shows_no_session(message: bytes) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_session_event(message)
    assert "hidden" not in str(caught.value)
