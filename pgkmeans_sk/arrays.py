"""In what kind of array a user's rows come, and in which results go back.

Results live where ``X`` lives: those of a method where the ``X`` of the call does, fitted
attributes where that of ``fit`` does.

* NumPy arrays, sparse matrices, tables and lists: NumPy arrays.
* PyTorch tensors: tensors on the same device.
* Other arrays of the array API, while scikit-learn's ``array_api_dispatch`` is on: arrays of the
  same library on the same device, by way of NumPy. While it is off, whatever NumPy can read is
  taken as a NumPy array.

Weights may be of another kind than the rows; they are brought to where the rows are.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.utils import _array_api

from pgkmeans_sk import validation
from pgkmeans_sk.array_kinds import as_numpy, is_dask, is_tensor


@dataclass(frozen=True)
class Home:
    """Where results go: a library of the array API and its device, or None for where they are."""

    namespace: Any = None
    device: Any = None

    def result(self, values: Any) -> Any:
        """``values`` of the package as the user's rows are."""
        if self.namespace is None:
            return values
        return self.namespace.asarray(values, device=self.device)

    def adopt(self, estimator: Any) -> None:
        """Bring the fitted attributes of ``estimator`` there."""
        if self.namespace is not None:
            for name in ("cluster_centers_", "labels_"):
                setattr(estimator, name, self.result(getattr(estimator, name)))


def home_of(X: Any) -> Home:
    """The home of the rows ``X``."""
    if not _is_foreign(X) or not get_config()["array_api_dispatch"]:
        return Home()
    namespace, _, device = _array_api.get_namespace_and_device(X)
    return Home(namespace, device)


def _is_foreign(X: Any) -> bool:
    """Whether ``X`` is an array of the array API, of a library but NumPy, PyTorch and dask."""
    return (
        hasattr(X, "__array_namespace__")
        and not isinstance(X, np.ndarray | np.generic)
        and not is_tensor(X)
        and not is_dask(X)
    )


def known(X: Any) -> Any:
    """``X`` as the package can use it: arrays of other libraries become NumPy arrays."""
    if _is_foreign(X) and get_config()["array_api_dispatch"]:
        return _array_api._convert_to_numpy(X, X.__array_namespace__())
    return X


def check_rows(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Validated rows, as ``validation.check_rows`` or ``engines/torch_checks.py`` have it."""
    if is_tensor(X):
        return import_module("pgkmeans_sk.engines.torch_checks").check_tensor_rows(
            estimator, X, reset=reset
        )
    return validation.check_rows(estimator, known(X), reset=reset)


def check_weights(sample_weight: Any, X: Any) -> Any:
    """Validated weights for validated rows, where these are; or None for ones."""
    sample_weight = known(sample_weight)
    if is_tensor(X):
        return import_module("pgkmeans_sk.engines.torch_checks").check_tensor_weights(
            sample_weight, X
        )
    return validation.check_weights(sample_weight, X)


def check_same_kind(estimator: Any, X: Any, method: str) -> None:
    """Raise if scikit-learn asks that ``X`` is of the kind that ``fit`` has seen, and it is not.

    It does so while ``array_api_dispatch`` is on. Otherwise any kind may follow on any other.
    """
    check = getattr(_array_api, "check_same_namespace", None)  # since scikit-learn 1.9
    if check is not None:
        check(X, estimator, attribute="cluster_centers_", method=method)


def on_host(array: Any) -> NDArray[Any]:
    """A fitted attribute, of whatever kind, as a NumPy array."""
    if _is_foreign(array):
        return np.asarray(_array_api._convert_to_numpy(array, array.__array_namespace__()))
    return np.asarray(as_numpy(array))


@dataclass(frozen=True)
class Outline:
    """Shape and NumPy dtype of rows, for those who ask no more."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]


def outline(X: Any) -> Outline:
    """What centres for the validated rows ``X`` have to fit."""
    if not is_tensor(X):
        return Outline(X.shape, X.dtype)
    n_rows, n_features = X.shape
    return Outline((n_rows, n_features), np.dtype(np.float64 if X.itemsize == 8 else np.float32))
