"""Tensors in, tensors out: PGKMeans and pg_kmeans on PyTorch tensors."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from pgkmeans_sk import PGKMeans, pg_kmeans
from pgkmeans_sk.pipeline.starts import STARTS
from pgkmeans_sk.validation import InvalidParameterError
from tests.conftest import one_thread
from tests.problems import blobs

torch = pytest.importorskip("torch")

from pgkmeans_sk.engines import torch_device  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROWS = blobs(400, 3, 8, seed=0).astype(np.float32)

devices = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True, scope="module")
def _few_threads():
    with one_thread():
        yield


@pytest.fixture(params=["kernels", "operations"], autouse=True)
def work_on_cpu(request, monkeypatch):
    """On the CPU, the kernels that tensors share their memory with; and PyTorch's operations."""
    monkeypatch.setattr(torch_device, "USES_KERNELS", request.param == "kernels")
    return request.param


def tensor(X, device="cpu", dtype=None):
    return torch.from_numpy(np.array(X)).to(device, dtype)


def host(values):
    return values.cpu().numpy()


# ------------------------------------------------------------------ kinds and places


@devices
@pytest.mark.parametrize(
    ("dtype", "centers_dtype"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float64),
        (torch.bool, torch.float64),
    ],
)
def test_results_are_tensors_where_the_rows_are(device, dtype, centers_dtype):
    X = tensor(ROWS, device)
    X = X > 0 if dtype == torch.bool else (X * 4).to(dtype)
    n_clusters = 2 if dtype == torch.bool else 6
    estimator = PGKMeans(n_clusters, random_state=0)
    labels, centers = estimator.fit_predict(X), estimator.cluster_centers_
    for found, kind in (
        (labels, torch.int32),
        (estimator.labels_, torch.int32),
        (estimator.predict(X), torch.int32),
        (centers, centers_dtype),
        (estimator.transform(X), centers_dtype),
    ):
        assert isinstance(found, torch.Tensor)
        assert found.dtype == kind
        assert found.device == X.device
    assert type(estimator.inertia_) is float
    assert type(estimator.score(X)) is float
    assert estimator.score(X) == -estimator.inertia_
    assert torch.equal(estimator.predict(X), labels)
    assert torch.equal(estimator.fit_transform(X).argmin(dim=1).to(torch.int32), labels)
    expected = PGKMeans(n_clusters, random_state=0).fit(host(X.to(centers_dtype)))
    np.testing.assert_array_equal(host(labels), expected.labels_)
    assert estimator.inertia_ == pytest.approx(expected.inertia_, rel=1e-9)


def test_the_engine_is_named(work_on_cpu):
    X = tensor(ROWS)
    name = PGKMeans(3).fit(X).engine_
    assert name.startswith("torch-cpu-") if work_on_cpu == "kernels" else name == "torch-cpu"
    assert PGKMeans(3).fit(ROWS).engine_.startswith("numba-dense")
    assert PGKMeans(3, engine="numba").fit(X).engine_.startswith("torch-cpu-")
    for parameters in ({"engine": "torch", "device": "cpu"}, {"device": torch.device("cpu")}):
        estimator = PGKMeans(3, **parameters).fit(ROWS)
        assert estimator.engine_ == name
        assert isinstance(estimator.labels_, np.ndarray)
        assert isinstance(estimator.cluster_centers_, np.ndarray)
        assert isinstance(estimator.transform(ROWS), np.ndarray)


@devices
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_tensors_follow_on_arrays_and_arrays_on_tensors(device, metric):
    X = tensor(ROWS, device)
    of_tensor = PGKMeans(7, metric=metric, random_state=0).fit(X)
    of_array = PGKMeans(7, metric=metric, random_state=0).fit(ROWS)
    np.testing.assert_array_equal(host(of_tensor.labels_), of_array.labels_)
    assert isinstance(of_tensor.predict(ROWS), np.ndarray)
    assert isinstance(of_array.predict(X), torch.Tensor)
    np.testing.assert_array_equal(host(of_array.predict(X)), of_array.labels_)
    np.testing.assert_allclose(
        host(of_array.transform(X)), of_array.transform(ROWS), rtol=1e-6, atol=1e-7
    )
    assert of_tensor.score(ROWS) == pytest.approx(of_array.score(X), rel=1e-6)


@pytest.mark.parametrize(
    "weights",
    [
        np.linspace(0, 2, 400),
        torch.linspace(0, 2, 400, dtype=torch.float64),
        np.linspace(0, 2, 400).tolist(),
    ],
    ids=["array", "tensor", "list"],
)
def test_weights_of_any_kind(weights):
    expected = PGKMeans(5).fit(ROWS, sample_weight=np.linspace(0, 2, 400))
    for X in (ROWS, tensor(ROWS)):
        found = PGKMeans(5).fit(X, sample_weight=weights)
        assert type(found.labels_) is type(X)
        assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-12)
        assert found.score(X, sample_weight=weights) == -found.inertia_
    assert PGKMeans(5).fit(tensor(ROWS), sample_weight=3.0).inertia_ == pytest.approx(
        3 * PGKMeans(5).fit(ROWS).inertia_
    )


@devices
def test_first_centres_of_any_kind(device):
    X = tensor(ROWS, device)
    expected = PGKMeans(6, init=ROWS[:6]).fit(ROWS)
    seen = []

    def first_rows(X, n_clusters, random_state):
        seen.append(X)
        return X[:n_clusters]

    for init in (ROWS[:6], X[:6], first_rows):
        found = PGKMeans(6, init=init, n_init=1).fit(X)
        np.testing.assert_array_equal(host(found.labels_), expected.labels_)
    assert isinstance(seen[0], torch.Tensor)
    found = PGKMeans(6, init=X[:6]).fit(ROWS)
    np.testing.assert_array_equal(found.labels_, expected.labels_)


@pytest.mark.parametrize("init", [*STARTS])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_start(init, weighted):
    X = tensor(ROWS).double()
    weights = torch.arange(400) % 3 if weighted else None
    found = PGKMeans(30, init=init, n_init=1, random_state=0).fit(X, sample_weight=weights)
    assert found.n_effective_clusters_ == 30
    assert len(found.labels_[slice(None) if weights is None else weights > 0].unique()) == 30
    assert torch.equal(found.predict(X), found.labels_)


@devices
def test_partial_fit(device):
    batches = tensor(ROWS, device).split(100)
    estimator, expected = PGKMeans(9, random_state=0), PGKMeans(9, random_state=0)
    for batch in batches:
        estimator.partial_fit(batch)
        expected.partial_fit(host(batch))
        assert isinstance(estimator.cluster_centers_, torch.Tensor)
        np.testing.assert_array_equal(host(estimator.labels_), expected.labels_)
    estimator.partial_fit(ROWS)  # from now on, arrays
    assert isinstance(estimator.cluster_centers_, np.ndarray)
    assert estimator.n_steps_ == 5


@devices
def test_one_feature_is_clustered_optimally(device):
    X = tensor(ROWS[:, :1], device)
    estimator = PGKMeans(5).fit(X)
    assert estimator.start_ == "optimum"
    assert estimator.inertia_ == pytest.approx(PGKMeans(5).fit(ROWS[:, :1]).inertia_, rel=1e-9)


@devices
@pytest.mark.parametrize("consolidate", ["exact", "auto", 0.5])
def test_consolidation(device, consolidate):
    X = np.round(ROWS.astype(np.float64), 1)
    expected = PGKMeans(6, consolidate=consolidate).fit(X)
    found = PGKMeans(6, consolidate=consolidate).fit(tensor(X, device))
    np.testing.assert_array_equal(host(found.labels_), expected.labels_)


def test_function():
    center, label, inertia, n_iter = pg_kmeans(tensor(ROWS), 4, return_n_iter=True)
    assert isinstance(center, torch.Tensor)
    assert isinstance(label, torch.Tensor)
    assert type(inertia) is float
    assert type(n_iter) is int
    assert isinstance(pg_kmeans(ROWS, 4, device="cpu")[1], np.ndarray)


@devices
def test_first_centres_of_directions(device):
    seen = []

    def first_rows(X, n_clusters, random_state):
        seen.append(X)
        return X[:n_clusters]

    for X in (tensor(ROWS, device), ROWS):
        PGKMeans(6, init=first_rows, n_init=1, metric="cosine", device=device).fit(X)
    assert isinstance(seen[0], torch.Tensor)
    assert isinstance(seen[1], np.ndarray)
    for rows in (host(seen[0]), seen[1]):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-6)


def test_code_words_of_a_product_quantizer():
    from pgkmeans_sk import ProductQuantizer

    own, others = PGKMeans(max_iter=5), PGKMeans(max_iter=5, device="cpu")
    parameters = {"block_size": 3, "n_codes": 16, "random_state": 0}
    expected = ProductQuantizer(quantizer=own, **parameters).fit(ROWS)
    found = ProductQuantizer(quantizer=others, **parameters).fit(ROWS)
    np.testing.assert_allclose(found.codebooks_, expected.codebooks_, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------ as an estimator


def test_clone_pickle_and_names():
    X = tensor(ROWS)
    estimator = PGKMeans(4, device="cpu").fit(X)
    assert clone(estimator).device == "cpu"
    with pytest.raises(NotFittedError):
        clone(estimator).predict(X)
    again = pickle.loads(pickle.dumps(estimator))
    assert torch.equal(again.predict(X), estimator.labels_)
    assert list(estimator.get_feature_names_out()) == [f"pgkmeans{k}" for k in range(4)]


def test_set_output():
    pytest.importorskip("pandas")
    table = PGKMeans(4).set_output(transform="pandas").fit(tensor(ROWS)).transform(tensor(ROWS))
    assert list(table.columns) == [f"pgkmeans{k}" for k in range(4)]
    assert table.shape == (400, 4)


def test_tensors_that_require_gradients_and_inference_mode():
    X = tensor(ROWS).requires_grad_()
    estimator = PGKMeans(4).fit(X)
    assert not estimator.cluster_centers_.requires_grad
    assert not estimator.transform(X).requires_grad
    with torch.inference_mode():
        again = PGKMeans(4).fit(tensor(ROWS))
        assert torch.equal(again.predict(X), estimator.labels_)


def test_nothing_global_is_changed():
    def state():
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
        )

    before = state()
    for init in ("partition", "k-means++", "random"):
        PGKMeans(5, init=init, random_state=0).fit(tensor(ROWS)).transform(tensor(ROWS))
    assert state() == before


# ------------------------------------------------------------------ limits and errors


def test_size_limits(work_on_cpu):
    X = tensor(ROWS)
    if work_on_cpu == "operations":
        with pytest.raises(ValueError, match="sizes are limited in the memory of the host"):
            PGKMeans(5, size_min=60).fit(X)
    found = PGKMeans(5, size_min=60, engine="numba").fit(X)
    assert int(torch.bincount(found.labels_).min()) >= 60


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (torch.zeros(4), "Expected 2D array, got 1D array"),
        (torch.zeros((4, 2, 2)), "Expected 2D array, got 3D array"),
        (torch.zeros((0, 2)), "0 sample"),
        (torch.zeros((4, 0)), "0 feature"),
        (torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), "contains NaN"),
        (torch.tensor([[0.0, 1.0], [torch.inf, 1.0]]), "contains infinity"),
        (torch.tensor([[0.0, 1.0], [-torch.inf, 1.0]]), "contains infinity"),
        (torch.tensor([[0.0], [1e200]], dtype=torch.float64), "squared distances"),
        (torch.zeros((4, 2), dtype=torch.complex64), "Complex data not supported"),
        (torch.eye(4).to_sparse(), "Got sparse rows"),
        (torch.zeros((1, 2)), "n_samples=1 should be >= n_clusters=2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rows_that_are_refused(X, message):
    estimator = PGKMeans(2).fit(tensor(ROWS))
    before = estimator.labels_
    with pytest.raises(ValueError, match=message):
        estimator.fit(X)
    assert estimator.labels_ is before
    assert estimator.n_features_in_ == 3


def test_number_of_features_is_compared():
    with pytest.raises(ValueError, match="X has 2 features, but PGKMeans is expecting 3"):
        PGKMeans(2).fit(tensor(ROWS)).predict(torch.zeros((5, 2)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(3), r"sample_weight.shape == \(3,\), expected \(400,\)"),
        (np.ones(3), r"sample_weight.shape == \(3,\), expected \(400,\)"),
        (torch.ones((400, 1)), r"sample_weight.shape == \(400, 1\)"),
        (-torch.ones(400), "Negative values in sample_weight"),
        (torch.zeros(400), "at least one non-zero"),
        (torch.full((400,), torch.nan), "contains NaN"),
        (torch.full((400,), 1e308, dtype=torch.float64), "expected a finite sum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        PGKMeans(2).fit(tensor(ROWS), sample_weight=weights)


def test_devices_that_are_refused():
    with pytest.raises(InvalidParameterError, match="Got device=3"):
        PGKMeans(2, device=3).fit(ROWS)
    with pytest.raises(ValueError, match="expected the name of a PyTorch device"):
        PGKMeans(2, device="nowhere").fit(ROWS)
    with pytest.raises(ValueError, match="Got device='cuda:88' with engine='numba'"):
        PGKMeans(2, device="cuda:88", engine="numba").fit(ROWS)
