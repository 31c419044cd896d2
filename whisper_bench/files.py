"""Manifests and recordings, from the disk."""

import wave
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import ffmpeg

from whisper_bench.manifest import BadInput, Clip, parse_manifest, select_clips
from whisper_bench.terminal import tell
from whisper_byoc.audio.ffmpeg import find_ffmpeg
from whisper_byoc.audio.formats import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Recording:
    """A clip of a manifest and its audio, 16 kHz mono int16."""

    clip: Clip
    audio: bytes


def read_recordings(
    manifest: Path, prefixes: Sequence[str], limit: int | None = None
) -> list[Recording]:
    """The first `limit` clips that begin with a prefix (see `select_clips`), with their audio.

    Raises BadInput, ConfigurationError where ffmpeg is needed and there is none.
    """
    clips = read_clips(manifest, prefixes)[:limit]
    return [Recording(clip, read_audio(manifest.parent / clip.file)) for clip in clips]


def read_audio(path: Path) -> bytes:
    """16 kHz mono int16, what openai-whisper makes of a file too. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"{path} is not there, expected the audio that the manifest names")
    # A WAV of this kind needs no ffmpeg, which the machine may lack.
    with suppress(wave.Error, EOFError), wave.open(str(path)) as file:
        if file.getparams()[:3] == (1, 2, SAMPLE_RATE) and file.getnframes():
            return bytes(file.readframes(file.getnframes()))
    stream = ffmpeg.input(str(path.resolve())).output("pipe:", f="s16le", ac=1, ar=SAMPLE_RATE)
    try:
        audio, _ = stream.global_args("-nostdin", "-loglevel", "error").run(
            cmd=find_ffmpeg(), capture_stdout=True, capture_stderr=True
        )
    except ffmpeg.Error as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise BadInput(f"{path}: {said[-1]}, expected audio that ffmpeg can read") from error
    if not audio:
        raise BadInput(f"{path} has no samples, expected some")
    return bytes(audio)


def read_clips(manifest: Path, prefixes: Sequence[str]) -> list[Clip]:
    """The clips of a manifest that are to be measured; tells of those left out. Raises BadInput."""
    try:
        clips = parse_manifest(manifest.read_text(encoding="utf-8"), str(manifest))
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot read {manifest}: {problem}, expected a table in UTF-8") from error
    chosen = select_clips(clips, prefixes)
    if not prefixes and (num_left_out := len(clips) - len(chosen)):
        tell(f"{num_left_out} files in other languages are left out, a --filter can name them")
    return chosen


def seconds_of(recordings: Sequence[Recording]) -> float:
    """Of all together."""
    return sum(len(recording.audio) for recording in recordings) / 2 / SAMPLE_RATE
