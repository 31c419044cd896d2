"""What a caller may choose for one job."""

from typing import Any

import pytest
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from whisper_byoc.decode import Task
from whisper_byoc.errors import InvalidOption
from whisper_byoc.jobs.options import MAX_PROMPT_CHARACTERS, JobOptions
from whisper_byoc.languages import NAMES, code_of
from whisper_byoc.settings import Mode, StreamingSettings


def test_text_and_json_say_the_same() -> None:
    query = {
        "language": "DE", "task": "translate", "mode": "low_latency", "words": "false",
        "keyterms": "Livepeer, BYOC ,", "endpoint_silence": "0.5", "max_utterance": "10",
    }  # fmt: skip
    document = {
        "language": "de", "task": "translate", "mode": "low_latency", "words": False,
        "keyterms": ["Livepeer", "BYOC"], "endpoint_silence": 0.5, "max_utterance": 10,
    }  # fmt: skip
    assert JobOptions().changed(query) == JobOptions().changed(document)


def test_a_change_keeps_the_rest() -> None:
    options = JobOptions().changed({"language": "auto", "prompt": "Hello."})
    assert options.language is None
    changed = options.changed({"task": "translate", "prompt": None})
    assert changed == JobOptions(language=None, task=Task.TRANSLATE)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("en", "en"), ("EN", "en"), ("english", "en"), ("ENGLISH", "en"), ("en-US", "en"),
        ("en_GB.UTF-8", "en"), ("eng", "en"), ("English (US)", "en"), (" German ", "de"),
        ("deu", "de"), ("ger", "de"), ("de-AT", "de"), ("zh-Hans", "zh"), ("zh_TW", "zh"),
        ("cmn-Hans-CN", "zh"), ("Mandarin", "zh"), ("yue", "yue"), ("zh-yue", "yue"),
        ("Haitian Creole", "ht"), ("jv", "jw"), ("nb-NO", "no"), ("iw", "he"), ("haw", "haw"),
        ("auto", None), ("Auto", None),
    ],
)  # fmt: skip
def test_case_recordings_11_a_language_is_a_code_a_name_or_a_tag(
    given: str, code: str | None
) -> None:
    assert JobOptions().changed({"language": given}).language == code


@pytest.mark.parametrize("given", ["klingon", "xx", "e", "-", "", "english german"])
def test_case_recordings_11_a_language_that_is_none_is_refused_and_some_are_named(
    given: str,
) -> None:
    with pytest.raises(InvalidOption, match=r"expected auto, or a language that .* german"):
        JobOptions().changed({"language": given})


def test_the_languages_are_whispers() -> None:
    assert NAMES == LANGUAGES
    for name, code in TO_LANGUAGE_CODE.items():
        assert code_of(name) == code_of(code) == code


def test_case_recordings_11_of_a_long_prompt_the_end_counts() -> None:
    words = [f"word{number}" for number in range(1000)]
    taken = JobOptions().changed({"prompt": " ".join(words)}).prompt
    assert taken is not None
    assert taken.split() == words[-len(taken.split()) :]
    assert MAX_PROMPT_CHARACTERS - 10 < len(taken) <= MAX_PROMPT_CHARACTERS
    unspaced = JobOptions().changed({"prompt": "あ" * 5000 + " い"}).prompt
    assert unspaced == ("あ" * 5000 + " い")[-MAX_PROMPT_CHARACTERS:]


def test_keyterms_and_prompt_are_the_decoders_context() -> None:
    assert JobOptions().context is None
    assert JobOptions(prompt="We met.").context == "We met."
    options = JobOptions(prompt="We met.", keyterms=("Livepeer", "BYOC"))
    assert options.context == "We met. Livepeer, BYOC."


def test_what_is_not_chosen_is_the_services() -> None:
    service = StreamingSettings(mode=Mode.FINALS_ONLY, endpoint_silence=2)
    assert JobOptions().streaming(service) == service
    chosen = JobOptions(mode=Mode.BALANCED, partial_interval=0.3).streaming(service)
    assert (chosen.mode, chosen.partial_interval, chosen.endpoint_silence) == ("balanced", 0.3, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "fast"}, "mode is 'fast', expected 'low_latency', 'balanced' or 'finals_only'"),
        ({"speed": 2}, "option is 'speed', expected one of language, task, mode, prompt"),
        ({"words": "maybe"}, "words is 'maybe', expected a valid boolean"),
        ({"endpoint_silence": "0"}, "endpoint_silence is '0', expected greater than or equal"),
        ({"partial_interval": float("nan")}, "partial_interval is 'nan', expected"),
        ({"language": 5}, "language is '5', expected a valid string"),
        ({"language": "klingon"}, "language is 'klingon', expected auto, or a language that"),
        ({"keyterms": ["a"] * 101}, "expected at most 100 items"),
        ({"keyterms": ["a" * 600, "b" * 600]}, "expected at most 1000 characters in all"),
        ({"prompt": "\ud800"}, "expected text, without half of a surrogate pair"),
        ({"keyterms": ["\ud800"]}, "expected text, without half of a surrogate pair"),
        ({"keyterms": {"a": 1}}, "keyterms is"),
        ({"keyterms": [1]}, "expected a valid string"),
    ],
)
def test_bad_values_name_what_was_found_and_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=r"expected") as caught:
        JobOptions().changed(values)
    assert message in str(caught.value)
