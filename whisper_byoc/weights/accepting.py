"""Where the weights lie, and whether they are the right ones. Downloads nothing."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from whisper_byoc.errors import ConfigurationError, MissingModel

MANIFEST: Final = "manifest.json"
DIGEST_DIGITS: Final = 64


class InvalidManifest(ConfigurationError):
    """The manifest cannot be read; weights are not used on trust."""

    code = "invalid_manifest"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the manifest; `accepted` maps a source of `file` to its SHA-256."""

    file: str
    accepted: Mapping[str, str]

    def source_of(self, sha256: str) -> str | None:
        """The source that gives these bytes, None when no source does."""
        return next((label for label, digest in self.accepted.items() if digest == sha256), None)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which weights are accepted, by model name."""

    models: Mapping[str, ModelEntry] = field(default_factory=dict)

    def accepting(self, name: str, source: str, sha256: str) -> "Manifest":
        """This manifest with `sha256` accepted too; itself when it is already."""
        entry = self.models.get(name, ModelEntry(f"{name}.pt", {}))
        if entry.source_of(sha256):
            return self
        label = source if source not in entry.accepted else f"{source}-{sha256[:8]}"
        entry = replace(entry, accepted={**entry.accepted, label: sha256})
        return Manifest({**self.models, name: entry})


def find_weights(models_dir: Path, name: str) -> Path:
    """The file of `name`, its digest checked against the manifest.

    Raises MissingModel when the file is absent or another one, InvalidManifest.
    """
    manifest = read_manifest(models_dir)
    if name not in manifest.models:
        known = ", ".join(manifest.models) or "no model"
        raise MissingModel(name, f"is not in {models_dir / MANIFEST}, which knows {known}")
    entry = manifest.models[name]
    path = models_dir / entry.file
    if not path.is_file():
        raise MissingModel(name, f"no file {path}")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise MissingModel(name, f"{path} cannot be read: {error.strerror}") from error
    if not entry.source_of(found):
        expected = ", ".join(f"{digest} ({label})" for label, digest in entry.accepted.items())
        raise MissingModel(
            name,
            f"{path} ({path.stat().st_size} bytes) has SHA-256 {found},"
            f" expected {expected or 'one that the manifest accepts'}",
        )
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(models_dir: Path) -> Manifest:
    """A folder without a manifest accepts nothing yet. Raises InvalidManifest."""
    path = models_dir / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Manifest()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest(path, f"cannot be read: {error}") from error
    try:
        models = json.loads(text)
    except ValueError as error:
        raise InvalidManifest(path, f"is no JSON: {error}") from error
    if not isinstance(models, dict):
        raise InvalidManifest(path, f"holds {_shown(models)}, expected an object of models")
    return Manifest({name: _entry(path, name, found) for name, found in models.items()})


def write_manifest(models_dir: Path, manifest: Manifest) -> None:
    """Replaces the file as a whole: a reader sees the old one or the new one."""
    models = {
        name: {"file": entry.file, "accepted": dict(entry.accepted)}
        for name, entry in manifest.models.items()
    }
    path = models_dir / MANIFEST
    written = path.with_suffix(".json.new")
    written.write_text(json.dumps(models, indent=2) + "\n", encoding="utf-8")
    os.replace(written, path)


def _entry(path: Path, name: str, found: Any) -> ModelEntry:
    if not isinstance(found, dict) or found.keys() != {"file", "accepted"}:
        raise InvalidManifest(
            path, f"{name} is {_shown(found)}, expected an object of file and accepted"
        )
    file, accepted = found["file"], found["accepted"]
    if not isinstance(file, str) or Path(file).name != file:
        raise InvalidManifest(
            path, f"file of {name} is {_shown(file)}, expected the name of a file in this folder"
        )
    if not isinstance(accepted, dict):
        raise InvalidManifest(
            path, f"accepted of {name} is {_shown(accepted)}, expected an object of digests"
        )
    for label, digest in accepted.items():
        if not _is_digest(digest):
            raise InvalidManifest(
                path,
                f"digest {label} of {name} is {_shown(digest)}, expected 64 hexadecimal digits",
            )
    return ModelEntry(file, {label: digest.lower() for label, digest in accepted.items()})


def _is_digest(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) == DIGEST_DIGITS
        and all(digit in "0123456789abcdefABCDEF" for digit in value)
    )


def _shown(value: Any) -> str:
    return repr(value)[:80]
