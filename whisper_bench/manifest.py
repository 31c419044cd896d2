"""Which files a benchmark measures (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from whisper_byoc.errors import ConfigurationError

FILE_COLUMN: Final = "file"
REFERENCE_COLUMN: Final = "reference text"
_ENGLISH: Final = "en/"


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
