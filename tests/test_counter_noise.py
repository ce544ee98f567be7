"""Words from a counter: those of SplitMix64, uniform, and the same however they are asked for."""

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from pgkmeans_sk.nn.counter_noise import (  # noqa: E402  (after the check for torch)
    random_words,
    random_words_at,
    stream_key,
)

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """SplitMix64's, in integers without a width."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def draw(seed: int, name: str, n_draws: int, n_words: int) -> np.ndarray:
    key = torch.tensor(stream_key(seed, name))
    return random_words(key, torch.tensor(n_draws), n_words).numpy()


def test_words_are_those_of_split_mix():
    key = stream_key(3, "layer.weight") & MASK
    start = mix((key + 5 * GAMMA) & MASK)
    mixes = [mix((start + i * GAMMA) & MASK) for i in range(4)]
    expected = [half for word in mixes for half in (word & 0xFFFFFFFF, word >> 32)]
    words = draw(3, "layer.weight", 5, 7)
    assert words.dtype == np.int32
    assert words.view(np.uint32).tolist() == expected[:7]


def test_no_words():
    assert draw(0, "w", 1, 0).shape == (0,)


def test_words_may_be_asked_for_by_number():
    key, n_draws = torch.tensor(stream_key(0, "w")), torch.tensor(9)
    all_words = random_words(key, n_draws, 1000)
    numbers = torch.tensor([[0, 999, 500], [1, 501, 500]])
    assert torch.equal(random_words_at(key, n_draws, numbers), all_words[numbers])
    assert (key, n_draws) == (stream_key(0, "w"), 9)  # neither was written
    assert numbers.tolist() == [[0, 999, 500], [1, 501, 500]]


def test_keys_depend_on_seed_and_name():
    keys = {stream_key(seed, name) for seed in (0, 1, 2**80) for name in ("a.weight", "b.weight")}
    assert len(keys) == 6
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_words_and_pairs_of_them_are_uniform():
    p_values = []
    for n_draws in range(5):
        uniform = (draw(1, "w", n_draws, 200_000).astype(np.float64) + 2**31) / 2**32
        counts = np.histogram(uniform, bins=256, range=(0, 1))[0]
        p_values.append(stats.chisquare(counts).pvalue)
        for step in (1, 2):  # halves of a mix, and mixes that follow one another
            pairs = np.histogram2d(uniform[:-step], uniform[step:], 16, ((0, 1), (0, 1)))[0]
            p_values.append(stats.chisquare(pairs.ravel()).pvalue)
    assert min(p_values) > 1e-4
    assert max(p_values) < 1 - 1e-4  # more even than chance would be as bad


@pytest.mark.parametrize("other", [("w", 2), ("v", 1)], ids=["next draw", "other stream"])
def test_draws_are_independent(other):
    n = 100_000
    first = draw(0, "w", 1, n) < 0
    second = draw(0, *other, n) < 0
    agreeing = int((first == second).sum())
    assert abs(agreeing - n / 2) < 5 * np.sqrt(n) / 2
