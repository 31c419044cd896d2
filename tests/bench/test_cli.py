"""The benchmark as users run it: real weights, real peers, its exit statuses."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hibari import Hibari

from whisper_bench.cli import main

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300
SAID = {
    "en/first.wav": "The quick brown fox jumps over the lazy dog.",
    "en/second.wav": "She sells sea shells by the sea shore.",
}

Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "en").mkdir()
    voice = Hibari()
    for file, text in SAID.items():
        voice.save(text, str(folder / file))
    lines = ["file\treference text", *(f"{file}\t{text}" for file, text in SAID.items())]
    path = folder / "manifest.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@contextmanager
def benchmark(*arguments: object) -> Iterator[Process]:
    """In a session of its own, as a shell starts a job; all of it is gone at exit."""
    what = [] if arguments[0] in ("live", "replay", "endings", "words") else ["offline"]
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *what]
    with subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs tests in the background lets them ignore it, and so all they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout, stderr: both end only when no process of a run holds them any more."""
    with benchmark(*arguments) as process:
        output, errors = process.communicate(timeout=SECONDS)
        return process.returncode, output, errors


def read_until(process: Process, text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} was not told: {seen}")


def check_report(line: str, runs: list[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(line)
    assert list(report["runs"]) == runs
    assert report["machine"].keys() == {"cpu", "cores", "flags", "memory_gb"}
    assert {"python", "torch", "openai-whisper", "commit"} < report["versions"].keys()
    assert 4 < report["audio_seconds"] < 10
    for figures in report["runs"].values():
        assert figures["rtf"] > 0
        assert figures["loops"] == 0
        assert figures["words_on_nonspeech"] is None
        assert figures["load_seconds"] > 0
        assert figures["median_seconds_per_file"] <= figures["seconds"]
    return report


@pytest.mark.model
def test_a_table_and_at_last_the_figures_of_all_runs(manifest: Path) -> None:
    """In batches; where the time goes is in the table and in the figures."""
    peers = ["openai", "faster-whisper", "faster-whisper-batched"]
    arguments = ["--peers", ",".join(peers), "--batch", 2, "--profile"]
    status, output, errors = run("--manifest", manifest, *arguments)
    assert status == 0, errors
    *table, last = output.splitlines()
    assert any("faster-whisper" in line for line in table)
    assert any("% of time in encoder" in line for line in table)
    report = check_report(last, ["ours", *peers])
    assert report["batch"] == 2
    peaks = {name: figures["peak_rss_mb"] for name, figures in report["runs"].items()}
    # The one without torch; were memory shared or inherited, it could not be the least
    assert 50 < peaks["faster-whisper"] < min(peaks["ours"], peaks["openai"])
    for figures in report["runs"].values():
        assert figures["wer"] == figures["wer_by_group"]["en"] < 25, figures
        assert figures["speedup_over_openai"] > 0
    assert report["runs"]["openai"]["speedup_over_openai"] == 1
    profile = report["runs"]["ours"]["profile"]
    assert sum(profile.values()) == pytest.approx(100, abs=1)
    assert profile["rest"] > 0
    assert errors.count("2/2 en/first.wav, en/second.wav: ours") == 1


@pytest.mark.model
def test_json_alone_for_what_was_chosen(manifest: Path) -> None:
    arguments = ["--json", "--limit", 1, "--filter", "en/s", "--repeats", 2, "--threads", 1]
    status, output, errors = run("--manifest", manifest, *arguments)
    assert status == 0, errors
    [line] = output.splitlines()
    report = json.loads(line)
    assert (report["files"], report["machine"]["cores"]) == (1, 1)
    assert "speedup_over_openai" not in report["runs"]["ours"]
    assert "1/1 en/second.wav: ours" in errors


@pytest.mark.model
def test_interrupted_it_leaves_no_process(manifest: Path) -> None:
    with benchmark("--manifest", manifest, "--repeats", 500) as process:
        read_until(process, "ours is warm")
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (130, "")
    assert errors == "benchmark: interrupted\n"


@pytest.mark.model
def test_the_door_of_a_service_that_is_started_for_it_hears_the_same(manifest: Path) -> None:
    status, output, errors = run("--manifest", manifest, "--json", "--door", "--effort", "quick")
    assert status == 0, errors
    report = check_report(output, ["ours", "server"])
    ours, server = report["runs"]["ours"], report["runs"]["server"]
    assert ours["wer"] == server["wer"]
    assert server["peak_rss_mb"] > 100
    assert report["effort"] == "quick"


@pytest.mark.model
def test_a_run_that_fails_is_named(manifest: Path) -> None:
    status, output, errors = run("--manifest", manifest, "--url", "http://127.0.0.1:1")
    assert (status, output) == (1, "")
    assert "run server failed: ClientConnectorError" in errors.splitlines()[-1]


@pytest.mark.model
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the process by /proc")
def test_a_process_that_is_killed_is_named(manifest: Path) -> None:
    with benchmark("--manifest", manifest, "--repeats", 500) as process:
        read_until(process, "ours is warm")
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        [ours] = [child for child in children if "--multiprocessing-fork" in arguments_of(child)]
        os.kill(ours, signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "run ours failed: its process ended with exit status -9" in errors


def arguments_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").split("\0")


def test_a_refusal_is_the_programs_end(manifest: Path) -> None:
    status, output, errors = run("--manifest", manifest, "--peers", "kaldi")
    assert (status, output) == (2, "")
    assert errors.startswith("benchmark: peer is 'kaldi', expected some of ")


@pytest.mark.model
def test_live_streams_in_figures(manifest: Path, tmp_path: Path) -> None:
    """Two streams, one after the other, then both at once."""
    arguments = ["--streams", "1,2", "--tracks", 2, "--seconds", 1]
    picture = tmp_path / "lag.png"
    status, output, errors = run("live", "--manifest", manifest, *arguments, "--picture", picture)
    assert status == 0, errors
    assert "1 at once, round 2 of 2" in errors
    *table, last = output.splitlines()
    assert any("final lag p50 / p95" in line for line in table)
    streams = json.loads(last)["streams"]
    assert list(streams) == ["1", "2"]
    for figures in streams.values():
        assert 0 < figures["final_lag"]["p50"] <= figures["final_lag"]["p95"] < 10
        assert figures["partial_lag"]["p50"] <= figures["final_lag"]["p50"]
        assert figures["wer"] < 25, figures
        assert figures["words"] > 10
        assert figures["tail_words_lost"] == 0
        assert figures["rss_mb"] > 100
        assert figures["cpu_seconds_per_audio_second"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.model
def test_a_replay_is_always_the_same(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own, and in this one."""
    arguments = ["replay", "--manifest", manifest, "--seconds", 5, "--option", "mode=low_latency"]
    _, output, errors = run(*arguments)
    call(*arguments)
    other = capsys.readouterr().out
    reports = [json.loads(text.splitlines()[-1])["streams"] for text in (output, other)]
    assert reports[0] == reports[1], errors
    figures = reports[0]["all"]
    assert 0 < figures["final_lag"]["p50"] <= figures["final_lag"]["p95"] < 5
    assert figures["wer"] < 25, figures


@pytest.mark.model
def test_word_times_are_compared_with_an_alignment(manifest: Path) -> None:
    alignment = manifest.parent / "en" / "first.words.tsv"
    alignment.write_text("start\tend\tword\n0.1\t0.3\tquick\n2.0\t2.4\tdog\n", encoding="utf-8")
    status, output, errors = run("words", "--manifest", manifest)
    assert status == 0, errors
    report = json.loads(output.splitlines()[-1])
    for figures in report["runs"].values():
        assert (figures["words"], figures["matched"]) == (9, 2)
        assert (figures["without_duration"], figures["overlapping"], figures["outside"]) == (
            0,
            0,
            0,
        )


@pytest.mark.model
def test_streams_that_end_anywhere(manifest: Path) -> None:
    arguments = ["endings", "--manifest", manifest, "--trials", 3, "--streams", 3]
    status, output, errors = run(*arguments)
    assert status == 0, errors
    report = json.loads(output.splitlines()[-1])
    assert sum(report["endings"].values()) == report["trials"] == 3
    assert report["endings"]["lost"] == 0, report


# What is refused. In this process, since nothing is started before it.


def call(*arguments: object) -> None:
    main(list(map(str, arguments)), standalone_mode=False)


Refused = Callable[..., None]


@pytest.fixture
def assert_refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def check(problem: str, *arguments: object) -> None:
        with pytest.raises(SystemExit) as caught:
            call(*arguments)
        output, errors = capsys.readouterr()
        assert (caught.value.code, output) == (2, "")
        [line] = errors.splitlines()
        assert problem in line
        assert "expected" in line

    return check


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param(
            ["--peers", "openai,kaldi"], "'kaldi', expected some of reference, openai", id="peer"
        ),
        pytest.param(["--filter", "fr/"], "'fr/' matches none of 2 files", id="filter"),
        pytest.param(["--manifest", "none.tsv"], "cannot read none.tsv: No such", id="manifest"),
    ],
)
def test_bad_arguments_of_offline_exit_2(
    manifest: Path, assert_refused: Refused, arguments: list[str], problem: str
) -> None:
    assert_refused(problem, "offline", "--manifest", manifest, *arguments)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        pytest.param("file\ttext\nbad.wav\thello", "expected 'reference text'", id="column"),
        pytest.param("file\treference text\nno.wav\thello", "no.wav is not there", id="no audio"),
        pytest.param(
            "file\treference text\nbad.wav\thi", "expected audio that ffmpeg", id="no sound"
        ),
        pytest.param("file\treference text\nbad.wav", "line 2 has 1 fields, expected 2", id="row"),
    ],
)
def test_bad_files_exit_2(
    tmp_path: Path, assert_refused: Refused, lines: str, problem: str
) -> None:
    (tmp_path / "bad.wav").write_text("this is text", encoding="utf-8")
    manifest = tmp_path / "bad.tsv"
    manifest.write_text(lines, encoding="utf-8")
    assert_refused(problem, "offline", "--manifest", manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tsv", "bad.wav"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param(["--streams", "4,none"], "'4,none', expected numbers", id="streams"),
        pytest.param(["--option", "mode"], "'mode', expected NAME=VALUE", id="option"),
    ],
)
def test_bad_arguments_of_live_exit_2(
    manifest: Path, assert_refused: Refused, arguments: list[str], problem: str
) -> None:
    assert_refused(problem, "live", "--manifest", manifest, *arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        pytest.param(["--option", "mode"], "expected each once, as NAME=VALUE", id="no value"),
        pytest.param(["--option", "mode=fast"], "mode is 'fast'", id="value"),
        pytest.param(["--option", "speed=1"], "speed is '1'", id="name"),
        pytest.param(["--half", "second"], "expected", id="too few files"),
    ],
)
def test_bad_arguments_of_replay_exit_2(
    manifest: Path, assert_refused: Refused, arguments: list[str], problem: str
) -> None:
    assert_refused(problem, "replay", "--manifest", manifest, *arguments)
