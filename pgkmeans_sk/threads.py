"""The one place where work goes to several cores: serial kernels over fixed chunks of rows.

Numba's own parallel loops abort the process in a child forked after a fit (OpenMP layer) or when
several Python threads call them at once (workqueue layer). Kernels here are serial and release the
GIL; this module runs one over many chunks. Chunks depend on the data alone, never on the number of
threads, so neither do results.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

import joblib

_most: ContextVar[int | None] = ContextVar("most_threads", default=None)
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def effective_n_threads() -> int:
    """How many threads this call may use.

    The environment's limits (``OMP_NUM_THREADS``, container quotas, processor affinity), those that
    joblib gives its workers and those set with ``threadpoolctl`` are respected, as scikit-learn's
    own estimators do; and ``at_most``.
    """
    n_threads, most = _allowed_by_the_process(), _most.get()
    return n_threads if most is None else min(n_threads, most)


@contextmanager
def at_most(n_threads: int) -> Iterator[None]:
    """Within the block, calls of this thread, and tasks that it runs, use no more threads."""
    before = _most.get()
    token = _most.set(n_threads if before is None else min(n_threads, before))
    try:
        yield
    finally:
        _most.reset(token)


def _allowed_by_the_process() -> int:
    try:
        from sklearn.utils._openmp_helpers import _openmp_effective_n_threads
    except ImportError:  # private: it may move
        # One number for each level of nesting is allowed, and so is an empty value.
        outermost = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        return int(outermost) if outermost.strip().isdigit() else int(joblib.cpu_count())
    return int(_openmp_effective_n_threads())


def run_tasks(task: Callable[[int], None], n_tasks: int, n_threads: int) -> None:
    """Call ``task(0) ... task(n_tasks - 1)``, on up to ``n_threads`` threads.

    The caller works too, and a helper that never gets a thread is not waited for: nested or
    concurrent calls cannot block one another. The first exception is raised in the caller.
    """
    n_threads = min(n_threads, n_tasks)
    if n_threads <= 1:
        for i in range(n_tasks):
            task(i)
        return

    waiting = deque(range(n_tasks))

    def work() -> None:
        try:
            while True:
                try:
                    i = waiting.popleft()
                except IndexError:
                    return
                task(i)
        except BaseException:
            waiting.clear()  # an error or Ctrl-C: nobody starts another task
            raise

    # Each in a copy of the caller's context, so that tasks of tasks keep to its ``at_most``.
    helpers = [_shared_pool().submit(copy_context().run, work) for _ in range(n_threads - 1)]
    try:
        work()
    finally:
        # The queue is empty: a helper that has not begun has nothing to do.
        started = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in started]
    for error in errors:
        if error is not None:
            raise error


def _shared_pool() -> ThreadPoolExecutor:
    """The pool, made on first use: one thread per processor, of which callers use fewer."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="pgkmeans")
        return _pool


def _forget_pool() -> None:
    """Begin without a pool in a forked child."""
    # A forked child inherits the pool object but none of its threads, and perhaps a locked lock.
    global _lock, _pool
    _lock = threading.Lock()
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
