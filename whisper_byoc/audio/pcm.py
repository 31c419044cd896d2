"""Raw audio: whole frames out of chunks of any size, and samples out of those (pure)."""

import numpy as np

from whisper_byoc.audio.formats import NATIVE, AudioFormat, Pcm, Samples


class FrameCutter:
    """Hands on whole frames of `frame_bytes`; a piece of one waits here for its rest."""

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._piece = b""

    def receive_bytes(self, data: bytes) -> bytes:
        if self._piece:
            data = self._piece + data
        whole = len(data) - len(data) % self._frame_bytes
        self._piece = data[whole:]
        return data[:whole]


class RawStream:
    """Raw audio that comes in several bodies: one may end within a frame, and the next has no head
    to tell its format by. Owned by who reads the stream, and lent to the reader of each body."""

    def __init__(self) -> None:
        self.format: Pcm | None = None
        """Of the last body that was raw audio."""
        self._cutter: FrameCutter | None = None

    def begin_body(self, audio_format: AudioFormat) -> FrameCutter | None:
        """What cuts the frames of a body of raw audio: it goes on with the piece that the body
        before has left, if that had the same format. None for a body of anything else."""
        if not isinstance(audio_format, Pcm):
            self._cutter = None
        elif self._cutter is None or audio_format != self.format:
            self.format = audio_format
            self._cutter = FrameCutter(audio_format.frame_bytes)
        return self._cutter


def to_samples(frames: bytes) -> Samples:
    """Whole frames of NATIVE audio as samples."""
    return np.frombuffer(frames, "<i2") * np.float32(1 / 32_768)


class PcmDecoder:
    """NATIVE bytes into samples, in chunks of any size; a byte left at the end is dropped."""

    def __init__(self) -> None:
        self._cutter = FrameCutter(NATIVE.frame_bytes)

    def receive_bytes(self, data: bytes) -> Samples:
        return to_samples(self._cutter.receive_bytes(data))
