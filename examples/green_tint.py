"""Tints RGB frames green: +80 on the green channel, up to 255.

whisper-byoc serve --processor examples.green_tint:GreenTint
"""

import numpy as np

AMOUNT = 80


class GreenTint:
    async def initialize(self) -> None:
        """Nothing to load."""

    async def process(self, data: bytes) -> bytes:
        """data: bytes R, G, B of one frame of any size."""
        if len(data) % 3:
            raise ValueError(f"frame has {len(data)} bytes, expected a multiple of 3")
        pixels = np.frombuffer(data, np.uint8).reshape(-1, 3).copy()
        pixels[:, 1] = np.minimum(pixels[:, 1], 255 - AMOUNT) + AMOUNT
        return pixels.tobytes()

    async def shutdown(self) -> None:
        """Nothing to give back."""
