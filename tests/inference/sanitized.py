"""Drive a library of the C with windows of every shape; run by test_native.py under sanitizers.

`python sanitized.py LIBRARY` prints "clean" when it gets to its end.
"""

import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from whisper.model import ModelDimensions, Whisper

from tests.conftest import MODELS
from whisper_byoc.inference.batched import log_mel
from whisper_byoc.inference.checkpoint import Checkpoint, Dimensions
from whisper_byoc.inference.engine import read_warm_up_clip
from whisper_byoc.inference.native import Library, NativeEncoded, NativeNetwork
from whisper_byoc.inference.network import MAX_FRAMES, Ask, Feed

PREFIX = [257, 362]
SMALL = Dimensions(80, MAX_FRAMES, 128, 2, 1, 1003, 448, 128, 2, 2)
"""Enough to have several heads and layers, and a vocabulary that fills no tile."""
FRAMES = (1, 15, 16, 17, 65, MAX_FRAMES)


def drive(network: NativeNetwork, mel: torch.Tensor) -> None:
    """Windows of one frame to 1500, with a tail and without; texts of up to 448 tokens, passes of
    more than 64 rows, and steps of many windows."""
    tail = network.tail(-1.0)
    mask = network.mask(np.zeros(network.dims.n_vocab, dtype=np.float32))
    encoded = [network.encode(mel[:, : 2 * frames].contiguous(), tail) for frames in FRAMES]
    encoded += [network.encode(mel[:, : 2 * frames].contiguous()) for frames in FRAMES[:-1]]
    caches = [network.open(window, 448) for window in encoded]
    network.forward([Feed(cache, PREFIX, [Ask(0), Ask(1, mask)]) for cache in caches])
    network.forward([Feed(cache, [383], [Ask(0, mask)]) for cache in caches])
    for first, last in pairwise((3, 30, 131, 448)):
        asks = [Ask(0, mask), Ask(last - first - 1, mask)]
        feeds = [Feed(cache, range(last - first), asks) for cache in (caches[0], caches[-1])]
        network.forward(feeds)
    caches[0].attention(0, 448)
    drive_beams(network, encoded, mask)
    for cache in caches:
        network.close(cache)


def drive_beams(network: NativeNetwork, encoded: list[NativeEncoded], mask: int) -> None:
    """Forks of forks, of windows of every length, up to the last position, with the best of all."""
    size = network.dims.n_vocab
    for window in encoded:
        root = network.open(window, 14, forks=8)
        network.forward([Feed(root, PREFIX, [Ask(1, mask, 10)])])
        beams = [network.fork(root) for _ in range(8)]
        for place, count in enumerate((1, 7, size)):
            network.forward([Feed(beam, [place], [Ask(0, mask, count)]) for beam in beams])
            for beam in beams[1::2]:
                network.close(beam)
            beams = [beam for kept in beams[::2] for beam in (kept, network.fork(kept))]
        network.forward([Feed(beam, range(9), [Ask(8, None, 3)]) for beam in beams])
        network.forward([Feed(root, range(12), [])])
        root.attention(0, 14)
        for cache in (*beams, root):
            network.close(cache)


def small_weights(dims: Dimensions) -> dict[str, torch.Tensor]:
    """Random ones, of Whisper's names and shapes."""
    torch.manual_seed(1)
    return {
        name: torch.randn(values.shape) * 0.1
        for name, values in Whisper(ModelDimensions(**asdict(dims))).state_dict().items()
    }


def main() -> None:
    torch.set_num_threads(1)
    library = Library(Path(sys.argv[1]))
    noise = torch.randn(80, 2 * MAX_FRAMES, generator=torch.Generator().manual_seed(1))
    small = Checkpoint(SMALL, small_weights(SMALL), [(0, 1), (1, 0)])
    for threads in (1, 2, 3):
        drive(NativeNetwork(small, library, threads), noise)
    network = NativeNetwork(Checkpoint.load(MODELS / "tiny.en.pt", "tiny.en"), library, threads=2)
    cache = network.open(network.encode(log_mel(read_warm_up_clip(), 150, 80)), 8)
    network.forward([Feed(cache, PREFIX, [Ask(1)])])
    network.close(cache)
    print("clean")


if __name__ == "__main__":
    main()
