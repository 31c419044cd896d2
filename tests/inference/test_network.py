"""Forward passes, each way that this machine can compute them, against openai-whisper's."""

import numpy as np
import pytest
import torch
import whisper
from numpy.typing import NDArray

from tests.conftest import MODELS, Speak
from whisper_byoc.inference.batched import log_mel
from whisper_byoc.inference.checkpoint import Checkpoint
from whisper_byoc.inference.network import MAX_FRAMES, Ask, Feed, Network
from whisper_byoc.inference.precision import Branch, open_network, runs_here

pytestmark = pytest.mark.model
BRANCHES = [
    pytest.param(
        branch,
        marks=[
            pytest.mark.skipif(not runs_here(branch), reason=f"no {branch} on this machine"),
            *([pytest.mark.cuda] if branch is Branch.FP16 else []),
        ],
    )
    for branch in Branch
]
TOLERANCE = {Branch.FP32: 1e-4, Branch.FP16: 0.02, Branch.AVX512: 0.2, Branch.AVX2: 0.2}
"""Mean difference of logits, which spread over 1.3; the weights of the last two are int8."""
PREFIX = [50257, 50362]
TEXT = [383, 4512, 284, 262, 25451, 5667, 379, 5193, 13]
TEXT_TOKENS = 50257
NUM_HEADS = 8
"""Alignment heads of tiny.en."""


@pytest.fixture(scope="module")
def mel(speak: Speak) -> torch.Tensor:
    return log_mel(speak("The train to the harbour leaves at nine."), MAX_FRAMES, 80)


@pytest.fixture(scope="module", params=BRANCHES)
def branch(request: pytest.FixtureRequest) -> Branch:
    chosen: Branch = request.param
    return chosen


@pytest.fixture(scope="module")
def network(branch: Branch) -> Network:
    device = "cuda" if branch is Branch.FP16 else "cpu"
    checkpoint = Checkpoint.load(MODELS / "tiny.en.pt", "tiny.en")
    return open_network(branch, checkpoint, device, threads=2, max_caches=8)


def ask_text(network: Network, index: int) -> Ask:
    mask = np.zeros(network.dims.n_vocab, dtype=np.float32)
    mask[TEXT_TOKENS:] = -np.inf
    return Ask(index, network.mask(mask))


def test_logits_are_whispers(network: Network, branch: Branch, mel: torch.Tensor) -> None:
    theirs = whisper.load_model(str(MODELS / "tiny.en.pt"), device="cpu")
    with torch.inference_mode():
        expected = theirs(mel[None], torch.tensor([[*PREFIX, *TEXT]]))[0]
    cache = network.open(network.encode(mel), 32)
    asks = [Ask(index) for index in range(len(PREFIX) + len(TEXT))]
    (choices,), logits = network.forward([Feed(cache, [*PREFIX, *TEXT], asks)])
    network.close(cache)
    difference = (logits.cpu() - expected).abs().mean()
    assert difference < TOLERANCE[branch]
    same = [choice.token for choice in choices] == expected.argmax(-1).tolist()
    assert same or branch is not Branch.FP32


def test_choices_are_the_best_of_what_the_mask_allows(network: Network, mel: torch.Tensor) -> None:
    cache = network.open(network.encode(mel), 8)
    asks = [Ask(0), ask_text(network, 1)]
    (answers,), logits = network.forward([Feed(cache, PREFIX, asks)])
    network.close(cache)
    for answer, row in zip(answers, (logits[0].cpu(), logits[1, :TEXT_TOKENS].cpu()), strict=True):
        assert answer.token == int(row.argmax())
        assert answer.logit == pytest.approx(float(row.max()), abs=1e-5)
        assert answer.log_sum == pytest.approx(float(row.logsumexp(-1)), abs=1e-4)


def test_nothing_is_chosen_where_nothing_may_come(network: Network, mel: torch.Tensor) -> None:
    cache = network.open(network.encode(mel), 8)
    nothing = network.mask(np.full(network.dims.n_vocab, -np.inf, dtype=np.float32))
    ((answer,),), _ = network.forward([Feed(cache, PREFIX, [Ask(1, nothing, num_best=3)])])
    network.close(cache)
    assert answer[:3] == (-1, -np.inf, -np.inf)
    assert not answer.best


@pytest.mark.parametrize("count", [1, 11, 100, 2000])
def test_the_best_are_in_order(network: Network, mel: torch.Tensor, count: int) -> None:
    cache = network.open(network.encode(mel), 8)
    asks = [Ask(0, num_best=count), ask_text(network, 1)._replace(num_best=count)]
    (answers,), logits = network.forward([Feed(cache, PREFIX, asks)])
    network.close(cache)
    rows = logits[0].cpu(), logits[1, :TEXT_TOKENS].cpu()
    for answer, row in zip(answers, rows, strict=True):
        expected = row.sort(descending=True, stable=True)
        assert [logit for _, logit in answer.best] == pytest.approx(
            expected.values[:count].tolist()
        )
        assert [float(row[token]) for token, _ in answer.best] == pytest.approx(
            [logit for _, logit in answer.best]
        )
        assert len({token for token, _ in answer.best}) == count
        assert answer.best[0][0] == answer.token


def test_as_many_are_named_as_may_come(network: Network, mel: torch.Tensor) -> None:
    mask = np.full(network.dims.n_vocab, -np.inf, dtype=np.float32)
    mask[[7, 50000]] = 0
    cache = network.open(network.encode(mel), 8)
    ask = Ask(1, network.mask(mask), num_best=5)
    ((answer,),), _ = network.forward([Feed(cache, PREFIX, [ask])])
    network.close(cache)
    assert sorted(token for token, _ in answer.best) == [7, 50000]


def test_a_fork_goes_on_as_if_it_had_been_alone(
    network: Network, branch: Branch, mel: torch.Tensor
) -> None:
    """In the C branches to the last bit, whatever its relatives were fed."""
    encoded = network.encode(mel[:, :500].contiguous(), network.tail(-1.0))
    endings = [TEXT[4:], TEXT[3::-1], [1000, *TEXT[5:]]]
    ask = ask_text(network, 0)._replace(num_best=4)
    expected = []
    for ending in endings:
        alone = network.open(encoded, 32)
        network.forward([Feed(alone, [*PREFIX, *TEXT[:4]], [])])
        expected.append([network.forward([Feed(alone, [it], [ask])])[0][0][0] for it in ending])
        network.close(alone)
    root = network.open(encoded, 32, forks=3)
    network.forward([Feed(root, [*PREFIX, *TEXT[:4]], [])])
    first = network.fork(root)
    gone = network.fork(first)
    caches = [root, first, network.fork(root)]
    network.forward([Feed(gone, [5], [])])
    network.close(gone)
    for place in range(4):
        feeds = [
            Feed(cache, [ending[place]], [ask])
            for cache, ending in zip(caches, endings, strict=True)
        ]
        found, _ = network.forward(feeds)
        for (answer,), answers in zip(found, expected, strict=True):
            if branch in (Branch.AVX512, Branch.AVX2):
                assert answer == answers[place]
            assert answer.token == answers[place].token
            assert answer.logit == pytest.approx(answers[place].logit, abs=0.05)
    looked = root.attention(1, 6)
    assert np.allclose(looked.sum(-1), 1, atol=1e-3)
    for cache in caches:
        network.close(cache)


def test_what_a_cache_takes_back_its_forks_keep(network: Network, mel: torch.Tensor) -> None:
    encoded = network.encode(mel[:, :500].contiguous())
    straight = network.open(encoded, 32)
    ask = ask_text(network, 0)
    network.forward([Feed(straight, [*PREFIX, *TEXT[:4]], [])])
    (expected,), _ = network.forward([Feed(straight, TEXT[4:5], [ask])])
    root = network.open(encoded, 32, forks=1)
    network.forward([Feed(root, [*PREFIX, *TEXT[:4]], [])])
    fork = network.fork(root)
    root.length = len(PREFIX)
    network.forward([Feed(root, [1000, 2000, 3000, 4000, 5000], [])])
    (found,), _ = network.forward([Feed(fork, TEXT[4:5], [ask])])
    assert found[0].token == expected[0].token
    assert found[0].logit == pytest.approx(expected[0].logit, abs=0.05)
    for cache in (straight, root, fork):
        network.close(cache)


def test_there_are_as_many_forks_as_were_asked_for(network: Network, mel: torch.Tensor) -> None:
    encoded = network.encode(mel[:, :200].contiguous())
    for _ in range(3):  # closing gives all of it back, in whichever order
        root = network.open(encoded, 16, forks=2)
        network.forward([Feed(root, PREFIX, [])])
        first, second = network.fork(root), network.fork(root)
        with pytest.raises(ValueError, match="as many forks are open"):
            network.fork(first)
        network.close(second)
        network.close(second)
        third = network.fork(first)
        for cache in (root, third, first):
            network.close(cache)
        with pytest.raises(ValueError, match="closed cache is forked"):
            network.fork(first)


def test_a_token_at_a_time_is_the_same_as_all_at_once(network: Network, mel: torch.Tensor) -> None:
    encoded = network.encode(mel)
    whole, stepwise = network.open(encoded, 32), network.open(encoded, 32)
    tokens = [*PREFIX, *TEXT]
    last = len(tokens) - 1
    (at_once,), _ = network.forward([Feed(whole, tokens, [ask_text(network, last)])])
    for token in tokens:
        (one_by_one,), _ = network.forward([Feed(stepwise, [token], [ask_text(network, 0)])])
    assert one_by_one[0].token == at_once[0].token
    assert one_by_one[0].logit == pytest.approx(at_once[0].logit, abs=0.05)
    looked = whole.attention(1, last)
    assert looked.shape[:2] == (NUM_HEADS, last - 1)
    assert looked.shape[2] >= MAX_FRAMES
    assert np.allclose(looked.sum(-1), 1, atol=1e-3)
    assert np.abs(looked - stepwise.attention(1, last)).max() < 0.05
    network.close(whole)
    network.close(stepwise)


def test_what_is_taken_back_leaves_no_trace(network: Network, mel: torch.Tensor) -> None:
    encoded = network.encode(mel)
    straight, wrong = network.open(encoded, 32), network.open(encoded, 32)
    ask = ask_text(network, 3)
    (expected,), _ = network.forward([Feed(straight, [*PREFIX, *TEXT[:2]], [ask])])
    network.forward([Feed(wrong, [*PREFIX, 1000, 2000, 3000], [])])
    wrong.length = len(PREFIX)
    (found,), _ = network.forward([Feed(wrong, TEXT[:2], [ask._replace(at=1)])])
    assert found[0].token == expected[0].token
    assert found[0].logit == pytest.approx(expected[0].logit, abs=0.05)
    network.close(straight)
    network.close(wrong)


def test_a_window_does_not_depend_on_its_neighbours(
    network: Network, branch: Branch, mel: torch.Tensor
) -> None:
    """In the C branches to the last bit: their sums are of integers, or within a row."""
    short = network.encode(mel[:, :200].contiguous())
    tail = network.tail(-1.0)
    sized = network.encode(mel[:, :500].contiguous(), tail)
    alone = network.open(sized, 100)
    ask = ask_text(network, 10)
    (expected,), _ = network.forward([Feed(alone, [*PREFIX, *TEXT], [ask])])
    network.close(alone)
    caches = [network.open(encoded, 100) for encoded in (short, sized, short, sized)]
    feeds = [
        Feed(caches[0], [*PREFIX, *TEXT, *TEXT * 4], [ask_text(network, 3)]),
        Feed(caches[1], [*PREFIX, *TEXT], [ask]),
        Feed(caches[2], PREFIX, []),
        Feed(caches[3], [*PREFIX, *TEXT], [ask]),
    ]
    answers, _ = network.forward(feeds)
    for cache in caches:
        network.close(cache)
    assert [len(answer) for answer in answers] == [1, 1, 0, 1]
    for found in (answers[1][0], answers[3][0]):
        if branch in (Branch.AVX512, Branch.AVX2):
            assert found == expected[0]
        assert found.token == expected[0].token
        assert found.logit == pytest.approx(expected[0].logit, abs=0.05)


def test_more_tokens_than_one_pass_takes(network: Network, mel: torch.Tensor) -> None:
    tokens = [50360, *TEXT * 15, *PREFIX]
    encoded = network.encode(mel)
    whole, parts = network.open(encoded, 200), network.open(encoded, 200)
    asks = [Ask(3), ask_text(network, len(tokens) - 1)]
    (at_once,), logits = network.forward([Feed(whole, tokens, asks)])
    assert len(logits) == 2
    for first in range(0, len(tokens), 10):
        part = tokens[first : first + 10]
        (stepwise,), _ = network.forward([Feed(parts, part, [ask_text(network, len(part) - 1)])])
    assert stepwise[0].token == at_once[1].token
    network.close(whole)
    network.close(parts)


def test_a_thin_tail_stands_for_the_silence_behind(network: Network, mel: torch.Tensor) -> None:
    """What the decoder hears of speech and thinned silence is near what it hears of 30 s."""
    silence = float(mel[:, -1].max())
    tail = network.tail(silence)
    frames = 250
    sized = network.encode(mel[:, : 2 * frames].contiguous(), tail)
    answers = []
    for encoded in (sized, network.encode(mel)):
        cache = network.open(encoded, 32)
        asks = [ask_text(network, index) for index in range(1, 2 + len(TEXT))]
        (choices,), _ = network.forward([Feed(cache, [*PREFIX, *TEXT], asks)])
        network.close(cache)
        answers.append([choice.token for choice in choices])
    assert sized.num_frames == frames
    same = sum(a == b for a, b in zip(*answers, strict=True))
    assert same >= len(answers[0]) - 1


def test_windows_of_any_length(network: Network) -> None:
    tail = network.tail(-1.5)
    noise = torch.randn(80, 3000, generator=torch.Generator().manual_seed(1))
    for frames in (1, 2, 7, 15, 16, 17, 63, 64, 65, 1487, 1492, 1493, 1499, 1500):
        encoded = network.encode(noise[:, : 2 * frames].contiguous(), tail)
        cache = network.open(encoded, 4)
        (answers,), logits = network.forward([Feed(cache, PREFIX, [Ask(1)])])
        network.close(cache)
        assert encoded.num_frames == frames
        assert bool(torch.isfinite(logits).all()), frames
        assert 0 <= answers[0].token < network.dims.n_vocab


def test_queries_look_where_the_sound_is(network: Network, mel: torch.Tensor) -> None:
    cache = network.open(network.encode(mel), 32)
    network.forward([Feed(cache, [*PREFIX, *TEXT], [])])
    looked = cache.attention(1, 1 + len(TEXT))[:, :, :150]
    network.close(cache)
    centres: NDArray[np.float64] = (looked * np.arange(150)).sum(-1).mean(0) / looked.sum(-1).mean(
        0
    )
    assert centres[-2] > centres[0] + 20


@pytest.mark.parametrize("num_tokens", [150, 448])
def test_a_text_may_have_more_tokens_than_its_window_has_frames(
    network: Network, branch: Branch, mel: torch.Tensor, num_tokens: int
) -> None:
    """Beside a window of 30 s there is room for its scores in any case."""
    second = network.encode(mel[:, :100].contiguous())
    tokens = ([*PREFIX, *TEXT * 50])[:num_tokens]
    ask = ask_text(network, num_tokens - 1)
    alone, beside, long = (
        network.open(encoded, 448) for encoded in (second, second, network.encode(mel))
    )
    (expected, _), _ = network.forward([Feed(beside, tokens, [ask]), Feed(long, PREFIX, [])])
    (found,), _ = network.forward([Feed(alone, tokens, [ask])])
    if branch in (Branch.AVX512, Branch.AVX2):
        assert found == expected
    assert found[0].token == expected[0].token
    assert found[0].logit == pytest.approx(expected[0].logit, abs=0.05)
    for cache in (alone, beside, long):
        network.close(cache)


FITTING = [*PREFIX, *TEXT]


@pytest.mark.parametrize(
    ("tokens", "places", "length", "problem"),
    [
        pytest.param([], [], 0, "has no tokens, expected at least one", id="no tokens"),
        pytest.param([-1], [], 0, "has token -1, expected one of 0 to 51863", id="token -1"),
        pytest.param([51864], [], 0, "has token 51864, expected", id="behind the vocabulary"),
        pytest.param(FITTING, [], 6, "has positions 6 to 16 .* 0 to 15", id="no room left"),
        pytest.param(FITTING, [], -1, "has positions -1 to 9", id="before the first"),
        pytest.param(FITTING, [3, 11], 0, r"asked at \[3, 11\], expected", id="asked behind it"),
        pytest.param(FITTING, [-1], 0, "asked at", id="asked before it"),
        pytest.param(FITTING, [3, 2], 0, "asked at", id="asked out of order"),
        pytest.param(FITTING, [3, 3], 0, "asked at", id="asked twice"),
    ],
)
def test_what_does_not_fit_is_refused(
    network: Network,
    mel: torch.Tensor,
    tokens: list[int],
    places: list[int],
    length: int,
    problem: str,
) -> None:
    """Before anything is computed: the neighbour, and the cache itself, go on as if not asked."""
    encoded = network.encode(mel[:, :200].contiguous())
    cache, neighbour = network.open(encoded, 16), network.open(encoded, 16)
    cache.length = length
    wrong = Feed(cache, tokens, [Ask(place) for place in places])
    with pytest.raises(ValueError, match=problem):
        network.forward([Feed(neighbour, PREFIX, []), wrong])
    assert (cache.length, neighbour.length) == (length, 0)
    cache.length = 0
    network.forward([Feed(cache, FITTING, []), Feed(neighbour, FITTING, [])])
    for opened in (cache, neighbour):
        network.close(opened)


def test_a_cache_is_fed_while_it_is_open_and_once_a_pass(
    network: Network, mel: torch.Tensor
) -> None:
    encoded = network.encode(mel[:, :200].contiguous())
    cache = network.open(encoded, 16)
    with pytest.raises(ValueError, match="fed twice in one pass"):
        network.forward([Feed(cache, PREFIX, []), Feed(cache, PREFIX, [])])
    with pytest.raises(ValueError, match="no feeds, expected at least one"):
        network.forward([])
    network.close(cache)
    network.close(cache)
    with pytest.raises(ValueError, match="closed cache is fed, expected an open one"):
        network.forward([Feed(cache, PREFIX, [])])
    # Closing twice gave back one place, not two.
    first, second = network.open(encoded, 16), network.open(encoded, 16)
    (alone,), _ = network.forward([Feed(first, PREFIX, [Ask(1)])])
    both, _ = network.forward([Feed(second, PREFIX, [Ask(1)])])
    assert both[0][0].token == alone[0].token
    for opened in (first, second):
        network.close(opened)


@pytest.mark.parametrize("positions", [0, -1, 449])
def test_a_cache_has_the_decoders_positions(
    network: Network, mel: torch.Tensor, positions: int
) -> None:
    with pytest.raises(ValueError, match=f"positions is {positions}, expected 1 to 448"):
        network.open(network.encode(mel[:, :200].contiguous()), positions)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        pytest.param((80, 0), r"mel is \(80, 0\), expected \(80, 2n\)", id="nothing"),
        pytest.param((80, 3), "mel is", id="half a frame"),
        pytest.param((80, 3002), "mel is", id="more than 30 s"),
        pytest.param((128, 200), "mel is", id="another number of mels"),
    ],
)
def test_a_mel_of_another_shape_is_refused(
    network: Network, shape: tuple[int, int], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        network.encode(torch.zeros(shape))


def test_a_mel_is_of_finite_numbers(network: Network) -> None:
    mel = torch.zeros(80, 200)
    mel[7, 7] = torch.nan
    with pytest.raises(ValueError, match="expected finite ones"):
        network.encode(mel)
