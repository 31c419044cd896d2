"""Benchmarks: which files a manifest gives, and how transcripts are scored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_bench.manifest import BadInput, Clip, parse_manifest, select_clips
from whisper_bench.scoring import Result, add_speedups, is_loop, summarise, word_error_rate

HEADER = "file\tseconds\treference text"
CLIPS = [
    Clip("en/accent/one.flac", "one two"),
    Clip("en/long/two.flac", "three"),
    Clip("nonspeech/dishes.flac", ""),
    Clip("other/de/drei.flac", "drei"),
]


def test_the_two_columns_are_taken_wherever_they_stand() -> None:
    text = (
        'reference text\tlicence\tfile\r\nSay "so"\tCC0\ten/a b.wav\r\n\r\n\tCC0\tsilence.wav\r\n'
    )
    assert parse_manifest("\ufeff" + text, "m") == [
        Clip("en/a b.wav", 'Say "so"'),
        Clip("silence.wav", ""),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "m is empty, expected", id="nothing"),
        pytest.param("\n \n", "m is empty, expected", id="blank lines"),
        pytest.param(
            "file,reference text\na.wav,hello", "columns 'file,reference text', expected 'file'",
            id="commas",
        ),
        pytest.param("file\ttext\na.wav\thello", "expected 'reference text'", id="another name"),
        pytest.param(f"{HEADER}\na.wav\t1.0", "line 2 has 2 fields, expected 3", id="too few"),
        pytest.param(f"{HEADER}\n\na\t1\tb\tc", "line 3 has 4 fields, expected 3", id="too many"),
        pytest.param(f"{HEADER}\n \t1.0\thello", "line 2 names no file", id="no file"),
    ],
)  # fmt: skip
def test_a_bad_manifest_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_manifest(text, "m")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


cells = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]))


@given(st.lists(st.lists(cells, min_size=1, max_size=5), max_size=5))
def test_any_rows_give_clips_or_a_clear_refusal(rows: list[list[str]]) -> None:
    text = "\n".join([HEADER, *("\t".join(row) for row in rows)])
    good = [row for row in rows if len(row) == 3 and row[0].strip()]
    blank = [row for row in rows if not "".join(row).strip()]
    if len(good) + len(blank) == len(rows):
        clips = [Clip(row[0].strip(), row[2].strip()) for row in good]
        assert parse_manifest(text, "m") == clips
    else:
        with pytest.raises(BadInput, match=r"^m, line \d+ (has|names)"):
            parse_manifest(text, "m")


@pytest.mark.parametrize(
    ("prefixes", "chosen"),
    [
        pytest.param([], CLIPS[:3], id="without a filter all but other languages"),
        pytest.param(["other/"], CLIPS[3:], id="another language when asked for"),
        pytest.param(["nonspeech", "en/l"], CLIPS[1:3], id="two filters, in the manifest's order"),
    ],
)
def test_filters_are_beginnings_of_files(prefixes: list[str], chosen: list[Clip]) -> None:
    assert select_clips(CLIPS, prefixes) == chosen


def test_a_filter_that_matches_nothing_is_told_with_what_there_is() -> None:
    with pytest.raises(
        BadInput, match=r"'fr/' matches none of 4 files.*en/accent, en/long, nonspe"
    ):
        select_clips(CLIPS, ["en/", "fr/"])


@pytest.mark.parametrize("clips", [[], CLIPS[3:]], ids=["no files", "no English ones"])
def test_nothing_to_measure_is_an_error(clips: list[Clip]) -> None:
    with pytest.raises(BadInput, match=f"has {len(clips)} files, expected some in en/"):
        select_clips(clips, [])


@pytest.mark.parametrize(
    ("file", "group", "foreign"),
    [
        ("en/accent/p236/001.flac", "en/accent", False),
        ("en/one.flac", "en", False),
        ("one.flac", ".", False),
        ("english/one.flac", "english", True),
    ],
)
def test_folders_say_group_and_language(file: str, group: str, foreign: bool) -> None:
    clip = Clip(file, "words")
    assert (clip.group, clip.is_foreign) == (group, foreign)


@pytest.mark.parametrize(
    ("pairs", "rate"),
    [
        pytest.param([("a b c d", "a b c d")], 0.0, id="right"),
        pytest.param([("a b c d", "a x c")], 50.0, id="a substitution and a deletion"),
        pytest.param([("a", "b c d")], 300.0, id="more edits than words"),
        pytest.param([("a b c d", "")], 100.0, id="nothing heard"),
        pytest.param([("a", "b"), ("c d e", "c d e")], 25.0, id="pooled, not a mean of rates"),
        pytest.param([("a", "a"), ("", "b c")], 0.0, id="what nobody said is left out"),
        pytest.param([("", "b")], None, id="no reference"),
    ],
)
def test_word_error_rate(pairs: list[tuple[str, str]], rate: float | None) -> None:
    assert word_error_rate(pairs) == rate


@pytest.mark.parametrize(
    ("num_said", "num_heard", "loop"),
    [(2, 6, False), (2, 7, True), (3, 7, False), (3, 8, True), (0, 50, False)],
)
def test_a_loop_is_half_as_much_again_and_three_words(
    num_said: int, num_heard: int, loop: bool
) -> None:
    assert is_loop("a " * num_said, "b " * num_heard) is loop


def test_a_run_in_figures() -> None:
    results = [
        Result(CLIPS[0], "One, TWO", (9.0, 1.0, 2.0)),
        Result(CLIPS[1], " ".join(["three"] * 5), (0.5,)),
        Result(CLIPS[2], "Thank you.", (0.1, 0.3)),
    ]
    figures = summarise(results, 27.0, lambda text: text.lower().replace(",", ""))
    assert figures == {
        "rtf": 0.1,
        "wer": 133.33,
        "loops": 1,
        "looping_files": ["en/long/two.flac"],
        "words_on_nonspeech": 2,
        "seconds": 2.7,
        "median_seconds_per_file": 0.5,
        "wer_by_group": {"en/accent": 0.0, "en/long": 400.0},
    }


def test_what_was_not_measured_is_none() -> None:
    speech = summarise([Result(CLIPS[0], "one two", (1.0,))], 1.0, str.lower)
    silence = summarise([Result(CLIPS[2], "", (1.0,))], 1.0, str.lower)
    assert (speech["wer"], speech["words_on_nonspeech"]) == (0.0, None)
    assert (silence["wer"], silence["words_on_nonspeech"]) == (None, 0)


def test_speedups_are_ratios_of_total_times() -> None:
    runs = {"ours": {"seconds": 2.0}, "openai": {"seconds": 7.0}}
    add_speedups(runs, "openai")
    assert [run["speedup_over_openai"] for run in runs.values()] == [3.5, 1.0]
    alone = {"ours": {"seconds": 2.0}}
    add_speedups(alone, "openai")
    assert alone == {"ours": {"seconds": 2.0}}
