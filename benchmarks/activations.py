"""Token activations of the real model on real sentences: the points of the case "activations".

The sentences are those of ``glue.py``; without them the case is skipped. Once computed, the array
comes from the cache, whatever the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import glue

CACHE = Path(__file__).parent / "cache"  # git-ignored
N_TOKENS = 200_000


def load() -> NDArray[np.float32]:
    """Return the activations (200 000, 384), computed once and then read from the cache."""
    path = CACHE / f"activations-{N_TOKENS}.npy"
    if not path.is_file():
        points = _compute()
        CACHE.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npy")
        np.save(unfinished, points)
        unfinished.replace(path)  # a run that is cut off leaves no half file under the real name
    points = np.load(path)
    return points


def _compute() -> NDArray[np.float32]:
    """Run the model on sentences drawn in random order, until there are enough tokens."""
    texts = glue.sentences()
    from benchmarks.minilm import MiniLM  # needs torch, the sentences come first

    model = MiniLM()
    drawn: list[str] = []
    n_tokens = 0
    for index in np.random.default_rng(0).permutation(len(texts)):
        drawn.append(texts[index])
        n_tokens += len(model.tokenizer.encode(texts[index]))
        if n_tokens >= N_TOKENS:
            break
    else:
        raise FileNotFoundError(f"the sentences have {n_tokens} tokens, {N_TOKENS} are needed")
    by_sentence = dict(model.activations(drawn))
    return np.concatenate([by_sentence[index] for index in range(len(drawn))])[:N_TOKENS]
