"""What the body of a batch request holds: its fields, and its audio."""

import base64
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from whisper_byoc.audio.content_types import format_of_content_type
from whisper_byoc.audio.formats import AudioFormat
from whisper_byoc.doors.requests import Incoming
from whisper_byoc.errors import BadMessage, InvalidOption
from whisper_byoc.jobs.control import parse_object
from whisper_byoc.jobs.work import Chunks

FILE_FIELDS = ("audio", "file")
AUDIO_FIELDS = ("audio", "input", "audio_base64", "file")
_CHUNK_BYTES = 64 * 1024
_MAX_PARTS = 100
_LISTS = frozenset(("timestamp_granularities", "include", "keywords", "keyterms", "languages"))
"""Fields that may come more than once."""
_BRACKETS = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")

Fields = Mapping[str, Any]
"""What a request says beside its audio: text from forms and queries, anything from JSON."""


@dataclass(frozen=True, slots=True)
class Upload:
    """The parts of a body."""

    fields: Fields
    audio: Chunks
    audio_format: AudioFormat | None
    num_bytes: int | None = None
    """Of the audio, where that is told before it is read."""


def media_type(request: Request) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def open_upload(
    request: Request, incoming: Incoming, limit: int, *, is_audio: bool
) -> AsyncIterator[Upload]:
    """Take a body apart; files of a form are deleted at exit. is_audio: whether the body is for
    Whisper. What a hosted processor gets has no declared format, and JSON is passed on as it is.

    Raises BadMessage, InvalidOption and UnsupportedAudio.
    """
    async with AsyncExitStack() as stack:
        if media_type(request) == "multipart/form-data":
            form = await stack.enter_async_context(_form(request, incoming, limit))
            texts = [(name, it) for name, it in form.multi_items() if isinstance(it, str)]
            fields = gathered(texts)
            for file in (file for name in FILE_FIELDS for file in form.getlist(name)):
                if isinstance(file, UploadFile):
                    declared = format_of_content_type(file.content_type) if is_audio else None
                    yield Upload(fields, _file_chunks(file), declared, file.size)
                    return
        elif media_type(request) == "application/json" and is_audio:
            fields = _json_fields(b"".join([chunk async for chunk in incoming.chunks()]))
        else:
            content_type = request.headers.get("Content-Type")
            declared = format_of_content_type(content_type) if is_audio else None
            yield Upload({}, incoming.chunks(), declared, _told_length(request))
            return
        audio, declared = _encoded_audio(fields)
        yield Upload(fields, _slices(audio), declared, len(audio))


def _told_length(request: Request) -> int | None:
    length = request.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


@asynccontextmanager
async def _form(request: Request, incoming: Incoming, limit: int) -> AsyncIterator[FormData]:
    expected = "multipart/form-data with the audio as file named audio or file"
    parsing = Request(request.scope, incoming.receive).form(
        max_files=_MAX_PARTS, max_fields=_MAX_PARTS, max_part_size=limit
    )
    async with AsyncExitStack() as stack:
        try:
            form = await stack.enter_async_context(parsing)
        except HTTPException as error:
            raise BadMessage(f"a form that cannot be read ({error.detail})", expected) from error
        try:
            yield form
        finally:
            # Starlette closes them, too, but not when it is cancelled before it comes to that.
            for _, file in form.multi_items():
                if isinstance(file, UploadFile):
                    file.file.close()


def gathered(items: Iterable[tuple[str, str]]) -> Fields:
    """The fields of a form or a query, whose names clients spell in many ways: `name[]` and
    `name[0]` are of a list, `name[key]` of an object. Of others that come more than once the last
    counts, unless they are known to be lists."""
    fields: dict[str, Any] = {}
    for spelled, value in items:
        brackets = _BRACKETS.fullmatch(spelled)
        name, key = brackets.groups() if brackets else (spelled, None)
        before = fields.get(name)
        if key is None and not (name in _LISTS and before is not None):
            fields[name] = value
        elif key and not key.isdecimal():
            fields[name] = {**(before if isinstance(before, dict) else {}), key: value}
        elif isinstance(before, list):
            before.append(value)
        else:
            fields[name] = [value] if before is None else [before, value]
    return fields


def _json_fields(body: bytes) -> Fields:
    """Options may also come in an object of their own, as in control messages."""
    # It holds the audio, so it is not written again to see whether it could be.
    document = parse_object(body, '{"audio": "<base64>"}', repeatable=False)
    options = document.get("options")
    named = {**options, **document} if isinstance(options, dict) else document
    return {name.removesuffix("[]"): value for name, value in named.items()}


def _encoded_audio(fields: Fields) -> tuple[bytes, AudioFormat | None]:
    """Base64, or a `data:` URL, whose type counts. Raises BadMessage, InvalidOption and
    UnsupportedAudio."""
    name = next((name for name in AUDIO_FIELDS if fields.get(name) is not None), None)
    if name is None:
        raise BadMessage(
            f"without audio, it has {', '.join(sorted(fields)) or 'nothing'}",
            "a file named audio or file, or base64 in audio",
        )
    value = fields[name]
    wrong = InvalidOption(name, str(value)[:40], "base64, or a data: URL with base64")
    if not isinstance(value, str):
        raise wrong
    declared = None
    text = value.strip()
    if text[:5].lower() == "data:":
        head, _, text = text[5:].partition(",")
        if not head.lower().endswith(";base64"):
            raise wrong
        declared = format_of_content_type(head[: -len(";base64")])
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True), declared
    except ValueError:
        raise wrong from None


async def _file_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]
