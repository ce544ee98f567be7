"""Where the rows live, and who does the work on them.

The table below is the only place that knows which engines exist, and ``open_engine`` the only one
that decides what ``engine="auto"`` means.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.protocol import Engine

# name -> module and function that opens it; imported only when asked for
_ENGINES = {"numba": ("pgkmeans_sk.engines.numba_cpu", "open_numba_engine")}

ENGINE_NAMES = ("auto", *_ENGINES)
"""Accepted values of the parameter ``engine``."""


def open_engine(name: str, X: Any, sample_weight: NDArray[np.float64] | None) -> Engine:
    """Open an engine over validated rows.

    Parameters
    ----------
    name : str
        One of ``ENGINE_NAMES``. "auto" takes the engine that fits where the data is: "numba" for
        arrays and sparse matrices in host memory.
    X : ndarray or CSR matrix of shape (n_samples, n_features), float32 or float64
        The rows. Never written.
    sample_weight : ndarray of shape (n_samples,), float64, or None for ones
        Weights >= 0. Never written.

    Returns
    -------
    Engine
    """
    module, function = _ENGINES["numba" if name == "auto" else name]
    opener = cast(Callable[..., Engine], getattr(import_module(module), function))
    return opener(X, sample_weight)
