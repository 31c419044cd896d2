"""What Go does to durations, paths and headers, as [ran] in the wire reference."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_sim.go_rules import (
    address_of,
    clean_path,
    climbs,
    decode_path,
    encode_path,
    end_to_end,
    format_duration,
    parse_duration,
    random_id,
    request_headers,
    response_headers,
    target_of,
    upgrade_of,
)

DURATIONS = {
    "0s": 0.0,
    "200ms": 0.2,
    "1.5s": 1.5,
    "5s": 5.0,
    "1m0s": 60.0,
    "1m30.5s": 90.5,
    "1h0m0s": 3600.0,
    "100h0m1s": 360_001.0,
    "2µs": 2e-6,
    "1.5ms": 0.0015,
    "7ns": 7e-9,
    "-3s": -3.0,
}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_durations_are_read_and_written_as_go_does(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("+1h", 3600), (".5s", 0.5), ("90s", 90)])
def test_durations_need_not_be_as_go_writes_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "1m 2s", "1d", "five", "-", "5sx", "٥s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected one of Go's"):
        parse_duration(text)


@given(st.integers(-(10**15), 10**15))
def test_every_duration_comes_back(nanoseconds: int) -> None:
    written = format_duration(nanoseconds / 1e9)
    assert round(parse_duration(written) * 1e9) == round(nanoseconds / 1e9 * 1e9)


@given(st.binary())
def test_a_path_that_is_encoded_and_decoded_is_itself(path: bytes) -> None:
    encoded = encode_path(path)
    assert decode_path(encoded.encode()) == path
    assert encoded.isascii()
    assert not set(encoded) & set(' ?#"<>[]{}|\\^`\r\n')


@given(st.binary())
def test_encoding_what_was_decoded_is_stable(path: bytes) -> None:
    once = encode_path(path)
    assert encode_path(decode_path(once.encode())) == once


@pytest.mark.parametrize("path", [b"/%", b"/%2", b"/%zz", b"/a%2"])
def test_a_broken_escape_is_refused(path: bytes) -> None:
    with pytest.raises(ValueError, match="two hex digits"):
        decode_path(path)


@pytest.mark.parametrize(
    ("base", "path", "query", "target"),
    [
        ("http://h:1", b"", "", "/"),
        ("http://h:1/", b"/", "", "/"),
        ("http://h/base", b"", "", "/base/"),
        ("http://h/base/", b"/live/j", "a=1;b", "/base/live/j?a=1;b"),
        ("http://h/b%20c?k=v", b"/x%y", "a=1", "/b%20c/x%25y?k=v&a=1"),
        ("http://h?k=v", b"/a/b", "", "/a/b?k=v"),
    ],
)
def test_a_path_goes_behind_the_runners(base: str, path: bytes, query: str, target: str) -> None:
    assert target_of(base, path, query) == target


def test_an_escaped_slash_becomes_one_and_an_escaped_percent_stays() -> None:
    assert target_of("http://h", decode_path(b"/a%2Fb%25c"), "") == "/a/b%25c"


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("/a//b", "/a/b"),
        ("/a/./b/", "/a/b/"),
        ("/a/../b", "/b"),
        ("//", "/"),
        ("/", "/"),
        ("/a%2F%2Fb", "/a%2F%2Fb"),
    ],
)
def test_paths_are_cleaned_before_they_are_decoded(path: str, cleaned: str) -> None:
    assert clean_path(path) == cleaned


@given(st.text("ab./"))
def test_a_clean_path_is_clean(path: str) -> None:
    cleaned = clean_path("/" + path)
    assert clean_path(cleaned) == cleaned
    assert "//" not in cleaned
    assert not climbs(cleaned.encode())


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://whisper:8000/x", ("whisper", 8000, False)),
        ("https://h", ("h", 443, True)),
        ("http://[::1]:9", ("::1", 9, False)),
    ],
)
def test_where_a_url_leads(url: str, address: tuple[str, int, bool]) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize("url", ["", "whisper:8000", "/ready", "ftp://h", "http://"])
def test_a_url_is_absolute(url: str) -> None:
    with pytest.raises(ValueError, match="expected an absolute one"):
        address_of(url)


def test_headers_of_one_connection_are_not_passed_on() -> None:
    given_headers = [
        (b"Connection", b"X-Mine, close"),
        (b"x-mine", b"1"),
        (b"Keep-Alive", b"5"),
        (b"TE", b"trailers, deflate"),
        (b"Proxy-Authorization", b"s"),
        (b"Authorization", b"Bearer t"),
        (b"Cookie", b"c"),
    ]
    kept = end_to_end(given_headers)
    assert kept == [(b"Authorization", b"Bearer t"), (b"Cookie", b"c"), (b"Te", b"trailers")]


def test_a_clients_forged_headers_are_replaced() -> None:
    own = [(b"Livepeer-Session-Id", b"real")]
    forged = [
        (b"Host", b"client"),
        (b"livepeer-session-id", b"forged"),
        (b"X-Forwarded-For", b"forged"),
        (b"Forwarded", b"for=forged"),
        (b"X-Real-Ip", b"kept"),
    ]
    sent = request_headers(forged, own, "runner:1", gzip=True)
    assert sent == [
        (b"Host", b"runner:1"),
        (b"X-Real-Ip", b"kept"),
        (b"Accept-Encoding", b"gzip"),
        *own,
    ]


def test_an_upgrade_and_a_chunked_body_pass() -> None:
    asked = [(b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"websocket")]
    assert upgrade_of(asked) == b"websocket"
    assert (b"Upgrade", b"websocket") in request_headers(asked, [], "h", gzip=False)
    assert upgrade_of([(b"Upgrade", b"h2c")]) is None
    chunked = request_headers([(b"Transfer-Encoding", b"chunked")], [], "h", gzip=False)
    assert (b"Transfer-Encoding", b"chunked") in chunked


def test_an_answer_that_was_unzipped_has_neither_length_nor_encoding() -> None:
    zipped = [(b"Content-Encoding", b"gzip"), (b"Content-Length", b"9"), (b"X", b"y")]
    assert response_headers(zipped, unzipped=True) == [(b"X", b"y")]
    assert response_headers(zipped, unzipped=False) == zipped


def test_ids_are_of_base32_in_lower_case() -> None:
    made = {random_id(16) for _ in range(100)}
    assert len(made) == 100
    assert all(len(it) == 16 and it.isalnum() and it.islower() | it.isdigit() for it in made)
    assert urlsplit(f"http://h/{made.pop()}").path
