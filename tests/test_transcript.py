"""Events and the formats they are written in."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import InvalidOption
from whisper_byoc.transcript import (
    MAX_CUE_LINES,
    MAX_CUE_SECONDS,
    MAX_LINE_CHARACTERS,
    MIN_CUE_SECONDS,
    WRITERS,
    End,
    Endpoint,
    EndReason,
    Event,
    Failure,
    Final,
    Format,
    Partial,
    SegmentDetail,
    Word,
    choose_format,
    clock,
    event_document,
    event_of,
)

ASK = (Word("Ask", 3.1, 3.4219, 0.98), Word("not", 3.42, 3.7, 0.9))
TELL = (Word("tell", 4.0, 4.5, 0.8),)
EVENTS: list[Event] = [
    Partial(0, 0, 3.0, 3.8, "ask"),
    Final(1, 0, 3.1, 3.7, "Ask not", ASK, "en"),
    Final(2, 0, 4.0, 4.5, "tell", TELL, "en"),
    Endpoint(3, 0, 5.0),
    Final(
        4,
        1,
        7.0,
        7.5,
        "größer <&>",
        (Word("größer", 7.0, 7.2, 1.0), Word("<&>", 7.2, 7.5, 1.0)),
        "de",
    ),
    Endpoint(5, 1, 8.0),
    End(6, 9.0, EndReason.EOF),
]


def write(chosen: Format, events: list[Event] = EVENTS) -> str:
    writer = WRITERS[chosen]()
    return writer.begin() + "".join(str(writer.write(event)) for event in events)


def test_events_are_the_documents_of_the_contract() -> None:
    assert event_document(EVENTS[0]) == {
        "type": "partial", "seq": 0, "utterance": 0, "start": 3.0, "end": 3.8, "text": "ask",
    }  # fmt: skip
    assert event_document(EVENTS[2]) == {
        "type": "final", "seq": 2, "utterance": 0, "start": 4.0, "end": 4.5, "text": "tell",
        "words": [{"word": "tell", "start": 4.0, "end": 4.5, "probability": 0.8}],
        "language": "en",
    }  # fmt: skip
    assert event_document(EVENTS[3]) == {"type": "endpoint", "seq": 3, "utterance": 0, "time": 5.0}
    assert event_document(EVENTS[6]) == {
        "type": "end", "seq": 6, "audio_seconds": 9.0, "reason": "eof",
    }  # fmt: skip
    assert event_document(Failure(5, "unsupported_audio", "audio is text")) == {
        "type": "error", "seq": 5, "code": "unsupported_audio", "message": "audio is text",
    }  # fmt: skip


@pytest.mark.parametrize("event", [*EVENTS, Failure(5, "a", "b")], ids=lambda event: event.type)
def test_an_event_can_be_read_from_its_document(event: Event) -> None:
    document = event_document(event)
    read = event_of({**document, "final": True})  # which only a WebSocket's frames have
    assert type(read) is type(event)
    assert event_document(read) == document
    if isinstance(read, Final):
        assert event_of(event_document(event, words=False)) == replace(read, words=())


@pytest.mark.parametrize(
    "document",
    [{}, {"type": "payload"}, {"type": "end"}, {"type": "end", "reason": "a"}],
    ids=["no type", "a type of its own", "fields are missing", "no reason of ours"],
)
def test_what_is_no_event_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        event_of(document)


def test_how_a_passage_was_decoded_is_in_no_event_that_is_written() -> None:
    detail = SegmentDetail(0, (1, 2), 0.0, -0.2, 1.1, 0.01)
    told = Final(1, 0, 3.1, 3.7, "Ask not", ASK, "en", detail)
    assert event_document(told) == event_document(EVENTS[1])
    assert event_of({**event_document(told), "detail": {"seek": 0}}) == event_of(
        event_document(EVENTS[1])
    )


def test_times_are_rounded_to_milliseconds() -> None:
    assert event_document(EVENTS[1])["words"][0]["end"] == 3.422


def test_text_holds_finals_one_utterance_a_line() -> None:
    assert write(Format.TEXT) == "Ask not tell\ngrößer <&>\n"


def test_text_ends_its_line_when_the_job_ends_within_an_utterance() -> None:
    assert write(Format.TEXT, [EVENTS[1], EVENTS[6]]) == "Ask not\n"
    assert write(Format.TEXT, [EVENTS[6]]) == ""


def test_ndjson_is_one_event_a_line() -> None:
    lines = write(Format.NDJSON).splitlines()
    assert [json.loads(line) for line in lines] == [event_document(event) for event in EVENTS]
    assert "größer" in lines[4]


def test_sse_numbers_its_events_and_says_when_it_is_done() -> None:
    blocks = write(Format.SSE).split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert blocks[1].startswith('id: 1\nevent: final\ndata: {"type":"final","seq":1,')
    assert all("\n" not in block.split("data: ")[1] for block in blocks[:-1])


def test_json_is_one_document_at_the_end() -> None:
    document = json.loads(write(Format.JSON))
    assert document["text"] == "Ask not tell größer <&>"
    assert document["duration"] == 9.0
    assert document["reason"] == "eof"
    assert [segment["utterance"] for segment in document["segments"]] == [0, 1]
    assert document["segments"][0]["text"] == "Ask not tell"
    assert [word["word"] for word in document["segments"][0]["words"]] == ["Ask", "not", "tell"]
    assert write(Format.JSON, EVENTS[:-1]) == ""


def test_json_tells_of_an_error() -> None:
    events: list[Event] = [Failure(0, "decode_failed", "no memory"), End(1, 0.0, EndReason.ERROR)]
    assert json.loads(write(Format.JSON, events))["error"] == {
        "code": "decode_failed", "message": "no memory",
    }  # fmt: skip


def test_srt_numbers_its_cues() -> None:
    assert write(Format.SRT).split("\n\n")[:2] == [
        "1\n00:00:03,100 --> 00:00:04,500\nAsk not tell",
        "2\n00:00:07,000 --> 00:00:07,700\ngrößer <&>",
    ]


def test_a_cue_is_written_when_its_utterance_is_over() -> None:
    writer = WRITERS[Format.SRT]()
    assert [bool(writer.write(event)) for event in EVENTS[:4]] == [False, False, False, True]


def test_vtt_escapes_markup() -> None:
    written = write(Format.VTT)
    assert written.startswith("WEBVTT\n\n00:00:03.100 --> 00:00:04.500\nAsk not tell\n\n")
    assert "größer &lt;&amp;&gt;" in written


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, "00:00:00.000"), (59.9996, "00:01:00.000"), (360000, "100:00:00.000")],
)
def test_clock(seconds: float, expected: str) -> None:
    assert clock(seconds, ".") == expected


durations = st.floats(0.05, 3)
texts = st.text(st.characters(codec="ascii", categories=["L", "P"]), min_size=1, max_size=60)


@given(
    spoken=st.lists(st.tuples(texts, durations), max_size=60),
    pieces=st.lists(st.integers(1, 12), min_size=60, max_size=60),
)
def test_cues_are_readable_and_lose_nothing(
    spoken: list[tuple[str, float]], pieces: list[int]
) -> None:
    """Whatever finals the words came in."""
    words, time = [], 0.0
    for text, duration in spoken:
        words.append(Word(text, time, time + duration, 1.0))
        time += duration
    events: list[Event] = []
    for size in pieces:
        part, words = tuple(words[:size]), words[size:]
        if part:
            text = " ".join(word.text for word in part)
            events.append(Final(len(events), 0, part[0].start, part[-1].end, text, part, "en"))
    blocks = write(Format.SRT, [*events, End(len(events), time, EndReason.EOF)]).split("\n\n")
    cues = [block.split("\n") for block in blocks if block]
    assert [int(cue[0]) for cue in cues] == list(range(1, len(cues) + 1))
    assert " ".join(" ".join(cue[2:]) for cue in cues) == " ".join(text for text, _ in spoken)
    for _, times, *lines in cues:
        start, end = (seconds_of(it) for it in times.split(" --> "))
        assert len(lines) <= MAX_CUE_LINES
        assert " " not in " ".join(lines) or end - start <= MAX_CUE_SECONDS + 0.001
        assert all(len(line) <= MAX_LINE_CHARACTERS or " " not in line for line in lines)


def cues_of(events: list[Event]) -> list[tuple[float, float, str]]:
    """Of SRT: start, end, and the text on one line."""
    blocks = [block.split("\n") for block in write(Format.SRT, events).split("\n\n") if block]
    times = [[seconds_of(it) for it in block[1].split(" --> ")] for block in blocks]
    texts = (" ".join(block[2:]) for block in blocks)
    return [(start, end, text) for (start, end), text in zip(times, texts, strict=True)]


def said(text: str, begin: float, each: float = 0.3, last: float = 0.12) -> Final:
    """Words of one length, but for the last, which is short."""
    texts = text.split()
    ends = [begin + each * (number + 1) for number in range(len(texts))]
    ends[-1] = ends[-1] - each + last
    starts = [begin, *ends[:-1]]
    words = tuple(Word(*it, 0.9) for it in zip(texts, starts, ends, strict=True))
    return Final(0, round(begin), begin, ends[-1], text, words, "en")


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen it"


def test_case_recordings_14_a_short_cue_stays_for_as_long_as_there_is_silence_behind_it() -> None:
    final = said("Six.", 2.0)
    assert cues_of([final, Endpoint(1, 2, 4.0)]) == [(2.0, 2.7, "Six.")]
    assert cues_of([final, End(1, 2.5, EndReason.EOF)]) == [(1.8, 2.5, "Six.")]
    assert cues_of([final, Endpoint(1, 2, 2.2), End(2, 3.0, EndReason.EOF)]) == [(2.0, 2.7, "Six.")]
    assert cues_of([final, said("Yes.", 2.6), End(2, 9.0, EndReason.EOF)]) == [
        (1.9, 2.6, "Six."), (2.6, 3.3, "Yes."),
    ]  # fmt: skip


def test_case_recordings_14_a_last_cue_that_cannot_stay_has_words_of_the_one_before() -> None:
    final = said(LONG, 1.0)
    end = final.end
    first, second = cues_of([final, End(1, end, EndReason.EOF)])
    assert f"{first[2]} {second[2]}" == LONG
    assert second[2].endswith("fifteen it")
    assert second[0] == first[1]
    assert second[1] - second[0] >= MIN_CUE_SECONDS
    assert second[1] == pytest.approx(end, abs=0.001)


@given(
    spoken=st.lists(
        st.tuples(st.text("abc", min_size=1, max_size=12), st.floats(0.25, 0.6)), min_size=3
    )
)
def test_case_recordings_14_cues_of_words_in_speech_are_readable_and_overlap_nowhere(
    spoken: list[tuple[str, float]],
) -> None:
    words, time = [], 0.0
    for text, duration in spoken:
        words.append(Word(text, time, time + duration, 1.0))
        time += duration
    text = " ".join(text for text, _ in spoken)
    events: list[Event] = [
        Final(0, 0, 0.0, time, text, tuple(words), "en"),
        End(1, time, EndReason.EOF),
    ]
    cues = cues_of(events)
    assert " ".join(cue[2] for cue in cues) == text
    assert all(end - start >= MIN_CUE_SECONDS - 0.002 for start, end, _ in cues)
    assert all(before[1] <= after[0] for before, after in pairwise(cues))
    assert cues[-1][1] <= time + 0.001


def seconds_of(time: str) -> float:
    hours, minutes, seconds = time.replace(",", ".").split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        pytest.param(None, None, Format.TEXT, id="nothing said means text"),
        pytest.param(None, "*/*", Format.TEXT, id="anything accepted means text"),
        pytest.param("SRT", "application/json", Format.SRT, id="the query wins"),
        pytest.param(None, "text/event-stream", Format.SSE, id="server-sent events"),
        pytest.param(None, "application/x-ndjson", Format.NDJSON, id="ndjson"),
        pytest.param(
            None, "text/vtt;q=0.5, application/json;q=0.9", Format.JSON, id="higher quality wins"
        ),
        pytest.param(None, "application/json;q=0", Format.TEXT, id="refused type is not taken"),
        pytest.param(None, "image/png", Format.TEXT, id="an unknown type means text"),
        pytest.param(None, "text/vtt;q=x, ,;;", Format.TEXT, id="a garbled header means text"),
    ],
)
def test_choose_format(query: str | None, accept: str | None, expected: Format) -> None:
    assert choose_format(query, accept) is expected


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(InvalidOption, match="format is 'docx', expected one of text, ndjson"):
        choose_format("docx", None)


def test_languages_without_spaces_are_joined_without() -> None:
    words = tuple(Word(text, n, n + 0.5, 1.0) for n, text in enumerate("今日は"))
    events: list[Event] = [
        Final(0, 0, 0.0, 1.5, "今日", words[:2], "ja"),
        Final(1, 0, 2.0, 2.5, "は", words[2:], "ja"),
        Endpoint(2, 0, 3.0),
        End(3, 3.0, EndReason.EOF),
    ]
    assert write(Format.TEXT, events) == "今日は\n"
    assert json.loads(write(Format.JSON, events))["text"] == "今日は"
    assert "\n今日は\n" in write(Format.SRT, events)


def test_text_of_two_languages_is_joined_as_each_is_written() -> None:
    words = tuple(Word(text, n, n + 0.5, 1.0) for n, text in enumerate(("今", "Hello", "there")))
    events: list[Event] = [
        Final(0, 0, 0.0, 0.5, "今", words[:1], "ja"),
        Final(1, 0, 1.0, 1.5, "Hello", words[1:2], "en"),
        Final(2, 0, 2.0, 2.5, "there", words[2:], "en"),
        End(3, 3.0, EndReason.EOF),
    ]
    assert json.loads(write(Format.JSON, events))["text"] == "今 Hello there"
    assert write(Format.TEXT, events) == "今 Hello there\n"
