"""Which MP4 can be decoded while it arrives."""

import struct

import pytest

from tests.audio.bodies import box
from whisper_byoc.audio.mp4 import mp4_is_streamable
from whisper_byoc.errors import UnsupportedAudio


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        pytest.param(box(b"ftyp") + box(b"moov"), True, id="the index comes first"),
        pytest.param(box(b"ftyp") + box(b"free", 99) + box(b"moov"), True, id="free between"),
        pytest.param(box(b"ftyp"), None, id="not yet known"),
        pytest.param(b"", None, id="nothing yet"),
        pytest.param(box(b"uuid", 99_999), True, id="beyond what is looked at"),
        pytest.param(box(b"free") * 8, True, id="many boxes"),
        pytest.param(struct.pack(">I4sQ", 1, b"free", 24) + bytes(8) + box(b"moov"), True, id="64"),
        pytest.param(struct.pack(">I4sQ", 0, b"free", 0), True, id="a box to the end"),
    ],
)
def test_mp4_is_streamable(head: bytes, expected: bool | None) -> None:
    assert mp4_is_streamable(head) is expected


@pytest.mark.parametrize("media", [b"mdat", b"moof"])
def test_mp4_with_its_index_at_the_end_is_refused_with_the_way_out(media: bytes) -> None:
    with pytest.raises(UnsupportedAudio, match=r"fragmented MP4, or .* \+faststart"):
        mp4_is_streamable(box(b"ftyp") + box(b"wide") + box(media))
