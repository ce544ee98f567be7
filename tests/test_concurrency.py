"""Any number of threads, processes and forks: right answers, the same bytes, nobody disturbed."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import threadpoolctl
from scipy import sparse
from sklearn.model_selection import GridSearchCV

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines import numba_cpu, open_engine
from tests.problems import blobs

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 100
"""Seconds after which something that takes one or two counts as a deadlock."""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def rows(n_rows=60_000, dtype=np.float32):
    """Enough rows for several chunks; no two threads finish them in the same order twice."""
    return np.random.default_rng(0).normal(size=(n_rows, 8)).astype(dtype)


def fingerprint(estimator):
    """Of every bit that a fit finds out."""
    digest = hashlib.sha256()
    for part in (estimator.cluster_centers_, estimator.labels_, np.float64(estimator.inertia_)):
        digest.update(part.tobytes())
    return digest.hexdigest(), estimator.n_iter_, estimator.repair_log_


def use_threads(monkeypatch, n_threads):
    """Whatever the machine has: limits of OpenMP count up to the number of processors only."""
    monkeypatch.setattr(numba_cpu, "effective_n_threads", lambda: n_threads)


# ------------------------------------------------------------------ the same bytes

SETTINGS = {
    "default": {},
    "Lloyd": {"algorithm": "lloyd", "init": "k-means++"},
    "repairs": {"init": "random", "n_init": 1, "algorithm": "lloyd"},
    "tree": {"init": "partition-ball"},
    "cosine": {"metric": "cosine"},
    "merged": {"consolidate": "auto"},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_matrix])
def test_threads_do_not_show(setting, container, monkeypatch):
    # scikit-learn#27518, #17944, #9784, harmonypy#24: seeded, yet other results with other threads.
    X = rows(dtype=np.float64 if setting == "tree" else np.float32)
    if container is sparse.csr_matrix:
        X = X[:15_000] * (np.abs(X[:15_000]) > 1.0)
    X, weights = container(X), np.random.default_rng(1).uniform(0.5, 2.0, X.shape[0])
    found = []
    for n_threads in (1, 2, 3, 4):
        use_threads(monkeypatch, n_threads)
        estimator = PGKMeans(64, max_iter=3, random_state=0, **SETTINGS[setting])
        estimator.fit(X, sample_weight=weights)
        np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)
        found.append((fingerprint(estimator), estimator.transform(X[:5000]).tobytes()))
    assert found == found[:1] * 4


def test_there_are_several_chunks():
    # Else the test above would compare one thread with one thread.
    engine = open_engine("numba", rows(), None)
    assert len(engine._chunk_bounds(60_000 * 8 * 64)) > 4


def test_limits_of_threadpoolctl_do_not_show():
    found = []
    for n_threads in (1, 2, 4):
        with threadpoolctl.threadpool_limits(n_threads):
            found.append(fingerprint(PGKMeans(32, max_iter=2).fit(rows())))
    assert found == found[:1] * 3


PRINT_FINGERPRINT = """
from tests.test_concurrency import PGKMeans, fingerprint, rows
from pgkmeans_sk.threads import effective_n_threads
print(effective_n_threads(), fingerprint(PGKMeans(64, max_iter=3, random_state=0).fit(rows())))
"""


def run_python(code, **environment):
    """What another interpreter prints; it must neither warn nor abort."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


def test_threads_of_the_environment_do_not_show():
    printed = [run_python(PRINT_FINGERPRINT, OMP_NUM_THREADS=str(n)) for n in (1, 2, 4)]
    assert [line.split(maxsplit=1)[0] for line in printed] == ["1", "2", "4"]
    assert len({line.split(maxsplit=1)[1] for line in printed}) == 1


# ------------------------------------------------------------------ several at once


def test_python_threads_fit_and_predict_at_once():
    X = rows(20_000)
    expected = {k: fingerprint(PGKMeans(k, max_iter=3).fit(X)) for k in range(10, 18)}
    shared = PGKMeans(40, max_iter=3).fit(X)
    meeting = threading.Barrier(8, timeout=PATIENCE)

    def work(n_clusters):
        meeting.wait()
        estimator = PGKMeans(n_clusters, max_iter=3).fit(X)
        np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)
        np.testing.assert_array_equal(shared.predict(X), shared.labels_)
        return fingerprint(estimator)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert dict(zip(expected, pool.map(work, expected), strict=True)) == expected


def fit_some(n_clusters):
    """For workers of a pool: module level, to be found by name."""
    return fingerprint(PGKMeans(n_clusters, max_iter=3).fit(rows(20_000)))


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_joblib_pools(backend):
    expected = [fit_some(k) for k in (8, 16, 24, 32)]
    with warnings.catch_warnings():
        # Python 3.12 warns of forks while threads run, which joblib's old backend does.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*", category=DeprecationWarning)
        found = joblib.Parallel(2, backend=backend, timeout=PATIENCE)(
            joblib.delayed(fit_some)(k) for k in (8, 16, 24, 32)
        )
    assert found == expected


def test_grid_search_in_parallel():
    X = blobs(300, 3, 5, seed=0)
    search = GridSearchCV(PGKMeans(random_state=0), {"n_clusters": [2, 5]}, cv=3, n_jobs=2)
    assert search.fit(X).best_params_ == {"n_clusters": 5}


# ------------------------------------------------------------------ forks


@pytest.fixture
def fitted_in_the_parent(monkeypatch):
    """An estimator whose fit has started the helper threads that a child will not have."""
    use_threads(monkeypatch, 4)
    X = rows()
    return PGKMeans(32, max_iter=2).fit(X), X


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child_predicts_and_fits(fitted_in_the_parent):
    estimator, X = fitted_in_the_parent
    child = os.fork()
    if child == 0:
        status = 1
        try:
            right = np.array_equal(estimator.predict(X), estimator.labels_)
            again = PGKMeans(32, max_iter=2).fit(X)
            status = 7 if right and fingerprint(again) == fingerprint(estimator) else 2
        finally:
            os._exit(status)  # without pytest's own exit
    assert exit_status(child) == 7
    np.testing.assert_array_equal(estimator.predict(X), estimator.labels_)


def exit_status(child):
    """Of a forked child; one that hangs is ended."""
    for _ in range(10 * PATIENCE):
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError(f"the child still ran after {PATIENCE} seconds")


@needs_fork
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_pool_of_forked_processes(fitted_in_the_parent):
    estimator, X = fitted_in_the_parent
    with multiprocessing.get_context("fork").Pool(2) as pool:
        predicted = pool.map_async(estimator.predict, [X, X[::2], X[:100]]).get(PATIENCE)
        refitted = pool.map_async(fit_some, [8, 9]).get(PATIENCE)
    for labels, part in zip(predicted, (np.s_[:], np.s_[::2], np.s_[:100]), strict=True):
        np.testing.assert_array_equal(labels, estimator.labels_[part])
    assert refitted == [fit_some(8), fit_some(9)]


# ------------------------------------------------------------------ nobody is disturbed


def test_limits_of_others_are_left_alone():
    def limits():
        return [(pool["filepath"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()]

    PGKMeans(8).fit(rows(1000))  # whatever is loaded on first use, is loaded
    before, environment = limits(), dict(os.environ)
    with threadpoolctl.threadpool_limits(1):
        within = limits()
        PGKMeans(8, init="k-means++").fit(rows(1000)).transform(rows(1000))
        assert limits() == within
    PGKMeans(8).fit(rows(1000)).partial_fit(rows(100))
    assert limits() == before
    assert dict(os.environ) == environment


def test_global_random_state_is_left_alone():
    X = rows(500)
    np.random.seed(3)  # noqa: NPY002  (this is the state in question)
    before = np.random.get_state()  # noqa: NPY002
    for init in ("partition", "k-means++", "random"):
        for state in (0, np.random.RandomState(1)):
            PGKMeans(8, init=init, random_state=state).fit(X).partial_fit(X)
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    # None stands for the global state, as everywhere in scikit-learn.
    fits = []
    for _ in range(2):
        np.random.seed(3)  # noqa: NPY002
        fits.append(fingerprint(PGKMeans(8, init="random").fit(X)))
    assert fits[0] == fits[1]


SILENT = """
import numpy as np
from pgkmeans_sk import PGKMeans
X = np.random.default_rng(0).normal(size=(300, 3))
PGKMeans(5).fit(X).partial_fit(X).predict(X)
"""


def test_nothing_is_printed_or_warned():
    assert run_python(SILENT) == ""
