"""ProductQuantizer on PyTorch tensors: where results are, and that they are those of arrays."""

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from pgkmeans_sk import PGKMeans, ProductQuantizer
from pgkmeans_sk.codes.rotation import any_rotation, random_hadamard, random_orthogonal
from tests.conftest import one_thread
from tests.test_dask_quantizer import assert_same_bytes, assert_same_fit
from tests.test_product_quantizer import VARIANTS, quantizer, table

torch = pytest.importorskip("torch")

from pgkmeans_sk.engines import torch_device, torch_memory, torch_rows  # noqa: E402
from pgkmeans_sk.quantization import (  # noqa: E402
    torch_codec,
    torch_rotation,
    torch_search,
    torch_training,
)
from pgkmeans_sk.quantizer_parameters import settings_of  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
N = 611
X = table(N, 10)
FRESH = table(150, 10, seed=1)
QUERIES = table(23, 10, seed=2)
WEIGHTS = np.where(np.arange(N) % 5 == 0, 0.0, np.random.default_rng(0).uniform(0, 3, N))

devices = pytest.mark.parametrize("device", DEVICES)
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture(autouse=True, scope="module")
def _few_threads():
    with one_thread():
        yield


@pytest.fixture(params=["kernels", "operations"], autouse=True)
def work_on_cpu(request, monkeypatch):
    """On the CPU, the kernels that tensors share their memory with; and PyTorch's operations."""
    monkeypatch.setattr(torch_device, "USES_KERNELS", request.param == "kernels")
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Few rows are worked on at a time."""
    monkeypatch.setattr(torch_memory, "HOST_BLOCK_BYTES", 2**14)
    monkeypatch.setattr(torch_memory, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(torch_search, "MAX_QUERIES", 5)


def tensor(values, device="cpu", dtype=None):
    return torch.from_numpy(np.array(values)).to(device, dtype)


def host(values):
    return values.cpu().numpy()


# ------------------------------------------------------------------ codes, rows, errors


@devices
@variants
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("small_blocks")
def test_codes_and_rows_are_those_of_arrays(variant, dtype, device):
    pq = quantizer(**variant).fit(X.astype(dtype), sample_weight=WEIGHTS)
    for own in (np.float32, np.float64):  # not always that of fit
        rows = FRESH.astype(own)
        given_rows = tensor(rows, device)
        codes = pq.transform(given_rows)
        assert codes.dtype == torch.uint8
        assert codes.device == given_rows.device
        assert_same_bytes(host(codes), pq.transform(rows))
        decoded = pq.inverse_transform(codes)
        assert decoded.device == given_rows.device
        assert_same_bytes(host(decoded), pq.inverse_transform(host(codes)))
        assert pq.score(given_rows) == pytest.approx(pq.score(rows), rel=1e-12)
        weights = tensor(WEIGHTS[:150], device)
        assert pq.score(given_rows, sample_weight=weights) == pytest.approx(
            pq.score(rows, sample_weight=WEIGHTS[:150]), rel=1e-12
        )
        small, expected = pq.encode(given_rows), pq.encode(rows)
        assert_same_bytes(small.codes(), expected.codes())
        assert small.relative_error == expected.relative_error
        np.testing.assert_array_equal(host(given_rows), rows)  # never written


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    n_features=st.integers(1, 9),
    block_size=st.integers(1, 9),
    variant=st.sampled_from(sorted(set(VARIANTS) - {"opq rows", "half all"})),
    digits=st.integers(0, 6),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_rows_have_the_codes_of_arrays(seed, n_features, block_size, variant, digits, dtype):
    """Of few digits many blocks are as far from one word as from another."""
    rng = np.random.default_rng(seed)
    rows = np.round(rng.normal(size=(80, n_features)), digits).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        parameters = VARIANTS[variant] | {"block_size": block_size, "n_codes": 5, "max_iter": 2}
        pq = quantizer(**parameters).fit(rows)
        fitted = quantizer(**parameters).fit(tensor(rows))
    fresh = np.round(rng.normal(size=(40, n_features)), digits).astype(dtype)
    for own in (pq, fitted):
        codes = own.transform(tensor(fresh))
        assert_same_bytes(host(codes), own.transform(fresh))
        assert_same_bytes(host(own.inverse_transform(codes)), own.inverse_transform(host(codes)))
        assert own.encode(tensor(fresh)).relative_error == own.encode(fresh).relative_error


@devices
def test_settings_of_pytorch_do_not_matter(device):
    expected = quantizer(rotation="opq", scale="row").fit(tensor(X, device))
    codes = host(expected.transform(tensor(X, device)))
    best = [host(part) for part in expected.topk(tensor(QUERIES, device), tensor(codes, device))]
    precision = torch.get_float32_matmul_precision()
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            found = quantizer(rotation="opq", scale="row").fit(tensor(X, device))
            assert_same_fit(found, expected)
            assert_same_bytes(host(found.transform(tensor(X, device))), codes)
            again = found.topk(tensor(QUERIES, device), tensor(codes, device))
            for part, wanted in zip(again, best, strict=True):
                assert_same_bytes(host(part), wanted)
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision(precision)


@devices
@pytest.mark.parametrize("codebook", ["shared", "per_block"])
@pytest.mark.parametrize("metric", [False, True])
def test_importance(codebook, metric, device):
    factor = np.random.default_rng(0).normal(size=(4, 4))
    importance = factor @ factor.T if metric else np.arange(1.0, 11.0)
    pq = quantizer(codebook=codebook).fit(X, importance=importance)
    assert_same_bytes(host(pq.transform(tensor(FRESH, device))), pq.transform(FRESH))
    found = quantizer(codebook=codebook).fit(
        tensor(X, device), importance=tensor(importance, device)
    )
    assert found.score(X) == pytest.approx(pq.score(X), rel=0.02)


@devices
def test_many_codes_and_other_integers(device):
    pq = quantizer(n_codes=300).fit(X)
    codes = pq.transform(tensor(FRESH, device))
    assert codes.dtype == torch.uint16
    assert_same_bytes(host(codes), pq.transform(FRESH))
    expected = pq.inverse_transform(host(codes))
    for dtype in (torch.uint16, torch.int32, torch.int64):
        assert_same_bytes(host(pq.inverse_transform(codes.to(dtype))), expected)
    values, rows = pq.topk(tensor(QUERIES, device), codes, k=4)
    assert_same_bytes(host(rows), pq.topk(QUERIES, host(codes), k=4)[1])
    assert_same_bytes(host(values), pq.topk(QUERIES, host(codes), k=4)[0])


@devices
def test_no_rows(device):
    pq = quantizer(scale="row", n_stages=2).fit(X)
    empty = torch.empty((0, 7), dtype=torch.uint8, device=device)
    assert pq.inverse_transform(empty).shape == (0, 10)


# ------------------------------------------------------------------ fitting


@devices
@variants
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_is_as_good_as_that_of_arrays(variant, weighted, device, work_on_cpu):
    weights = WEIGHTS if weighted else None
    parameters = variant | {"rows_per_code": 30}
    expected = quantizer(**parameters).fit(X, sample_weight=weights)
    rows = tensor(X, device)
    found = quantizer(**parameters)
    codes = found.fit_transform(rows, sample_weight=tensor(weights, device) if weighted else None)
    if work_on_cpu == "kernels" and device == "cpu":
        assert_same_fit(found, expected)
    score = found.score(X, sample_weight=weights)
    assert score == pytest.approx(expected.score(X, sample_weight=weights), rel=0.05)
    assert isinstance(found.codebooks_, np.ndarray)
    assert found.codebooks_.dtype == expected.codebooks_.dtype
    assert_same_bytes(found.n_effective_codes_, expected.n_effective_codes_)
    assert_same_bytes(host(codes), found.transform(X))
    np.testing.assert_array_equal(host(rows), X)  # never written
    again = quantizer(**parameters).fit(rows, sample_weight=weights)
    assert_same_fit(again, found)


@devices
@pytest.mark.filterwarnings("ignore:.*distinct code words")
def test_zeros_and_equal_rows(device):
    zeros = np.zeros((40, 8), dtype=np.float32)
    for rows in (zeros, zeros + 3.0, np.where(np.arange(40)[:, None] % 3, zeros + 2.0, zeros)):
        for variant in ({"scale": "row"}, {"scale": "block", "codebook": "shared"}):
            pq = quantizer(n_codes=2, **variant)
            decoded = pq.inverse_transform(pq.fit_transform(tensor(rows, device)))
            np.testing.assert_allclose(host(decoded), rows, rtol=1e-6)


@devices
@pytest.mark.parametrize(
    ("dtype", "decoded_dtype"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float64),
    ],
)
@pytest.mark.parametrize("scale", [None, "row"])
def test_dtypes(dtype, decoded_dtype, scale, device):
    rows = tensor(X * 5, device).to(dtype)
    pq = quantizer(scale=scale).fit(rows)
    codes = pq.transform(rows)
    decoded = pq.inverse_transform(codes)
    assert decoded.dtype == decoded_dtype
    wide = host(rows.to(torch.float64 if dtype == torch.int64 else torch.float32))
    plain = host(rows.to(decoded_dtype))
    assert_same_bytes(host(codes), pq.transform(wide.astype(plain.dtype)))
    assert_same_bytes(host(decoded), pq.inverse_transform(host(codes)))
    error = np.square(host(decoded).astype(float) - wide).mean()
    assert pq.score(rows) == pytest.approx(-error, rel=1e-6)


@devices
def test_arrays_and_tensors_may_follow_on_each_other(device):
    pq = quantizer().fit(tensor(X, device))
    assert isinstance(pq.transform(X), np.ndarray)
    assert_same_bytes(pickle.loads(pickle.dumps(pq)).transform(X), pq.transform(X))
    again = ProductQuantizer.from_decoder(pq.compress(tensor(X, device)).decoder)
    assert_same_bytes(host(again.transform(tensor(X, device))), pq.transform(X))
    turned = tensor(X.T, device).T  # columns side by side
    assert_same_bytes(host(pq.transform(turned)), pq.transform(X))


def test_no_gradient():
    rows = tensor(X).requires_grad_()
    pq = quantizer().fit(rows)
    decoded = pq.inverse_transform(pq.transform(rows))
    assert not decoded.requires_grad
    with torch.inference_mode():
        assert_same_bytes(host(pq.transform(tensor(X))), pq.transform(X))


# ------------------------------------------------------------------ rotations


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_features", [1, 2, 6, 7, 8, 24])
def test_rotations_are_those_of_the_kernels(n_features, dtype):
    rng = np.random.RandomState(0)
    rows = rng.normal(size=(31, n_features)).astype(dtype)
    for rotation in (
        random_hadamard(n_features, rng),
        any_rotation(random_orthogonal(n_features, rng)),
    ):
        applied = torch_rotation.applied(rotation, tensor(rows))
        assert_same_bytes(host(applied), rotation.apply(rows))
        undone = torch_rotation.undone(rotation, applied)
        assert_same_bytes(host(undone), rotation.undo(host(applied)))


# ------------------------------------------------------------------ search


@devices
@variants
@pytest.mark.parametrize("metric", ["sqeuclidean", "inner_product"])
@pytest.mark.usefixtures("small_blocks")
def test_search_is_that_of_arrays(variant, metric, device):
    pq = quantizer(**variant).fit(X)
    codes = pq.transform(X)
    for dtype in (np.float32, np.float64):
        queries = QUERIES.astype(dtype)
        expected = pq.topk(queries, codes, 9, metric)
        found = pq.topk(tensor(queries, device), tensor(codes, device), 9, metric)
        assert all(part.device.type == device for part in found)
        assert_same_bytes(host(found[1]), expected[1])
        assert host(found[0]).dtype == expected[0].dtype
        np.testing.assert_allclose(host(found[0]), expected[0], rtol=2e-5)
        decoded = pq.inverse_transform(codes)
        if metric == "inner_product":
            plain = np.take_along_axis(queries @ decoded.T, expected[1], axis=1)
        else:
            plain = np.square(queries[:, None] - decoded[expected[1]]).sum(axis=2)
        scale = np.abs(plain).max()
        np.testing.assert_allclose(host(found[0]), plain, rtol=1e-4, atol=1e-5 * scale)


@variants
def test_all_parts_are_on_the_device(variant, monkeypatch):
    """Tensors without values meet none of the host; what looks at values stands aside."""
    place = torch.device("meta")
    pq = quantizer(**variant).fit(X)
    for module in (torch_codec, torch_search, torch_training):
        monkeypatch.setattr(module, "block_rows", lambda device, row_bytes: 100)
    monkeypatch.setattr(
        torch_codec, "_nearest", lambda points, words: points[:, 0].to(torch.int32) + len(words)
    )
    monkeypatch.setattr(torch_search, "least", lambda scores, k: (scores[:, :k], scores[:, :k]))
    codec = torch_codec.TensorCodec(pq._encoder, place)
    rows, queries = torch.empty((250, 10), device=place), torch.empty((7, 10), device=place)
    codes = codec.encode(rows)
    parts = [codes, codec.decode(codes), codec.sq_errors(rows, codes), codec.sq_lengths(rows)]
    for metric in ("sqeuclidean", "inner_product"):
        parts += torch_search.nearest_rows(codec, queries, codes, 3, metric)
    weights = torch.empty(250, dtype=torch.float64, device=place)
    training = torch_training.TensorRows(rows, weights).scaled(pq._encoder)
    training = training.left_over(pq._encoder).divided(np.ones(3), np.ones(10))
    plan = settings_of(pq, 10, np.dtype(np.float32))
    for problem in training.problems(plan, np.random.RandomState(0)):
        parts += [problem.in_metric(problem.blocks, np.eye(4)), problem.weights]
    assert {part.device for part in parts} == {place}


@devices
def test_search_with_importance_and_a_rotation(device):
    pq = quantizer(rotation="hadamard").fit(X, importance=np.arange(1.0, 11.0))
    codes = pq.transform(X)
    found = pq.topk(tensor(QUERIES, device), tensor(codes, device), 9)
    expected = pq.topk(QUERIES, codes, 9)
    assert_same_bytes(host(found[1]), expected[1])
    np.testing.assert_allclose(host(found[0]), expected[0], rtol=2e-5)


@settings(max_examples=40)
@given(
    n_rows=st.integers(1, 60),
    k=st.integers(1, 60),
    n_values=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_the_least_of_a_row_by_hand(n_rows, k, n_values, seed):
    """Of few values many are equal; zeros of both signs are, too."""
    rng = np.random.default_rng(seed)
    scores = rng.choice([-0.0, 0.0, 1.0, -2.0, np.inf, 3.5][:n_values], (4, n_rows))
    values, columns = torch_search.least(tensor(scores), k)
    expected = np.argsort(scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(host(columns), expected)
    np.testing.assert_array_equal(host(values), np.take_along_axis(scores, expected, axis=1))


@devices
@pytest.mark.parametrize("k", [1, 5, 300, 611])
@pytest.mark.usefixtures("small_blocks")
def test_equal_rows_are_ordered_by_number(k, device):
    pq = quantizer().fit(X)
    codes = pq.transform(X)[np.random.default_rng(0).integers(0, 6, N)]
    for metric in ("sqeuclidean", "inner_product"):
        found = pq.topk(tensor(QUERIES, device), tensor(codes, device), k, metric)
        expected = pq.topk(QUERIES, codes, k, metric)
        for part, wanted in zip(found, expected, strict=True):
            assert_same_bytes(host(part), wanted)


@devices
def test_results_are_where_queries_are(device):
    pq = quantizer().fit(X)
    codes = pq.transform(X)
    expected = pq.topk(QUERIES, codes, 3)
    for queries, own in (
        (QUERIES, tensor(codes, device)),
        (tensor(QUERIES, device), codes),
        (tensor(QUERIES, device), tensor(codes)),
        (tensor(QUERIES), tensor(codes, device)),
    ):
        found = pq.topk(queries, own, 3)
        for part, wanted in zip(found, expected, strict=True):
            assert isinstance(part, type(queries))
            if not isinstance(queries, np.ndarray):
                assert part.device == queries.device
                part = host(part)
            assert_same_bytes(part, wanted)


# ------------------------------------------------------------------ what is refused


def refused(message, rows, sample_weight=None, error=ValueError, **parameters):
    pq = quantizer().fit(X).set_params(**parameters)
    before = pickle.dumps(pq)
    with pytest.raises(error, match=message):
        pq.fit(rows, sample_weight=sample_weight)
    assert pickle.dumps(pq) == before


@devices
def test_wrong_rows(device):
    bad = tensor(X, device)
    bad[3, 1] = float("nan")
    refused("Input X contains NaN", bad)
    rows = tensor(X, device)
    refused("Got a tensor of layout torch.sparse_coo, but expected a dense one", rows.to_sparse())
    refused("Expected 2D array", rows[0])
    refused("Got 9 blocks for a codebook", rows[:9])
    refused(r"sample_weight.shape == \(3,\)", rows, sample_weight=torch.ones(3))
    pq = quantizer().fit(X)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        pq.transform(bad)
    with pytest.raises(ValueError, match="4 features, but ProductQuantizer is expecting 10"):
        pq.transform(rows[:, :4])
    with pytest.raises(NotFittedError):
        quantizer().transform(rows)


def test_a_device_without_float64(monkeypatch):
    pq = quantizer().fit(X)
    codes = tensor(pq.transform(X))
    monkeypatch.setattr(torch_rows, "device_of", lambda device, X: torch.device("mps"))
    for call in (pq.fit, pq.transform, pq.score):
        with pytest.raises(
            ValueError, match="Got device='mps', but expected a device with float64"
        ):
            call(tensor(X))
    with pytest.raises(ValueError, match="Got device='mps', but expected a device with float64"):
        pq.inverse_transform(codes)


@devices
def test_wrong_codes(device):
    pq = quantizer(scale="row").fit(X)
    codes = pq.transform(tensor(X, device)).to(torch.int64)
    for place, value, message in (
        ((5, 1), 16, "Got code 16, but expected 0 to 15"),
        ((5, 1), -1, "Got code -1, but expected 0 to 15"),
        ((5, -1), 256, "Got size 256, but expected 0 to 255"),
    ):
        wrong = codes.clone()
        wrong[place] = value
        for call in (pq.inverse_transform, lambda codes: pq.topk(QUERIES, codes)):
            with pytest.raises(ValueError, match=message):
                call(wrong)
    with pytest.raises(ValueError, match=r"Got codes of shape \(611, 3\), but expected \(n, 4\)"):
        pq.inverse_transform(codes[:, :3])
    with pytest.raises(ValueError, match=r"Got codes of dtype torch.float32"):
        pq.inverse_transform(codes.float())
    with pytest.raises(ValueError, match="Got k=612, but expected at most 611"):
        pq.topk(tensor(QUERIES, device), codes, k=612)
    with pytest.raises(ValueError, match="Got metric='cosine'"):
        pq.topk(tensor(QUERIES, device), codes, metric="cosine")


def test_other_clusterers(work_on_cpu):
    rows = tensor(X)
    if work_on_cpu == "operations":
        refused("Got a quantizer of its own with rows on cpu", rows, quantizer=PGKMeans())
        return
    parameters = {"quantizer": KMeans(n_init=1, max_iter=3)}
    assert_same_fit(quantizer(**parameters).fit(rows), quantizer(**parameters).fit(X))
