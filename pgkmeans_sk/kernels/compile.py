"""How every kernel is compiled: lazily, without the GIL, and kept on disk when that is possible.

Kernels are serial. Whoever wants several cores runs one kernel over several chunks of rows
(``pgkmeans_sk.threads``); that keeps them safe in forked children and under any threading layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` on its first call with each combination of types.

    ``error_model="numpy"`` drops the tests for division by zero, which would keep loops from being
    vectorised. ``fastmath`` stays off: the order of additions is part of the promised result.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        # Numba found no folder to write to (read-only install and home): compile in each process.
        return numba.njit(**options)(function)
