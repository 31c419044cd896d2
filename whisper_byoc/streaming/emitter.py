"""What is told of one stream: its events, numbered, with times that never run backwards (pure)."""

import itertools
from collections.abc import Sequence

from whisper_byoc import transcript
from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import Hypothesis
from whisper_byoc.streaming.hypothesis import place_words
from whisper_byoc.streaming.utterance import Utterance, Window
from whisper_byoc.transcript import EndReason, Word, join_words


class EventEmitter:
    """The events of one stream that are not yet taken; owned and driven by its transcriber.

    Sets `number`, `partial` and `language` of the utterances it tells of.
    """

    def __init__(self) -> None:
        self._events: list[transcript.Event] = []
        self._seqs = itertools.count()
        self._numbers = itertools.count()
        self._last_word_end = 0.0

    def take(self) -> list[transcript.Event]:
        """The events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def emit_partial(self, utterance: Utterance, window: Window, text: str) -> None:
        """Tell what was heard in a window behind the final words, unless it was told before."""
        if text == utterance.partial:
            return
        utterance.partial = text
        # After a cut the text is what is left of the window, behind the utterance's new start.
        start = max(window.offset, utterance.start / SAMPLE_RATE, self._last_word_end)
        start = min(start, window.end)
        number = self._number(utterance)
        self._events.append(transcript.Partial(next(self._seqs), number, start, window.end, text))

    def emit_final(
        self, utterance: Utterance, window: Window, words: Sequence[Word], heard: Hypothesis
    ) -> None:
        """Tell that words of a window, timed from its start, are final; without any, take the
        partial back. heard: the hypothesis that they are of."""
        offset, language = window.offset - heard.word_delay, heard.language
        placed = place_words(
            words, offset, self._last_word_end, window.end, utterance.speech_frames
        )
        if not placed:
            self.emit_partial(utterance, window, "")
            return
        number = self._number(utterance)
        utterance.partial, utterance.language = "", language
        start, end = placed[0].start, placed[-1].end
        self._last_word_end = end
        text = join_words((word.text for word in placed), language)
        self._events.append(
            transcript.Final(next(self._seqs), number, start, end, text, placed, language)
        )

    def emit_endpoint(self, utterance: Utterance) -> None:
        """Tell that an utterance is over, if anything was told of it."""
        if utterance.number is None:
            return
        assert utterance.end is not None
        time = utterance.end / SAMPLE_RATE
        if utterance.partial:
            self._events.append(
                transcript.Partial(next(self._seqs), utterance.number, time, time, "")
            )
        self._events.append(transcript.Endpoint(next(self._seqs), utterance.number, time))

    def emit_end(
        self, audio_seconds: float, reason: EndReason, failure: tuple[str, str] | None
    ) -> None:
        """Tell the failure, a code and a message, if there is one, and that nothing follows."""
        if failure is not None:
            self._events.append(transcript.Failure(next(self._seqs), *failure))
        self._events.append(transcript.End(next(self._seqs), audio_seconds, reason))

    def _number(self, utterance: Utterance) -> int:
        if utterance.number is None:
            utterance.number = next(self._numbers)
        return utterance.number
