"""What kind of audio one request body holds, and which of its bytes are to be decoded (pure).

NATIVE audio is then decoded by `pcm`, all other audio by ffmpeg.
"""

from whisper_byoc.audio.formats import NATIVE, AudioFormat, Container, Pcm
from whisper_byoc.audio.mp4 import mp4_is_streamable
from whisper_byoc.audio.pcm import FrameCutter, RawStream
from whisper_byoc.audio.sniffing import sniff
from whisper_byoc.audio.wav import WavReader


class BodyReader:
    """Finds out what one request body holds and hands on the bytes to decode.

    declared: what the content type says. The magic bytes of a container outweigh it, because
    trickle labels every channel video/mp2t and uploads are mislabelled; declared raw PCM is not
    looked at. stream: what the bodies of one stream share; where nothing else is declared, a body
    is taken to go on with the raw format of the body before.
    """

    def __init__(
        self, declared: AudioFormat | None = None, stream: RawStream | None = None
    ) -> None:
        self.format: AudioFormat | None = None
        """What the body is; None while unknown, and for an empty body."""
        self.payload_format: AudioFormat | None = None
        """What `receive_bytes` returns: the raw format inside a WAV, else `format`."""
        self._stream = stream or RawStream()
        if declared is None and self._stream.format != NATIVE:
            declared = self._stream.format
        self._declared = declared
        self._head = bytearray()
        self._wav: WavReader | None = None
        self._cutter: FrameCutter | None = None

    def receive_bytes(self, data: bytes) -> bytes:
        """The bytes to decode as `payload_format`; empty while that is unknown.

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
        if self.format is None:
            self._head += data
            data = bytes(self._head)
            self.format = self._decide(data, at_end=at_end) if data else None
            if self.format is None:
                return b""
            self._head.clear()
            self._cutter = self._stream.begin_body(self.format)
            if self.format is Container.WAV:
                self._wav = WavReader()
        return self._unwrap(data)

    def _decide(self, head: bytes, *, at_end: bool) -> AudioFormat | None:
        if isinstance(self._declared, Pcm):
            return self._declared
        found = sniff(head, at_end=at_end)
        if found is NATIVE:
            return self._declared or NATIVE
        if found is Container.MP4 and not (mp4_is_streamable(head) or at_end):
            return None
        return found

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
