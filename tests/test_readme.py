"""The README says what the code does."""

import re

from starlette.routing import Route, WebSocketRoute

from scripts.write_readme import README, with_table
from whisper_byoc.doors import batch, live, segments, socket, system, worker
from whisper_byoc.transcript import EndReason, Format

TEXT = README.read_text(encoding="utf-8")


def test_the_table_of_settings_is_up_to_date() -> None:
    assert with_table(TEXT) == TEXT, "run make readme"


def test_every_route_is_named() -> None:
    """What is below `/api` is named once."""
    modules = (live, segments, system, worker, socket, batch)
    for route in (route for module in modules for route in module.routes):
        assert isinstance(route, Route | WebSocketRoute)
        assert route.path.replace(":path", "").removeprefix("/api") in TEXT


def test_every_format_and_reason_is_named() -> None:
    for name in [*Format, *EndReason]:
        assert f"`{name}`" in TEXT


def test_every_file_that_is_linked_exists() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (README.parent / link).exists(), link
