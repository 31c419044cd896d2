"""Bodies that are made up, for the tests of this folder."""

import struct
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from hypothesis import settings

unhurried = settings(deadline=None)  # the machine is shared


def speechlike(num_samples: int, seed: int = 0) -> bytes:
    """s16le noise at the level of speech."""
    noise = np.random.default_rng(seed).normal(0, 2_000, num_samples)
    return noise.astype("<i2").tobytes()


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


AUDIO = speechlike(160)


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    size = len(body) if size is None else size
    return name + struct.pack("<I", size) + body + b"\x00" * (len(body) % 2)


def fmt(
    tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, more: bytes = b""
) -> bytes:
    block = channels * bits // 8
    body = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    return chunk(b"fmt ", body + more)


def wav(*chunks: bytes, form: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return form + struct.pack("<I", len(body)) + body


DATA = chunk(b"data", AUDIO)


def box(name: bytes, size: int = 16) -> bytes:
    return struct.pack(">I4s", size, name) + bytes(size - 8)


def id3(body: bytes) -> bytes:
    size = len(body)
    return b"ID3\x04\x00\x00" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + body
