"""Compile the C as an installation does, with further flags: for warnings, and for sanitizers.

`python scripts/build_native.py -Wall -Wextra -Werror` is part of `make check`.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def find_compiler() -> str | None:
    """The C compiler that can make these libraries here, if there is one."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    return shutil.which(os.environ.get("CC", "cc"))


def commands(compiler: str, flags: Sequence[str], output: Path) -> Iterator[list[str]]:
    """One for each library that pyproject.toml names; into `output`, named as their modules are."""
    for name, options, sources in libraries():
        yield [compiler, *options, *flags, *sources, "-lm", "-o", str(output / f"{name}.so")]


def libraries() -> Iterator[tuple[str, list[str], list[str]]]:
    """The name of each, its compiler's options, and its sources."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for module in project["tool"]["setuptools"]["ext-modules"]:
        sources = [str(ROOT / source) for source in module["sources"]]
        options = [*module["extra-compile-args"], "-fPIC", "-shared"]
        yield module["name"].rpartition(".")[2], options, sources


def main() -> int:
    compiler = find_compiler()
    if compiler is None:
        print("the C is not checked: no C compiler for x86-64 was found", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tried = [subprocess.run(it) for it in commands(compiler, sys.argv[1:], Path(folder))]
    return max(it.returncode for it in tried)


if __name__ == "__main__":
    sys.exit(main())
