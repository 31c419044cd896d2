"""The safety ladder: which texts of the decoder are not believed, and what is tried next (pure).

Thresholds and temperatures are those of openai-whisper's `transcribe`.
"""

from whisper_byoc.decode import MAX_NO_SPEECH_PROBABILITY, MIN_AVG_LOGPROB, Trip
from whisper_byoc.loops import is_loop

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MAX_RATIO_OF_WHOLE_TEXT = 4.0
"""Text that fills the decoder's positions compresses up to 3.2 times, in Tamil; circles more."""


def find_trip(
    text: str,
    compression_ratio: float,
    no_speech_prob: float,
    avg_logprob: float,
    complete: bool = True,
) -> Trip | None:
    """Why a text asks for another attempt; None when it does not.

    complete: whether it has an end, and not just filled the decoder's positions. Text without
    spaces, in which no words can be seen to come again, is then known by its compression.
    """
    if text and is_loop(text.split(), compression_ratio):
        return Trip.LOOP
    if not complete and compression_ratio > _MAX_RATIO_OF_WHOLE_TEXT:
        return Trip.LOOP
    silent = no_speech_prob > MAX_NO_SPEECH_PROBABILITY
    return Trip.IMPROBABLE if avg_logprob < MIN_AVG_LOGPROB and not silent else None
