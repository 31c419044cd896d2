"""What a report says of the machine and of the programs on it."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from whisper_bench.setup import ROOT

CPU_FLAGS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16")
PACKAGES = (
    "whisper-byoc",
    "torch",
    "openai-whisper",
    "faster-whisper",
    "ctranslate2",
    "onnxruntime",
)


def machine(threads: int) -> dict[str, Any]:
    """CPU fields are of its first core; without /proc, what Python knows of it."""
    about: dict[str, str] = {}
    with suppress(FileNotFoundError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            about.setdefault(key.strip(), value.strip())
    flags = about.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": about.get("model name") or platform.processor() or platform.machine(),
        "cores": threads,
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gb": round(memory / 1e9, 1),
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
        found["commit"] = result.stdout.strip() or None
    except FileNotFoundError:
        found["commit"] = None
    return found
