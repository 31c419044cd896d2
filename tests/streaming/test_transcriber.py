"""The rules of one stream, driven with made-up voice and made-up hypotheses."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES, MAX_WINDOW_SECONDS, Hypothesis, Trip
from whisper_byoc.settings import Mode, StreamingSettings
from whisper_byoc.streaming.transcriber import MAX_BLOCK_SAMPLES, Transcriber
from whisper_byoc.streaming.utterance import Purpose, Window
from whisper_byoc.streaming.vad import VoiceRules
from whisper_byoc.transcript import End, Endpoint, EndReason, Event, Failure, Final, Partial, Word

SETTINGS = StreamingSettings(endpoint_silence=0.5, max_window=8, max_utterance=12)
RULES = VoiceRules(pre_roll=0.3)
FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES
BLOCK_FRAMES = MAX_BLOCK_SAMPLES // FRAME_SAMPLES


class Stream:
    """Feeds a transcriber with audio whose samples tell their own place in the stream."""

    def __init__(self, live: bool = False) -> None:
        self.transcriber = Transcriber(SETTINGS, RULES)
        self.live = live
        self.windows: list[Window] = []
        self.events: list[Event] = []
        self._frames = 0
        self._spoken: list[tuple[float, float]] = []

    def receive(self, seconds: float, voice: float) -> None:
        """Audio of one kind, decoded as it comes: one word for each second of the stream."""
        frames = round(seconds * FRAMES_PER_SECOND)
        if voice > RULES.speech_threshold:
            began = self._frames / FRAMES_PER_SECOND
            self._spoken.append((began, began + frames / FRAMES_PER_SECOND))
        for start in range(0, frames, BLOCK_FRAMES):
            block = min(BLOCK_FRAMES, frames - start)
            first = self._frames * FRAME_SAMPLES
            samples = np.arange(first, first + block * FRAME_SAMPLES, dtype=np.float32)
            self.transcriber.receive_audio(samples, [voice] * block)
            self._frames += block
            self.decode()

    def speak(self, seconds: float) -> None:
        self.receive(seconds, 0.9)

    def pause(self, seconds: float) -> None:
        self.receive(seconds, 0.1)

    def end(self, reason: EndReason = EndReason.EOF) -> None:
        self.transcriber.receive_end(reason)
        self.decode()

    def decode(self) -> None:
        while window := self.transcriber.next_window(live=self.live):
            self.windows.append(window)
            self.transcriber.receive_hypothesis(self.hear(window))
        self.events += self.transcriber.events_to_send()

    def hear(self, window: Window) -> Hypothesis:
        """One word for every whole second of the stream that begins in the window and is spoken."""
        words = []
        for second in range(int(window.offset), int(window.end) + 1):
            start = second - window.offset
            spoken = any(begin <= second and second + 0.5 <= end for begin, end in self._spoken)
            if spoken and start >= -0.02 and second + 0.5 <= window.end:
                words.append(Word(f"s{second}", max(start, 0.0), start + 0.5, 0.9))
        rest = words[len(window.forced.split()) :]
        return Hypothesis(" ".join(word.text for word in rest), "en", tuple(rest))

    def spoken_words(self) -> set[str]:
        return {
            f"s{second}"
            for begin, end in self._spoken
            for second in range(math.ceil(begin), math.ceil(end))
            if second + 0.5 <= end
        }

    def of(self, *kinds: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kinds)]

    def words(self) -> list[str]:
        return [word.text for event in self.of(Final) for word in getattr(event, "words")]  # noqa: B009


def test_silence_is_never_decoded() -> None:
    stream = Stream(live=True)
    stream.pause(30)
    stream.end()
    assert stream.windows == []
    assert stream.events == [End(0, stream.transcriber.audio_seconds, EndReason.EOF)]
    assert stream.transcriber.audio_seconds == pytest.approx(30, abs=0.02)


def test_an_utterance_becomes_final_at_its_endpoint() -> None:
    stream = Stream()
    stream.pause(2)
    stream.speak(3)
    assert stream.events == []
    stream.pause(1)
    final, endpoint = stream.events
    assert isinstance(final, Final)
    assert isinstance(endpoint, Endpoint)
    assert final.text == "s2 s3 s4"
    assert (final.utterance, endpoint.utterance) == (0, 0)
    assert endpoint.time == pytest.approx(5.5, abs=0.05)
    (window,) = stream.windows
    assert window.purpose is Purpose.FINAL
    assert window.offset == pytest.approx(1.7, abs=0.04)
    assert window.samples[0] == window.start


def test_the_end_of_the_stream_flushes_the_last_words() -> None:
    stream = Stream()
    stream.speak(3)
    stream.end(EndReason.STOPPED)
    assert stream.words() == ["s0", "s1", "s2"]
    assert [event.type for event in stream.events] == ["final", "endpoint", "end"]
    end = stream.events[-1]
    assert isinstance(end, End)
    assert end.reason is EndReason.STOPPED
    assert stream.transcriber.ended


def test_a_short_noise_is_no_utterance() -> None:
    stream = Stream(live=True)
    stream.pause(1)
    stream.receive(0.064, 0.9)
    stream.pause(2)
    stream.speak(1)
    stream.end()
    assert {getattr(event, "utterance", 0) for event in stream.events} == {0}
    assert len([window for window in stream.windows if window.purpose is Purpose.FINAL]) == 1


def test_a_hypothesis_without_words_takes_its_partial_back() -> None:
    transcriber = Transcriber(SETTINGS, RULES)
    block = np.zeros(BLOCK_FRAMES * FRAME_SAMPLES, dtype=np.float32)
    transcriber.receive_audio(block, [0.9] * BLOCK_FRAMES)
    assert transcriber.next_window(live=True) is not None
    transcriber.receive_hypothesis(Hypothesis("thank you", "en"))
    transcriber.receive_end(EndReason.EOF)
    assert transcriber.next_window(live=True) is not None
    transcriber.receive_hypothesis(Hypothesis("", "en"))
    first, second, endpoint, end = transcriber.events_to_send()
    assert isinstance(first, Partial)
    assert first.text == "thank you"
    assert isinstance(second, Partial)
    assert second.text == ""
    assert isinstance(endpoint, Endpoint)
    assert isinstance(end, End)


def test_only_a_live_stream_gets_partials() -> None:
    for live in (True, False):
        stream = Stream(live=live)
        stream.speak(5)
        stream.end()
        assert bool(stream.of(Partial)) is live
        assert stream.words() == ["s0", "s1", "s2", "s3", "s4"]


def test_a_partial_is_sent_again_only_when_it_changes() -> None:
    stream = Stream(live=True)
    stream.speak(6)
    shown = [event for event in stream.events if isinstance(event, Partial | Final)]
    for before, after in pairwise(shown):
        if isinstance(before, Partial) and isinstance(after, Partial):
            assert before.text != after.text


def test_a_window_brings_what_was_last_heard_of_its_utterance() -> None:
    stream = Stream(live=True)
    stream.speak(4)
    stream.pause(2)
    stream.speak(3)
    assert any(window.forced for window in stream.windows)
    for before, window in pairwise(stream.windows):
        known = f"{window.forced} {window.draft}".strip()
        heard = f"{before.forced} {stream.hear(before).text}".strip()
        assert known == ("" if before.purpose is Purpose.FINAL else heard)


def test_a_live_stream_has_final_words_before_its_utterance_is_over() -> None:
    stream = Stream(live=True)
    stream.speak(6)
    assert stream.words() == ["s0", "s1", "s2", "s3"]
    assert not stream.of(Endpoint)
    stream.pause(1)
    assert stream.words() == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert len({getattr(event, "utterance", 0) for event in stream.events}) == 1


def test_a_mode_without_partials_says_nothing_before_the_endpoint() -> None:
    stream = Stream(live=True)
    stream.transcriber = Transcriber(SETTINGS.model_copy(update={"mode": Mode.FINALS_ONLY}), RULES)
    stream.speak(6)
    assert stream.events == []
    stream.pause(1)
    assert stream.words() == ["s0", "s1", "s2", "s3", "s4", "s5"]


def test_a_live_window_stays_short_and_loses_nothing() -> None:
    stream = Stream(live=True)
    stream.speak(60)
    assert max(len(window.samples) for window in stream.windows) < 11 * SAMPLE_RATE
    stream.end()
    assert stream.words() == [f"s{second}" for second in range(60)]


def test_a_live_window_stays_short_when_no_two_hypotheses_agree() -> None:
    class Mumbling(Stream):
        def hear(self, window: Window) -> Hypothesis:
            number = len(self.windows)
            words = [Word(f"{number}-{n}", n, n + 0.5, 0.9) for n in range(int(window.end))]
            return Hypothesis(" ".join(word.text for word in words), "en", tuple(words))

    stream = Mumbling(live=True)
    stream.speak(60)
    assert max(len(window.samples) for window in stream.windows) < 13 * SAMPLE_RATE


class Deaf(Stream):
    """Its decoder ends every text two seconds into the window, whatever comes behind."""

    def hear(self, window: Window) -> Hypothesis:
        heard = super().hear(window)
        words = tuple(word for word in heard.words if word.start < 2)
        return Hypothesis(" ".join(word.text for word in words), "en", words)


@pytest.mark.parametrize("live", [True, False])
def test_speech_that_a_decoder_leaves_out_is_decoded_by_itself(live: bool) -> None:
    stream = Deaf(live=live)
    stream.pause(1)
    stream.speak(9)
    stream.pause(1)
    assert stream.words() == [f"s{second}" for second in range(1, 10)]
    assert len(stream.of(Endpoint)) == 1


def test_a_short_sentence_left_out_at_the_end_is_not_cut_away() -> None:
    """The quietest place is behind it."""
    transcriber = Transcriber(SETTINGS, RULES)
    frames = round(3 * FRAMES_PER_SECOND)
    voice = [0.9 if n < 40 or 55 <= n < 73 else 0.4 for n in range(frames)]
    samples = np.full(frames * FRAME_SAMPLES, 0.5, dtype=np.float32)
    samples[75 * FRAME_SAMPLES :] = 0.0
    for start in range(0, frames, BLOCK_FRAMES):
        block = samples[start * FRAME_SAMPLES : (start + BLOCK_FRAMES) * FRAME_SAMPLES]
        transcriber.receive_audio(block, voice[start : start + BLOCK_FRAMES])
    transcriber.receive_end(EndReason.EOF)
    texts: list[tuple[float, float]] = []
    while window := transcriber.next_window(live=False):
        number = len(texts)
        texts.append((window.offset, window.end))
        word = Word(("first", "thanks")[number], 0.1, 1.2 if number == 0 else 0.5, 0.9)
        transcriber.receive_hypothesis(Hypothesis(word.text, "en", (word,)))
    finals = [it.text for it in transcriber.events_to_send() if isinstance(it, Final)]
    assert finals == ["first", "thanks"]
    assert texts[1][0] <= 55 / FRAMES_PER_SECOND


def test_finalize_ends_the_utterance_and_the_stream_goes_on() -> None:
    stream = Stream(live=True)
    stream.speak(2.6)
    transcriber = stream.transcriber
    place = transcriber.receive_finalize()
    assert not transcriber.is_final(place)
    stream.decode()
    assert transcriber.is_final(place)
    assert stream.words() == ["s0", "s1", "s2"]
    assert len(stream.of(Endpoint)) == 1
    stream.speak(3.4)
    stream.end()
    assert stream.words() == ["s0", "s1", "s2", "s3", "s4", "s5"]


def test_finalize_waits_for_what_was_said_and_not_for_what_comes() -> None:
    stream = Stream()
    stream.pause(1)
    assert stream.transcriber.is_final(stream.transcriber.receive_finalize())
    block = np.zeros(BLOCK_FRAMES * FRAME_SAMPLES, dtype=np.float32)
    for voice in (0.9, 0.9, 0.1):  # ended by silence, not decoded yet
        stream.transcriber.receive_audio(block, [voice] * BLOCK_FRAMES)
    place = stream.transcriber.receive_finalize()
    stream.transcriber.receive_audio(block, [0.9] * BLOCK_FRAMES)
    assert not stream.transcriber.is_final(place)
    assert stream.transcriber.next_window(live=False) is not None
    stream.transcriber.receive_hypothesis(Hypothesis("", "en"))
    assert stream.transcriber.is_final(place)


def test_settings_count_from_the_next_audio_on() -> None:
    stream = Stream(live=True)
    stream.speak(3)
    stream.transcriber.receive_settings(
        SETTINGS.model_copy(update={"endpoint_silence": 2.0, "mode": Mode.FINALS_ONLY})
    )
    stream.events.clear()
    stream.pause(1.5)
    assert stream.events == []
    stream.pause(1)
    assert [event.type for event in stream.events] == ["final", "endpoint"]


def test_partials_that_were_made_and_dropped_are_counted() -> None:
    for seconds, made, dropped in ((0.01, 16, 0), (1.0, 6, 8)):
        transcriber = Transcriber(SETTINGS, RULES)
        for _ in range(round(8 * FRAMES_PER_SECOND)):
            transcriber.receive_audio(np.zeros(FRAME_SAMPLES, dtype=np.float32), [0.9])
            if transcriber.next_window(live=True):
                transcriber.receive_hypothesis(Hypothesis("word", "en"), seconds)
        assert transcriber.pace.num_made == pytest.approx(made, abs=1)
        assert transcriber.pace.num_dropped == pytest.approx(dropped, abs=1)


@pytest.mark.parametrize(("trip", "shown"), [(Trip.LOOP, []), (Trip.IMPROBABLE, ["S, S, S"])])
def test_a_loop_is_not_shown(trip: Trip, shown: list[str]) -> None:
    class Stammering(Stream):
        def hear(self, window: Window) -> Hypothesis:
            words = tuple(Word(word, 0.1, 0.2, 0.2) for word in ("S,", "S,", "S"))
            return Hypothesis("S, S, S", "en", words, trip=trip)

    stream = Stammering(live=True)
    stream.speak(2)
    assert [it.text for it in stream.events if isinstance(it, Partial)] == shown
    assert not stream.of(Final)


def test_a_word_left_out_for_a_moment_only_is_waited_for() -> None:
    stream = Deaf(live=True)
    stream.speak(2.5)
    assert {window.start for window in stream.windows} == {0}


def test_silence_behind_the_last_word_is_not_decoded_again() -> None:
    stream = Stream(live=True)
    stream.speak(3)
    stream.pause(3)
    stream.end()
    finals = [window for window in stream.windows if window.purpose is Purpose.FINAL]
    assert len(finals) == 1


def test_languages_without_spaces_are_written_without() -> None:
    class Japanese(Stream):
        def hear(self, window: Window) -> Hypothesis:
            spaced = replace(window, forced=window.forced.replace("s", " s"))
            return replace(super().hear(spaced), language="ja")

    stream = Japanese(live=True)
    stream.speak(6)
    forced = [window.forced for window in stream.windows if window.forced]
    assert forced[-1] == "s0s1s2"
    stream.pause(1)
    assert "".join(event.text for event in final_events(stream)) == "s0s1s2s3s4s5"


def test_one_window_is_out_at_a_time() -> None:
    transcriber = Transcriber(SETTINGS, RULES)
    block = np.zeros(BLOCK_FRAMES * FRAME_SAMPLES, dtype=np.float32)
    transcriber.receive_audio(block, [0.9] * BLOCK_FRAMES)
    transcriber.receive_end(EndReason.EOF)
    assert transcriber.next_window(live=True) is not None
    assert transcriber.next_window(live=True) is None
    assert not transcriber.ended


@pytest.mark.parametrize("seconds", [15, 35, 100])
def test_long_speech_is_cut_without_losing_or_doubling_words(seconds: int) -> None:
    stream = Stream()
    stream.speak(seconds)
    stream.pause(1)
    stream.end()
    assert stream.words() == [f"s{second}" for second in range(seconds)]
    assert len(stream.of(Endpoint)) == 1
    assert len(stream.of(Final)) > 1
    assert max(len(window.samples) for window in stream.windows) <= MAX_WINDOW_SECONDS * SAMPLE_RATE


def test_audio_waits_when_the_engine_does_not_answer() -> None:
    transcriber = Transcriber(SETTINGS, RULES)
    block = np.zeros(BLOCK_FRAMES * FRAME_SAMPLES, dtype=np.float32)
    received = 0
    while transcriber.has_room and received < 100:
        transcriber.receive_audio(block, [0.9] * BLOCK_FRAMES)
        received += 1
    assert 20 < received <= MAX_WINDOW_SECONDS * SAMPLE_RATE / len(block)
    window = transcriber.next_window(live=False)
    assert window is not None
    transcriber.receive_hypothesis(Hypothesis("", "en"))
    assert transcriber.has_room


def test_closed_utterances_wait_only_to_a_bound() -> None:
    transcriber = Transcriber(SETTINGS, RULES)
    block = np.zeros(BLOCK_FRAMES * FRAME_SAMPLES, dtype=np.float32)
    received = 0
    while transcriber.has_room and received < 1000:
        transcriber.receive_audio(block, [0.9] * 10 + [0.1] * (BLOCK_FRAMES - 10))
        received += 1
    assert received == 4


def test_a_failed_decode_ends_the_stream_with_its_reason() -> None:
    stream = Stream()
    stream.speak(2)
    stream.transcriber.receive_failure("decode_failed", "no memory")
    stream.decode()
    assert stream.events == [
        Failure(0, "decode_failed", "no memory"),
        End(1, stream.transcriber.audio_seconds, EndReason.ERROR),
    ]
    stream.end()
    assert len(stream.events) == 2


def test_nothing_comes_after_a_failure_whatever_is_still_received() -> None:
    stream = Stream()
    stream.speak(2)
    stream.transcriber.receive_failure("decode_failed", "no memory")
    stream.transcriber.receive_finalize()
    stream.decode()
    stream.pause(3)
    stream.speak(1)
    assert [event.type for event in stream.events] == ["error", "end"]
    assert stream.transcriber.audio_seconds == pytest.approx(2, abs=0.05)


def test_what_was_heard_before_bad_audio_is_flushed_first() -> None:
    stream = Stream()
    stream.speak(2)
    stream.transcriber.receive_end(EndReason.ERROR, ("unsupported_audio", "audio is text"))
    stream.decode()
    assert [event.type for event in stream.events] == ["final", "endpoint", "error", "end"]


def test_the_last_block_may_end_within_a_frame() -> None:
    transcriber = Transcriber(SETTINGS, RULES)
    transcriber.receive_audio(np.zeros(700, dtype=np.float32), [0.1, 0.1])
    transcriber.receive_end(EndReason.EOF)
    assert transcriber.events_to_send() == [End(0, 700 / SAMPLE_RATE, EndReason.EOF)]


def test_memory_stays_small_in_a_long_silence() -> None:
    stream = Stream()
    for _ in range(20):
        stream.pause(60)
    buffer = stream.transcriber._audio
    assert buffer.end - buffer.start <= SAMPLE_RATE
    assert len(buffer._data) <= 4 * SAMPLE_RATE


pieces = st.lists(
    st.tuples(st.sampled_from(["speak", "pause"]), st.floats(0.05, 14)), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(pieces, st.booleans())
def test_any_stream_keeps_the_contract(script: Sequence[tuple[str, float]], live: bool) -> None:
    stream = Stream(live)
    for kind, seconds in script:
        getattr(stream, kind)(seconds)
    stream.end()
    assert stream.transcriber.ended
    assert [event.seq for event in stream.events] == list(range(len(stream.events)))
    assert isinstance(stream.events[-1], End)
    assert len(stream.of(End)) == 1
    words = stream.words()
    assert len(words) == len(set(words))
    assert set(words) == stream.spoken_words()
    assert words == sorted(words, key=lambda word: int(word[1:]))
    times = [time for word in final_words(stream) for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0 <= time <= stream.transcriber.audio_seconds for time in times)
    ended = [event.utterance for event in stream.events if isinstance(event, Endpoint)]
    assert ended == list(range(len(ended)))
    assert {event.utterance for event in final_events(stream)} <= set(ended)


def final_events(stream: Stream) -> list[Final]:
    return [event for event in stream.events if isinstance(event, Final)]


def final_words(stream: Stream) -> Iterator[Word]:
    for event in final_events(stream):
        yield from event.words
