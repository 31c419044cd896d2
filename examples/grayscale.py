"""Takes the colour out of RGB frames, with the weights of ITU-R BT.601.

whisper-byoc serve --processor examples.grayscale:Grayscale
"""

import numpy as np

WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


class Grayscale:
    async def initialize(self) -> None:
        """Nothing to load."""

    async def process(self, data: bytes) -> bytes:
        """data: bytes R, G, B of one frame of any size; the same three values come back for each
        pixel."""
        if len(data) % 3:
            raise ValueError(f"frame has {len(data)} bytes, expected a multiple of 3")
        pixels = np.frombuffer(data, np.uint8).reshape(-1, 3)
        luma = np.rint(pixels @ WEIGHTS).astype(np.uint8)
        return np.repeat(luma, 3).tobytes()

    async def shutdown(self) -> None:
        """Nothing to give back."""
