"""What both rehearsals show and say: recordings as samples, captions on the terminal."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.audio.source import open_source

GAP_SECONDS = 1.0
"""Of silence behind each recording: long enough to end an utterance."""

console = Console(highlight=False)


async def decode(path: Path) -> NDArray[np.float32]:
    """A recording and a pause behind it: float32 (n,), 16 kHz mono."""
    data = await asyncio.to_thread(path.read_bytes)
    async with open_source(None) as source, asyncio.TaskGroup() as group:

        async def feed() -> None:
            await source.send(data)
            await source.send_eof()

        group.create_task(feed())
        blocks = [block async for block in source]
    return np.concatenate([*blocks, np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32)])


class Captions:
    """Finals as lines, the newest partial below them."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def receive(self, line: dict[str, Any]) -> None:
        if self._as_json:
            console.print(json.dumps(line, ensure_ascii=False), soft_wrap=True, markup=False)
            return
        match line["type"]:
            case "final":
                self.live.console.print(f"{line['start']:8.2f}  {line['text']}", markup=False)
                self.live.update(Text(""), refresh=True)
            case "partial":
                self.live.update(Text(f"          {line['text']}", "dim"), refresh=True)
