"""A body kept until it is whole, where ffmpeg can go to and fro in it."""

import os
import tempfile
from contextlib import suppress
from typing import Final

import numpy as np

from whisper_byoc.errors import NoRoom

_PROBED_BYTES: Final = 256 * 1024
_LEAST_LIKENESS: Final = 0.5


class Spool:
    """A file without a name, so that it is gone when the last process that has it open is.

    It lies in the directory for temporary files; where there is none that can be written, in
    memory. As large as the body, which its door bounds. Owned by whoever made it, who closes it.
    """

    def __init__(self) -> None:
        self._fd = _open_unnamed()
        self.num_bytes = 0
        self._closed = False

    @property
    def fd(self) -> int:
        return self._fd

    def write(self, data: bytes) -> None:
        """Raises NoRoom."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            found = f"a file of {self.num_bytes + len(data)} bytes or more"
            raise NoRoom(found, str(error.strerror)) from error
        self.num_bytes += len(data)

    def looks_like_sound(self) -> bool:
        """Whether its bytes may be NATIVE audio: in sound the next sample resembles the one before;
        in what is compressed, enciphered or random it does not."""
        head = os.pread(self._fd, _PROBED_BYTES, 0)
        samples = np.frombuffer(head[: len(head) // 2 * 2], "<i2").astype(np.float64)
        power = float(samples @ samples)
        return power == 0 or float(samples[1:] @ samples[:-1]) > _LEAST_LIKENESS * power

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            os.close(self._fd)


def _open_unnamed() -> int:
    with suppress(OSError), tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())
    return os.memfd_create("whisper-byoc")
