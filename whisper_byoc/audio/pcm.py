"""Raw audio: whole frames out of chunks of any size, and samples out of those (pure)."""

import numpy as np

from whisper_byoc.audio.formats import NATIVE, AudioFormat, Pcm, Samples


class FrameCutter:
    """Hands on whole frames of `frame_bytes` bytes (one sample of each channel); the beginning of a
    frame waits here for the bytes that complete it."""

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._piece = b""

    def receive_bytes(self, data: bytes) -> bytes:
        if self._piece:
            data = self._piece + data
        whole = len(data) - len(data) % self._frame_bytes
        self._piece = data[whole:]
        return data[:whole]

    def receive_end(self) -> bytes:
        """The bytes that still wait: no more come."""
        rest, self._piece = self._piece, b""
        return rest


class RawStream:
    """What the bodies of one stream of raw audio share.

    A body may end in the middle of a frame, which the next body completes, and that next body has
    no header to tell its format by. Owned by the reader of the stream, which lends it to the
    BodyReader of each body in turn.
    """

    def __init__(self) -> None:
        self.format: Pcm | None = None
        """Format of the last body that was raw audio; None before the first."""
        self._cutter: FrameCutter | None = None

    def begin_body(self, audio_format: AudioFormat) -> FrameCutter | None:
        """The cutter for a body of raw audio: the one of the body before, with the piece of a frame
        that it has left, if both have the same format. None for a body of any other kind."""
        if not isinstance(audio_format, Pcm):
            self._cutter = None
        elif self._cutter is None or audio_format != self.format:
            self.format = audio_format
            self._cutter = FrameCutter(audio_format.frame_bytes)
        return self._cutter


def to_samples(frames: bytes) -> Samples:
    """Whole frames of NATIVE audio as samples: float32 (n,), n half the number of bytes."""
    return np.frombuffer(frames, "<i2") * np.float32(1 / 32_768)


class PcmDecoder:
    """NATIVE bytes into samples, in chunks of any size; a byte left at the end is dropped."""

    def __init__(self) -> None:
        self._cutter = FrameCutter(NATIVE.frame_bytes)

    def receive_bytes(self, data: bytes) -> Samples:
        return to_samples(self._cutter.receive_bytes(data))
