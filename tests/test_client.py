"""The Python client, against servers that do what real ones may do."""

import asyncio

import pytest

from whisper_byoc.client import LiveClient

pytestmark = pytest.mark.anyio
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def test_a_client_reads_any_number_of_outputs_at_once() -> None:
    """Of 150 readers none is answered before all have asked."""
    readers = 150
    everyone = asyncio.Barrier(readers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await everyone.wait()
        writer.write(EMPTY)
        await writer.drain()
        writer.close()

    async def read(client: LiveClient, number: int) -> list[str]:
        return [text async for text in client.output(f"job-{number}")]

    async with asyncio.timeout(20), await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with LiveClient(url) as client:
            outputs = await asyncio.gather(*(read(client, number) for number in range(readers)))
    assert outputs == [[] for _ in range(readers)]
