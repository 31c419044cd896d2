"""OpenAI's API over a real socket, with its own Python client, real voice activity and scripted
words."""

import asyncio
import json
import math
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai.types.audio import TranscriptionVerbose

from tests.conftest import MODELS, REPOSITORY, pcm, serve_app, wav
from tests.doors.test_batch import (
    Answer,
    Client,
    base64_of,
    form,
    open_client,
    settings_of,
    twice,
    words_of,
)
from tests.scripted import ScriptedModel, spoken
from tests.test_transcript import seconds_of
from whisper_byoc.decode import DecodeRequest, Hypothesis, Task
from whisper_byoc.doors.openai import VerboseWriter
from whisper_byoc.jobs.options import MAX_PROMPT_CHARACTERS, JobOptions
from whisper_byoc.settings import ModelSettings, OrchestratorSettings, Settings
from whisper_byoc.transcript import MIN_CUE_SECONDS, End, EndReason, Final, SegmentDetail, Word

pytestmark = pytest.mark.anyio
PATH = "/v1/audio/transcriptions"
NODE_MODULES = REPOSITORY / ".node" / "node_modules"
NODE_PEER = Path(__file__).parent / "openai_peer.cjs"
DETAILS = {
    "id", "seek", "start", "end", "text", "tokens", "temperature", "avg_logprob",
    "compression_ratio", "no_speech_prob",
}  # fmt: skip
TRANSLATES = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
"""OpenAI's client calls translations deprecated."""
LONG_FILE = "4088-158079_0000-0018.flac"
DETAIL = SegmentDetail(1200, (50363, 314), 0.2, -0.3, 1.4, 0.02)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with open_client() as opened:
        yield opened


@pytest.fixture
async def multilingual() -> AsyncIterator[Client]:
    async with open_client(polyglot()) as opened:
        yield opened


@pytest.fixture
def audio(sentence: NDArray[np.float32]) -> bytes:
    return wav(pcm(sentence))


def polyglot() -> ScriptedModel:
    """Weights of several languages, which always find German."""

    def answer(request: DecodeRequest) -> Hypothesis:
        seconds = len(request.samples) / 16_000
        language = "en" if request.task is Task.TRANSLATE else request.language or "de"
        return spoken("eins", "zwei", seconds=seconds, language=language)

    return ScriptedModel(answer, frozenset(("en", "de", "fr")))


@asynccontextmanager
async def sdk(client: Client, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    settings = {"api_key": "none", "max_retries": 0, "base_url": client.url + "/v1", **options}
    async with openai.AsyncOpenAI(**settings) as opened:
        yield opened


async def ask(client: Client, audio: bytes, path: str = PATH, **fields: str) -> Answer:
    return await client.post(path, form(audio, "file", model="whisper-1", **fields))


async def ask_spelled(client: Client, audio: bytes, *fields: tuple[str, str]) -> Answer:
    """With names as they are, also more than once."""
    body = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields:
        body.add_field(name, value)
    body.add_field("file", audio, filename="a.wav")
    return await client.post(PATH, body)


async def test_the_sdk_reads_every_format(client: Client, sentence: NDArray[np.float32]) -> None:
    file = ("a.wav", wav(pcm(sentence)))
    words = words_of(sentence)
    async with sdk(client) as api:
        create = api.audio.transcriptions.create
        short = await create(model="whisper-1", file=file)
        assert short.text == words
        assert short.usage is not None
        assert short.usage.type == "duration"
        assert short.usage.seconds == math.ceil(len(sentence) / 16_000)
        text = await create(model="whisper-1", file=file, response_format="text")
        assert text == words + "\n"
        srt = await create(model="whisper-1", file=file, response_format="srt")
        assert srt.startswith("1\n00:00:0")
        vtt = await create(model="whisper-1", file=file, response_format="vtt")
        assert vtt.startswith("WEBVTT\n\n00:00:0")
        verbose = await create(
            model="whisper-1",
            file=file,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
            temperature=0.2,
            language="en",
            chunking_strategy={"type": "server_vad", "silence_duration_ms": 300},
            extra_body={"seed": 1},
        )
    assert verbose.segments is not None
    assert verbose.words is not None
    assert [word.word for word in verbose.words] == words.split()
    assert (verbose.language, verbose.text) == ("english", words)


async def test_the_sdk_for_node_reads_all_of_it(
    client: Client, audio: bytes, sentence: NDArray[np.float32], tmp_path: Path
) -> None:
    node = shutil.which("node")
    if node is None or not (NODE_MODULES / "openai").is_dir():
        pytest.skip("no node with OpenAI's client: make node-peer")
    file = tmp_path / "a.wav"
    file.write_bytes(audio)
    process = await asyncio.create_subprocess_exec(
        node, str(NODE_PEER), client.url + "/v1", str(file),
        stdout=asyncio.subprocess.PIPE, env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(output)
    words = words_of(sentence)
    assert found["formats"]["json"]["text"] == words
    assert found["formats"]["text"] == words + "\n"
    assert found["formats"]["srt"].startswith("1\n00:00:0")
    assert found["formats"]["vtt"].startswith("WEBVTT")
    assert [it["word"] for it in found["verbose"]["words"]] == words.split()
    assert set(found["verbose"]["segments"][0]) == DETAILS
    assert found["deltas"][-1] == {"type": "transcript.text.done", "text": words}
    assert (found["models"], found["model"]["id"]) == (["scripted", "whisper-1"], "whisper-1")
    assert (found["refused"]["status"], found["refused"]["param"]) == (400, "response_format")
    assert (found["translation"]["status"], found["translation"]["param"]) == (400, "task")


async def test_the_sdk_reads_a_stream(client: Client, sentence: NDArray[np.float32]) -> None:
    async with sdk(client) as api:
        stream = await api.audio.transcriptions.create(
            model="gpt-4o-transcribe",
            file=("a.wav", wav(pcm(twice(sentence)))),
            stream=True,
            include=["logprobs"],
        )
        *deltas, done = [event async for event in stream]
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    told = [event for event in deltas if event.type == "transcript.text.delta"]
    assert done.text == "".join(event.delta for event in told)
    assert done.text.startswith("w0 w1")
    assert all(len(event.logprobs or ()) == len(event.delta.split()) for event in told)


@TRANSLATES
async def test_the_sdk_reads_models_and_errors(client: Client) -> None:
    async with sdk(client) as api:
        names = [model.id async for model in api.models.list()]
        assert names == ["scripted", "whisper-1"]
        assert (await api.models.retrieve("whisper-1")).id == "whisper-1"
        with pytest.raises(openai.NotFoundError) as missing:
            await api.models.retrieve("gpt-4")
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as bad:
            await api.audio.transcriptions.create(
                model="x", file=("a.wav", b""), response_format="docx",  # type: ignore[call-overload]
            )  # fmt: skip
        assert (bad.value.type, bad.value.param) == ("invalid_request_error", "response_format")
        with pytest.raises(openai.BadRequestError, match="English only") as reason:
            await api.audio.translations.create(model="whisper-1", file=("a.wav", b"\0" * 100))
        assert reason.value.param == "task"


@TRANSLATES
async def test_the_sdk_translates(multilingual: Client, audio: bytes) -> None:
    async with sdk(multilingual) as api:
        short = await api.audio.translations.create(model="whisper-1", file=("a.wav", audio))
        assert short.text == "eins zwei"
        verbose = await api.audio.translations.create(
            model="whisper-1", file=("a.wav", audio), response_format="verbose_json"
        )
        text = await api.audio.translations.create(
            model="whisper-1", file=("a.wav", audio), response_format="text"
        )
    assert text == "eins zwei\n"
    assert verbose.language == "english"
    assert [request.task for request in multilingual.model.requests] == [Task.TRANSLATE] * 3
    assert multilingual.model.requests[0].language is None
    answer = await ask(multilingual, audio, "/v1/audio/translations", task="transcribe")
    assert answer.document["text"] == "eins zwei"
    assert multilingual.model.requests[-1].task is Task.TRANSLATE


async def test_case_recordings_10_verbose_json_has_every_field(
    client: Client, sentence: NDArray[np.float32]
) -> None:
    audio = wav(pcm(twice(sentence)))
    document = (await ask(client, audio, response_format="verbose_json")).document
    assert set(document) == {"task", "language", "duration", "text", "segments", "usage"}
    assert (document["task"], document["language"]) == ("transcribe", "english")
    assert "".join(it["text"] for it in document["segments"]).strip() == document["text"]
    assert all(set(segment) == DETAILS for segment in document["segments"])
    TranscriptionVerbose.model_validate(document)


def test_case_recordings_10_a_passage_says_how_it_was_decoded() -> None:
    writer = VerboseWriter(JobOptions(), ["segment", "word"])
    word = Word("größer", 12.0, 12.5, 0.5)
    writer.write(Final(0, 0, 12.0, 12.5, "größer", (word,), "de", DETAIL))
    writer.write(Final(1, 0, 12.5, 13.0, "als", (), "de", DETAIL))
    writer.write(Final(2, 1, 13.0, 13.5, "alle", (word,), "de"))
    writer.write(Final(3, 1, 13.5, 14.0, "Berge", (word,), "de"))
    document = json.loads(writer.write(End(4, 14.2, EndReason.EOF)))
    assert document["language"] == "german"
    assert document["usage"] == {"type": "duration", "seconds": 15}
    first, second, third = document["segments"]
    assert first == {
        "id": 0, "seek": 1200, "start": 12.0, "end": 12.5, "text": " größer",
        "tokens": [50363, 314], "temperature": 0.2, "avg_logprob": -0.3,
        "compression_ratio": 1.4, "no_speech_prob": 0.02,
    }  # fmt: skip
    assert second["text"] == " als"
    assert (third["text"], third["tokens"]) == (" alle Berge", [])
    assert third["avg_logprob"] == pytest.approx(np.log(0.5))
    assert len(document["words"]) == 3


@pytest.mark.parametrize(
    ("options", "language"), [(JobOptions(), "english"), (JobOptions(language=None), "unknown")]
)
def test_the_language_of_silence_is_the_one_asked_for(options: JobOptions, language: str) -> None:
    document = json.loads(VerboseWriter(options, []).write(End(0, 1.0, EndReason.EOF)))
    assert (document["language"], document["text"]) == (language, "")


GRANULARITIES = [
    [("timestamp_granularities[]", "word")],
    [("timestamp_granularities", "word")],
    [("timestamp_granularities[0]", "word")],
    [("timestamp_granularities", '["word"]')],
    [("timestamp_granularities", "WORD,word")],
    [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "word")],
]
BOTH = [
    [("timestamp_granularities[]", "word"), ("timestamp_granularities[]", "segment")],
    [("timestamp_granularities", "word"), ("timestamp_granularities", "segment")],
    [("timestamp_granularities[0]", "word"), ("timestamp_granularities[1]", "segment")],
    [("timestamp_granularities", '["word", "segment"]')],
    [("timestamp_granularities[]", "word,segment")],
    [("timestamp_granularities", "word, segment")],
]


@pytest.mark.parametrize("fields", [*GRANULARITIES, *BOTH], ids=str)
async def test_case_recordings_11_granularities_are_taken_in_every_spelling(
    client: Client, audio: bytes, fields: list[tuple[str, str]]
) -> None:
    answer = await ask_spelled(client, audio, ("response_format", "verbose_json"), *fields)
    assert answer.status == 200, answer.text
    wanted = {"words", "segments"} if fields in BOTH else {"words"}
    assert set(answer.document) & {"words", "segments"} == wanted


@pytest.mark.parametrize("name", ["timestamp_granularities", "timestamp_granularities[]"])
async def test_case_recordings_11_granularities_are_taken_from_json_and_query(
    client: Client, audio: bytes, name: str
) -> None:
    body = {"file": base64_of(audio), "response_format": "verbose_json"}
    answer = await client.post(PATH, fields={**body, name: ["word", "segment"]})
    assert {"words", "segments"} <= set(answer.document)
    query = f"?{name}=word&{name}=segment&response_format=verbose_json"
    answer = await client.post(PATH + query, audio, Content_Type="audio/wav")
    assert {"words", "segments"} <= set(answer.document)


@pytest.mark.parametrize("language", ["english", "en-US", "ENGLISH", "eng", "en"])
async def test_case_recordings_11_a_language_is_taken_by_name_and_tag(
    client: Client, audio: bytes, language: str
) -> None:
    answer = await ask(client, audio, language=language)
    assert answer.status == 200, answer.text
    assert client.model.requests[-1].language == "en"


async def test_case_recordings_11_of_a_long_prompt_the_end_counts(
    client: Client, audio: bytes
) -> None:
    prompt = "Before that. " * 500 + "And at the end."
    assert (await ask(client, audio, prompt=prompt)).status == 200
    taken = client.model.requests[-1].prompt
    assert taken is not None
    assert taken.endswith("And at the end.")
    assert len(taken) <= MAX_PROMPT_CHARACTERS


@pytest.mark.parametrize(
    "fields",
    [
        [("keywords[]", "Livepeer"), ("keywords[]", "BYOC")],
        [("keywords", '["Livepeer", "BYOC"]')],
        [("keyterms", "Livepeer,BYOC")],
        [("keyterms[]", "Livepeer"), ("keyterms[]", "BYOC")],
    ],
    ids=str,
)
async def test_keywords_are_key_terms(
    client: Client, audio: bytes, fields: list[tuple[str, str]]
) -> None:
    assert (await ask_spelled(client, audio, *fields)).status == 200
    assert client.model.requests[-1].prompt == "Livepeer, BYOC."


@pytest.mark.parametrize(
    "fields",
    [
        [("model", "gpt-transcribe")],
        [("temperature", "0")],
        [("temperature", "0.8")],
        [("chunking_strategy", "auto")],
        [("chunking_strategy", '{"type": "server_vad", "threshold": 0.4}')],
        [("chunking_strategy[type]", "server_vad"), ("chunking_strategy[threshold]", "0.4")],
        [("include[]", "logprobs")],
        [("languages[]", "en")],
        [("user", "me"), ("seed", "1"), ("vad_filter", "true")],
    ],
    ids=str,
)
async def test_what_clients_send_is_taken(
    client: Client, audio: bytes, fields: list[tuple[str, str]]
) -> None:
    answer = await ask_spelled(client, audio, *fields)
    assert answer.status == 200, answer.text
    assert set(answer.document) <= {"text", "usage", "logprobs"}
    if fields[0][0] == "include[]":
        tokens = [it["token"] for it in answer.document["logprobs"]]
        assert "".join(tokens).strip() == answer.document["text"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("response_format", "docx")], "response_format"),
        ([("response_format", "diarized_json")], "response_format"),
        ([("timestamp_granularities[]", "letter")], "timestamp_granularities"),
        ([("language", "de")], "language"),
        ([("language", "klingon")], "language"),
        ([("languages[]", "de"), ("languages[]", "fr")], "language"),
        ([("stream", "perhaps")], "stream"),
        ([("temperature", "hot")], "temperature"),
        ([("temperature", "2")], "temperature"),
        ([("temperature", "nan")], "temperature"),
        ([("chunking_strategy", "none of them")], "chunking_strategy"),
        ([("include[]", "item")], "include"),
    ],
    ids=str,
)
async def test_an_error_names_the_parameter(
    client: Client, fields: list[tuple[str, str]], param: str
) -> None:
    answer = await ask_spelled(client, b"", *fields)
    assert answer.status == 400
    error = answer.document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_an_error_of_the_file_names_it(client: Client) -> None:
    page = form(b"<!DOCTYPE html>" + b"x" * 600, "file")
    for body, status in ((form(None, model="whisper-1"), 400), (b"", 400), (page, 415)):
        answer = await client.post(PATH, body)
        assert (answer.status, answer.document["error"]["param"]) == (status, "file")


@pytest.mark.parametrize("path", [PATH, "/transcribe", "/audio-to-text"])
@pytest.mark.parametrize("language", ["auto", "de", "german"])
async def test_case_recordings_13_english_only_weights_say_which_others_there_are(
    client: Client, audio: bytes, path: str, language: str
) -> None:
    answer = await ask(client, audio, path, language=language)
    assert answer.status == 400
    assert "expected en, since scripted is English only: tiny, base, small" in answer.problem
    assert client.model.requests == []


async def test_case_recordings_13_without_a_language_it_is_found_out_where_it_can_be(
    multilingual: Client, audio: bytes
) -> None:
    answer = await ask(multilingual, audio, response_format="verbose_json")
    assert answer.document["language"] == "german"
    assert multilingual.model.requests[-1].language is None
    answer = await ask(multilingual, audio, response_format="verbose_json", language="French")
    assert answer.document["language"] == "french"
    await ask(multilingual, audio, "/transcribe")
    assert multilingual.model.requests[-1].language == "en"
    await ask(multilingual, audio, "/transcribe", language="auto")
    assert multilingual.model.requests[-1].language is None


@pytest.mark.parametrize("slash", ["", "/"])
async def test_case_recordings_12_every_path_of_the_api_answers_also_with_a_slash(
    client: Client, multilingual: Client, audio: bytes, slash: str
) -> None:
    listing = await client.ask("GET", "/v1/models" + slash)
    assert listing.document["object"] == "list"
    assert [it["id"] for it in listing.document["data"]] == ["scripted", "whisper-1"]
    for name in ("scripted", "whisper-1", "openai/whisper-scripted"):
        model = await client.ask("GET", f"/v1/models/{name}{slash}")
        assert (model.document["id"], model.document["object"]) == (name, "model")
    assert (await ask(client, audio, PATH + slash)).status == 200
    assert (await ask(multilingual, audio, "/v1/audio/translations" + slash)).status == 200
    refused = await ask(client, audio, "/v1/audio/translations" + slash)
    assert (refused.status, "English only" in refused.problem) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/unknown", 404, "not_found"),
        ("POST", "/v1/chat/completions", 404, "not_found"),
        ("GET", PATH, 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-4", 404, "model_not_found"),
    ],
)
async def test_case_recordings_12_other_paths_are_answered_in_the_same_shape(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    answer = await client.ask(method, path)
    assert answer.status == status
    error = answer.document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


async def test_models_are_for_who_has_the_token() -> None:
    orchestrator = OrchestratorSettings.model_validate({"token": "secret"})
    async with open_client(settings=settings_of(orchestrator=orchestrator)) as client:
        async with sdk(client) as api:
            with pytest.raises(openai.AuthenticationError):
                await api.models.list()
        async with sdk(client, api_key="secret") as api:
            assert (await api.models.retrieve("scripted")).id == "scripted"


async def test_a_text_is_one_line(client: Client, sentence: NDArray[np.float32]) -> None:
    audio = wav(pcm(twice(sentence)))
    text = (await ask(client, audio, response_format="text")).text
    assert text == (await ask(client, audio)).document["text"] + "\n"
    assert text.count("\n") == 1


@pytest.mark.model
async def test_case_recordings_13_the_language_of_real_speech_is_found_out(
    speech_dir: Path,
) -> None:
    file = sorted((speech_dir / "other" / "de").glob("*.flac"))[0]
    audio = await asyncio.to_thread(file.read_bytes)
    settings = Settings(model=ModelSettings(directory=MODELS, names=("tiny.en", "base")))
    async with asyncio.timeout(400), serve_app(settings=settings) as (url, service):
        client = Client(url, service, ScriptedModel())
        try:
            heard = await ask(client, audio, response_format="verbose_json")
            named = await ask(client, audio, response_format="verbose_json", language="German")
            english = await ask(
                client, audio, "/v1/audio/translations", response_format="verbose_json"
            )
        finally:
            await client.close()
    assert heard.document == named.document
    assert heard.document["language"] == "german"
    assert all(segment["tokens"] for segment in heard.document["segments"])
    assert (english.document["task"], english.document["language"]) == ("translate", "english")
    assert english.document["text"] != heard.document["text"]


@pytest.mark.model
async def test_case_recordings_14_every_word_of_a_long_file_lasts_and_every_cue_is_readable(
    speech_dir: Path,
) -> None:
    audio = await asyncio.to_thread((speech_dir / "en" / "long" / LONG_FILE).read_bytes)
    async with asyncio.timeout(400), serve_app() as (url, service):
        client = Client(url, service, ScriptedModel())
        try:
            told = await ask(
                client, audio, response_format="verbose_json", timestamp_granularities__="word"
            )
            subtitles = await ask(client, audio, response_format="srt")
        finally:
            await client.close()
    words = told.document["words"]
    assert len(words) > 700
    assert all(word["end"] - word["start"] > 0.05 for word in words)
    assert all(before["end"] <= word["start"] + 1e-6 for before, word in pairwise(words))
    assert words[0]["start"] >= 0
    assert words[-1]["end"] <= told.document["duration"] + 0.001
    cues = [line.split(" --> ") for line in subtitles.text.splitlines() if " --> " in line]
    times = [(seconds_of(start), seconds_of(end)) for start, end in cues]
    assert all(end - start >= MIN_CUE_SECONDS - 0.002 for start, end in times)
    assert all(before[1] <= cue[0] for before, cue in pairwise(times))
