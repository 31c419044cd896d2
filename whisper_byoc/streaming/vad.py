"""Where speech begins and ends, from the voice probability of each frame (pure)."""

from dataclasses import dataclass

from whisper_byoc.audio.formats import SAMPLE_RATE
from whisper_byoc.decode import FRAME_SAMPLES
from whisper_byoc.settings import StreamingSettings


@dataclass(frozen=True, slots=True)
class VoiceRules:
    """What is speech. Measured, and no settings (docs/streaming.md).

    speech_threshold: voice probability from which on a frame is speech. silence_threshold: voice
    probability under which a frame is silence. pre_roll: seconds of audio before the first frame of
    speech that belong to it. min_speech_frames: an utterance with fewer frames of speech is noise.
    """

    speech_threshold: float = 0.5
    silence_threshold: float = 0.35
    pre_roll: float = 1.0
    min_speech_frames: int = 3

    @property
    def pre_roll_samples(self) -> int:
        return round(self.pre_roll * SAMPLE_RATE)


MEASURED = VoiceRules()


@dataclass(frozen=True, slots=True)
class SpeechStart:
    """Speech began. start: sample of the stream at which its audio begins, pre-roll included."""

    start: int


@dataclass(frozen=True, slots=True)
class SpeechEnd:
    """Speech is over. end: sample of the stream at which its audio ends, silence included."""

    end: int


class SpeechDetector:
    """Two thresholds, so that a voice that wavers between them changes nothing; one detector for
    each stream, driven by whoever cuts that stream into windows.

    A frame at or above the speech threshold begins speech and clears the silence timer; one under
    the silence threshold starts the timer; speech ends when the timer reaches the endpoint silence.
    """

    def __init__(self, settings: StreamingSettings, rules: VoiceRules = MEASURED) -> None:
        self.receive_settings(settings)
        self._rules = rules
        self._position = 0
        self._previous_end = 0
        self._silence_start: int | None = None
        self.in_speech = False

    def receive_settings(self, settings: StreamingSettings) -> None:
        """Go on by other settings."""
        self._endpoint_samples = round(settings.endpoint_silence * SAMPLE_RATE)

    def receive_probability(self, value: float) -> SpeechStart | SpeechEnd | None:
        """Take the next frame's voice probability; returns what has changed with it, if it has."""
        frame_start = self._position
        self._position += FRAME_SAMPLES
        if value >= self._rules.speech_threshold:
            self._silence_start = None
            if not self.in_speech:
                self.in_speech = True
                start = frame_start - self._rules.pre_roll_samples
                return SpeechStart(max(self._previous_end, start))
        elif self._silence_start is None and value < self._rules.silence_threshold:
            self._silence_start = frame_start
        silence = 0 if self._silence_start is None else self._position - self._silence_start
        return self.end_speech() if self.in_speech and silence >= self._endpoint_samples else None

    def skip(self, num_samples: int) -> None:
        """Go on so many samples later, with speech that has ended."""
        self._position += num_samples
        self._previous_end = self._position
        self._silence_start = None

    def end_speech(self) -> SpeechEnd:
        """End speech here, whatever the silence: at the end of the stream, or when told to."""
        self.in_speech = False
        self._silence_start = None
        self._previous_end = self._position
        return SpeechEnd(self._position)
