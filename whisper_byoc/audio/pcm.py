"""Raw audio: whole frames out of chunks of any size, and samples out of those (pure)."""

import numpy as np

from whisper_byoc.audio.formats import NATIVE, Samples


class FrameCutter:
    """Hands on whole frames of `frame_bytes`; `carry` is the piece that waits for its rest."""

    def __init__(self, frame_bytes: int, carry: bytes = b"") -> None:
        self.carry = carry
        self._frame_bytes = frame_bytes

    def receive_bytes(self, data: bytes) -> bytes:
        if self.carry:
            data = self.carry + data
        whole = len(data) - len(data) % self._frame_bytes
        self.carry = data[whole:]
        return data[:whole]


class PcmDecoder:
    """NATIVE bytes into samples, in chunks of any size; a byte left at the end is dropped."""

    def __init__(self) -> None:
        self._cutter = FrameCutter(NATIVE.frame_bytes)

    def receive_bytes(self, data: bytes) -> Samples:
        whole = np.frombuffer(self._cutter.receive_bytes(data), "<i2")
        samples: Samples = np.multiply(whole, np.float32(1 / 32_768), dtype=np.float32)
        return samples
