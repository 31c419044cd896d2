"""What the transcripts of a run are worth (pure)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from whisper_bench.manifest import Clip

Normalise = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Result:
    """What one run made of one clip; seconds has one item for each repeat."""

    clip: Clip
    text: str
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)


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
        result.clip.file for result, pair in zip(results, pairs, strict=True) if is_overlong(*pair)
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
    words = [(said.split(), heard.split()) for said, heard in pairs]
    num_spoken = sum(len(said) for said, _ in words)
    num_edits = sum(count_edits(said, heard) for said, heard in words if said)
    return round(100 * num_edits / num_spoken, 2) if num_spoken else None


def count_edits(said: Sequence[str], heard: Sequence[str]) -> int:
    """How many words have to be replaced, left out or put in to turn one into the other.

    Levenshtein's distance, row by row. By hand, since an image has no library that counts it.
    """
    row = list(range(len(heard) + 1))
    for place, word in enumerate(said, start=1):
        diagonal, row[0] = row[0], place
        for n, other in enumerate(heard, start=1):
            edits = min(row[n] + 1, row[n - 1] + 1, diagonal + (word != other))
            diagonal, row[n] = row[n], edits
    return row[-1]


def is_overlong(reference: str, hypothesis: str) -> bool:
    """Whether so much more was written than said that the decoder must have repeated itself."""
    num_said, num_heard = len(reference.split()), len(hypothesis.split())
    return num_said > 0 and num_heard > 1.5 * num_said + 3


def add_speedups(runs: dict[str, dict[str, Any]], baseline: str) -> None:
    """Total time of the run `baseline` over that of each, where it is one of them."""
    if baseline in runs:
        for run in runs.values():
            run[f"speedup_over_{baseline}"] = round(runs[baseline]["seconds"] / run["seconds"], 2)
