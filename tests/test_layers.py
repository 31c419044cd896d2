"""The arrows of the module map point one way."""

import ast
from pathlib import Path

import pytest

import whisper_byoc

PACKAGE = Path(whisper_byoc.__file__).parent
# Modules and folders.
PURE = {
    "errors", "loops", "transcript", "decode", "settings", "streaming", "jobs/control",
    "audio/formats", "audio/content_types", "audio/sniffing", "audio/pcm", "audio/wav", "audio/mp4",
    "audio/body", "jobs/options",
}  # fmt: skip
# What each layer may import of the package; `errors` and itself go without saying.
ALLOWED = {
    "errors": set(),
    "loops": set(),
    "transcript": set(),
    "audio": set(),
    "settings": set(),
    "trickle": set(),
    "decode": {"audio", "transcript"},
    "metrics": {"decode", "transcript"},
    "streaming": {"audio", "decode", "loops", "settings", "transcript"},
    "weights": set(),
    "inference": {"audio", "decode", "loops", "settings", "transcript", "weights"},
    "jobs": {
        "audio", "decode", "inference", "metrics", "settings", "streaming", "transcript", "trickle",
    },
    "client": {"audio", "transcript"},
    "orchestrator": {"audio", "jobs", "metrics", "settings", "transcript", "trickle"},
    "service": {"inference", "jobs", "metrics", "orchestrator", "settings"},
    "doors": {
        "audio", "jobs", "metrics", "orchestrator", "service", "settings", "transcript", "trickle",
    },
    "app": {"doors", "service"},
    "cli": {"app", "weights", "jobs", "service", "settings"},
    "__main__": {"cli"},
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))
# What is beside the package: it uses the package, and nothing uses it but the tests.
SIBLINGS = [PACKAGE.parent / name for name in ("whisper_bench", "whisper_sim")]


def layer_of(path: Path) -> str:
    part = path.relative_to(PACKAGE).parts[0]
    return part.removesuffix(".py")


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    own = {name.split(".")[1] for name in imports(path) if name.startswith("whisper_byoc.")}
    assert own - ALLOWED[layer] <= {layer, "errors"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_inference_and_weights_import_torch_and_whisper(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)}
    if layer_of(path) not in {"inference", "weights"}:
        assert not outside & {"torch", "whisper", "onnxruntime"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_pure_modules_have_no_clock_and_no_sockets(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)}
    if {str(path.relative_to(PACKAGE).with_suffix("")), layer_of(path)} & PURE:
        assert not outside & {"asyncio", "socket", "subprocess", "threading", "time", "aiohttp"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_imports_nothing_that_is_beside_it(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)}
    assert not outside & {"whisper_bench", "whisper_sim", "scripts", "tests"}


@pytest.mark.parametrize("folder", SIBLINGS, ids=lambda path: path.name)
def test_a_sibling_imports_neither_another_nor_tests(folder: Path) -> None:
    for path in folder.rglob("*.py"):
        outside = {name.split(".")[0] for name in imports(path)}
        assert not outside & {"whisper_bench", "whisper_sim", "scripts", "tests"} - {folder.name}
