"""Whole recordings: kept until ffmpeg can go to and fro in them, and gone afterwards."""

import asyncio
import os
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.audio.media import (
    FORMATS,
    RAW,
    Make,
    assert_same_speech,
    collect,
    fed,
    feed,
    likeness,
    samples_of,
)
from whisper_byoc.audio.content_types import whole_file
from whisper_byoc.audio.ffmpeg import ffmpeg_command, probe
from whisper_byoc.audio.formats import NATIVE, Container, Declared, Samples, WholeFile
from whisper_byoc.audio.source import open_source
from whisper_byoc.audio.spool import Spool
from whisper_byoc.errors import ConfigurationError, NoRoom, UnsupportedAudio

pytestmark = pytest.mark.anyio
FILE = WholeFile()
M4A = "-b:a 96k", "m4a"
MORE = {
    "index at the end": (*M4A, Container.MP4),
    "3GP": ("-c:a aac -ar 16000", "3gp", Container.MP4),
    "ALAC in CAF": ("-c:a alac", "caf", Container.CAF),
    "AU": ("", "au", Container.AU),
    "WMA": ("", "wma", Container.ASF),
    "AVI": ("-c:a mp2", "avi", Container.AVI),
    "MPEG-PS": ("-c:a mp2 -f mpeg", "mpg", Container.MPEG_PS),
    "Wave64": ("", "w64", Container.W64),
    "WavPack": ("", "wv", Container.WAVPACK),
    "TTA": ("", "tta", Container.TTA),
    "AC-3": ("-b:a 96k", "ac3", Container.AC3),
    "LATM": ("-c:a aac -f latm", "latm", Container.LATM),
    "VOC": ("", "voc", Container.VOC),
    "SoX": ("-f sox", "sox", Container.SOX),
    "IRCAM": ("-f ircam", "sf", Container.IRCAM),
    "RealAudio": ("-c:a ac3 -b:a 96k -f rm", "rm", Container.REALMEDIA),
}


async def heard(data: bytes, declared: Declared = FILE, chunk_bytes: int = 65_536) -> Samples:
    async with open_source(declared) as source, fed(source, data, chunk_bytes):
        return await collect(source)


def open_files() -> set[str]:
    """What of files for recordings this process has open."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return {link for link in links if "(deleted)" in link}


@pytest.mark.parametrize("label", MORE)
async def test_a_file_gives_the_speech_that_went_in(label: str, make: Make, speech: bytes) -> None:
    arguments, suffix, expected = MORE[label]
    before = open_files()
    async with open_source(FILE) as source, fed(source, make(arguments, suffix)):
        samples = await collect(source)
    assert source.format == expected
    assert abs(samples.size - len(speech) // 2) < 0.15 * 16_000
    assert likeness(samples, samples_of(speech)) > 0.9
    assert open_files() == before


@pytest.mark.parametrize("label", FORMATS)
async def test_what_is_decoded_while_it_arrives_is_as_ever(
    label: str, make: Make, speech: bytes
) -> None:
    arguments, suffix, *_ = FORMATS[label]
    assert_same_speech(await heard(make(arguments, suffix)), speech)


@pytest.mark.parametrize("content_type", RAW)
async def test_raw_audio_that_is_declared(content_type: str, make: Make, speech: bytes) -> None:
    declared = whole_file(content_type, takes_raw=False)
    assert_same_speech(await heard(make(RAW[content_type], "raw"), declared), speech)


async def test_a_file_outweighs_a_label_of_raw_audio(make: Make, speech: bytes) -> None:
    for suffix in ("wav", "flac", "au"):
        samples = await heard(make("", suffix), WholeFile(NATIVE, "audio/pcm"))
        assert_same_speech(samples, speech)


@pytest.mark.parametrize("chunk_bytes", [1_000, 1 << 20])
async def test_raw_audio_without_a_label_has_to_look_like_sound(
    speech: bytes, chunk_bytes: int
) -> None:
    takes = whole_file(None, takes_raw=True)
    assert np.array_equal(await heard(speech, takes, chunk_bytes), samples_of(speech))
    noise = np.random.default_rng(3).bytes(20_000)
    for data, declared in ((noise, takes), (speech, FILE)):
        with pytest.raises(UnsupportedAudio, match="of no kind that ffmpeg knows"):
            await heard(data, declared)


@pytest.mark.parametrize("label", ["audio/mpeg", "audio/mp4", "image/png", "x"])
async def test_a_refusal_names_the_label(label: str) -> None:
    declared = whole_file(label, takes_raw=True)
    with pytest.raises(UnsupportedAudio, match=f"labelled '{label}' and 3000 bytes of no kind"):
        await heard(np.random.default_rng(1).bytes(3_000), declared)
    with pytest.raises(UnsupportedAudio, match=f"labelled '{label}' and text that begins"):
        await heard(b"<!DOCTYPE html>" * 9, declared)


async def test_an_mp3_behind_other_bytes_and_the_end_of_one(make: Make, speech: bytes) -> None:
    mp3 = make("-b:a 64k", "mp3")
    assert_same_speech(await heard(bytes(4_000) + mp3), speech)
    assert (await heard(mp3[-len(mp3) // 2 :])).size > 0.4 * len(speech) // 2


async def test_no_file_opens_another(make: Make, tmp_path: Path) -> None:
    """A playlist is of no kind that we know, and an MP4 whose audio is elsewhere has none."""
    secret = tmp_path / "secret.mov"
    secret.write_bytes(make("-c:a pcm_s16le", "mov"))
    playlist = f"\x80ffconcat version 1.0\nfile '{secret}'\n".encode("latin-1")
    for offset in (0, 1):
        with pytest.raises(UnsupportedAudio):
            await heard(playlist[offset:] * 20)
    outside = _with_reference(secret.read_bytes(), str(secret).encode())
    with pytest.raises(UnsupportedAudio):
        await heard(outside)


def _with_reference(mov: bytes, path: bytes) -> bytes:
    """The same MP4 with its media in another file, by an alias of QuickTime in `dref`, and with
    nothing of them left in this one."""
    place = mov.index(b"dref") + 12
    size, *_ = struct.unpack_from(">I", mov, place)
    volume, name = b"\x01/" + bytes(26), b"secret.mov"
    alias = bytes(4) + struct.pack(">HH", 0, 2) + bytes(2) + volume[:28] + bytes(12)
    alias += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">HH", 1, 1)
    alias += bytes(16) + struct.pack(">HH", 2, len(path)) + path + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    grown = bytearray(mov[:place] + entry + mov[place + size :])
    for parent in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = grown.index(parent) - 4
        (old,) = struct.unpack_from(">I", grown, at)
        struct.pack_into(">I", grown, at, old + len(entry) - size)
    media = grown.index(b"mdat") + 4
    end = media + struct.unpack_from(">I", grown, media - 8)[0] - 8
    grown[media:end] = bytes(end - media)
    return bytes(grown)


def test_the_command_of_a_file_forces_the_format_and_opens_no_address() -> None:
    command = ffmpeg_command(Container.MP4, "ffmpeg", from_file=True)
    options = command[: command.index("-i") + 2]
    assert options[options.index("-f") + 1] == "mp4"
    assert options[options.index("-protocol_whitelist") + 1] == "file"
    assert options[-1] == "file:/dev/fd/0"
    assert "-enable_drefs" not in options


async def test_without_a_directory_for_temporary_files_it_waits_in_memory(
    make: Make, speech: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/directory")
    assert_same_speech(await heard(make(*M4A)), speech)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, spool.fd)
    os.close(full)
    with pytest.raises(NoRoom, match="file of 5 bytes or more cannot be kept"):
        spool.write(b"12345")
    spool.close()
    spool.close()


async def test_the_file_is_gone_when_the_source_is_left(make: Make) -> None:
    before = open_files()
    data = make(*M4A)
    async with asyncio.timeout(30):
        async with open_source(FILE) as source:
            await source.send(data[: len(data) // 2])
            assert open_files() != before
        assert open_files() == before
        async with open_source(FILE) as source:
            await feed(source, data)
            await anext(source)
        assert open_files() == before
        async with open_source(FILE) as source:
            sender = asyncio.ensure_future(feed(source, data))
            reader = asyncio.ensure_future(collect(source))
            await asyncio.sleep(0)
        await sender
        await reader
    assert open_files() == before


async def test_a_probe_that_cannot_be_run_is_the_operators_matter() -> None:
    spool = Spool()
    with pytest.raises(ConfigurationError, match="ffmpeg cannot be run"):
        await probe(spool.fd, "/no/ffmpeg")
    assert await probe(spool.fd) is None
    spool.close()
