"""Random words as a function of two integers, so that they are the same anywhere and at any time.

SplitMix64 read by counter: word i of a draw is the mix of ``start + i * GAMMA``, and the start of
draw number n of a stream is the mix of ``key + n * GAMMA``. There is no state but the number of the
draw: nothing to share with the generators of torch, nothing a compiler cannot trace, the same words
on every device, and a run goes on where it stopped once it knows two integers.

References
----------
Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; the constants of the
mix are variant 13 of Stafford's.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

WORD_BITS = 32
"""Bits of a word: each mix gives two."""


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned integer below 2**64."""
    return word - (1 << 64) if word >> 63 else word


GAMMA = _signed(0x9E3779B97F4A7C15)
INVERSE_GAMMA = _signed(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
"""``GAMMA * INVERSE_GAMMA == 1`` in integers of 64 bits."""
ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))
"""Of the mix: how far bits are shifted down onto others, and what the sum is multiplied by."""


def stream_key(seed: int, name: str) -> int:
    """The key of a stream, an int64, from a seed of any size and a name."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def random_words(key: Tensor, n_draws: Tensor, n_words: int) -> Tensor:
    """Draw number ``n_draws`` of the stream ``key``.

    Parameters
    ----------
    key, n_draws : int64 tensors of shape ()
        On the device where words are wanted. They are not written.
    n_words : int
        How many words, at least 0.

    Returns
    -------
    words : int32 tensor of shape (n_words,)
        Uniform over all values of int32. More words of the same draw begin with these.
    """
    numbers = torch.arange((n_words + 1) // 2, dtype=torch.int64, device=key.device)
    return _mixes(key, n_draws, numbers).view(torch.int32)[:n_words]


def random_words_at(key: Tensor, n_draws: Tensor, numbers: Tensor) -> Tensor:
    """Some words of a draw: those of ``numbers`` (int64, any shape), as int32 of that shape."""
    pairs = _mixes(key, n_draws, numbers >> 1).unsqueeze(-1).view(torch.int32)
    return torch.where((numbers & 1).bool(), pairs[..., 1], pairs[..., 0])


def _mixes(key: Tensor, n_draws: Tensor, numbers: Tensor) -> Tensor:
    """The mixes of ``numbers`` in a draw, each two words."""
    start = _mix_(key + n_draws * GAMMA)
    # numbers * GAMMA + start, as a product of what is not known to a compiler: from a product of a
    # loop's counter, which must not overflow in C++, it would conclude that the loop is short.
    return _mix_((numbers + start * INVERSE_GAMMA).mul_(GAMMA))


def _mix_(words: Tensor) -> Tensor:
    """``words`` (int64) mixed in place: products wrap around, shifts are made logical."""
    for shift, factor in ROUNDS:
        words.bitwise_xor_((words >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            words.mul_(factor)
    return words
