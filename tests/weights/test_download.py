"""Downloads from a real server that is interrupted, lies or goes silent."""

import hashlib
import ssl
from pathlib import Path

import pytest

from tests.weights.file_server import FileServer, file_server
from whisper_byoc.errors import ConfigurationError
from whisper_byoc.weights.download import Downloader, DownloadFailed, tls_context

DATA = bytes(range(256)) * 4000
DIGEST = hashlib.sha256(DATA).hexdigest()
WRONG = bytes(len(DATA))

downloader = Downloader()


def ignore(_done: int, _total: int | None) -> None:
    pass


def part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.{DIGEST[:16]}.part")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "work" / "file"


def fetch(server: FileServer, target: Path, sha256: str | None = DIGEST) -> None:
    downloader.fetch(f"{server.url}/file", target, sha256, ignore)


def leave_part(target: Path, data: bytes) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(data)


def only(target: Path) -> bool:
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_arrives_and_nothing_else_is_left(target: Path) -> None:
    with file_server(files={"file": DATA}) as server:
        fetch(server, target)
        assert server.ranges == [""]
    assert target.read_bytes() == DATA
    assert only(target)


def test_progress_is_told_in_bytes(target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    with file_server(files={"file": DATA}) as server:
        downloader.fetch(
            f"{server.url}/file", target, DIGEST, lambda done, total: told.append((done, total))
        )
    assert told[0] == (0, len(DATA))
    assert told[-1] == (len(DATA), len(DATA))
    assert told == sorted(told)


def test_a_file_that_is_there_is_not_fetched_again(target: Path) -> None:
    with file_server(files={"file": DATA}) as server:
        fetch(server, target)
        fetch(server, target)
        assert len(server.ranges) == 1


def test_a_partial_file_is_gone_on_with(target: Path) -> None:
    leave_part(target, DATA[:1000])
    with file_server(files={"file": DATA}) as server:
        fetch(server, target)
        assert server.ranges == ["bytes=1000-"]
    assert target.read_bytes() == DATA
    assert only(target)


def test_an_interrupted_download_is_gone_on_with(target: Path) -> None:
    def interrupt(done: int, _total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with file_server(files={"file": DATA}) as server:
        with pytest.raises(KeyboardInterrupt):
            downloader.fetch(f"{server.url}/file", target, DIGEST, interrupt)
        have = part_of(target).stat().st_size
        assert not target.exists()
        fetch(server, target)
        assert server.ranges == ["", f"bytes={have}-"]
    assert 0 < have < len(DATA)
    assert target.read_bytes() == DATA


def test_a_connection_that_breaks_is_taken_up_again(target: Path) -> None:
    with file_server(files={"file": DATA}, cuts=[1000, 2000]) as server:
        fetch(server, target)
        assert server.ranges == ["", "bytes=1000-", "bytes=3000-"]
    assert target.read_bytes() == DATA


def test_a_silent_server_is_asked_again(target: Path) -> None:
    with file_server(files={"file": DATA}, cuts=[1000], stalls=True) as server:
        Downloader(silence=0.2).fetch(f"{server.url}/file", target, DIGEST, ignore)
        assert server.ranges == ["", "bytes=1000-"]
    assert target.read_bytes() == DATA


def test_connections_that_keep_breaking_are_given_up_and_the_part_kept(target: Path) -> None:
    with file_server(files={"file": DATA}, cuts=[10] * 5) as server:
        with pytest.raises(DownloadFailed, match=r"after 50 bytes, expected 1024000, in the last"):
            fetch(server, target)
        assert part_of(target).read_bytes() == DATA[:50]
        fetch(server, target)
    assert target.read_bytes() == DATA


def test_a_server_that_ignores_ranges_sends_it_all_again(target: Path) -> None:
    leave_part(target, DATA[:1000])
    with file_server(files={"file": DATA}, knows_ranges=False, cuts=[5000]) as server:
        fetch(server, target)
        assert server.ranges == ["bytes=1000-", "bytes=5000-"]
    assert target.read_bytes() == DATA
    assert only(target)


def test_bytes_from_elsewhere_are_not_stitched_on(target: Path) -> None:
    leave_part(target, DATA[:1000])
    with file_server(files={"file": DATA}, range_offset=1) as server:
        fetch(server, target)
        assert server.ranges == ["bytes=1000-", ""]
    assert target.read_bytes() == DATA


def test_a_server_that_announces_no_length_is_judged_by_the_digest(target: Path) -> None:
    with file_server(files={"file": DATA}, announces_length=False) as server:
        fetch(server, target)
    assert target.read_bytes() == DATA


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(WRONG[:1000], id="a wrong beginning"),
        pytest.param(WRONG, id="as long as the file"),
        pytest.param(DATA + b"more", id="longer than the file"),
    ],
)
def test_a_wrong_partial_file_is_started_over(target: Path, part: bytes) -> None:
    leave_part(target, part)
    with file_server(files={"file": DATA}) as server:
        fetch(server, target)
        assert server.ranges == [f"bytes={len(part)}-", ""]
    assert target.read_bytes() == DATA
    assert only(target)


def test_a_partial_file_that_was_complete_is_taken(target: Path) -> None:
    leave_part(target, DATA)
    with file_server(files={"file": DATA}) as server:
        fetch(server, target)
        assert server.ranges == [f"bytes={len(DATA)}-"]
    assert target.read_bytes() == DATA


@pytest.mark.parametrize("part", [b"", DATA[:1000]], ids=["from the start", "gone on with"])
def test_wrong_bytes_get_no_name(target: Path, part: bytes) -> None:
    leave_part(target, part)
    with file_server(files={"file": WRONG}) as server:
        with pytest.raises(DownloadFailed) as caught:
            fetch(server, target)
        assert len(server.ranges) == (2 if part else 1)
    found = hashlib.sha256(WRONG).hexdigest()
    assert str(caught.value) == f"what arrived has SHA-256 {found}, expected {DIGEST}"
    assert not list(target.parent.iterdir())


def test_without_a_digest_the_file_is_fetched_from_its_start(target: Path) -> None:
    with file_server(files={"file": DATA}, cuts=[10] * 5) as server:
        with pytest.raises(DownloadFailed):
            fetch(server, target, sha256=None)
        fetch(server, target, sha256=None)
        fetch(server, target, sha256=None)
        assert server.ranges[-2:] == ["", ""]
    assert target.read_bytes() == DATA
    assert only(target)


def test_a_refusal_is_named(target: Path) -> None:
    leave_part(target, DATA[:1000])
    with file_server() as server, pytest.raises(DownloadFailed, match="answered 404 Not Found"):
        fetch(server, target)
    assert part_of(target).read_bytes() == DATA[:1000]


def test_a_server_that_is_not_there_is_named(target: Path) -> None:
    with file_server() as server:
        pass
    with pytest.raises(DownloadFailed, match=r"cannot be reached: .*refused"):
        fetch(server, target)


def test_a_url_that_is_none_is_named(target: Path) -> None:
    with pytest.raises(DownloadFailed, match="cannot be reached: unknown url type"):
        downloader.fetch("nowhere", target, DIGEST, ignore)


def test_a_folder_that_cannot_be_written_is_named(target: Path) -> None:
    target.parent.write_text("a file in its place")
    with file_server(files={"file": DATA}) as server:
        with pytest.raises(DownloadFailed, match=r"cannot be stored: .*exists"):
            fetch(server, target)
        assert not server.ranges


@pytest.mark.parametrize("part", [b"", DATA[:1000]], ids=["from the start", "gone on with"])
def test_a_local_file_is_copied(tmp_path: Path, target: Path, part: bytes) -> None:
    (tmp_path / "local file").write_bytes(DATA)
    leave_part(target, part)
    downloader.fetch((tmp_path / "local file").as_uri(), target, DIGEST, ignore)
    assert target.read_bytes() == DATA
    assert only(target)


def test_an_absent_local_file_is_named(tmp_path: Path, target: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"cannot be reached: .*No such file"):
        downloader.fetch((tmp_path / "absent").as_uri(), target, DIGEST, ignore)


@pytest.mark.parametrize("name", ["PIP_CERT", "REQUESTS_CA_BUNDLE"])
def test_authorities_that_pip_is_told_of_are_read(name: str, tmp_path: Path) -> None:
    broken = tmp_path / "bundle.pem"
    broken.write_text("no certificate")
    with pytest.raises(ConfigurationError, match=f"{name} is .*bundle.pem, expected certificates"):
        tls_context({name: str(broken)})


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="nothing said"),
        pytest.param({"PIP_CERT": "", "REQUESTS_CA_BUNDLE": "/absent"}, id="nothing there"),
        pytest.param({"PIP_CERT": "/etc"}, id="a folder"),
    ],
)
def test_certificates_are_always_checked(environ: dict[str, str]) -> None:
    context = tls_context(environ)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
