"""Tasks run once each, errors come back, nothing blocks, and nobody's settings are touched."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import pytest
import threadpoolctl

from pgkmeans_sk.threads import effective_n_threads, run_tasks

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 30
"""Seconds after which something that should be immediate counts as a deadlock."""


def run_python(code: str, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


# ------------------------------------------------------------------ each task once


@pytest.mark.parametrize("n_threads", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("n_tasks", [0, 1, 2, 3, 7, 64, 1000])
def test_each_task_runs_once(n_tasks, n_threads):
    ran = []
    run_tasks(ran.append, n_tasks, n_threads)
    assert sorted(ran) == list(range(n_tasks))


def test_all_tasks_are_over_on_return():
    finished = []

    def slow(i):
        time.sleep(0.01)
        finished.append(i)

    run_tasks(slow, 6, 3)
    assert sorted(finished) == list(range(6))


def test_two_threads_work_at_once():
    meeting = threading.Barrier(2, timeout=PATIENCE)
    run_tasks(lambda i: meeting.wait(), 2, 2)  # one thread alone would wait in vain


def test_one_thread_is_the_callers_and_keeps_the_order():
    ran = []
    run_tasks(lambda i: ran.append((i, threading.get_ident())), 5, 1)
    assert ran == [(i, threading.get_ident()) for i in range(5)]


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_error_reaches_the_caller_and_stops_the_rest(n_threads):
    started, failed = [], threading.Event()
    all_threads_work = threading.Barrier(n_threads, timeout=PATIENCE)

    def task(i):
        started.append(i)
        if i < n_threads:
            all_threads_work.wait()
        if i == 3:
            failed.set()
            raise ValueError("task 3")
        if i > 3:
            failed.wait(PATIENCE)
            time.sleep(0.05)  # long enough for the failure to be noticed

    with pytest.raises(ValueError, match="task 3"):
        run_tasks(task, 100, n_threads)
    assert len(started) <= 4 + n_threads


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_a_helper_reaches_the_caller(error):
    caller, helper_has_failed = threading.get_ident(), threading.Event()

    def task(i):
        if threading.get_ident() == caller:
            helper_has_failed.wait(PATIENCE)
        else:
            helper_has_failed.set()
            raise error("from a helper")

    with pytest.raises(error, match="from a helper"):
        run_tasks(task, 2, 2)


def test_the_pool_works_after_an_error():
    def fail(i):
        raise ValueError

    for _ in range(20):
        with pytest.raises(ValueError):  # noqa: PT011  (the only one there is)
            run_tasks(fail, 8, 4)
    test_each_task_runs_once(64, 4)


# ------------------------------------------------------------------ no deadlock


def finishes(work):
    """Run in a thread of its own, so that a deadlock fails instead of hanging."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def test_nested_calls_do_not_block_one_another():
    counts = Counter()

    def inner(i):
        counts["inner"] += 1
        time.sleep(0.001)

    def middle(i):
        run_tasks(inner, 4, 4)

    assert finishes(lambda: run_tasks(lambda i: run_tasks(middle, 4, 4), 8, 8))
    assert counts["inner"] == 8 * 4 * 4


def test_concurrent_callers_do_not_block_one_another():
    results = [[] for _ in range(8)]

    def call(number):
        for _ in range(20):
            run_tasks(lambda i: results[number].append(i), 50, 4)

    def all_at_once():
        with ThreadPoolExecutor(8) as callers:
            list(callers.map(call, range(8)))

    assert finishes(all_at_once)
    assert all(Counter(result) == dict.fromkeys(range(50), 20) for result in results)


USE_THE_POOL_AFTER_A_FORK = """
import os, signal, sys, threading
from pgkmeans_sk.threads import run_tasks

def use_the_pool():
    meeting = threading.Barrier(2, timeout=20)  # needs a living helper
    run_tasks(lambda i: meeting.wait(), 2, 2)

use_the_pool()
child = os.fork()
if child == 0:
    signal.alarm(30)  # ends a child that waits for ever
    use_the_pool()
    sys.exit(7)
_, status = os.waitpid(child, 0)
use_the_pool()  # the parent's pool is unharmed
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_a_pool_of_its_own():
    assert run_python(USE_THE_POOL_AFTER_A_FORK) == "7\n"


# ------------------------------------------------------------------ how many threads

PRINT_N_THREADS = "from pgkmeans_sk.threads import effective_n_threads as n; print(n())"


def test_limit_of_threadpoolctl_is_respected():
    before = effective_n_threads()
    assert before >= 1
    with threadpoolctl.threadpool_limits(1):
        assert effective_n_threads() == 1
    assert effective_n_threads() == before


@pytest.mark.parametrize("n_threads", [1, 3])
def test_limit_of_the_environment_is_respected(n_threads):
    assert run_python(PRINT_N_THREADS, OMP_NUM_THREADS=str(n_threads)) == f"{n_threads}\n"


@pytest.mark.parametrize(("value", "limit"), [("1", 1), ("3", 3), ("3,2", 3), ("", None)])
def test_limit_of_the_environment_without_the_private_function(value, limit, monkeypatch):
    # scikit-learn's function is private and may move; then the same variable decides. An empty
    # value and one number a level of nesting are both allowed by OpenMP.
    monkeypatch.delattr("sklearn.utils._openmp_helpers._openmp_effective_n_threads")
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert effective_n_threads() == (limit or joblib.cpu_count())


@pytest.mark.skipif("OMP_NUM_THREADS" in os.environ, reason="joblib leaves a set variable alone")
def test_limit_of_joblib_is_respected():
    # Two workers share the processors between them.
    limits = joblib.Parallel(n_jobs=2)(joblib.delayed(effective_n_threads)() for _ in range(2))
    assert max(limits) <= max(1, effective_n_threads() // 2)


def test_nothing_global_is_changed():
    def everything():
        limits = {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        return limits, dict(os.environ)

    before = everything()
    effective_n_threads()
    run_tasks(lambda i: None, 100, 4)
    assert everything() == before
