"""Tags in front of a file: ID3v2 and APEv2, of any size (pure)."""

from typing import Final

from whisper_byoc.audio.sniffing import matches

_ID3_HEADER: Final = 10
_APE_HEADER: Final = 32
_ID3_FOOTER: Final = 0x10
"""The flag of an ID3v2.4 tag that has its header again at its end."""


class TagSkipper:
    """The bytes of a body without the tags in front of it, each skipped as it arrives.

    ID3v2 (id3.org, 3.1) is written before MP3, but also before ADTS in HLS, and by some programs
    before FLAC and WAV. `found`: whether there was a tag.
    """

    def __init__(self) -> None:
        self.found = False
        self._head = b""
        self._to_skip = 0
        self._done = False

    def receive_bytes(self, data: bytes, *, at_end: bool = False) -> bytes:
        """What of the body is known to be no tag. At most 31 bytes wait here, until `at_end`."""
        if self._done:
            return data
        data = self._head + data
        self._head = b""
        while True:
            skipped = min(self._to_skip, len(data))
            self._to_skip -= skipped
            data = data[skipped:]
            if self._to_skip:
                return b""
            size = tag_bytes(data)
            if size is None and not at_end:
                self._head = data
                return b""
            if not size:
                self._done = bool(data)
                return data
            self.found = True
            self._to_skip = size


def tag_bytes(head: bytes) -> int | None:
    """The length of the tag that `head` begins with, 0 for none; None while it cannot be told."""
    id3, ape = matches(head, {0: b"ID3"}), matches(head, {0: b"APETAGEX"})
    if id3 is False and ape is False:
        return 0
    if len(head) < (_APE_HEADER if ape is not False else _ID3_HEADER):
        return None
    if ape:
        return _APE_HEADER + int.from_bytes(head[12:16], "little")
    if 0xFF in head[3:5] or max(head[6:10]) >= 0x80:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return _ID3_HEADER + size + (_ID3_HEADER if head[5] & _ID3_FOOTER else 0)
