"""Live captions from a Livepeer network: reserves a runner, streams a WAV at the pace of speech,
prints what was said, and gives the runner back.

python examples/network_client.py http://127.0.0.1:8935 speech.wav [APP]
"""

import asyncio
import sys
import wave
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

from whisper_byoc.client import LiveClient, reserve
from whisper_byoc.transcript import Format


async def spoken(path: Path) -> AsyncIterator[bytes]:
    with wave.open(str(path)) as header:
        second = header.getframerate() * header.getnchannels() * header.getsampwidth()
    audio = await asyncio.to_thread(path.read_bytes)
    for start in range(0, len(audio), second // 10):
        yield audio[start : start + second // 10]
        await asyncio.sleep(0.1)


async def main(orchestrator: str, path: str, app: str = "live-transcription/tiny.en") -> None:
    show = partial(print, end="", flush=True)
    async with reserve(orchestrator, app) as session, LiveClient(session.app_url) as client:
        await client.converse(spoken(Path(path)), show, output=Format.TEXT)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
