"""The smallest processor: what comes in goes out.

whisper-byoc serve --processor examples.passthrough:Passthrough
"""


class Passthrough:
    async def initialize(self) -> None:
        """Load what is needed; the service is ready when this returns."""

    async def process(self, data: bytes) -> bytes:
        return data

    async def shutdown(self) -> None:
        """Give back what was taken."""
