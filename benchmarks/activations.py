"""Token activations of the real model on real sentences: the points of the case "activations".

The sentences are those of public GLUE tasks, as plain files: ``SST-2/{train,dev}.tsv`` (label,
sentence), ``CoLA/{train,dev}.tsv`` (source, label, mark, sentence), ``RTE/{train,dev}.tsv`` (index,
two sentences, label; with a header) and ``STS-B/{train,dev}.csv`` (four columns, score, two
sentences), all separated by tabs. They are not part of this project: the folder is named by the
environment variable PGKMEANS_GLUE, else it is ../shared/data/glue beside the checkout; if there is
none, the case is skipped. Once computed, the array comes from the cache, whatever the folder.

``python -m benchmarks.activations`` checks the forward pass: on STS-B's dev set, the rank
correlation of cosine similarities with the judgement of people.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER_VARIABLE = "PGKMEANS_GLUE"
DEFAULT_FOLDER = Path(__file__).parents[2] / "shared" / "data" / "glue"  # beside the checkout
CACHE = Path(__file__).parent / "cache"  # git-ignored
N_TOKENS = 200_000

# File name without "train" or "dev", lines before the first sentence, columns that are sentences.
_TASKS = (
    ("SST-2/{}.tsv", 0, (1,)),
    ("CoLA/{}.tsv", 0, (3,)),
    ("RTE/{}.tsv", 1, (1, 2)),
    ("STS-B/{}.csv", 0, (5, 6)),
)
_STS_SCORE = 4


def glue_folder() -> Path:
    """Return the folder of the sentences, or say how to name it."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no sentences in {folder}: set {FOLDER_VARIABLE} to a folder with the GLUE tasks "
            "SST-2, CoLA, RTE and STS-B"
        )
    return folder


def _fields(path: Path, n_skipped: int) -> Iterator[list[str]]:
    for line in path.read_text("utf-8").split("\n")[n_skipped:]:
        if line.strip():
            yield line.rstrip("\r").split("\t")


def sentences() -> list[str]:
    """Return all distinct sentences, in the order of the files."""
    folder = glue_folder()
    found: dict[str, None] = {}
    for pattern, n_skipped, columns in _TASKS:
        for part in ("train", "dev"):
            for fields in _fields(folder / pattern.format(part), n_skipped):
                found.update((fields[column].strip(), None) for column in columns)
    found.pop("", None)
    return list(found)


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
    texts = sentences()
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


def sts_correlation() -> float:
    """Return Spearman's correlation of cosine similarity and human score on STS-B's dev set."""
    from scipy.stats import spearmanr

    from benchmarks.minilm import MiniLM

    rows = list(_fields(glue_folder() / "STS-B" / "dev.csv", 0))
    model = MiniLM()
    left, right = (model.embed([row[column] for row in rows]) for column in _TASKS[-1][2])
    scores = [float(row[_STS_SCORE]) for row in rows]
    return float(spearmanr((left * right).sum(axis=1), scores).statistic)


if __name__ == "__main__":
    sys.stdout.write(f"STS-B dev, Spearman: {sts_correlation():.4f}\n")
