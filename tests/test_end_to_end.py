"""The whole of it with real weights: speech in over a real socket, the right words out."""

import asyncio
import csv
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from numpy.typing import NDArray
from whisper.normalizers import EnglishTextNormalizer

from tests.conftest import Speak, pcm, serve_app
from whisper_byoc.client import ClientError, LiveClient
from whisper_byoc.settings import ModelSettings, Settings
from whisper_byoc.transcript import Format

pytestmark = [pytest.mark.anyio, pytest.mark.model]
TIMEOUT = 400
SENTENCES = (
    "The train to the harbour leaves early in the morning.",
    "Please keep your ticket until the end of the journey.",
    "There is a small garden behind the old house.",
    "She wrote a long letter to her brother in spring.",
    "We are going to need another bottle of water.",
    "The weather was cold and the streets were empty.",
    "My favourite colour has always been green.",
    "He bought three apples and a loaf of bread.",
)


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with asyncio.timeout(TIMEOUT), serve_app() as (address, _):
        yield address


async def chunks(audio: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(audio), size):
        yield audio[start : start + size]


async def transcribe(url: str, job: str, audio: bytes, **options: Any) -> str:
    pieces: list[str] = []
    async with LiveClient(url) as client:
        await client.transcribe(job, chunks(audio), pieces.append, output=Format.TEXT, **options)
    return "".join(pieces)


def words(text: str) -> list[str]:
    return re.findall(
        r"[a-z]+", text.lower().replace("colour", "color").replace("harbour", "harbor")
    )


async def test_eight_jobs_at_once_each_get_their_own_text(url: str, speak: Speak) -> None:
    texts = await asyncio.gather(
        *(
            transcribe(url, f"eight-{number}", pcm(speak(sentence)), content_type="audio/pcm")
            for number, sentence in enumerate(SENTENCES)
        )
    )
    for sentence, text in zip(SENTENCES, texts, strict=True):
        assert jiwer.wer(" ".join(words(sentence)), " ".join(words(text))) <= 0.25, text


async def test_pauses_divide_utterances_and_the_last_word_is_there(url: str, speak: Speak) -> None:
    pause = np.zeros(24_000, dtype=np.float32)
    audio = np.concatenate([speak(SENTENCES[0]), pause, speak(SENTENCES[1])])
    lines = (await transcribe(url, "pauses", pcm(audio))).splitlines()
    assert [words(line)[-1] for line in lines] == ["morning", "journey"]


async def test_long_speech_without_pauses_is_cut_between_words(url: str, speak: Speak) -> None:
    spoken = [trimmed(speak(sentence)) for sentence in SENTENCES * 2]
    text = await transcribe(url, "long", pcm(np.concatenate(spoken)))
    expected = " ".join(" ".join(words(sentence)) for sentence in SENTENCES * 2)
    assert jiwer.wer(expected, " ".join(words(text))) <= 0.12, text


def trimmed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the silence around the speech."""
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    return samples[loud[0] : loud[-1]]


async def test_a_prompt_is_taken(url: str, speak: Speak) -> None:
    text = await transcribe(url, "prompt", pcm(speak(SENTENCES[0])), prompt="At the harbour.")
    assert words(text)[-1] == "morning"


async def test_a_language_that_is_not_loaded_is_refused(url: str, speak: Speak) -> None:
    with pytest.raises(ClientError, match=r"language is 'de', expected en, .*: tiny, base, small"):
        await transcribe(url, "german", pcm(speak(SENTENCES[0])), language="de")


async def test_the_language_picks_the_weights(speech_dir: Path) -> None:
    models = Path(__file__).parent.parent / "models"
    settings = Settings(model=ModelSettings(directory=models, names=("tiny.en", "base")))
    files = sorted((speech_dir / "other" / "de").glob("*.flac"))[:1]
    async with asyncio.timeout(TIMEOUT), serve_app(settings=settings) as (url, _):
        for file in files:
            audio = await asyncio.to_thread(file.read_bytes)
            reference = manifest(speech_dir)[f"other/de/{file.name}"]
            given = await transcribe(url, "given", audio, language="de")
            found = await transcribe(url, "found", audio, language="auto")
    assert jiwer.wer(plain(reference), plain(given)) < 0.5
    assert found == given


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def manifest(speech_dir: Path) -> dict[str, str]:
    with (speech_dir / "manifest.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["file"]: row["reference text"] for row in rows}


async def test_no_words_come_from_what_is_no_speech(url: str, speech_dir: Path) -> None:
    for file in sorted((speech_dir / "nonspeech").glob("*.flac")):
        audio = await asyncio.to_thread(file.read_bytes)
        assert await transcribe(url, f"nonspeech-{file.stem}", audio) == "", file.name


async def test_read_speech_through_the_server_has_a_plausible_error_rate(
    url: str, speech_dir: Path
) -> None:
    """Guards against lost or doubled words; the exact rate is for the benchmark to find."""
    normalise = EnglishTextNormalizer()
    references, hypotheses = [], []
    rows = [name for name in manifest(speech_dir) if name.startswith("en/librispeech/")]
    for number, name in enumerate(rows[::6]):
        audio = await asyncio.to_thread((speech_dir / name).read_bytes)
        text = await transcribe(url, f"read-{number}", audio)
        references.append(normalise(manifest(speech_dir)[name]))
        hypotheses.append(normalise(text))
    assert jiwer.wer(references, hypotheses) < 0.16
