"""What every set of weights offers to the engine."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from whisper_byoc.decode import DecodeRequest, Hypothesis
from whisper_byoc.errors import DecodeError
from whisper_byoc.inference.batch_thread import Steps


class Model(Protocol):
    """Synchronous weights; used by the engine's thread alone.

    name: Whisper's name of the weights. branch: how they compute here. languages: codes that it can
    transcribe; more than one also means that it can detect them and translate. max_batch: requests
    worth decoding together.
    """

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def branch(self) -> str: ...

    @property
    def languages(self) -> frozenset[str]: ...

    @property
    def max_batch(self) -> int: ...

    def decode(self, requests: Sequence[DecodeRequest]) -> Sequence[Hypothesis | DecodeError]:
        """One answer for each request, in order; a request that fails harms no other."""
        ...


@runtime_checkable
class SteppingModel(Model, Protocol):
    """A model that may be left for a while in the middle of a batch, to decode another."""

    def decode_in_steps(self, requests: Sequence[DecodeRequest]) -> Steps[Hypothesis]:
        """What `decode` gives; a step takes one window through the encoder, or some tokens of
        several through the decoder. Closing it gives everything back."""
        ...
