"""livepeer-gateway's own publisher and reader, as a process of a Python that can hold them.

Run by `test_case_119`: publishes every file of a folder as a segment, one a second, and writes each
line of the data channel to standard output until that channel is closed. Imports nothing of ours.
"""

import asyncio
import json
import sys
from pathlib import Path

from livepeer_gateway.channel_reader import JSONLReader  # type: ignore[import-not-found]
from livepeer_gateway.trickle_publisher import TricklePublisher  # type: ignore[import-not-found]


async def main(input_url: str, data_url: str, folder: str) -> None:
    reading = asyncio.ensure_future(read(data_url))
    async with TricklePublisher(input_url, "video/MP2T") as publisher:
        for path in sorted(Path(folder).iterdir()):  # noqa: ASYNC240
            async with await publisher.next() as segment:
                await segment.write(path.read_bytes())
            await asyncio.sleep(1)
        await asyncio.to_thread(sys.stdin.readline)  # closing it deletes the channel
    await reading


async def read(data_url: str) -> None:
    async for line in JSONLReader(data_url)(start_seq=-2):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
