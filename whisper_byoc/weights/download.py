"""Fetches one file so that an interruption costs nothing and nothing unchecked gets its name.

What has arrived lies in `<target>.<digest>.part` until its SHA-256 is right; the digest in
that name keeps a new version of the file from being stitched to the beginning of an old one.
"""

import http.client
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import certifi

from whisper_byoc.errors import ConfigurationError
from whisper_byoc.weights.accepting import sha256_of

CHUNK_BYTES: Final = 1 << 18
MAX_CONNECTIONS: Final = 5
"""For one file: after a connection that breaks, the next one asks for the rest."""

Report = Callable[[int, int | None], None]
"""Called as a file arrives: with the bytes that are there, and the bytes of the whole file (None
where the server does not say)."""


class DownloadFailed(ConfigurationError):
    """The file could not be fetched. What has arrived of it is kept, for the next call to go on
    with, unless its digest was wrong."""

    code = "download_failed"


class _ConnectionBroke(Exception):
    """The body ended before its announced length."""


def tls_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The system's authorities (or SSL_CERT_FILE's) and those that pip is told of.

    Behind a proxy that opens TLS, often only pip has been told of the proxy's authority.
    Raises ConfigurationError for a bundle that holds none.
    """
    context = ssl.create_default_context()
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE"):
        bundle = Path(environ.get(name) or "absent")
        try:
            if bundle.is_file():
                context.load_verify_locations(cafile=bundle)
            elif bundle.is_dir():
                context.load_verify_locations(capath=bundle)
        except ssl.SSLError as error:
            raise ConfigurationError(f"{name} is {bundle}, expected certificates") from error
    if not context.get_ca_certs():
        # python.org's Python on macOS finds none of the system's.
        context.load_verify_locations(cafile=certifi.where())
    return context


@dataclass(frozen=True)
class Downloader:
    """How to reach servers. `silence`: seconds to connect, and between two pieces of a body."""

    tls: ssl.SSLContext | None = None
    silence: float = 30.0

    def fetch(self, url: str, target: Path, sha256: str | None, report: Report) -> None:
        """Fetch `url` (http, https, file) to `target`, going on where an earlier call broke off.

        Without a digest nothing would tell a wrong beginning, so the file is fetched from its
        start. Raises DownloadFailed.
        """
        try:
            self._fetch(url, target, sha256, report)
        except OSError as error:  # of files: those of the network are turned where they arise
            raise DownloadFailed(f"cannot be stored: {error}") from error

    def _fetch(self, url: str, target: Path, sha256: str | None, report: Report) -> None:
        if sha256 and target.is_file() and sha256_of(target) == sha256:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{(sha256 or 'unchecked')[:16]}.part")
        if not sha256:
            part.unlink(missing_ok=True)
        found = ""
        # Twice where an earlier call has left a beginning, which may have been wrong.
        for _ in range(2 if _size(part) else 1):
            self._transfer(url, part, report)
            found = sha256_of(part)
            if sha256 in (None, found):
                os.replace(part, target)
                return
            part.unlink()
        raise DownloadFailed(f"what arrived has SHA-256 {found}, expected {sha256}")

    def _transfer(self, url: str, part: Path, report: Report) -> None:
        broke: _ConnectionBroke | None = None
        for _ in range(MAX_CONNECTIONS):
            try:
                return self._receive(url, part, report)
            except _ConnectionBroke as error:
                broke = error
        raise DownloadFailed(f"{broke}, in the last of {MAX_CONNECTIONS} connections") from broke

    def _receive(self, url: str, part: Path, report: Report) -> None:
        """One connection. When it returns the server had no more; the digest is the judge."""
        have = _size(part)
        try:
            response = self._request(url, have)
        except HTTPError as error:
            with error:
                if have and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    return
                raise DownloadFailed(
                    f"server answered {error.code} {error.reason}, expected 200"
                ) from error
        except (http.client.HTTPException, OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            raise DownloadFailed(f"cannot be reached: {reason}") from error
        with response:
            start = _start(response)
            if start not in (0, have):
                part.unlink()
                raise _ConnectionBroke(f"server sent bytes from {start}, expected {have}")
            with part.open("ab" if start else "wb") as file:
                _copy(response, file, start, report)

    def _request(self, url: str, have: int) -> Any:
        request = Request(url, headers={"User-Agent": "whisper-byoc"})
        if have:
            request.add_header("Range", f"bytes={have}-")
        return urlopen(request, timeout=self.silence, context=self.tls)


def _start(response: Any) -> int:
    """Where the body begins: a server may ignore the range that was asked for."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _copy(response: Any, file: BinaryIO, start: int, report: Report) -> None:
    length = response.headers.get("Content-Length")
    done, expected = start, start + int(length) if length else None
    report(done, expected)
    while chunk := _read(response, done):
        file.write(chunk)
        done += len(chunk)
        report(done, expected)
    if expected is not None and done != expected:  # http.client keeps quiet about it
        raise _ConnectionBroke(f"connection ended after {done} bytes, expected {expected}")


def _read(response: Any, done: int) -> bytes:
    try:
        chunk: bytes = response.read1(CHUNK_BYTES)
    except (http.client.HTTPException, OSError) as error:
        raise _ConnectionBroke(f"connection broke after {done} bytes: {error}") from error
    return chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
