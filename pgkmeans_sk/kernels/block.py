"""Working memory for a block of rows, which ``pruned.py`` takes through its steps together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pgkmeans_sk.kernels.bounds import CHUNK
from pgkmeans_sk.kernels.compile import part

SPARE = 8
"""Room at the end of a list: rows are looked at by batches of at most so many."""


class Block(NamedTuple):
    """Working memory for a block of R rows; ``float`` is the data's dtype."""

    shifted: np.ndarray  # (R * d,) float, rows minus the origin
    rounded: np.ndarray  # (R * (d or d + 1),) int16, the same in row units of ``integer_panels.py``
    norms: np.ndarray  # (R,) float, their squared norms
    at_least: np.ndarray  # (R,) float, value plus this is not more than a squared distance
    own_sq: np.ndarray  # (R,) float, squared distance to the own centre, about
    limits: np.ndarray  # (R,) int32, that distance in units, rounded up; at most LARGEST
    own: np.ndarray  # (R,) int32, position of the own centre; -1 for none
    best: np.ndarray  # (R,) float, least value found
    best_at: np.ndarray  # (R,) int32, its position
    second: np.ndarray  # (R,) float, least value of the other groups
    masks: np.ndarray  # (G / CHUNK * R,) int64, which groups of a chunk a row has to look at
    counts: np.ndarray  # (G,) int64, rows on each group's list
    lists: np.ndarray  # (G * (R + SPARE),) int32
    least: np.ndarray  # (R + SPARE,) float, least value of a group for each row on its list
    least_at: np.ndarray  # (R + SPARE,) int32, its position
    gathered: np.ndarray  # (R + SPARE,) float, norms of the rows on a list
    units: np.ndarray  # (R + SPARE,) int32, their new bounds
    least_here: np.ndarray  # (R + SPARE,) float, the same of one panel
    least_here_at: np.ndarray  # (R + SPARE,) int32
    listed: np.ndarray  # (R,) int32, rows on any list
    challenged: np.ndarray  # (R,) int32, rows that may belong to another centre


@part
def new_block(size, n_features, n_groups, like):
    """Working memory for blocks of ``size`` rows, in the dtype of the array ``like``."""
    spare = size + SPARE
    return Block(
        np.empty(size * n_features, like.dtype),
        np.empty(size * (n_features + n_features % 2), np.int16),
        np.empty(size, like.dtype),
        np.empty(size, like.dtype),
        np.empty(size, like.dtype),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.empty(size, like.dtype),
        np.empty(size, np.int32),
        np.empty(size, like.dtype),
        np.empty(n_groups // CHUNK * size, np.int64),
        np.zeros(n_groups, np.int64),
        np.empty(n_groups * spare, np.int32),
        np.empty(spare, like.dtype),
        np.empty(spare, np.int32),
        np.empty(spare, like.dtype),
        np.empty(spare, np.int32),
        np.empty(spare, like.dtype),
        np.empty(spare, np.int32),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
    )
