"""Many problems of one shape: each has the result that it has alone."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk import pg_kmeans, pg_kmeans_batch
from pgkmeans_sk.pipeline.starts import STARTS
from tests.problems import blobs

BATCH = np.stack([blobs(300, 3, 5, seed=seed) for seed in range(4)])
WEIGHTS = np.random.default_rng(0).integers(0, 3, (4, 300)).astype(float)


def assert_as_alone(X, n_clusters, sample_weight=None, init="partition", **parameters):
    found = pg_kmeans_batch(
        X, n_clusters, sample_weight=sample_weight, init=init, random_state=3, **parameters
    )
    centers, labels, inertias = found
    assert centers.shape == (len(X), n_clusters, X.shape[2])
    assert inertias.shape == (len(X),)
    for number, rows in enumerate(X):
        weights = sample_weight
        if weights is not None and np.ndim(weights) == 2:
            weights = weights[number]
        own_init = init if isinstance(init, str) or callable(init) else init[number]
        alone = pg_kmeans(
            rows, n_clusters, sample_weight=weights, init=own_init, random_state=3, **parameters
        )
        np.testing.assert_array_equal(centers[number], alone[0])
        np.testing.assert_array_equal(labels[number], alone[1])
        assert inertias[number] == alone[2]
        assert len(np.unique(labels[number])) == n_clusters
    return found


@pytest.mark.parametrize("init", [*STARTS])
def test_each_problem_as_if_it_were_alone(init):
    assert_as_alone(BATCH, 12, init=init, n_init=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS[0], None], ids=["own", "shared", "none"])
def test_weights_and_dtypes(dtype, weights):
    centers, labels, inertias = assert_as_alone(BATCH.astype(dtype), 7, sample_weight=weights)
    assert centers.dtype == dtype
    assert labels.dtype == np.int32
    assert inertias.dtype == np.float64


@pytest.mark.parametrize(
    "parameters",
    [
        {"metric": "cosine"},
        {"consolidate": "exact", "refine": 2},
        {"algorithm": "lloyd", "max_iter": 3},
        {"init": BATCH[:, :5]},
        {"init": lambda X, n_clusters, random_state: X[:n_clusters], "n_init": 1},
    ],
    ids=lambda parameters: "-".join(parameters),
)
def test_parameters(parameters):
    assert_as_alone(BATCH, 5, **parameters)


def test_layouts_and_one_problem():
    assert_as_alone(np.asfortranarray(BATCH), 4)
    assert_as_alone(BATCH[::2, ::-1], 4)
    assert_as_alone(BATCH[:1], 4)
    assert_as_alone(BATCH[:, :, :1], 4)


def test_tensors():
    torch = pytest.importorskip("torch")
    centers, labels, inertias = pg_kmeans_batch(
        torch.from_numpy(BATCH), 6, sample_weight=torch.from_numpy(WEIGHTS), random_state=3
    )
    expected = pg_kmeans_batch(BATCH, 6, sample_weight=WEIGHTS, random_state=3)
    assert isinstance(centers, torch.Tensor)
    assert isinstance(labels, torch.Tensor)
    for found, other in zip((centers, labels, inertias), expected, strict=True):
        np.testing.assert_array_equal(found, other)


def test_tensors_of_shared_weights():
    torch = pytest.importorskip("torch")
    weights = torch.from_numpy(WEIGHTS[0])
    found = pg_kmeans_batch(torch.from_numpy(BATCH), 6, sample_weight=weights, random_state=3)
    expected = pg_kmeans_batch(BATCH, 6, sample_weight=WEIGHTS[0], random_state=3)
    np.testing.assert_array_equal(found[1], expected[1])


def test_plain_operations_of_pytorch(monkeypatch):
    torch = pytest.importorskip("torch")
    from pgkmeans_sk.engines import torch_device

    expected = pg_kmeans_batch(BATCH, 6, random_state=3)
    monkeypatch.setattr(torch_device, "USES_KERNELS", False)
    found = pg_kmeans_batch(torch.from_numpy(BATCH), 6, random_state=3)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-12)


def test_fewer_distinct_rows_than_clusters():
    X = np.repeat(BATCH[:, :3], 10, axis=1)
    X[1] = BATCH[1, :30]
    with pytest.warns(ConvergenceWarning, match=r"3 of 4 problems \(the first is number 0\)"):
        _, labels, _ = pg_kmeans_batch(X, 5)
    assert [len(np.unique(own)) for own in labels] == [3, 5, 3, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [len(np.unique(own)) for own in pg_kmeans_batch(X, 5)[1]] == [3, 5, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X": BATCH[0]}, r"Got X of shape \(300, 3\), but expected \(n_problems"),
        ({"X": BATCH[:0]}, "expected at least one problem"),
        ({"X": np.where(BATCH > 9, np.nan, BATCH)}, "contains NaN"),
        ({"X": BATCH[:, :2]}, "n_samples=2 should be >= n_clusters=3"),
        ({"sample_weight": WEIGHTS[:3]}, r"Got sample_weight of shape \(3, 300\)"),
        ({"sample_weight": -WEIGHTS}, "Negative values in sample_weight"),
        ({"sample_weight": WEIGHTS * [[1], [1], [0], [1]]}, "got all zero in problem 2"),
        ({"init": BATCH[:3, :3]}, r"Got init of shape \(3, 3, 3\), but expected \(4, 3, 3\)"),
        ({"init": "nothing"}, "Got init='nothing'"),
        ({"device": "nowhere"}, "expected the name of a PyTorch device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused(arguments, message):
    arguments = {"X": BATCH, "n_clusters": 3} | arguments
    with pytest.raises(ValueError, match=message):
        pg_kmeans_batch(arguments.pop("X"), **arguments)
