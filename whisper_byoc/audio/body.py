"""What kind of audio one request body holds, and which of its bytes are to be decoded (pure).

NATIVE audio is then decoded by `pcm`, all other audio by ffmpeg.
"""

from whisper_byoc.audio.formats import (
    NATIVE,
    STREAMED,
    AudioFormat,
    Container,
    Declared,
    Pcm,
    WholeFile,
)
from whisper_byoc.audio.mp4 import mp4_is_streamable
from whisper_byoc.audio.pcm import FrameCutter, RawStream
from whisper_byoc.audio.sniffing import sniff, sniff_magic
from whisper_byoc.audio.tags import TagSkipper
from whisper_byoc.audio.wav import WavReader
from whisper_byoc.errors import UnsupportedAudio


class BodyReader:
    """Finds out what one request body holds and hands on the bytes to decode.

    declared: what the content type says. The magic bytes of a container outweigh it, because
    trickle labels every channel video/mp2t and uploads are mislabelled; declared raw PCM is not
    looked at, but for a `WholeFile`. Tags in front are skipped. stream: what the bodies of one
    stream share; where nothing else is declared, a body is taken to go on with the raw format of
    the body before.
    """

    def __init__(self, declared: Declared | None = None, stream: RawStream | None = None) -> None:
        self.format: AudioFormat | None = None
        """What the body is; None while unknown, and for an empty body."""
        self.payload_format: AudioFormat | None = None
        """What `receive_bytes` returns: the raw format inside a WAV, else `format`."""
        self.spooled = False
        """Whether `receive_bytes` returns a file that has to be whole before it can be decoded, or
        (`format` is None) before it can be known."""
        self._stream = stream or RawStream()
        self._file = declared if isinstance(declared, WholeFile) else None
        if isinstance(declared, WholeFile):
            declared = declared.hint
        elif declared is None and self._stream.format != NATIVE:
            declared = self._stream.format
        self._declared = declared
        raw = isinstance(declared, Pcm) and self._file is None
        self._tags = None if raw else TagSkipper()
        self._head = bytearray()
        self._wav: WavReader | None = None
        self._cutter: FrameCutter | None = None

    def receive_bytes(self, data: bytes) -> bytes:
        """The bytes to decode as `payload_format`, or a piece of a file when that is `spooled`;
        empty while neither is known.

        Raises UnsupportedAudio.
        """
        return self._receive(data, at_end=False)

    def receive_eof(self) -> bytes:
        """The body is complete: the bytes that waited until its format was known.

        Raises UnsupportedAudio.
        """
        rest = self._receive(b"", at_end=True)
        if self._wav:
            self._wav.receive_eof()
        return rest

    def _receive(self, data: bytes, *, at_end: bool) -> bytes:
        if self._tags:
            data = self._tags.receive_bytes(data, at_end=at_end)
        if self.spooled:
            return data
        if self.format is None:
            self._head += data
            data = bytes(self._head)
            self.format = self._decide(data, at_end=at_end) if data else None
            if self.format is None and not self.spooled:
                return b""
            self._head.clear()
            if self.spooled:
                return data
            assert self.format is not None, "known, since it is not spooled"
            self._cutter = self._stream.begin_body(self.format)
            if self.format is Container.WAV:
                self._wav = WavReader()
        return self._unwrap(data)

    def _decide(self, head: bytes, *, at_end: bool) -> AudioFormat | None:
        if self._file is not None:
            return self._decide_file(self._file, head, at_end=at_end)
        if isinstance(self._declared, Pcm):
            return self._declared
        found = sniff(head, at_end=at_end)
        if found is NATIVE:
            return self._declared or (Container.MP3 if self._tagged else NATIVE)
        if found is Container.MP4 and not (mp4_is_streamable(head) or at_end):
            return None
        return found

    def _decide_file(self, file: WholeFile, head: bytes, *, at_end: bool) -> AudioFormat | None:
        """Any bytes may be raw audio: only what no raw audio begins with outweighs such a label."""
        if isinstance(file.hint, Pcm) and not self._tagged:
            found = sniff_magic(head, at_end=at_end)
            found = file.hint if found is NATIVE else found
        else:
            try:
                found = sniff(head, at_end=at_end)
            except UnsupportedAudio as error:
                label = f"labelled {file.label!r} and " if file.label else ""
                raise UnsupportedAudio(label + error.found, error.expected) from error
            self.spooled = found is NATIVE
            if self.spooled:
                return None
        if isinstance(found, Container) and found not in STREAMED:
            self.spooled = True
        return found

    @property
    def _tagged(self) -> bool:
        return self._tags is not None and self._tags.found

    def _unwrap(self, data: bytes) -> bytes:
        if self._wav:
            data = self._wav.receive_bytes(data)
            if self._wav.format is None:
                return b""
            self.payload_format = self._wav.format
            if self._cutter is None and isinstance(self._wav.format, Pcm):
                self._cutter = FrameCutter(self._wav.format.frame_bytes)
        else:
            self.payload_format = self.format
        return self._cutter.receive_bytes(data) if self._cutter else data
