"""A real HTTP server of files that misbehaves on request."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """Serves `files` by name. The server's threads read it, the test changes it between requests.

    `cuts`: after how many bytes the next bodies end early, one per request; `stalls` as many
    bodies stay open instead. `ranges` collects the Range header of every request, "" without.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    knows_ranges: bool = True
    announces_length: bool = True
    range_offset: int = 0
    stalls: bool = False
    closed: threading.Event = field(default_factory=threading.Event)


@contextmanager
def file_server(**settings: Any) -> Iterator[FileServer]:
    state = FileServer(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.ranges.append(wanted)
            data = state.files.get(self.path[1:])
            offset = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
            start = offset + state.range_offset if wanted and state.knows_ranges else 0
            if data is None:
                self.send_error(404)
            elif start and start >= len(data):
                self.send_error(416)
            else:
                self._send(data, start)

        def _send(self, data: bytes, start: int) -> None:
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if state.announces_length:
                self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            cut = state.cuts.pop(0) if state.cuts else len(data)
            self.wfile.write(data[start : start + cut])
            if start + cut < len(data) and state.stalls:
                state.closed.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            state.closed.set()
            server.shutdown()
            thread.join()
