"""Which pages browsers let use the doors, over a real socket."""

from collections.abc import Mapping

import pytest

from tests.doors.test_batch import Answer, Client, open_client
from whisper_byoc.settings import ServerSettings, Settings, read_settings

pytestmark = pytest.mark.anyio
PAGE = "https://app.example.com"
CLIENTS = ["/v1/audio/transcriptions", "/transcribe", "/live/a/source", "/live/a/output", "/health"]


def settings(*origins: str) -> Settings:
    return Settings(server=ServerSettings(cors_origins=origins))


async def preflight(client: Client, path: str, origin: str = PAGE) -> Answer:
    return await client.ask(
        "OPTIONS",
        path,
        Origin=origin,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization,content-type",
    )


def allowed(headers: Mapping[str, str]) -> str | None:
    return headers.get("Access-Control-Allow-Origin")


@pytest.mark.parametrize(("origin", "answered"), [(PAGE, PAGE), ("*", "*")])
async def test_a_page_of_an_origin_that_is_set_may_use_the_doors_of_clients(
    origin: str, answered: str
) -> None:
    async with open_client(settings=settings(origin)) as client:
        for path in CLIENTS:
            asked = await preflight(client, path)
            assert (asked.status, allowed(asked.headers)) == (200, answered)
            assert "POST" in asked.headers["Access-Control-Allow-Methods"]
            assert "authorization" in asked.headers["Access-Control-Allow-Headers"]
        answer = await client.post("/transcribe", bytes(3200), Origin=PAGE)
        assert (answer.status, allowed(answer.headers)) == (200, answered)
        assert answer.headers["Access-Control-Expose-Headers"] == "*"
        refused = await client.ask("GET", "/v1/models/unknown", Origin=PAGE)
        assert (refused.status, allowed(refused.headers)) == (404, answered)
        streamed = await client.post("/transcribe?stream=true", bytes(3200), Origin=PAGE)
        assert (streamed.status, allowed(streamed.headers)) == (200, answered)


async def test_other_pages_and_other_doors_are_as_ever() -> None:
    async with open_client(settings=settings(PAGE)) as client:
        other = await preflight(client, "/transcribe", "https://example.org")
        assert (other.status, allowed(other.headers)) == (400, None)
        for path in ("/stream/start", "/metrics", "/hardware/info", "/api/stream/stop"):
            asked = await preflight(client, path)
            assert (asked.status, allowed(asked.headers)) == (405, None)
            assert allowed((await client.ask("GET", path, Origin=PAGE)).headers) is None


async def test_without_the_setting_no_page_may_use_anything() -> None:
    async with open_client(settings=Settings()) as client:
        asked = await preflight(client, "/transcribe")
        assert (asked.status, allowed(asked.headers)) == (405, None)
        answer = await client.post("/transcribe", bytes(3200), Origin=PAGE)
        assert (answer.status, allowed(answer.headers)) == (200, None)


def test_origins_are_read_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHISPER_SERVER_CORS_ORIGINS", "https://App.example.com/, http://a:8080")
    assert read_settings().server.cors_origins == ("https://app.example.com", "http://a:8080")


@pytest.mark.parametrize("text", ["example.com", "https://a/b", "https://a?b", "https://u@a", "**"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be \\*, or origins like"):
        ServerSettings(cors_origins=(text,))
