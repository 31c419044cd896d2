"""Tags in front of a file."""

from hypothesis import given
from hypothesis import strategies as st

from tests.audio.bodies import id3, pieces, unhurried
from whisper_byoc.audio.tags import TagSkipper

APE = b"APETAGEX" + (2_000).to_bytes(4, "little") + (96).to_bytes(4, "little") + bytes(16 + 96)
FOOTED = id3(bytes(40))[:5] + b"\x10" + id3(bytes(40))[6:] + b"3DI" + bytes(7)


def without_tags(data: bytes, cuts: list[int]) -> tuple[bytes, bool]:
    skipper = TagSkipper()
    found = b"".join([skipper.receive_bytes(piece) for piece in pieces(data, cuts)])
    return found + skipper.receive_bytes(b"", at_end=True), skipper.found


@unhurried
@given(
    tags=st.lists(st.sampled_from([id3(b""), id3(bytes(300)), id3(bytes(70_000)), APE, FOOTED])),
    behind=st.binary(max_size=60).filter(lambda it: not it.startswith((b"ID3", b"APETAGEX"))),
    cuts=st.lists(st.integers(0, 10**6), max_size=8),
)
def test_any_number_of_tags_in_any_pieces(
    tags: list[bytes], behind: bytes, cuts: list[int]
) -> None:
    assert without_tags(b"".join(tags) + behind, cuts) == (behind, bool(tags))


@unhurried
@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_other_bytes_pass(data: bytes, cuts: list[int]) -> None:
    found, tagged = without_tags(data, cuts)
    assert tagged or found == data


def test_a_tag_that_never_ends_leaves_nothing() -> None:
    assert without_tags(id3(bytes(500))[:300], [7, 50]) == (b"", True)
