"""One stream's rules: which window to decode next, and which words are final (pure).

No clock and no I/O: time is counted in samples of the stream.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES, MAX_WINDOW_SECONDS, Hypothesis, Trip
from whisper_byoc.settings import Mode, StreamingSettings
from whisper_byoc.streaming.finality import BALANCED, LOW_LATENCY, Heard, num_final
from whisper_byoc.streaming.hypothesis import (
    AFTER_WORD_END,
    BEFORE_WORD_END,
    Cut,
    believed,
    choose_cut,
    place_words,
    quietest,
    unheard,
)
from whisper_byoc.streaming.vad import MEASURED, SpeechDetector, SpeechEnd, SpeechStart, VoiceRules
from whisper_byoc.transcript import (
    End,
    Endpoint,
    EndReason,
    Event,
    Failure,
    Final,
    Partial,
    Word,
    join_words,
)

MAX_BLOCK_SAMPLES = SAMPLE_RATE
"""The most audio that one `receive_audio` may bring; what `has_room` leaves room for."""

_MAX_CLOSED = 4
"""Utterances waiting for their last decode; beyond that no more audio is taken."""
_MIN_PARTIAL_SAMPLES = round(0.4 * SAMPLE_RATE)

_STRETCH = 1.5
"""A stream asks for a partial at most so many times as long after the one before as that took."""
_EARLIEST_CUT_SECONDS = 3.6
_FORCED_DISTANCE_SECONDS = 2.0
_UNHEARD_FRAMES = 31
"""Of speech (1 s) behind the last word of a hypothesis, beyond which it is decoded apart."""
_UNHEARD_FRAMES_AT_END = 16
_LEAST_PROGRESS = SAMPLE_RATE // 2


class Purpose(Enum):
    PARTIAL = auto()
    """Speech goes on; the words may change."""
    CUT = auto()
    """Speech has gone on for too long; some of the words become final."""
    FINAL = auto()
    """Speech is over; all of the words become final."""


@dataclass(frozen=True, slots=True)
class Window:
    """The samples of one decode: float32 (n,) from sample `start` of the stream.

    forced: words that are final and whose audio is in the window: its text begins with them.
    draft: what was last heard behind them, which the rest will mostly begin with.
    """

    purpose: Purpose
    start: int
    samples: NDArray[np.float32]
    forced: str = ""
    draft: str = ""

    @property
    def offset(self) -> float:
        return self.start / SAMPLE_RATE

    @property
    def end(self) -> float:
        return (self.start + len(self.samples)) / SAMPLE_RATE


@dataclass(slots=True)
class _Utterance:
    start: int
    next_partial: int
    end: int | None = None
    number: int | None = None
    """Given by its first event: noise that gives no words takes no number."""
    speech_frames: list[int] = field(default_factory=list)
    """First samples of the frames that hold speech."""
    partial: str = ""
    language: str = "en"
    """Of its last final words."""
    finals: list[tuple[str, int]] = field(default_factory=list)
    """Final words whose audio is still in the window, each with the sample at which it ends."""
    heard: deque[tuple[Word, ...]] = field(default_factory=lambda: deque(maxlen=2))
    """The words not yet final of the last hypotheses, the newest first."""


class SampleBuffer:
    """The samples of a stream that are still needed, addressed by their place in the stream."""

    def __init__(self) -> None:
        self._data = np.empty(SAMPLE_RATE, dtype=np.float32)
        self.start = 0
        self.end = 0

    def append(self, samples: NDArray[np.float32]) -> None:
        kept = self.end - self.start
        if kept + len(samples) > len(self._data):
            grown = np.empty(2 * (kept + len(samples)), dtype=np.float32)
            grown[:kept] = self._data[:kept]
            self._data = grown
        self._data[kept : kept + len(samples)] = samples
        self.end += len(samples)

    def drop_before(self, position: int) -> None:
        dropped = min(max(position - self.start, 0), self.end - self.start)
        if dropped:
            kept = self.end - self.start - dropped
            self._data[:kept] = self._data[dropped : dropped + kept].copy()
            self.start += dropped

    def copy(self, start: int, end: int) -> NDArray[np.float32]:
        return self._data[start - self.start : end - self.start].copy()


class Transcriber:
    """Owned and driven by one job, from its task group; nothing in it blocks.

    Audio and hypotheses go in by `receive_*`; windows and events come out by `next_window` and
    `events_to_send`. At most one window is out at a time. After the `End` event nothing changes.
    """

    def __init__(self, settings: StreamingSettings, rules: VoiceRules = MEASURED) -> None:
        self._settings = settings
        self._rules = rules
        self._detector = SpeechDetector(settings, rules)
        self._audio = SampleBuffer()
        self._open: _Utterance | None = None
        self._closed: deque[_Utterance] = deque()
        self._out: tuple[Window, _Utterance] | None = None
        self._events: list[Event] = []
        self._num_utterances = 0
        self._seqs = itertools.count()
        self._last_word_end = 0.0
        self._end_reason: EndReason | None = None
        self._failure: tuple[str, str] | None = None
        self._interval = settings.partial_interval
        self._stretched = 0.0
        self._previous_partial: int | None = None
        self.num_partials = 0
        self.num_partials_dropped = 0
        """Partials that were due by the settings and were not made, the engine being busy."""
        self.final_lag_seconds = 0.0
        """From the end of the last final word to the newest audio when it became final."""
        self.ended = False

    @property
    def num_samples(self) -> int:
        """Received so far."""
        return self._audio.end

    @property
    def audio_seconds(self) -> float:
        return self._audio.end / SAMPLE_RATE

    @property
    def input_ended(self) -> bool:
        return self._end_reason is not None

    @property
    def lag_seconds(self) -> float:
        """Seconds of speech received and not yet final."""
        waiting = [*self._closed, *([self._open] if self._open else [])]
        return self.audio_seconds - waiting[0].start / SAMPLE_RATE if waiting else 0.0

    @property
    def has_room(self) -> bool:
        """Whether the next block of audio may come; a hypothesis makes room."""
        if len(self._closed) >= _MAX_CLOSED:
            return False
        if self._open is None:
            return True
        length = self._audio.end - self._open.start + MAX_BLOCK_SAMPLES
        return length <= MAX_WINDOW_SECONDS * SAMPLE_RATE

    def receive_audio(self, samples: NDArray[np.float32], voice: Sequence[float]) -> None:
        """Take the next audio and the voice probability of each of its frames.

        samples: float32 (n,), 16 kHz mono, at most `MAX_BLOCK_SAMPLES`; voice: one value per frame
        of 512 samples. Only the last block of a stream may end within a frame.
        """
        for index, value in enumerate(voice):
            frame = samples[index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES]
            frame_start = self._audio.end
            self._audio.append(frame)
            if change := self._detector.receive_probability(value):
                self._receive_change(change)
            if self._open is not None and value >= self._rules.speech_threshold:
                self._open.speech_frames.append(frame_start)
        self._drop_audio()

    def receive_settings(self, settings: StreamingSettings) -> None:
        """Go on by other settings, from the next audio and the next window."""
        self._settings = settings
        self._detector.receive_settings(settings)
        self._previous_partial = None
        self._interval = max(settings.partial_interval, self._stretched)
        if self._open is not None:
            soon = self._audio.end + round(self._interval * SAMPLE_RATE)
            self._open.next_partial = min(self._open.next_partial, soon)

    def receive_finalize(self) -> int:
        """End the utterance here, so that all that was said becomes final; the stream goes on.

        Returns the place in the stream, in samples, to ask `is_final` about.
        """
        if self._detector.in_speech:
            self._receive_change(self._detector.end_speech())
        # The pre-roll of what comes next reaches back to here at most.
        return self._closed[-1].end or 0 if self._closed else 0

    def is_final(self, position: int) -> bool:
        """Whether all words of the audio before `position` are final."""
        waiting = [*self._closed, *([self._open] if self._open else [])]
        return self.ended or all(utterance.start >= position for utterance in waiting)

    def receive_end(self, reason: EndReason, failure: tuple[str, str] | None = None) -> None:
        """No more audio comes; what is open is decoded once more, then `End` is sent.

        failure: code and message of what ended the audio, told after the last words.
        """
        if self._end_reason is None:
            self._end_reason = reason
            self._failure = failure
            if self._detector.in_speech:
                self._receive_change(self._detector.end_speech())
            self._send_end_if_done()

    def receive_failure(self, code: str, message: str) -> None:
        """The job cannot go on: tell why and end now, without the words not yet final."""
        if not self.ended:
            self._open, self._out = None, None
            self._closed.clear()
            self._failure = code, message
            self._end_reason = EndReason.ERROR
            self._send_end_if_done()

    def receive_hypothesis(self, hypothesis: Hypothesis, seconds: float = 0.0) -> None:
        """The answer to the window that is out, and how long it was waited for: partials are made
        as often as that can be afforded."""
        if self._out is None:
            return
        window, utterance = self._out
        self._out = None
        self._stretched = _STRETCH * seconds
        self._interval = max(self._settings.partial_interval, self._stretched)
        clean = hypothesis.trip is None
        hypothesis = believed(hypothesis)
        match window.purpose:
            case Purpose.PARTIAL:
                self._receive_partial(utterance, window, hypothesis, clean)
            case Purpose.CUT:
                self._cut(utterance, window, hypothesis.words, hypothesis.language)
            case Purpose.FINAL:
                self._send_final(utterance, window, hypothesis.words, hypothesis.language)
                if not self._go_on_behind(utterance, window, hypothesis.words):
                    self._closed.popleft()
                    self._send_endpoint(utterance)
        self._drop_audio()
        self._send_end_if_done()

    def next_window(self, *, live: bool) -> Window | None:
        """The window to decode now, if any. Partials are only for a stream that is `live`:
        when more audio is already waiting, a partial would be out of date at once.
        """
        if self._out is not None:
            return None
        while self._closed:
            utterance = self._closed[0]
            if self._enough_speech(utterance):
                assert utterance.end is not None
                return self._take(Purpose.FINAL, utterance, utterance.end)
            self._closed.popleft()
            self._send_endpoint(utterance)
        self._send_end_if_done()
        utterance_open = self._open
        if utterance_open is None:
            return None
        length = self._audio.end - utterance_open.start
        if length >= self._settings.max_utterance * SAMPLE_RATE:
            return self._take(Purpose.CUT, utterance_open, self._audio.end)
        if (
            live
            and self._settings.mode is not Mode.FINALS_ONLY
            and self._audio.end >= utterance_open.next_partial
            and self._enough_speech(utterance_open)
        ):
            interval = round(self._interval * SAMPLE_RATE)
            utterance_open.next_partial = self._audio.end + interval
            self._count_partial(utterance_open)
            return self._take(Purpose.PARTIAL, utterance_open, self._audio.end)
        return None

    def _count_partial(self, utterance: _Utterance) -> None:
        """How many more there would have been since the last one of the utterance."""
        if self._previous_partial is not None and self._previous_partial >= utterance.start:
            passed = (self._audio.end - self._previous_partial) / SAMPLE_RATE
            due = round(passed / self._settings.partial_interval)
            self.num_partials_dropped += max(0, due - 1)
        self.num_partials += 1
        self._previous_partial = self._audio.end

    def events_to_send(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _receive_change(self, change: SpeechStart | SpeechEnd) -> None:
        match change:
            case SpeechStart(start):
                start = max(start, self._audio.start)
                self._open = _Utterance(start, next_partial=start + _MIN_PARTIAL_SAMPLES)
            case SpeechEnd(end):
                utterance, self._open = self._open, None
                assert utterance is not None
                utterance.end = min(end, self._audio.end)
                if self._enough_speech(utterance) or utterance.number is not None:
                    self._closed.append(utterance)

    def _enough_speech(self, utterance: _Utterance) -> bool:
        return len(utterance.speech_frames) >= self._rules.min_speech_frames

    def _take(self, purpose: Purpose, utterance: _Utterance, end: int) -> Window:
        samples = self._audio.copy(utterance.start, end)
        forced = join_words((text for text, _ in utterance.finals), utterance.language)
        window = Window(purpose, utterance.start, samples, forced, utterance.partial)
        self._out = window, utterance
        return window

    def _receive_partial(
        self, utterance: _Utterance, window: Window, hypothesis: Hypothesis, clean: bool
    ) -> None:
        """Make final what there is enough evidence for; the rest is the new partial."""
        words = hypothesis.words
        number = 0
        leaves_out = clean and self._leaves_out(utterance, window, words) is not None
        if leaves_out:
            number = len(words)
        elif clean:
            heard = Heard(words, hypothesis.evidence, window.end - window.offset)
            low_latency = self._settings.mode is Mode.LOW_LATENCY
            bar = LOW_LATENCY if low_latency else BALANCED
            number = num_final(bar, heard, list(utterance.heard))
            if len(window.samples) > self._settings.max_window * SAMPLE_RATE:
                # Nothing agreed for that long: what is old becomes final, so that a cut can come.
                old = heard.audio_end - _FORCED_DISTANCE_SECONDS
                number = max(number, sum(1 for word in words if word.end < old))
        if number:
            self._send_final(utterance, window, words[:number], hypothesis.language)
            utterance.finals += [
                (word.text, window.start + round(word.end * SAMPLE_RATE)) for word in words[:number]
            ]
            waiting = [earlier[number:] for earlier in utterance.heard]
            utterance.heard.clear()
            utterance.heard.extend(waiting)
        if clean:
            utterance.heard.appendleft(words[number:])
        rest = join_words((word.text for word in words[number:]), hypothesis.language)
        if hypothesis.trip not in (Trip.LOOP, Trip.CAP):  # nobody wants to see "S, S, S, S"
            self._send_partial(utterance, window, rest if words else hypothesis.text)
        if leaves_out and self._go_on_behind(utterance, window, words):
            utterance.next_partial = self._audio.end
        elif len(window.samples) > self._settings.max_window * SAMPLE_RATE:
            self._shorten(utterance)

    def _leaves_out(
        self, utterance: _Utterance, window: Window, words: tuple[Word, ...]
    ) -> int | None:
        """Where the window would have to begin anew, in samples of the stream, because there is
        speech behind the last word that the decoder passes over; None when there is not."""
        ends = [word.end for word in words[-1:]]
        # A later decode may put its words before one that is final: that one counts, too.
        ends += [(end - window.start) / SAMPLE_RATE for _, end in utterance.finals[-1:]]
        if not ends:
            return None
        end = max(ends)
        stop = window.start + len(window.samples)
        voiced = [place - window.start for place in utterance.speech_frames if place < stop]
        most = _UNHEARD_FRAMES if window.purpose is Purpose.PARTIAL else _UNHEARD_FRAMES_AT_END
        left_out = unheard(voiced, end)
        if len(left_out) < most:
            return None
        cut, _ = quietest(window.samples, end - AFTER_WORD_END, left_out[0] / SAMPLE_RATE)
        return None if cut < _LEAST_PROGRESS else window.start + cut

    def _go_on_behind(self, utterance: _Utterance, window: Window, words: tuple[Word, ...]) -> bool:
        """Decode what the last word leaves out by itself; whether there is such speech."""
        cut = self._leaves_out(utterance, window, words)
        if cut is None:
            return False
        utterance.start = cut
        utterance.finals.clear()
        utterance.heard.clear()
        self._drop_speech_frames(utterance)
        return True

    def _shorten(self, utterance: _Utterance) -> None:
        """Leave out the beginning of a long window: cut at the quietest end of a final word."""
        samples = self._audio.copy(utterance.start, self._audio.end)
        earliest = utterance.start + round(_EARLIEST_CUT_SECONDS * SAMPLE_RATE)
        ends = [end for _, end in utterance.finals]
        ends = [end for end in ends if end >= earliest] or ends[-1:]
        if not ends:
            return
        places = []
        for end in ends:
            seconds = (end - utterance.start) / SAMPLE_RATE
            place, energy = quietest(samples, seconds - BEFORE_WORD_END, seconds + AFTER_WORD_END)
            places.append((energy, utterance.start + place, end))
        _, cut, last = min(places)
        utterance.start = cut
        utterance.finals = [item for item in utterance.finals if item[1] > last]
        self._drop_speech_frames(utterance)

    def _drop_speech_frames(self, utterance: _Utterance) -> None:
        utterance.speech_frames = [
            frame for frame in utterance.speech_frames if frame >= utterance.start
        ]

    def _cut(
        self, utterance: _Utterance, window: Window, words: tuple[Word, ...], language: str
    ) -> None:
        cut = choose_cut(window.samples, words)
        if utterance.finals and window.start + cut.sample < utterance.finals[-1][1]:
            end = (utterance.finals[-1][1] - window.start) / SAMPLE_RATE
            cut = Cut(quietest(window.samples, end - BEFORE_WORD_END, end + AFTER_WORD_END)[0], 0)
        self._send_final(utterance, window, words[: cut.num_words], language)
        remaining = join_words((word.text for word in words[cut.num_words :]), language)
        utterance.start = window.start + cut.sample
        utterance.finals.clear()
        utterance.heard.clear()
        self._drop_speech_frames(utterance)
        self._send_partial(utterance, window, remaining)

    def _send_partial(self, utterance: _Utterance, window: Window, text: str) -> None:
        if text != utterance.partial:
            utterance.partial = text
            number = self._number(utterance)
            start = max(window.offset, utterance.start / SAMPLE_RATE)
            start = min(max(start, self._last_word_end), window.end)
            self._events.append(Partial(next(self._seqs), number, start, window.end, text))

    def _send_final(
        self, utterance: _Utterance, window: Window, words: tuple[Word, ...], language: str
    ) -> None:
        placed = place_words(
            words, window.offset, self._last_word_end, window.end, utterance.speech_frames
        )
        if not placed:
            self._send_partial(utterance, window, "")
            return
        utterance.partial = ""
        number = self._number(utterance)
        start, end = placed[0].start, placed[-1].end
        self._last_word_end = end
        self.final_lag_seconds = self.audio_seconds - end
        utterance.language = language
        text = join_words((word.text for word in placed), language)
        self._events.append(Final(next(self._seqs), number, start, end, text, placed, language))

    def _send_endpoint(self, utterance: _Utterance) -> None:
        if utterance.number is not None:
            assert utterance.end is not None
            time = utterance.end / SAMPLE_RATE
            if utterance.partial:
                self._events.append(Partial(next(self._seqs), utterance.number, time, time, ""))
            self._events.append(Endpoint(next(self._seqs), utterance.number, time))

    def _number(self, utterance: _Utterance) -> int:
        if utterance.number is None:
            utterance.number = self._num_utterances
            self._num_utterances += 1
        return utterance.number

    def _send_end_if_done(self) -> None:
        busy = self._open is not None or self._closed or self._out is not None
        if self._end_reason is not None and not busy and not self.ended:
            if self._failure is not None:
                self._events.append(Failure(next(self._seqs), *self._failure))
            self._events.append(End(next(self._seqs), self.audio_seconds, self._end_reason))
            self.ended = True

    def _drop_audio(self) -> None:
        """Keep what is waiting to be decoded, and the pre-roll of speech that may begin next."""
        pre_roll = self._rules.pre_roll_samples + FRAME_SAMPLES
        needed = [utterance.start for utterance in self._closed]
        if self._open is not None:
            needed.append(self._open.start)
        self._audio.drop_before(min(needed, default=self._audio.end - pre_roll))
