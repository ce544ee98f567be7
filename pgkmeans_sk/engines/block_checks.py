"""What blocks of rows may hold, and what becomes of them before they are worked on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.validation import LARGEST_ROW


def problem_of_block(rows: Any, name: str, first: int, n_features: int) -> str | None:
    """What is wrong with a block, as an error would say it; None if nothing is.

    ``name`` is what to call the block, ``first`` the number of its first row.
    """
    if not isinstance(rows, np.ndarray):
        return f"Got {name} of type {type(rows).__name__}, but expected a dense array."
    if rows.ndim != 2 or rows.shape[1] != n_features:
        return f"Got {name} of shape {rows.shape}, but expected (rows, {n_features})."
    if rows.dtype.kind not in "fiub":
        return f"Got {name} of dtype {rows.dtype}, but expected real numbers."
    if not rows.size:
        return None
    largest = max(float(rows.max()), -float(rows.min()))
    if np.isfinite(largest) and largest <= LARGEST_ROW:
        return None
    is_bad = ~np.isfinite(rows) if not np.isfinite(largest) else np.abs(rows) > LARGEST_ROW
    bad = int(np.argmax(is_bad.any(axis=1)))
    row = rows[bad]
    what = "NaN" if np.isnan(row).any() else "infinity" if np.isinf(row).any() else None
    if what is not None:
        return (
            f"Input X contains {what}: got it in {name}, row {first + bad} of all, but expected "
            "finite numbers."
        )
    return (
        f"Got X with a value of size {np.abs(row).max():.3g} in {name}, row {first + bad} of all, "
        f"but expected at most {LARGEST_ROW:.0e}: squared distances beyond it overflow float64."
    )


def work_dtype(dtype: Any) -> type:
    """The dtype that rows are worked on in, as ``PGKMeans.fit`` describes it."""
    stored = np.dtype(dtype)
    is_short = stored.kind == "f" and stored.itemsize <= 4
    return np.float32 if is_short else np.float64


def prepared_rows(
    rows: Any, dtype: Any, prepare: Callable[[Any], Any] | None
) -> NDArray[np.floating]:
    """The rows in the dtype of the work, and as the metric sees them."""
    converted = np.asarray(rows, dtype=dtype)
    return converted if prepare is None else np.asarray(prepare(converted))
