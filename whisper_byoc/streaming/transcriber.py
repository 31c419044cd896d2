"""One stream's rules: which window to decode next, and which words are final (pure).

No clock and no I/O: time is counted in samples of the stream.
"""

from collections import deque
from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES, MAX_WINDOW_SECONDS, Hypothesis, Trip
from whisper_byoc.settings import Mode, StreamingSettings
from whisper_byoc.streaming.emitter import EventEmitter
from whisper_byoc.streaming.finality import BALANCED, LOW_LATENCY, Heard, num_final
from whisper_byoc.streaming.hypothesis import believed
from whisper_byoc.streaming.pace import PartialPace
from whisper_byoc.streaming.samples import SampleBuffer
from whisper_byoc.streaming.utterance import Purpose, Utterance, Window
from whisper_byoc.streaming.vad import MEASURED, SpeechDetector, SpeechEnd, SpeechStart, VoiceRules
from whisper_byoc.transcript import EndReason, Event, join_words

MAX_BLOCK_SAMPLES = SAMPLE_RATE
"""The most audio that one `receive_audio` may bring; what `has_room` leaves room for."""
_MAX_CLOSED = 4
"""Utterances waiting for their last decode; beyond that no more audio is taken."""
_OLD_SECONDS = 2.0
"""From the end of the audio: words that ended earlier become final whatever the evidence, when a
window is too long."""


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
        self._utterances: deque[Utterance] = deque()
        """Not all of whose words are final. Someone may still be speaking in the last one."""
        self._out: tuple[Window, Utterance] | None = None
        self._emitter = EventEmitter()
        self.end_reason: EndReason | None = None
        """Why there is no more audio; None while there may be."""
        self._failure: tuple[str, str] | None = None
        self.pace = PartialPace(settings)
        self.ended = False
        """Whether `End` is among the events that were taken."""

    @property
    def num_samples(self) -> int:
        """Received so far, gaps included: the place in the stream."""
        return self._audio.end

    @property
    def audio_seconds(self) -> float:
        """The same in seconds."""
        return self._audio.end / SAMPLE_RATE

    @property
    def lag_seconds(self) -> float:
        """Seconds of speech received and not yet final."""
        if not self._utterances:
            return 0.0
        return self.audio_seconds - self._utterances[0].start / SAMPLE_RATE

    @property
    def has_room(self) -> bool:
        """Whether the next block of audio may come; a hypothesis makes room."""
        num_closed = sum(utterance.end is not None for utterance in self._utterances)
        length = MAX_BLOCK_SAMPLES + (self._audio.end - self._open.start if self._open else 0)
        return num_closed < _MAX_CLOSED and length <= MAX_WINDOW_SECONDS * SAMPLE_RATE

    def receive_audio(self, samples: NDArray[np.float32], voice: Sequence[float]) -> None:
        """Take the next audio and the voice probability of each of its frames.

        samples: float32 (n,), 16 kHz mono, at most `MAX_BLOCK_SAMPLES`; voice: one value per frame
        of 512 samples. Only the last block of a stream may end within a frame.
        """
        if self.ended:
            return  # the job has failed while voice was looked for in this block
        frames = count(self._audio.end, FRAME_SAMPLES)
        self._audio.append(samples)
        for frame, value in zip(frames, voice, strict=False):
            if change := self._detector.receive_probability(value):
                self._receive_change(change)
            if self._open is not None and value >= self._rules.speech_threshold:
                self._open.speech_frames.append(frame)
        self._drop_audio()

    def receive_settings(self, settings: StreamingSettings) -> None:
        """Go on by other settings, from the next audio and the next window."""
        self._settings = settings
        self._detector.receive_settings(settings)
        self.pace.receive_settings(settings, self._audio.end)

    def receive_finalize(self) -> int:
        """End the utterance here, so that all that was said becomes final; the stream goes on.

        Returns the place in the stream, in samples, to ask `is_final` about.
        """
        self._end_speech()
        # The pre-roll of what comes next reaches back to here at most.
        return self._utterances[-1].end or 0 if self._utterances else 0

    def is_final(self, place: int) -> bool:
        """Whether all words of the audio before `place`, in samples of the stream, are final."""
        return all(utterance.start >= place for utterance in self._utterances)

    def receive_gap(self, num_samples: int) -> None:
        """Go on so many samples later: what is missing was not heard, and cost nothing.

        All that was said before must be final: `receive_finalize` first.
        """
        if not self.ended:
            assert not self._utterances
            self._audio.skip(num_samples)
            self._detector.skip(num_samples)

    def receive_end(self, reason: EndReason, failure: tuple[str, str] | None = None) -> None:
        """No more audio comes; what is open is decoded once more, then `End` is sent.

        failure: code and message of what ended the audio, told after the last words.
        """
        if self.end_reason is None:
            self.end_reason = reason
            self._failure = failure
            self._end_speech()

    def receive_failure(self, code: str, message: str) -> None:
        """The job cannot go on: tell why and end now, without the words not yet final."""
        if not self.ended:
            self._end_speech()
            self._out = None
            self._utterances.clear()
            self.end_reason = EndReason.ERROR
            self._failure = code, message

    def receive_hypothesis(self, hypothesis: Hypothesis, seconds: float = 0.0) -> None:
        """The answer to the window that is out, and the seconds that it was waited for: partials
        are made as often as that can be afforded. Does nothing when no window is out."""
        if self._out is None:
            return
        (window, utterance), self._out = self._out, None
        self.pace.receive_answer(seconds)
        clean = hypothesis.trip is None
        hypothesis = believed(hypothesis)
        match window.purpose:
            case Purpose.PARTIAL:
                self._receive_partial(utterance, window, hypothesis, clean)
            case Purpose.CUT:
                self._receive_cut(utterance, window, hypothesis)
            case Purpose.FINAL:
                self._receive_final(utterance, window, hypothesis)
        self._drop_audio()

    def next_window(self, *, live: bool) -> Window | None:
        """The window to decode now, if any. Partials are only for a stream that is `live`:
        when more audio is already waiting, a partial would be out of date at once.
        """
        if self._out is not None:
            return None
        while self._utterances and self._utterances[0].end is not None:
            if self._enough_speech(self._utterances[0]):
                return self._take(Purpose.FINAL, self._utterances[0])
            self._emitter.emit_endpoint(self._utterances.popleft())
        utterance = self._open
        if utterance is None:
            return None
        end = self._audio.end
        if end - utterance.start >= self._settings.max_utterance * SAMPLE_RATE:
            return self._take(Purpose.CUT, utterance)
        wanted = live and self._settings.mode is not Mode.FINALS_ONLY and self.pace.is_due(end)
        if not (wanted and self._enough_speech(utterance)):
            return None
        self.pace.receive_partial(end, utterance.start)
        return self._take(Purpose.PARTIAL, utterance)

    def events_to_send(self) -> list[Event]:
        """The events since the last call, in order."""
        busy = self._utterances or self._out is not None
        if self.end_reason is not None and not busy and not self.ended:
            self._emitter.emit_end(self.audio_seconds, self.end_reason, self._failure)
            self.ended = True
        return self._emitter.take()

    @property
    def _open(self) -> Utterance | None:
        """The utterance in which someone is speaking."""
        if self._utterances and self._utterances[-1].end is None:
            return self._utterances[-1]
        return None

    def _end_speech(self) -> None:
        if self._detector.in_speech:
            self._receive_change(self._detector.end_speech())

    def _receive_change(self, change: SpeechStart | SpeechEnd) -> None:
        match change:
            case SpeechStart(start):
                start = max(start, self._audio.start)
                self._utterances.append(Utterance(start))
                self.pace.begin(start)
            case SpeechEnd(end):
                utterance = self._utterances[-1]
                utterance.end = min(end, self._audio.end)
                if not self._enough_speech(utterance) and utterance.number is None:
                    self._utterances.pop()  # noise

    def _enough_speech(self, utterance: Utterance) -> bool:
        return len(utterance.speech_frames) >= self._rules.min_speech_frames

    def _take(self, purpose: Purpose, utterance: Utterance) -> Window:
        window = utterance.window(purpose, self._audio)
        self._out = window, utterance
        return window

    def _receive_partial(
        self, utterance: Utterance, window: Window, hypothesis: Hypothesis, clean: bool
    ) -> None:
        """Make final what there is enough evidence for; the rest is the new partial."""
        words, language = hypothesis.words, hypothesis.language
        long = len(window.samples) > self._settings.max_window * SAMPLE_RATE
        begin_at = utterance.unheard_from(window, words) if clean else None
        number = 0
        if begin_at is not None:
            number = len(words)
        elif clean:
            heard = Heard(words, hypothesis.evidence, window.end - window.offset)
            bar = LOW_LATENCY if self._settings.mode is Mode.LOW_LATENCY else BALANCED
            number = num_final(bar, heard, utterance.heard)
            if long:
                # Nothing agreed for that long: what is old becomes final, so that a cut can come.
                old = heard.audio_end - _OLD_SECONDS
                number = max(number, sum(word.end < old for word in words))
        if number:
            self._emitter.emit_final(utterance, window, words[:number], hypothesis)
            utterance.receive_finals(words[:number], window)
        if clean:
            utterance.receive_heard(words[number:])
        rest = join_words((word.text for word in words[number:]), language)
        if hypothesis.trip not in (Trip.LOOP, Trip.CAP):  # nobody wants to see "S, S, S, S"
            self._emitter.emit_partial(utterance, window, rest if words else hypothesis.text)
        if begin_at is not None:
            utterance.begin_anew(begin_at)
            if utterance is self._open:
                self.pace.make_due(self._audio.end)
        elif long:
            utterance.shorten(self._audio)

    def _receive_cut(self, utterance: Utterance, window: Window, hypothesis: Hypothesis) -> None:
        """Make the words before the cut final; the rest is shown, and decoded again."""
        words, language = hypothesis.words, hypothesis.language
        cut = utterance.choose_cut(window, words)
        self._emitter.emit_final(utterance, window, words[: cut.num_words], hypothesis)
        utterance.begin_anew(window.start + cut.sample)
        rest = join_words((word.text for word in words[cut.num_words :]), language)
        self._emitter.emit_partial(utterance, window, rest)

    def _receive_final(self, utterance: Utterance, window: Window, hypothesis: Hypothesis) -> None:
        """Make all words final; the utterance is done unless they leave out speech behind them."""
        words = hypothesis.words
        self._emitter.emit_final(utterance, window, words, hypothesis)
        begin_at = utterance.unheard_from(window, words)
        if begin_at is not None:
            utterance.begin_anew(begin_at)
        else:
            self._emitter.emit_endpoint(self._utterances.popleft())

    def _drop_audio(self) -> None:
        """Keep what is waiting to be decoded, and the pre-roll of speech that may begin next."""
        pre_roll = self._rules.pre_roll_samples + FRAME_SAMPLES
        needed = (utterance.start for utterance in self._utterances)
        self._audio.drop_before(min(needed, default=self._audio.end - pre_roll))
