"""Which files a manifest gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_bench.manifest import BadInput, Clip, parse_manifest, select_clips

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
