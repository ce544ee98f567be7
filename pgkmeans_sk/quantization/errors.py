"""How far decoded rows are from what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.engines.closest import sq_lengths

NUMBERS_AT_ONCE = 2**18
"""Values that are decoded at a time, so that no second matrix as large as the first is needed."""


def sq_errors(
    decoder: Decoder, X: NDArray[np.floating], codes: NDArray[Any]
) -> NDArray[np.float64]:
    """Squared distance of each row of ``X`` (n, d) to what its codes decode to, (n,)."""
    errors = np.empty(len(X))
    step = max(1, NUMBERS_AT_ONCE // X.shape[1])
    for start in range(0, len(X), step):
        some = slice(start, start + step)
        decoded = decoder.decode(codes[some])
        errors[some] = sq_lengths(np.subtract(X[some], decoded, dtype=np.float64))
    return errors
