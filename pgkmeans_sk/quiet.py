"""Warnings that are not shown, also while several threads want that.

Filters of warnings belong to the process. Two threads that change and restore them on their own
restore in the wrong order: one goes on without its filter, and the process is left with it.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sklearn.exceptions import ConvergenceWarning

_lock = threading.Lock()
_n_users = 0
_entered: Any = None


@contextmanager
def no_convergence_warnings() -> Iterator[None]:
    """Within the block, nobody is warned that there are fewer distinct blocks than code words.

    The first of several threads changes the filters, and the last of them changes them back.
    """
    global _n_users, _entered
    with _lock:
        if _n_users == 0:
            _entered = warnings.catch_warnings()
            _entered.__enter__()
            warnings.simplefilter("ignore", ConvergenceWarning)
        _n_users += 1
    try:
        yield
    finally:
        with _lock:
            _n_users -= 1
            if _n_users == 0:
                _entered.__exit__(None, None, None)


def _forget_users() -> None:
    """Begin without users in a forked child: it has none of their threads."""
    global _lock, _n_users
    _lock = threading.Lock()
    _n_users = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_users)
