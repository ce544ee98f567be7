"""What tensors must be like to be clustered; the messages are scikit-learn's, as for arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import _num_samples, validate_data

from pgkmeans_sk.array_kinds import is_tensor
from pgkmeans_sk.engines.torch_memory import block_rows, blocks
from pgkmeans_sk.engines.torch_rows import (
    FLOATS,
    check_rows_are_dense,
    computes_in_float64,
    exact_place,
    shared_tensor,
)
from pgkmeans_sk.validation import LARGEST_ROW, check_sums_of_weights, check_weights


def check_tensor_rows(estimator: Any, X: torch.Tensor, *, reset: bool) -> torch.Tensor:
    """The rows ``X`` (n, d), detached; integers become float64, floats stay as they are.

    On a device without float64 integers become float32.

    With ``reset``, ``n_features_in_`` is set on the estimator, else compared with it.
    """
    check_rows_are_dense(X)
    if X.is_complex():
        raise ValueError(f"Complex data not supported\nGot a tensor of dtype {X.dtype}.")
    if X.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {X.ndim}D array instead: a tensor of shape {tuple(X.shape)}. "
            "Reshape your data either using X.reshape(-1, 1) if your data has a single feature or "
            "X.reshape(1, -1) if it contains a single sample."
        )
    for size, what in zip(X.shape, ("sample", "feature"), strict=True):
        if size == 0:
            raise ValueError(
                f"Found array with 0 {what}(s) (shape={tuple(X.shape)}) while a minimum of 1 is "
                f"required by {type(estimator).__name__}."
            )
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    X = X.detach()
    if X.dtype not in FLOATS:
        is_short = X.is_floating_point() or not computes_in_float64(X.device)
        X = X.to(torch.float32 if is_short else torch.float64)
    for start, stop in blocks(len(X), block_rows(X.device, 4 * X.shape[1] * X.element_size())):
        _check_values(X[start:stop], type(estimator).__name__)
    return X


def _check_values(rows: torch.Tensor, name: str) -> None:
    """Raise for rows that are not numbers, or whose squared distances would not be."""
    smallest, largest = (float(bound) for bound in rows.aminmax())
    if smallest != smallest or largest != largest:
        raise ValueError(f"Input X contains NaN.\n{name} does not accept missing values.")
    size = max(largest, -smallest)
    if size == float("inf"):
        raise ValueError(
            f"Input X contains infinity or a value too large for {rows.dtype}, which {name} does "
            "not accept."
        )
    if size > LARGEST_ROW:
        raise ValueError(
            f"Got X with a value of size {size:.3g}, but expected at most {LARGEST_ROW:.0e}: "
            "squared distances beyond it overflow float64."
        )


def check_tensor_weights(sample_weight: Any, X: torch.Tensor) -> torch.Tensor | None:
    """Weights (n,) as float64 on the device of ``X``, if it has that, or None for ones.

    They may be a tensor on any device, an array or a list.
    """
    if sample_weight is None:
        return None
    if not is_tensor(sample_weight):
        # Anything of the right length stands for the rows: what is checked are the weights.
        checked = check_weights(sample_weight, np.broadcast_to(0.0, len(X)))
        return shared_tensor(np.asarray(checked)).to(exact_place(X.device))
    if sample_weight.ndim == 0:
        sample_weight = sample_weight.expand(len(X))
    if sample_weight.ndim != 1 or len(sample_weight) != len(X):
        raise ValueError(
            f"sample_weight.shape == {tuple(sample_weight.shape)}, expected ({_num_samples(X)},)!"
        )
    weights: torch.Tensor = sample_weight.detach().to(exact_place(X.device)).to(torch.float64)
    if not bool(weights.isfinite().all()):
        raise ValueError("Input sample_weight contains NaN or infinity.")
    check_sums_of_weights(float(weights.min()), float(weights.sum()))
    return weights
