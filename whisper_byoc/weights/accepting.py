"""Where the weights lie, and whether they are the right ones, by the manifest beside them.

Downloads nothing.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, TypeAlias

from pydantic import AfterValidator, BaseModel, StringConstraints, TypeAdapter, ValidationError

from whisper_byoc.errors import ConfigurationError, MissingModel

MANIFEST: Final = "manifest.json"


class InvalidManifest(ConfigurationError):
    """The manifest cannot be read, and weights that it does not accept are not loaded."""

    code = "invalid_manifest"

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


def _without_folder(name: str) -> str:
    if not name or PurePath(name).name != name:
        raise ValueError("a file beside the manifest")
    return name


class ModelEntry(BaseModel, frozen=True, extra="forbid"):
    """One model of the manifest. file: its name in the manifest's folder. accepted: the SHA-256
    (64 hexadecimal digits) of each version of that file that may be used, by where it is from."""

    file: Annotated[str, AfterValidator(_without_folder)]
    accepted: Mapping[
        str, Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$", to_lower=True)]
    ]

    def source_of(self, sha256: str) -> str | None:
        """The source that gives these bytes, None when no source does."""
        return next((label for label, digest in self.accepted.items() if digest == sha256), None)


Manifest: TypeAlias = dict[str, ModelEntry]
"""Which weights are accepted, by model name."""

_MANIFESTS: Final = TypeAdapter(Manifest)


def accepting(manifest: Manifest, name: str, source: str, sha256: str) -> Manifest:
    """The manifest with `sha256` accepted too for the model `name`; itself when it is already."""
    entry = manifest.get(name) or ModelEntry(file=f"{name}.pt", accepted={})
    if entry.source_of(sha256):
        return manifest
    label = source if source not in entry.accepted else f"{source}-{sha256[:8]}"
    added = ModelEntry(file=entry.file, accepted={**entry.accepted, label: sha256})
    return {**manifest, name: added}


def find_weights(models_dir: Path, name: str) -> Path:
    """The file of `name`, its digest checked against the manifest.

    Raises MissingModel when the file is absent or another one, InvalidManifest.
    """
    manifest = read_manifest(models_dir)
    if name not in manifest:
        known = ", ".join(manifest) or "no model"
        raise MissingModel(name, f"is not in {models_dir / MANIFEST}, which knows {known}")
    entry = manifest[name]
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
    """Of a file, in lower-case hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(models_dir: Path) -> Manifest:
    """A folder without a manifest accepts nothing yet. Raises InvalidManifest."""
    path = models_dir / MANIFEST
    try:
        return _MANIFESTS.validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValidationError as error:  # before UnicodeDecodeError: both are ValueErrors
        raise InvalidManifest(path, _problem_of(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidManifest(path, f"cannot be read: {error}") from error


def write_manifest(models_dir: Path, manifest: Manifest) -> None:
    """Replaces the file as a whole: a reader sees the old one or the new one. Raises OSError."""
    path = models_dir / MANIFEST
    written = path.with_suffix(".json.new")
    written.write_bytes(_MANIFESTS.dump_json(manifest, indent=2) + b"\n")
    os.replace(written, path)


def _problem_of(error: ValidationError) -> str:
    """The first thing that is wrong: what was found, then what was expected."""
    first: Any = error.errors()[0]
    found = repr(first["input"])[:80]
    match first["type"], *first["loc"]:
        case "json_invalid", *_:
            return f"is no JSON: {first['ctx']['error']}"
        case "extra_forbidden", name, key:
            return f"{name} has {key!r}, expected an object of file and accepted"
        case ("missing", name, _) | (_, name):
            return f"{name} is {found}, expected an object of file and accepted"
        case _, name, "file":
            return f"file of {name} is {found}, expected the name of a file in this folder"
        case _, name, "accepted":
            return f"accepted of {name} is {found}, expected an object of digests"
        case _, name, "accepted", label, *_:
            return f"digest {label} of {name} is {found}, expected 64 hexadecimal digits"
    return f"holds {found}, expected an object of models"
