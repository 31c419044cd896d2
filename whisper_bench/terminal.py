"""What all benchmarks show on the terminal."""

import sys
from typing import Any


def tell(line: str) -> None:
    print(f"benchmark: {line}", file=sys.stderr, flush=True)


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(cell(it) for it in value.values())
    return "–" if value is None else f"{value:.4g}"
