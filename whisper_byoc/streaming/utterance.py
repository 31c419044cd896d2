"""One utterance while it is decoded again and again: what is final of it, and where its next window
begins (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.streaming import hypothesis
from whisper_byoc.streaming.samples import Excerpt, SampleBuffer
from whisper_byoc.transcript import Word, join_words

_EARLIEST_CUT = round(3.6 * SAMPLE_RATE)
"""Samples of a long live window that are left out at least where its final words allow it, so that
the next ones are shorter for some seconds."""
_UNHEARD_FRAMES = 31
"""Frames of speech (1 s) behind the last word of a hypothesis, from which on they are decoded in a
window of their own (docs/streaming.md)."""
_UNHEARD_FRAMES_AT_END = 16
"""The same when the utterance is over (0.5 s): no later window would hear them."""
_LEAST_PROGRESS = SAMPLE_RATE // 2
"""Samples by which a window of its own must begin later than the one before, so that a decoder that
hears nothing does not get the same audio for ever."""


class Purpose(StrEnum):
    """What becomes of the words that are heard in a window."""

    PARTIAL = "partial"
    """Someone is speaking: those with enough evidence become final, the others are shown."""
    CUT = "cut"
    """Someone has spoken for `max_utterance` without a pause: the words before the best place for
    a cut become final, and the utterance goes on with the audio behind it."""
    FINAL = "final"
    """The utterance is over: all of them become final."""


@dataclass(frozen=True, slots=True)
class Window(Excerpt):
    """The audio of one decode of an utterance.

    forced: final words whose audio is in the window; the decoder's text is made to begin with them.
    draft: what was last heard behind those, with which the rest will mostly begin.
    """

    purpose: Purpose
    forced: str
    draft: str


@dataclass(slots=True)
class Utterance:
    """Speech between two silences; owned by the transcriber of its stream.

    Places are in samples of the stream. start: of the audio that is still to be decoded; moves on
    as words become final. end: of the audio, None while someone is speaking.
    """

    start: int
    end: int | None = None
    number: int | None = None
    """In the events. Given by the first of them: noise that gives no words takes no number."""
    speech_frames: list[int] = field(default_factory=list)
    """Places of the frames that hold speech, from `start` on."""
    partial: str = ""
    """The last text that was shown and is not final."""
    language: str = "en"
    """Of the last words that became final."""
    finals: list[tuple[str, int]] = field(default_factory=list)
    """Final words whose audio is still to be decoded, each with the place where it ends."""
    heard: list[tuple[Word, ...]] = field(default_factory=list)
    """The words that are not yet final in each of the last two hypotheses, the newest first."""

    def window(self, purpose: Purpose, audio: SampleBuffer) -> Window:
        """All of the utterance that is still to be decoded."""
        samples = audio.copy(self.start, audio.end if self.end is None else self.end)
        forced = join_words((text for text, _ in self.finals), self.language)
        return Window(self.start, samples, purpose, forced, self.partial)

    def receive_finals(self, words: Sequence[Word], window: Window) -> None:
        """The first words that were heard in a window have become final."""
        self.finals += [(word.text, window.start + round(word.end * SAMPLE_RATE)) for word in words]
        self.heard = [earlier[len(words) :] for earlier in self.heard]

    def receive_heard(self, words: tuple[Word, ...]) -> None:
        """Words that were heard behind those that are final."""
        self.heard = [words, *self.heard][:2]

    def begin_anew(self, place: int) -> None:
        """All words before `place` are final, and nothing of the audio behind it was heard yet."""
        self.finals.clear()
        self.heard.clear()
        self._begin_at(place)

    def unheard_from(self, window: Window, words: Sequence[Word]) -> int | None:
        """Where to begin anew because the decoder passed over speech behind the last of the words
        that it heard in a window; None when it did not."""
        ends = [word.end for word in words[-1:]]
        # A later decode may put its words before one that is final: that one counts, too.
        ends += [(end - window.start) / SAMPLE_RATE for _, end in self.finals[-1:]]
        if not ends:
            return None
        end = max(ends)
        first = window.start + (end + hypothesis.WORD_END_MARGIN) * SAMPLE_RATE
        stop = window.start + len(window.samples)
        left_out = [frame for frame in self.speech_frames if first <= frame < stop]
        is_partial = window.purpose is Purpose.PARTIAL
        if len(left_out) < (_UNHEARD_FRAMES if is_partial else _UNHEARD_FRAMES_AT_END):
            return None
        speech = (left_out[0] - window.start) / SAMPLE_RATE
        cut, _ = hypothesis.quietest(window.samples, end - hypothesis.AFTER_WORD_END, speech)
        return None if cut < _LEAST_PROGRESS else window.start + cut

    def choose_cut(self, window: Window, words: Sequence[Word]) -> hypothesis.Cut:
        """Where to cut speech that goes on for too long: behind some of the words that were heard
        in a window, and behind all that are final, which would be heard again otherwise."""
        cut = hypothesis.choose_cut(window.samples, words)
        final_end = self.finals[-1][1] if self.finals else 0
        if window.start + cut.sample < final_end:
            seconds = (final_end - window.start) / SAMPLE_RATE
            place, _ = hypothesis.quietest_at_word_end(window.samples, seconds)
            cut = hypothesis.Cut(place, 0)
        return cut

    def shorten(self, audio: SampleBuffer) -> None:
        """Leave the beginning of a long window out of the next: cut at the quietest end of a final
        word. Does nothing while no word is final."""
        ends = [end for _, end in self.finals]
        ends = [end for end in ends if end >= self.start + _EARLIEST_CUT] or ends[-1:]
        if not ends:
            return
        samples = audio.copy(self.start, audio.end)
        cuts = []
        for end in ends:
            seconds = (end - self.start) / SAMPLE_RATE
            place, energy = hypothesis.quietest_at_word_end(samples, seconds)
            cuts.append((energy, self.start + place, end))
        _, cut, last = min(cuts)
        self.finals = [(text, end) for text, end in self.finals if end > last]
        self._begin_at(cut)

    def _begin_at(self, place: int) -> None:
        self.start = place
        self.speech_frames = [frame for frame in self.speech_frames if frame >= place]
