"""ARCHITECTURE.md says what the code is: its rooms, arrows, modules, owners and queues."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import whisper_byoc

PACKAGE = Path(whisper_byoc.__file__).parent
TEXT = (PACKAGE.parent / "ARCHITECTURE.md").read_text(encoding="utf-8")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
# What is beside the package: it uses the package, and nothing uses it but the tests.
SIBLINGS = [PACKAGE.parent / name for name in ("whisper_bench", "whisper_sim")]
HEAVY = {"torch", "whisper", "onnxruntime"}
IMPURE = {"asyncio", "socket", "subprocess", "threading", "time", "aiohttp"}
PURE_AT_THE_TOP = {"errors", "languages", "loops", "transcript", "decode", "settings"}


def table(heading: str) -> Iterator[list[str]]:
    """The rows of the first table whose first column has this heading, without that line."""
    lines = iter(TEXT.splitlines())
    next(line for line in lines if line.startswith(f"| {heading} |"))
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def quoted(cell: str) -> list[str]:
    return [name.strip("/") for name in re.findall(r"`([^`]+)`", cell)]


ROOMS = {quoted(row[0])[0]: set(quoted(row[2])) for row in table("room")}
NAMED = {quoted(row[0])[0]: row[2].strip(" |") == "yes" for row in table("module")}
OWNERS = [name for row in table("state") for name in quoted(row[1])]
BOUNDS = re.findall(r"`([\w.]+)` = ([\d,]+)( MiB)?", TEXT)


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(""))


def room_of(path: Path) -> str:
    return name_of(path).partition("/")[0]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_used(path: Path) -> set[str]:
    own = (name for name in imports(path) if name.startswith("whisper_byoc."))
    return {name.split(".")[1] for name in own} - {room_of(path), "errors"}


def found(name: str) -> Any:
    """What a dotted name stands for, below the package unless it names another; a setting's is its
    default."""
    package, _, rest = (
        name.partition(".") if name.startswith("whisper_") else ("whisper_byoc", "", name)
    )
    parts = rest.split(".")
    for depth in range(len(parts), 0, -1):
        if (PACKAGE.parent / package / Path(*parts[:depth])).with_suffix(".py").exists():
            value: Any = import_module(".".join([package, *parts[:depth]]))
            for part in parts[depth:]:
                fields = getattr(value, "model_fields", {})
                value = fields[part].default if part in fields else getattr(value, part)
            return value
    raise AssertionError(f"{name} is in no module")


def test_every_room_is_there_and_has_a_row() -> None:
    assert ROOMS.keys() == {room_of(path) for path in MODULES}
    assert len([path for path in MODULES if path.parent == PACKAGE]) < 12


def test_every_module_of_a_folder_is_there_and_has_a_row() -> None:
    assert list(NAMED) == list(dict.fromkeys(NAMED))
    assert NAMED.keys() == {name_of(path) for path in MODULES if path.parent != PACKAGE}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    assert rooms_used(path) <= ROOMS[room_of(path)]


@pytest.mark.parametrize("room", ROOMS)
def test_every_arrow_is_used(room: str) -> None:
    used: set[str] = set()
    for path in MODULES:
        used |= rooms_used(path) if room_of(path) == room else set()
    assert used == ROOMS[room]


def test_arrows_point_one_way() -> None:
    """A row names only rows below it."""
    order = list(ROOMS)
    for room, others in ROOMS.items():
        assert all(order.index(other) > order.index(room) for other in others), room


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_inference_and_weights_import_torch_and_whisper(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)}
    assert room_of(path) in {"inference", "weights"} or not outside & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_what_is_called_pure_is_pure_and_says_so(path: Path) -> None:
    pure = NAMED.get(name_of(path), name_of(path) in PURE_AT_THE_TOP)
    outside = {name.split(".")[0] for name in imports(path)}
    assert not (pure and outside & IMPURE)
    if name_of(path) != "settings":  # which reads the environment
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split(
            "\n\n"
        )
        assert ("(pure)" in summary[0]) == pure


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_package_imports_nothing_that_is_beside_it(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)}
    assert not outside & {"whisper_bench", "whisper_sim", "scripts", "tests"}


@pytest.mark.parametrize("folder", SIBLINGS, ids=lambda path: path.name)
def test_a_sibling_imports_neither_another_nor_tests(folder: Path) -> None:
    for path in folder.rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)}
        assert not outside & {"whisper_bench", "whisper_sim", "scripts", "tests"} - {folder.name}


@pytest.mark.parametrize("owner", OWNERS)
def test_every_owner_is_there(owner: str) -> None:
    assert found(owner) is not None


def test_the_glossary_names_code_that_is_there() -> None:
    text = (PACKAGE.parent / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = [line.split(" | ") for line in text.splitlines() if line.startswith("| **")]
    assert len({row[0] for row in words}) == len(words), "a word twice"
    for name in re.findall(r"`([\w./]+)`", " ".join(row[-1] for row in words)):
        if not name.startswith("WHISPER_"):
            assert (name.endswith("/") and (PACKAGE / name).is_dir()) or found(name) is not None


@pytest.mark.parametrize(("name", "number", "unit"), BOUNDS, ids=lambda value: str(value))
def test_every_bound_is_what_the_code_has(name: str, number: str, unit: str) -> None:
    assert found(name) == int(number.replace(",", "")) * (1024**2 if unit else 1)


def test_every_queue_has_a_bound_and_says_what_gives_way() -> None:
    rows = list(table("queue"))
    assert len(rows) > 10
    assert all(len(row) == 3 and all(row) for row in rows)


def test_the_diagram_names_modules_that_are_there() -> None:
    diagram = TEXT.split("```")[1]
    for name in re.findall(r"(?:doors|jobs|audio|streaming|inference|orchestrator)/\w+", diagram):
        assert name in NAMED
