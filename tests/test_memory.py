"""Memory beyond the rows: 16 bytes a row, a few times the centres, and a fixed working set.

Size limits take more: labels and links of rows, and what each pair of clusters could hand on.
"""

import tracemalloc

import numpy as np
import pytest

from pgkmeans_sk import PGKMeans

MEBIBYTE = 2**20


def peak_beyond_rows(X, n_clusters, call, **parameters):
    """Largest sum of array memory during a call, in bytes; compilation is over before."""
    small = np.ascontiguousarray(X[: max(300, 2 * n_clusters)])
    call(PGKMeans(n_clusters, random_state=0, **parameters), small)
    tracemalloc.start()
    try:
        call(PGKMeans(n_clusters, random_state=0, **parameters), X)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def allowed(X, n_clusters):
    return 16 * len(X) + 64 * MEBIBYTE + 8 * 8 * n_clusters * X.shape[1]


def fit(estimator, X):
    return estimator.fit(X)


@pytest.fixture(scope="module")
def wide():
    return np.random.default_rng(0).standard_normal((80_000, 256), dtype=np.float32)


@pytest.fixture(scope="module")
def tall():
    return np.random.default_rng(1).standard_normal((400_000, 8), dtype=np.float32)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"init": "partition-principal"},
        {"init": "random", "n_init": 1},
        {"consolidate": "exact"},
        {"consolidate": "auto"},
        {"algorithm": "lloyd"},
    ],
    ids=str,
)
def test_fit_of_wide_rows(wide, parameters):
    beyond = peak_beyond_rows(wide, 4, fit, max_iter=3, **parameters)
    assert beyond <= allowed(wide, 4)


def test_sample_of_wide_rows_is_small(wide):
    X = np.tile(wide, (2, 1))
    assert peak_beyond_rows(X, 4, fit, max_iter=2) <= allowed(X, 4)


@pytest.mark.parametrize("n_clusters", [16, 256])
def test_fit_of_many_rows(tall, n_clusters):
    assert peak_beyond_rows(tall, n_clusters, fit, max_iter=4) <= allowed(tall, n_clusters)


def test_cosine_takes_one_copy_of_the_rows(wide):
    beyond = peak_beyond_rows(wide, 4, fit, max_iter=2, metric="cosine")
    assert beyond <= allowed(wide, 4) + wide.nbytes


def test_reversed_rows_take_one_copy(wide):
    beyond = peak_beyond_rows(wide[::-1], 4, fit, max_iter=2, init="random", n_init=1)
    assert beyond <= allowed(wide, 4) + wide.nbytes


def fit_balanced(estimator, X):
    share = len(X) / estimator.n_clusters
    return estimator.set_params(size_min=np.floor(share), size_max=np.ceil(share)).fit(X)


@pytest.mark.parametrize("n_clusters", [16, 256])
def test_size_limits(tall, n_clusters):
    X = tall[:200_000]
    # Few rows do not need all kernels, and the bound leaves no room for compilation.
    fit_balanced(PGKMeans(n_clusters, random_state=0, max_iter=3), X)
    beyond = peak_beyond_rows(X, n_clusters, fit_balanced, max_iter=3)
    assert beyond <= 160 * len(X) + 32 * n_clusters**2 + 2 * MEBIBYTE


@pytest.mark.parametrize("method", ["predict", "score"])
def test_use_of_a_fit(tall, method):
    fitted = PGKMeans(64, init="random", n_init=1, max_iter=2, random_state=0).fit(tall[:5000])

    def use(estimator, X):
        getattr(fitted, method)(X)

    assert peak_beyond_rows(tall, 64, use) <= allowed(tall, 64)
