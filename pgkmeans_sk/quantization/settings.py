"""What the steps need to know of a quantizer's parameters, and the records they pass on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.quantization.codebooks import Trainer

LARGEST_LOSS = 1e-2
"""What rounding to a codebook's dtype may change at most, relative to the codebook."""


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """Parameters of a ``ProductQuantizer``, validated.

    ``train`` is who finds code words if it is not PG k-means.
    """

    block_size: int
    n_codes: int
    is_shared: bool
    n_stages: int
    rotation: str | None
    scale: str | None
    max_iter: int
    max_rows: int | None
    codebook_dtype: np.dtype[Any]
    output_dtype: np.dtype[Any]
    train: Trainer | None

    def stored(self, values: NDArray[np.floating], name: str) -> NDArray[np.floating]:
        """``values`` in the codebooks' dtype: what is stored is what is used."""
        return rounded_to(self.codebook_dtype, values, name)


def rounded_to(dtype: Any, values: NDArray[np.floating], name: str) -> NDArray[np.floating]:
    """``values`` in the dtype of a codebook.

    Raises
    ------
    ValueError
        If that dtype cannot hold them: float16 ends at 65504, and loses digits below 6e-5.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    lost = np.linalg.norm((stored.astype(np.float64) - values).ravel())
    if not lost <= LARGEST_LOSS * np.linalg.norm(values.astype(np.float64).ravel()):
        raise ValueError(
            f"Got codebook_dtype={np.dtype(dtype).name!r}, but expected a wider one: it cannot "
            f"hold {name} with values up to {np.abs(values).max():.3g} to within 1 %."
        )
    return stored
