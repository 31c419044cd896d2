"""The manifest, and what counts as the right weights."""

import hashlib
import json
from pathlib import Path

import pytest
import whisper

from whisper_byoc.errors import MissingModel
from whisper_byoc.weights.accepting import (
    InvalidManifest,
    ModelEntry,
    accepting,
    find_weights,
    read_manifest,
    sha256_of,
    write_manifest,
)

MODELS_DIR = Path(__file__).resolve().parents[2] / "models"
WEIGHTS = b"weights"
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


def entry(**accepted: str) -> ModelEntry:
    return ModelEntry(file="tiny.en.pt", accepted=accepted)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    manifest = {"tiny.en": entry(openai=OTHER, wheel=DIGEST)}
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_accepted_weights_are_found(models_dir: Path) -> None:
    (models_dir / "tiny.en.pt").write_bytes(WEIGHTS)
    assert find_weights(models_dir, "tiny.en") == models_dir / "tiny.en.pt"


def test_absent_weights_name_the_command(models_dir: Path) -> None:
    with pytest.raises(MissingModel) as caught:
        find_weights(models_dir, "tiny.en")
    assert str(caught.value) == (
        f"model tiny.en: no file {models_dir / 'tiny.en.pt'},"
        " run: python scripts/bake_model.py tiny.en"
    )


def test_truncated_weights_are_refused(models_dir: Path) -> None:
    (models_dir / "tiny.en.pt").write_bytes(WEIGHTS[:-1])
    with pytest.raises(MissingModel) as caught:
        find_weights(models_dir, "tiny.en")
    found = hashlib.sha256(WEIGHTS[:-1]).hexdigest()
    assert f"(6 bytes) has SHA-256 {found}, expected {OTHER} (openai)" in str(caught.value)
    assert f"{DIGEST} (wheel)" in str(caught.value)


def test_a_model_that_the_manifest_does_not_know_is_refused(models_dir: Path) -> None:
    (models_dir / "small.pt").write_bytes(WEIGHTS)
    with pytest.raises(MissingModel, match=r"is not in .*, which knows tiny\.en, run"):
        find_weights(models_dir, "small")


def test_a_folder_without_manifest_accepts_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.en.pt").write_bytes(WEIGHTS)
    with pytest.raises(MissingModel, match="which knows no model"):
        find_weights(tmp_path, "tiny.en")


def test_a_folder_in_place_of_the_weights_is_refused(models_dir: Path) -> None:
    (models_dir / "tiny.en.pt").mkdir()
    with pytest.raises(MissingModel, match="no file"):
        find_weights(models_dir, "tiny.en")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("{", "is no JSON", id="broken JSON"),
        pytest.param("[]", "holds [], expected an object of models", id="a list"),
        pytest.param('{"a": 1}', "a is 1, expected an object of file", id="a number for a model"),
        pytest.param(
            '{"a": {"file": "a.pt"}}', "expected an object of file and accepted", id="no digests"
        ),
        pytest.param(
            '{"a": {"file": "a.pt", "accepted": {}, "url": ""}}',
            "a has 'url', expected an object of file and accepted",
            id="a key too many",
        ),
        pytest.param(
            '{"a": {"file": "../a.pt", "accepted": {}}}',
            "file of a is '../a.pt', expected the name of a file",
            id="a file elsewhere",
        ),
        pytest.param(
            '{"a": {"file": "a.pt", "accepted": []}}',
            "accepted of a is [], expected an object of digests",
            id="a list of digests",
        ),
        pytest.param(
            '{"a": {"file": "a.pt", "accepted": {"openai": "12ab"}}}',
            "digest openai of a is '12ab', expected 64 hexadecimal digits",
            id="a short digest",
        ),
        pytest.param(
            json.dumps({"a": {"file": "a.pt", "accepted": {"openai": "g" * 64}}}),
            "expected 64 hexadecimal digits",
            id="a digest of other letters",
        ),
        pytest.param(
            '{"a": {"file": "a.pt", "accepted": {"openai": 1}}}',
            "digest openai of a is 1, expected 64 hexadecimal digits",
            id="a number for a digest",
        ),
        pytest.param('{"a": {"file": "", "accepted": {}}}', "file of a is ''", id="no name"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InvalidManifest) as caught:
        find_weights(tmp_path, "a")
    assert str(caught.value).startswith(str(tmp_path / "manifest.json"))
    assert problem in str(caught.value)


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidManifest, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_manifest_survives_writing(models_dir: Path) -> None:
    manifest = read_manifest(models_dir)
    write_manifest(models_dir, manifest)
    assert read_manifest(models_dir) == manifest
    assert [path.name for path in models_dir.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({}, {"wheel": DIGEST}, id="the first digest"),
        pytest.param({"openai": OTHER}, {"openai": OTHER, "wheel": DIGEST}, id="another source"),
        pytest.param(
            {"wheel": OTHER}, {"wheel": OTHER, f"wheel-{DIGEST[:8]}": DIGEST}, id="a taken label"
        ),
    ],
)
def test_a_digest_is_added(before: dict[str, str], after: dict[str, str]) -> None:
    manifest = {"tiny.en": entry(**before)}
    assert accepting(manifest, "tiny.en", "wheel", DIGEST) == {"tiny.en": entry(**after)}


def test_a_model_is_added() -> None:
    added = accepting({}, "small", "openai", DIGEST)
    assert added == {"small": ModelEntry(file="small.pt", accepted={"openai": DIGEST})}


def test_an_accepted_digest_changes_nothing() -> None:
    manifest = {"tiny.en": entry(openai=DIGEST)}
    assert accepting(manifest, "tiny.en", "wheel", DIGEST) is manifest


@pytest.mark.parametrize("name", ["tiny.en", "tiny", "base.en", "base"])
def test_the_committed_manifest_accepts_openais_file(name: str) -> None:
    entry = read_manifest(MODELS_DIR)[name]
    assert entry.file == f"{name}.pt"
    assert entry.accepted["openai"] == whisper._MODELS[name].split("/")[-2]


def test_the_committed_manifest_is_as_it_would_be_written(tmp_path: Path) -> None:
    committed = (MODELS_DIR / "manifest.json").read_text()
    write_manifest(tmp_path, read_manifest(MODELS_DIR))
    assert (tmp_path / "manifest.json").read_text() == committed


@pytest.mark.model
def test_the_default_model_is_baked() -> None:
    assert sha256_of(find_weights(MODELS_DIR, "tiny.en"))
