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

from whisper_byoc.audio.content_types import whole_file
from whisper_byoc.audio.formats import Declared, Pcm, WholeFile
from whisper_byoc.doors.requests import Incoming
from whisper_byoc.errors import BadMessage, InvalidOption, NoRoom
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
    audio_format: Declared | None
    problem: BadMessage | None = None
    """Why it has no audio; for whoever has looked at the fields, which are told of first."""
    num_bytes: int | None = None
    """Of the audio, where that is told before it is read."""


def media_type(request: Request) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def open_upload(
    request: Request, incoming: Incoming, limit: int, *, is_audio: bool, takes_raw: bool = False
) -> AsyncIterator[Upload]:
    """Take a body apart; files of a form are deleted at exit. is_audio: whether the body is for
    Whisper. What a hosted processor gets has no declared format, and JSON is passed on as it is.
    takes_raw: whether bytes that nothing names may be raw audio.

    Raises BadMessage, InvalidOption and NoRoom.
    """

    def declared(content_type: str | None) -> WholeFile | None:
        return whole_file(content_type, takes_raw=takes_raw) if is_audio else None

    async with AsyncExitStack() as stack:
        if media_type(request) == "multipart/form-data":
            form = await stack.enter_async_context(_form(request, incoming, limit))
            texts = [(name, it) for name, it in form.multi_items() if isinstance(it, str)]
            fields = gathered(texts)
            if file := _form_file(form):
                audio_format = declared(file.content_type)
                problem = _problem_of(file, audio_format)
                yield Upload(fields, _file_chunks(file), audio_format, problem, file.size)
                return
        elif media_type(request) == "application/json" and is_audio:
            fields = _json_fields(b"".join([chunk async for chunk in incoming.chunks()]))
        else:
            audio_format = declared(request.headers.get("Content-Type"))
            yield Upload({}, incoming.chunks(), audio_format, num_bytes=_told_length(request))
            return
        audio, content_type = _encoded_audio(fields)
        yield Upload(fields, _slices(audio), declared(content_type), num_bytes=len(audio))


def _told_length(request: Request) -> int | None:
    length = request.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _form_file(form: FormData) -> UploadFile | None:
    """The audio of a form. Raises BadMessage for a file that comes as a text."""
    for name in FILE_FIELDS:
        for part in form.getlist(name):
            if isinstance(part, UploadFile):
                return part
            if not (part.isascii() and part.isprintable()):
                raise BadMessage(
                    f"a form whose part {name} has bytes and no file name",
                    f'Content-Disposition: form-data; name="{name}"; filename="..."',
                )
    return None


def _problem_of(file: UploadFile, declared: WholeFile | None) -> BadMessage | None:
    """A file needs a byte, but raw audio may be that short."""
    if declared is None or file.size or isinstance(declared.hint, Pcm):
        return None
    return BadMessage("a form whose file is empty", "a file with audio")


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
        except OSError as error:  # a file of more than 1 MB waits outside memory
            raise NoRoom("the file of a form", str(error.strerror)) from error
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


def _encoded_audio(fields: Fields) -> tuple[bytes, str | None]:
    """Base64, or that of a `data:` URL, and its type. Raises BadMessage and InvalidOption."""
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
    content_type = None
    text = value.strip()
    if text[:5].lower() == "data:":
        head, _, text = text[5:].partition(",")
        if not head.lower().endswith(";base64"):
            raise wrong
        content_type = head[: -len(";base64")]
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True), content_type
    except ValueError:
        raise wrong from None


async def _file_chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(_CHUNK_BYTES):
        yield chunk


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK_BYTES):
        yield data[start : start + _CHUNK_BYTES]
