"""What is logged of orchestrators, and waiting for it."""

import asyncio
import logging

TIMEOUT = 60.0


class Log(logging.Handler):
    """Its records, at every level."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []
        self._said = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self._said.set()

    def at(self, level: int) -> list[str]:
        return [r.getMessage() for r in self.records if r.levelno == level]

    def all(self) -> str:
        return "\n".join(record.getMessage() for record in self.records)

    async def until(self, text: str, count: int = 1) -> None:
        async with asyncio.timeout(TIMEOUT):
            while sum(text in record.getMessage() for record in self.records) < count:
                self._said.clear()
                await self._said.wait()
