"""The pages say what the code does, and lean on nothing that is not in the repository."""

import re
from pathlib import Path

import pytest
from starlette.routing import Route, WebSocketRoute

from scripts.write_settings import PAGE, with_table
from whisper_byoc.app import CLIENT_ROUTES, OPERATOR_ROUTES
from whisper_byoc.transcript import EndReason, Format

REPOSITORY = Path(__file__).parent.parent
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
API = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
WIRE = (REPOSITORY / "docs" / "wire.md").read_text(encoding="utf-8")
NUM_CASES = 123
RUNNER_WIRE = (REPOSITORY / "docs" / "live-runner.md").read_text(encoding="utf-8")
NUM_RUNNER_CASES = 42
NOT_RUN = {42}
"""For want of an orchestrator's binary."""


def test_the_table_of_settings_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text, "run make settings"


def test_every_route_is_named() -> None:
    """What is below `/api` is named once."""
    for route in (*CLIENT_ROUTES, *OPERATOR_ROUTES):
        assert isinstance(route, Route | WebSocketRoute)
        assert route.path.replace(":path", "").removeprefix("/api") in API


def test_every_format_and_reason_is_named() -> None:
    for name in [*Format, *EndReason]:
        assert f"`{name}`" in API


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_is_linked_exists(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#: ]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_is_named_exists(page: Path) -> None:
    """Paths with a folder, in backticks; a module without its `.py`."""
    folders = "whisper_byoc|whisper_bench|whisper_sim|tests|scripts|docs|examples|deploy"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text(encoding="utf-8")):
        assert (REPOSITORY / name).exists() or (REPOSITORY / f"{name}.py").exists(), name


def test_nothing_leans_on_pages_outside_the_repository() -> None:
    sources = [path for folder in ("whisper_byoc", "whisper_bench", "whisper_sim", "tests")
               for path in REPOSITORY.glob(f"{folder}/**/*.py")]  # fmt: skip
    for path in [*PAGES, *sources]:
        if path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"trickle-protocol\.md|design\.md|shared/[\w-]+\.md", text), path


def test_every_case_of_the_wire_is_listed_once() -> None:
    numbers = re.findall(r"^(?:\| (\d+) \||(\d+)\. )", WIRE, re.MULTILINE)
    assert [int(a or b) for a, b in numbers] == list(range(1, NUM_CASES + 1))


def test_every_case_of_the_wire_has_a_test() -> None:
    tests = (path.read_text(encoding="utf-8") for path in REPOSITORY.glob("tests/**/test_*.py"))
    numbers = {int(it) for text in tests for it in re.findall(r"def test_case_(\d{3})_", text)}
    assert set(range(1, NUM_CASES + 1)) <= numbers


def test_every_case_of_the_live_runner_is_listed_once_and_has_a_test() -> None:
    numbers = [int(it) for it in re.findall(r"^\| R(\d+) \|", RUNNER_WIRE, re.MULTILINE)]
    assert numbers == list(range(1, NUM_RUNNER_CASES + 1))
    tests = (path.read_text(encoding="utf-8") for path in REPOSITORY.glob("tests/**/test_*.py"))
    names = " ".join(it for text in tests for it in re.findall(r"def test_case_(r\d\d\w*)", text))
    found = {int(it) for it in re.findall(r"(?:^|[_ ])r(\d\d)(?=_)", names)}
    assert found == set(numbers) - NOT_RUN
