"""The torch engine against definitions, and against the engine for NumPy arrays."""

import numpy as np
import pytest

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.pipeline import run
from pgkmeans_sk.pipeline.settings import Settings
from pgkmeans_sk.pipeline.starts import STARTS
from tests import reference
from tests.conftest import one_thread
from tests.problems import PATTERNS, rows
from tests.test_nearest import assert_statistics

torch = pytest.importorskip("torch")

from pgkmeans_sk.engines import open_engine, torch_labels, torch_memory, torch_source  # noqa: E402
from pgkmeans_sk.engines.torch_device import TorchEngine, open_device_engine  # noqa: E402
from pgkmeans_sk.engines.torch_labels import products_on  # noqa: E402
from pgkmeans_sk.engines.torch_source import ResidentRows, StreamedRows  # noqa: E402

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]

devices = pytest.mark.parametrize("device", DEVICES, ids=str)
every_problem = pytest.mark.parametrize(
    "problem",
    [*reference.problems(np.float32), *reference.problems(np.float64)],
    ids=lambda problem: problem.name,
)
weightings = pytest.mark.parametrize("weighting", ["none", "random", "some zero"])


@pytest.fixture(autouse=True, scope="module")
def _few_threads():
    with one_thread():
        yield


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, on every device."""
    monkeypatch.setattr(torch_memory, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(torch_memory, "HOST_BLOCK_BYTES", 2000)


# ------------------------------------------------------------------ labels and what they mean


@devices
@every_problem
@weightings
def test_labels_are_those_of_the_definition(device, problem, weighting):
    sample_weight = reference.sample_weights(len(problem.X))[weighting]
    opened = open_device_engine(problem.X, sample_weight, device)
    found = opened.assign(problem.centers)
    expected = reference.labels(problem.X, problem.centers)
    np.testing.assert_array_equal(opened.labels, expected)
    np.testing.assert_array_equal(opened.nearest(problem.centers), expected)
    assert_statistics(found, problem, sample_weight, is_sparse=False)
    assert found.n_changed == len(problem.X)
    assert opened.assign(problem.centers).n_changed == 0
    utilities = opened.utilities(problem.centers)
    other = open_engine("numba", problem.X, sample_weight)
    origin = np.median(problem.X, axis=0)
    norms = sum(((part - origin) ** 2).sum(axis=1).max() for part in (problem.X, problem.centers))
    noise = 8 * (problem.X.shape[1] + 30) * np.finfo(problem.X.dtype).eps * other.total_weight
    np.testing.assert_allclose(
        utilities, other.utilities(problem.centers), rtol=1e-6, atol=noise * norms
    )


@devices
@every_problem
@pytest.mark.usefixtures("small_blocks")
def test_labels_do_not_depend_on_blocks(device, problem):
    opened = open_device_engine(problem.X, None, device)
    expected = reference.labels(problem.X, problem.centers)
    np.testing.assert_array_equal(opened.nearest(problem.centers), expected)


@devices
@pytest.mark.parametrize("scale", [1e17, 3e18, 6e18, 1e19, 1e37])
def test_labels_of_rows_whose_squares_overflow(device, scale):
    rng = np.random.default_rng(0)
    X = (scale * rng.standard_normal((200, 5))).astype(np.float32)
    X[::7] *= np.float32(1e-9)  # beside rows and centres of ordinary size
    opened = open_device_engine(X, None, device)
    np.testing.assert_array_equal(opened.nearest(X[:20]), reference.labels(X, X[:20]))


@pytest.mark.parametrize("precision", ["high", "medium"])
@every_problem
def test_precision_of_products_does_not_matter(monkeypatch, precision, problem):
    # Rounded as a device with that setting would round them, at worst.
    n_bits = {"high": 11, "medium": 8}[precision]

    def rounded(values):
        mask = -(1 << (24 - n_bits))
        return (values.contiguous().view(torch.int32) & mask).view(torch.float32)

    def addmm(start, first, second):
        if first.dtype == torch.float32:
            first, second = rounded(first), rounded(second)
        return start + first @ second

    with monkeypatch.context() as patch:
        patch.setattr(torch_labels.torch, "addmm", addmm)
        patch.setattr(
            torch_labels, "_precision_settings", lambda device: {{11: "tf32", 8: "bf16"}[n_bits]}
        )
        found = open_device_engine(problem.X, None, CPU).nearest(problem.centers)
    np.testing.assert_array_equal(found, reference.labels(problem.X, problem.centers))


def test_settings_of_precision_are_seen_and_kept():
    before = torch.get_float32_matmul_precision()
    try:
        for precision, n_parts in (("highest", 1), ("high", 2), ("medium", 3)):
            torch.set_float32_matmul_precision(precision)
            cuda = products_on(torch.device("cuda", 0), torch.float32)
            assert cuda.n_parts >= min(n_parts, 2)  # on CUDA, "medium" may mean TF32, too
            if precision != "high":  # PyTorch takes it for "highest" on most processors
                assert products_on(CPU, torch.float32).n_parts == n_parts
            assert products_on(CPU, torch.float64).n_parts == 1
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@devices
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_read_as_they_are(device, dtype):
    X = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    centers = X[:9].float().cpu().numpy()
    opened = open_device_engine(X, None, device)
    assert opened.dtype == np.float32
    found = opened.assign(centers)
    expected = reference.assignment(X.double().cpu().numpy(), centers)
    np.testing.assert_array_equal(
        opened.labels.cpu(), reference.labels(X.double().cpu().numpy(), centers)
    )
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-12, atol=1e-14)
    assert opened.distances(centers).dtype == torch.float32
    assert opened.draw_rows(3, np.random.RandomState(0)).dtype == np.float32


@devices
@pytest.mark.parametrize("layout", ["C", "Fortran", "strided rows", "strided columns", "reversed"])
def test_layouts(device, layout):
    X = np.random.default_rng(2).standard_normal((200, 5))
    expected = reference.labels(X, X[:7])
    opened = open_device_engine(reference.LAYOUTS[layout](X), None, device)
    np.testing.assert_array_equal(opened.nearest(X[:7]), expected)
    root = opened.root()
    np.testing.assert_allclose(root.means[0], X.mean(axis=0), atol=1e-14)


# ------------------------------------------------------------------ whole fits, on both engines


def clustered(opened, init, n_clusters, **settings):
    rng = np.random.RandomState(0)
    starts = [STARTS[init]]
    return run(opened, starts, Settings(n_clusters, **settings), rng)


@devices
@pytest.mark.parametrize("init", ["partition", "k-means++", "random"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fits_agree(device, dtype, init):
    X = np.random.default_rng(7).standard_normal((3000, 6)).astype(dtype)
    expected = clustered(open_engine("numba", X, None), init, 25)
    found = clustered(open_device_engine(X, None, device), init, 25)
    # The same row may be a tie for one of two roundings: none is, here.
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.n_iter == expected.n_iter
    rtol = 1e-6 if dtype == np.float32 else 1e-12
    assert found.inertia == pytest.approx(expected.inertia, rel=rtol)
    np.testing.assert_allclose(found.centers, expected.centers, rtol=1e-5, atol=1e-6)


@devices
@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_no_cluster_stays_empty(device, pattern):
    for dtype, n_clusters in ((np.float32, 9), (np.float64, 30)):
        X = rows(pattern, 60, 3, 0, dtype)
        opened = open_device_engine(X, None, device)
        found = clustered(opened, "partition", n_clusters)
        n_expected = min(n_clusters, len(np.unique(X + 0.0, axis=0)))
        assert found.n_effective_clusters == n_expected == len(np.unique(found.labels))
        np.testing.assert_array_equal(found.labels, opened.nearest(found.centers))
        own = X.astype(np.float64) - found.centers.astype(np.float64)[found.labels]
        assert found.inertia == pytest.approx((own**2).sum(), rel=1e-12)


# ------------------------------------------------------------------ promises of the engine alone


@devices
def test_the_same_bits_each_time(device, monkeypatch):
    X = np.random.default_rng(3).standard_normal((20_000, 3)).astype(np.float32)
    first = clustered(open_device_engine(X, None, device), "partition", 40)
    # Less memory is free: other blocks, the same bits.
    monkeypatch.setattr(torch_memory, "BLOCK_BYTES", 2**16)
    monkeypatch.setattr(torch_memory, "HOST_BLOCK_BYTES", 2**16)
    again = clustered(open_device_engine(X, None, device), "partition", 40)
    np.testing.assert_array_equal(first.centers, again.centers)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.inertia == again.inertia


@devices
def test_settings_of_others_do_not_matter(device):
    X = np.random.default_rng(3).standard_normal((2000, 5)).astype(np.float32)
    expected = clustered(open_device_engine(X, None, device), "partition", 20)
    deterministic, default = torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            opened = open_device_engine(X, None, device)
            found = clustered(opened, "partition", 20)
            distances = opened.distances(found.centers)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_default_dtype(default)
    np.testing.assert_array_equal(found.centers, expected.centers)
    np.testing.assert_array_equal(found.labels, expected.labels)
    expected_distances = open_device_engine(X, None, device).distances(found.centers)
    np.testing.assert_array_equal(distances, expected_distances)


@devices
def test_no_gradient_is_recorded(device):
    X = torch.randn(200, 3, device=device, requires_grad=True)
    opened = open_device_engine(X, None, device)
    found = clustered(opened, "partition", 5)
    assert not found.labels.requires_grad
    assert not opened.distances(found.centers).requires_grad
    with torch.inference_mode():
        again = clustered(open_device_engine(X, None, device), "partition", 5)
    np.testing.assert_array_equal(found.centers, again.centers)


@devices
def test_rows_and_weights_are_not_written(device):
    X = torch.randn(500, 3, device=device)
    weights = torch.rand(500, device=device, dtype=torch.float64)
    copies = X.clone(), weights.clone()
    opened = open_device_engine(X, weights, device)
    for init in STARTS:
        clustered(opened, init, 20, refine=1)
    opened.merge_rows(0.5)
    assert torch.equal(X, copies[0])
    assert torch.equal(weights, copies[1])


def test_sums_need_no_room_for_rows_times_centres():
    # What a block takes follows the budget, not the rows.
    from torch.profiler import ProfilerActivity, profile

    X = torch.randn(20_000, 4)
    opened = TorchEngine(ResidentRows(X), None, X)
    centers = X[:512].numpy()
    opened.assign(centers)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        opened.assign(centers)
    largest = max(event.cpu_memory_usage for event in profiled.events())
    assert largest < 2 * torch_memory.HOST_BLOCK_BYTES  # all of it would be 41 MB


# ------------------------------------------------------------------ rows that stay on the host


def streamed(X, weights, device, directions=False):
    """An engine whose rows come to the device chunk by chunk."""
    rows = torch.from_numpy(X)
    weights = None if weights is None else torch.from_numpy(weights).to(device)
    return TorchEngine(StreamedRows(rows, device, directions), weights, X, X)


@pytest.fixture
def short_chunks(monkeypatch):
    """Sums of 64 rows, and three of them in a chunk of three float32 features."""
    monkeypatch.setattr(torch_memory, "MAX_SUM_ROWS", 64)
    monkeypatch.setattr(torch_source, "CHUNK_BYTES", 3 * 64 * 12)


@devices
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("n_rows", [1, 191, 192, 193, 2000])
def test_chunks_cover_the_rows(device, n_rows):
    X = np.random.default_rng(0).standard_normal((n_rows, 3)).astype(np.float32)
    source = StreamedRows(torch.from_numpy(X), device)
    parts = list(source.chunks(64))
    np.testing.assert_array_equal(torch.cat([rows for *_, rows in parts]).cpu(), X)
    assert [start for start, *_ in parts] == list(range(0, n_rows, 192))
    assert [stop for _, stop, _ in parts] == [*range(192, n_rows, 192), n_rows]
    numbers = torch.tensor([n_rows - 1, 0, 0], device=device)
    np.testing.assert_array_equal(source.take(numbers).cpu(), X[[-1, 0, 0]])


@devices
@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("init", [*STARTS])
@pytest.mark.parametrize("weighting", ["none", "some zero"])
def test_streamed_rows_give_the_same_bits(device, init, weighting):
    X = np.random.default_rng(5).standard_normal((500, 3)).astype(np.float32)
    weights = reference.sample_weights(500)[weighting]
    resident, other = open_device_engine(X, weights, device), streamed(X, weights, device)
    expected, found = clustered(resident, init, 15), clustered(other, init, 15)
    np.testing.assert_array_equal(found.centers, expected.centers)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.inertia == expected.inertia
    np.testing.assert_array_equal(other.distances(found.centers), resident.distances(found.centers))
    np.testing.assert_array_equal(
        other.farthest_rows(found.centers, 9), resident.farthest_rows(found.centers, 9)
    )
    np.testing.assert_array_equal(
        other.closest_rows(found.centers), resident.closest_rows(found.centers)
    )
    merged, merged_too = other.merge_rows(0.5), resident.merge_rows(0.5)
    assert merged[1] == merged_too[1]
    np.testing.assert_array_equal(merged[0].user_data, merged_too[0].user_data)
    np.testing.assert_array_equal(
        other.extended(X[:2]).nearest(found.centers),
        resident.extended(X[:2]).nearest(found.centers),
    )


@devices
@pytest.mark.usefixtures("short_chunks")
def test_streamed_directions(device):
    X = np.random.default_rng(6).standard_normal((700, 3)).astype(np.float32)
    expected = clustered(open_device_engine(X, None, device, directions=True), "partition", 8)
    found = clustered(streamed(X, None, device, directions=True), "partition", 8)
    np.testing.assert_array_equal(found.centers, expected.centers)


@pytest.mark.skipif(len(DEVICES) == 1, reason="needs a CUDA device")
def test_rows_that_leave_too_little_room_are_streamed(monkeypatch, tmp_path):
    X = np.random.default_rng(6).standard_normal((70_000, 3)).astype(np.float32)
    np.save(tmp_path / "rows.npy", X)
    expected = PGKMeans(9, device="cuda").fit(X)
    monkeypatch.setattr(torch_source, "RESIDENT_SHARE", 0.0)
    found = PGKMeans(9, device="cuda").fit(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    np.testing.assert_array_equal(found.cluster_centers_, expected.cluster_centers_)


# ------------------------------------------------------------------ what it refuses


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("mps", "expected a device with float64"),
        ("cuda:77", "expected one that PyTorch can use here"),
        ("nowhere", "expected the name of a PyTorch device"),
    ],
)
def test_devices_that_cannot_do_the_work(device, message):
    X = np.zeros((4, 2))
    with pytest.raises(ValueError, match=message):
        open_engine("torch", X, None, device=device)


def test_sparse_rows_are_refused():
    with pytest.raises(ValueError, match="Got sparse rows with engine='torch'"):
        open_engine("torch", reference.csr(np.eye(3)), None)
    with pytest.raises(ValueError, match="Got sparse rows with engine='torch'"):
        open_engine("auto", torch.eye(3).to_sparse(), None)


def test_numba_has_one_device():
    with pytest.raises(ValueError, match="Got device='cuda' with engine='numba'"):
        open_engine("numba", np.eye(3), None, device="cuda")
