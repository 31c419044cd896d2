"""Which files a benchmark measures, and what the transcripts of a run are worth (pure)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import median
from typing import Any, Final

import jiwer

from whisper_byoc.errors import ConfigurationError

FILE_COLUMN: Final = "file"
REFERENCE_COLUMN: Final = "reference text"
_ENGLISH: Final = "en/"

Normalise = Callable[[str], str]


class BadInput(ConfigurationError):
    """What the user asked for cannot be measured; nothing was."""

    code = "bad_input"


@dataclass(frozen=True, slots=True)
class Clip:
    """One file of a manifest; its reference is empty when nobody speaks in it."""

    file: str
    reference: str

    @property
    def group(self) -> str:
        """`en/accent` for en/accent/p236/001.flac; `.` beside the manifest."""
        return "/".join(PurePosixPath(self.file).parent.parts[:2]) or "."

    @property
    def is_foreign(self) -> bool:
        """Speech in a folder that is not `en/`; files without a folder are taken as English."""
        return bool(self.reference) and "/" in self.file and not self.file.startswith(_ENGLISH)


@dataclass(frozen=True, slots=True)
class Result:
    """What one run made of one clip; seconds has one item for each repeat."""

    clip: Clip
    text: str
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)


def parse_manifest(text: str, name: str) -> list[Clip]:
    """The clips of a tab-separated table with a header, `name` being what errors call it.

    Raises BadInput. Quotes mean nothing special; columns but the two that are named are ignored.
    """
    numbered = enumerate(text.removeprefix("\ufeff").split("\n"), start=1)
    rows = [
        (number, line.removesuffix("\r").split("\t")) for number, line in numbered if line.strip()
    ]
    if not rows:
        raise BadInput(f"{name} is empty, expected a header line and a line per file")
    header = rows[0][1]
    for column in (FILE_COLUMN, REFERENCE_COLUMN):
        if column not in header:
            raise BadInput(
                f"{name} has the columns {', '.join(map(repr, header))[:200]},"
                f" expected {column!r} among them, with tabs between"
            )
    file, reference = header.index(FILE_COLUMN), header.index(REFERENCE_COLUMN)
    for number, fields in rows[1:]:
        if len(fields) != len(header):
            raise BadInput(
                f"{name}, line {number} has {len(fields)} fields, expected {len(header)}"
            )
        if not fields[file].strip():
            raise BadInput(f"{name}, line {number} names no file, expected one")
    return [Clip(fields[file].strip(), fields[reference].strip()) for _, fields in rows[1:]]


def select_clips(clips: Sequence[Clip], prefixes: Sequence[str]) -> list[Clip]:
    """Those with one of the prefixes; without any, all but speech in other languages.

    Raises BadInput when a prefix, or everything, selects nothing.
    """
    for prefix in prefixes:
        if not any(clip.file.startswith(prefix) for clip in clips):
            groups = ", ".join(sorted({clip.group for clip in clips})) or "none"
            raise BadInput(
                f"filter {prefix!r} matches none of {len(clips)} files, expected the beginning"
                f" of one; the folders are {groups}"
            )
    if prefixes:
        return [clip for clip in clips if clip.file.startswith(tuple(prefixes))]
    chosen = [clip for clip in clips if not clip.is_foreign]
    if not chosen:
        raise BadInput(
            f"the manifest has {len(clips)} files, expected some in {_ENGLISH} or a filter"
        )
    return chosen


def summarise(
    results: Sequence[Result], audio_seconds: float, normalise: Normalise
) -> dict[str, Any]:
    """One run in figures, for the report's JSON.

    audio_seconds: of all clips together. normalise: makes references and hypotheses comparable.
    Word error rates, in percent, are pooled: edits of all files over reference words of all. Clips
    whose reference has no words count in `words_on_nonspeech` instead. None: no clip to tell from.
    """
    seconds = [result.median_seconds for result in results]
    pairs = [(normalise(result.clip.reference), normalise(result.text)) for result in results]
    looping = [
        result.clip.file for result, pair in zip(results, pairs, strict=True) if is_loop(*pair)
    ]
    unsaid = [hypothesis for reference, hypothesis in pairs if not reference.split()]
    groups: dict[str, list[tuple[str, str]]] = {}
    for result, pair in zip(results, pairs, strict=True):
        if pair[0].split():
            groups.setdefault(result.clip.group, []).append(pair)
    return {
        "rtf": round(sum(seconds) / audio_seconds, 5),
        "wer": word_error_rate(pairs),
        "loops": len(looping),
        "looping_files": looping,
        "words_on_nonspeech": sum(len(heard.split()) for heard in unsaid) if unsaid else None,
        "seconds": round(sum(seconds), 3),
        "median_seconds_per_file": round(median(seconds), 4),
        "wer_by_group": {group: word_error_rate(groups[group]) for group in sorted(groups)},
    }


def word_error_rate(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Percent, pooled over (reference, hypothesis) pairs; None when no reference has words."""
    spoken = [(reference, hypothesis) for reference, hypothesis in pairs if reference.split()]
    if not spoken:
        return None
    references, hypotheses = map(list, zip(*spoken, strict=True))
    return round(100 * float(jiwer.wer(references, hypotheses)), 2)


def is_loop(reference: str, hypothesis: str) -> bool:
    """Whether so much more was written than said that the decoder must have repeated itself."""
    num_said, num_heard = len(reference.split()), len(hypothesis.split())
    return num_said > 0 and num_heard > 1.5 * num_said + 3


def add_speedups(runs: dict[str, dict[str, Any]], baseline: str) -> None:
    """Total time of the run `baseline` over that of each, where it is one of them."""
    if baseline in runs:
        for run in runs.values():
            run[f"speedup_over_{baseline}"] = round(runs[baseline]["seconds"] / run["seconds"], 2)
