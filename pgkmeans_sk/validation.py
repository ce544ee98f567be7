"""Rules between data, weights and parameters, checked before any work is done.

Every message names the value that was got and what was expected.
"""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import check_array
from sklearn.utils.validation import _check_sample_weight, validate_data

from pgkmeans_sk.array_kinds import as_numpy
from pgkmeans_sk.results import SizeLimits

ROUNDING = 1e-9
"""What sums and quotients of weights may be off by, relatively."""

LARGEST_ROW = 1e150
"""Squared distances between rows beyond this size overflow float64."""


class InvalidParameterError(ValueError, TypeError):
    """A constructor parameter has a value or type that is not accepted."""


def check_integer(name: str, value: Any, smallest: int) -> None:
    """Raise unless ``value`` is an integer >= ``smallest``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or value < smallest:
        raise InvalidParameterError(f"Got {name}={value!r}, but expected an int >= {smallest}.")


def check_integer_between(name: str, value: Any, smallest: int, largest: int) -> None:
    """Raise unless ``value`` is an integer from ``smallest`` to ``largest``."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool | np.bool_)
    if not is_integer or not smallest <= value <= largest:
        raise InvalidParameterError(
            f"Got {name}={value!r}, but expected an int from {smallest} to {largest}."
        )


def check_number(name: str, value: Any, smallest: float, *, strictly: bool = False) -> None:
    """Raise unless ``value`` is a finite number >= ``smallest`` (> if ``strictly``)."""
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if (
        not is_number
        or not np.isfinite(value)
        or value < smallest
        or (strictly and value == smallest)
    ):
        bound = ">" if strictly else ">="
        raise InvalidParameterError(
            f"Got {name}={value!r}, but expected a finite number {bound} {smallest}."
        )


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidParameterError(
            f"Got {name}={value!r}, but expected one of {', '.join(map(repr, choices))}."
        )


def check_device_name(device: Any) -> None:
    """Raise unless ``device`` is None, or may name a device; whether it is there is found later."""
    if device is not None and not isinstance(device, str) and type(device).__name__ != "device":
        raise InvalidParameterError(
            f"Got device={device!r}, but expected None, a str such as 'cuda', or a torch.device."
        )


def check_rows(estimator: Any, X: Any, *, reset: bool, accept_sparse: bool = True) -> Any:
    """The rows as an ndarray or CSR matrix of float32 or float64, copied only to convert them.

    float16 and other floats of at most 16 bits become float32; integers float64. With ``reset``,
    ``n_features_in_`` and ``feature_names_in_`` are set on the estimator, else compared with it.
    """
    X = validate_data(
        estimator,
        _widen_short_floats(X),
        accept_sparse="csr" if accept_sparse else False,
        dtype=[np.float64, np.float32],
        accept_large_sparse=True,
        reset=reset,
    )
    values = cast(Any, X).data if sparse.issparse(X) else X
    if X.dtype == np.float64 and values.size:
        largest = max(values.max(), -values.min())
        if largest > LARGEST_ROW:
            raise ValueError(
                f"Got X with a value of size {largest:.3g}, but expected at most "
                f"{LARGEST_ROW:.0e}: squared distances beyond it overflow float64."
            )
    return X


def _widen_short_floats(X: Any) -> Any:
    """``X`` in float32 if its floats have at most 16 bits, which scikit-learn would not take."""
    dtype = getattr(X, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.itemsize > 2 or not hasattr(X, "astype"):
        return X
    # bfloat16 and float8 of ml_dtypes are of kind "V" (no fields) or "f"
    is_short_float = dtype == np.float16 or (
        dtype.names is None and dtype.name.startswith(("bfloat16", "float8", "float4"))
    )
    return X.astype(np.float32) if is_short_float else X


def check_weights(sample_weight: Any, X: Any) -> NDArray[np.float64] | None:
    """Weights (n,) as float64, or None for ones."""
    if sample_weight is None:
        return None
    sample_weight = as_numpy(sample_weight)
    weights = np.ascontiguousarray(_check_sample_weight(sample_weight, X, dtype=np.float64))
    check_sums_of_weights(weights.min(), weights.sum())
    return weights


def check_sums_of_weights(smallest: float, total: float) -> None:
    """Raise unless weights, of which the least and the sum are given, are >= 0 and not all 0."""
    if smallest < 0:
        raise ValueError(
            f"Negative values in sample_weight: got {smallest}, but expected weights >= 0."
        )
    if total == 0:
        raise ValueError("Sample weights must contain at least one non-zero number; got all zero.")
    if not np.isfinite(total):
        raise ValueError(f"Got sample_weight with sum {total}, but expected a finite sum.")


def check_enough_rows(n_samples: int, n_clusters: int) -> None:
    """Raise unless there are at least as many rows as clusters."""
    if n_samples < n_clusters:
        raise ValueError(f"n_samples={n_samples} should be >= n_clusters={n_clusters}.")


def check_size_limits(
    size_min: float | None,
    size_max: float | None,
    n_clusters: int,
    n_samples: int,
    weights: NDArray[np.float64] | None,
) -> SizeLimits | None:
    """Limits of a cluster's weight; None if there are none. Raise if they cannot be obeyed.

    If all positive weights are equal, the limits become multiples of them: as many whole rows. Else
    single rows may be heavier than what is left, and the limits hold up to the heaviest row.
    """
    if not size_min and size_max is None:
        return None
    smallest, largest = float(size_min or 0.0), np.inf if size_max is None else float(size_max)
    present = np.ones(n_samples) if weights is None else weights[weights > 0.0]
    heaviest, total, name = float(present.max()), float(present.sum()), "total weight"
    if weights is None:
        name = "n_samples"
    if len(present) < n_clusters:
        raise ValueError(
            f"Got {len(present)} rows of positive weight, but expected at least n_clusters="
            f"{n_clusters} with size_min={size_min!r}, size_max={size_max!r}."
        )
    if smallest > largest:
        raise ValueError(f"Got size_min={size_min!r}, but expected at most size_max={size_max!r}.")
    if heaviest > largest * (1.0 + ROUNDING):
        raise ValueError(
            f"Got size_max={size_max!r}, but expected at least {heaviest:g}, the weight of the "
            "heaviest row."
        )
    if heaviest == present.min():
        n_smallest = np.ceil(smallest / heaviest * (1.0 - ROUNDING))
        n_largest = np.floor(largest / heaviest * (1.0 + ROUNDING))
        smallest, largest = float(n_smallest * heaviest), float(n_largest * heaviest)
    if smallest * n_clusters > total * (1.0 + ROUNDING):
        raise ValueError(
            f"Got size_min={size_min!r}, but expected at most {name} / n_clusters = "
            f"{total:g} / {n_clusters} = {total / n_clusters:g}."
        )
    if largest * n_clusters < total * (1.0 - ROUNDING):
        raise ValueError(
            f"Got size_max={size_max!r}, but expected at least {name} / n_clusters = "
            f"{total:g} / {n_clusters} = {total / n_clusters:g}."
        )
    return SizeLimits(smallest, largest)


def check_centers(centers: Any, n_clusters: int, X: Any) -> NDArray[np.floating]:
    """Centres (n_clusters, n_features) that the user gave, as a new array in the dtype of ``X``."""
    centers = check_array(
        _widen_short_floats(as_numpy(centers)),
        accept_sparse="csr",
        dtype=X.dtype,
        copy=True,
        order="C",
    )
    if sparse.issparse(centers):
        centers = cast(Any, centers).toarray()
    if centers.shape[0] != n_clusters:
        raise ValueError(
            f"The shape of the initial centers {centers.shape} does not "
            f"match the number of clusters {n_clusters}."
        )
    if centers.shape[1] != X.shape[1]:
        raise ValueError(
            f"The shape of the initial centers {centers.shape} does not "
            f"match the number of features of the data {X.shape[1]}."
        )
    return np.asarray(centers)
