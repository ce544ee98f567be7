"""Many problems in step, in operations for all of them: each ends where it ends alone."""

import warnings
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkmeans_sk import batch, pg_kmeans, pg_kmeans_batch
from pgkmeans_sk.pipeline import (
    starts,
    together,
    together_exchange,
    together_lloyd,
    together_starts,
)
from pgkmeans_sk.pipeline.empty_clusters import settle
from pgkmeans_sk.pipeline.exchange import is_settled, rebalance, survey
from pgkmeans_sk.pipeline.lloyd import lloyd
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.pipeline.starts import STARTS
from pgkmeans_sk.pipeline.together_exchange import MovesTogether, are_settled, survey_together
from tests import reference
from tests.conftest import one_thread
from tests.problems import PATTERNS, blobs, rows
from tests.test_promises import SEEDS
from tests.test_promises import problems as drawn_problems

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from pgkmeans_sk.engines import (  # noqa: E402
    torch_device,
    torch_members,
    torch_memory,
    torch_nodes,
    torch_problem_labels,
    torch_sums,
)
from pgkmeans_sk.engines.torch_device import open_device_engine  # noqa: E402
from pgkmeans_sk.engines.torch_problems import TorchProblems, open_problems  # noqa: E402
from tests.host_reads import HostReads, Waits  # noqa: E402

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])]
devices = pytest.mark.parametrize("device", DEVICES, ids=str)

BATCH = np.stack([blobs(300, 3, 5, seed=seed) for seed in range(4)])
WEIGHTS = np.random.default_rng(0).integers(0, 3, (4, 300)).astype(float)


@pytest.fixture(autouse=True, scope="module")
def _few_threads():
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def _operations(monkeypatch):
    """Plain operations of PyTorch on the CPU, too."""
    monkeypatch.setattr(torch_device, "USES_KERNELS", False)


def on_host(values):
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values


def assert_as_alone(X, n_clusters, sample_weight=None, init="partition", **parameters):
    """Same bits as ``pg_kmeans`` gives each problem; returns what was found."""
    parameters = {"random_state": 3} | parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pg_kmeans_batch(X, n_clusters, sample_weight=sample_weight, init=init, **parameters)
        for number, own in enumerate(X):
            weights = None if sample_weight is None else sample_weight[number]
            own_init = init if isinstance(init, str) or callable(init) else init[number]
            alone = pg_kmeans(own, n_clusters, sample_weight=weights, init=own_init, **parameters)
            np.testing.assert_array_equal(on_host(found[1][number]), on_host(alone[1]))
            np.testing.assert_array_equal(on_host(found[0][number]), on_host(alone[0]))
            assert found[2][number] == alone[2]
    return found


# ------------------------------------------------------------------ whole fits


@devices
@pytest.mark.parametrize("init", [*STARTS])
@pytest.mark.parametrize("weighting", ["none", "own"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_starts(device, init, weighting, dtype):
    X = torch.from_numpy(BATCH.astype(dtype)).to(device)
    weights = None if weighting == "none" else torch.from_numpy(WEIGHTS).to(device)
    centers, labels, _ = assert_as_alone(X, 12, weights, init, n_init=2 if weights is None else 1)
    assert centers.device == labels.device == X.device
    assert centers.dtype == X.dtype
    assert labels.dtype == torch.int32


@devices
@pytest.mark.parametrize(
    "parameters",
    [
        {"metric": "cosine"},
        {"metric": "cosine", "init": "random", "n_init": 2},
        {"refine": 3},
        {"refine": 5, "max_iter": 6},
        {"algorithm": "lloyd"},
        {"algorithm": "lloyd", "tol": 0.0, "max_iter": 3},
        {"max_iter": 1},
        {"tol": 0.0},
        {"tol": 0.1},
        {"consolidate": "exact"},
        {"init": BATCH[:, :5]},
        {"init": np.repeat(BATCH[:, :1], 5, axis=1)},
        {"init": lambda X, n_clusters, random_state: X[:n_clusters], "n_init": 1},
        {"init": "k-means++", "n_init": 3},
    ],
    ids=lambda parameters: "-".join(parameters),
)
def test_parameters(device, parameters):
    assert_as_alone(torch.from_numpy(BATCH).to(device), 5, **parameters)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_patterns(pattern, dtype):
    X = np.stack([rows(pattern, 120, 4, seed, dtype) for seed in range(3)])
    _, labels, _ = assert_as_alone(torch.from_numpy(X), 20)
    for own, found in zip(X, labels, strict=True):
        n_distinct = len(np.unique(own + 0.0, axis=0))
        assert len(found.unique()) == min(20, n_distinct)


@settings(max_examples=60)
@given(problem=drawn_problems(), patterns=st.lists(st.sampled_from(sorted(PATTERNS)), max_size=3),
       seed=SEEDS)  # fmt: skip
def test_any_problems(problem, patterns, seed):
    n_rows, n_features = problem.X.shape
    others = [rows(pattern, n_rows, n_features, seed, problem.X.dtype) for pattern in patterns]
    X = torch.from_numpy(np.stack([problem.X, *others]))
    parameters, weights = dict(problem.parameters), problem.sample_weight
    init = parameters.pop("init")
    if isinstance(init, np.ndarray):
        init = np.stack([init] * len(X))
    if weights is not None:
        weights = np.stack([np.roll(weights, number) for number in range(len(X))])
    with mock.patch.object(torch_device, "USES_KERNELS", False):
        assert_as_alone(X, problem.n_clusters, weights, init, **parameters)


def test_large_tables_begin_with_samples(monkeypatch):
    monkeypatch.setattr(starts, "SAMPLE_ROWS", 150)
    monkeypatch.setattr(starts, "SAMPLE_ROWS_PER_CLUSTER", 10)
    monkeypatch.setattr(starts, "NESTED_FROM", 60)
    monkeypatch.setattr(starts, "NESTED_FROM_PER_CLUSTER", 5)
    X = torch.from_numpy(np.concatenate([BATCH, BATCH + 0.01], axis=1))
    weights = np.concatenate([WEIGHTS, WEIGHTS], axis=1)
    assert_as_alone(X, 6)
    assert_as_alone(X, 6, weights)
    weights[2, 100:] = 0.0  # has fewer rows than others are sampled: it leaves
    with mock.patch("pgkmeans_sk.batch.run", wraps=batch.run) as run:
        assert_as_alone(X, 6, weights)
    assert run.call_count == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats(dtype):
    found = assert_as_alone(torch.from_numpy(BATCH).to(dtype), 8)
    assert found[0].dtype == torch.float32


def test_layouts_and_arrays():
    X = torch.from_numpy(BATCH)
    assert_as_alone(X.transpose(1, 2).contiguous().transpose(1, 2), 6)
    assert_as_alone(X[::2].flip(1), 6)
    assert_as_alone(X[:1], 6)
    assert_as_alone(X[:, :, :1].contiguous(), 6)
    assert_as_alone(X[:, :, :1].contiguous(), 6, init="random", n_init=1)
    centers, labels, _ = pg_kmeans_batch(BATCH, 6, device="cpu", engine="torch", random_state=3)
    assert isinstance(centers, np.ndarray)
    np.testing.assert_array_equal(labels, pg_kmeans_batch(X, 6, random_state=3)[1])


def test_settings_of_others_do_not_matter():
    X = torch.from_numpy(BATCH.astype(np.float32)).requires_grad_()
    expected = pg_kmeans_batch(X, 9, random_state=0)
    assert not expected[0].requires_grad
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = pg_kmeans_batch(X, 9, random_state=0)
    finally:
        torch.set_default_dtype(default)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other.detach() if torch.is_tensor(other) else other)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_precision_of_products_does_not_matter(precision):
    X = torch.from_numpy(BATCH.astype(np.float32))
    problems = open_problems(X, None)
    every, centers = np.arange(4), X[:, :9].clone()
    expected = problems.assign(every, centers)
    labels = problems.labels.clone()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        again = problems.assign(every, centers)
    finally:
        torch.set_float32_matmul_precision(before)
    assert not again.n_changed.any()
    np.testing.assert_array_equal(problems.labels, labels)
    np.testing.assert_array_equal(again.means, expected.means)


def test_rows_are_not_written():
    X, weights = torch.from_numpy(BATCH.copy()), torch.from_numpy(WEIGHTS.copy())
    pg_kmeans_batch(X, 12, sample_weight=weights, random_state=0)
    np.testing.assert_array_equal(X, BATCH)
    np.testing.assert_array_equal(weights, WEIGHTS)


def test_chunks_of_problems_change_nothing(monkeypatch):
    X = torch.from_numpy(BATCH)
    expected = pg_kmeans_batch(X, 12, random_state=0)
    monkeypatch.setattr(torch_memory, "HOST_PROBLEMS_BYTES", 100_000)
    with mock.patch("pgkmeans_sk.batch.run_together", wraps=together.run_together) as run:
        found = pg_kmeans_batch(X, 12, random_state=0)
    assert 1 < run.call_count < len(X)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ------------------------------------------------------------------ who has a second tree

APART = np.stack([blobs(300, 3, 5, seed=seed, spread=0.3) for seed in range(3)])


@pytest.fixture
def judged(monkeypatch):
    """What is found of first trees, whether they are settled: in step, and one by one."""
    found = [], []

    def together_spy(*arguments):
        found[0].extend(are_settled(*arguments).tolist())
        return np.array(found[0][-len(arguments[1]) :])

    def alone_spy(*arguments):
        found[1].append(is_settled(*arguments))
        return found[1][-1]

    monkeypatch.setattr(together_starts, "are_settled", together_spy)
    monkeypatch.setattr(starts, "is_settled", alone_spy)
    return found


@devices
@pytest.mark.parametrize("weighting", ["none", "own"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ([0, 1, 2], [True, True, True]),
        ([3, 4], [False, False]),
        ([0, 3, 1, 4], [True, False, True, False]),
        ([3, 0, 4], [False, True, False]),
    ],
    ids=["all settled", "none", "in turn", "one"],
)
def test_a_second_tree_where_the_first_is_not_settled(
    judged, device, weighting, dtype, which, expected
):
    X = np.concatenate([APART, blobs(600, 3, 5, seed=0, spread=8.0).reshape(2, 300, 3)])[which]
    weights = None if weighting == "none" else np.resize(WEIGHTS, X.shape[:2])
    roots = mock.Mock(wraps=TorchProblems.roots)
    with mock.patch.object(TorchProblems, "roots", lambda *own: roots(*own)):
        assert_as_alone(torch.from_numpy(X.astype(dtype)).to(device), 5, weights)
    assert judged[0] == judged[1] == expected
    grown = [call.args[1].tolist() for call in roots.call_args_list]
    every, rest = np.arange(len(which)).tolist(), np.flatnonzero(~np.array(expected)).tolist()
    assert grown == ([every, rest] if rest else [every])


@pytest.mark.parametrize(
    "parameters", [{"metric": "cosine"}, {"refine": 2}, {"n_init": 2}], ids=str
)
def test_settled_problems_among_others(judged, parameters):
    X = np.stack([APART[0], BATCH[0] + 30.0 * (np.arange(300) % 5 == 0)[:, None], APART[1]])
    assert_as_alone(torch.from_numpy(X), 5, **parameters)
    assert judged[0] == judged[1]
    assert True in judged[0]


def test_where_there_is_no_race_nothing_is_judged(judged):
    assert_as_alone(torch.from_numpy(APART), 3)
    with mock.patch.object(starts, "RACE_WORK", 0):
        assert_as_alone(torch.from_numpy(APART), 5)
    assert judged == ([], [])


def bunch_and_others(seed, parts):
    """Two halves of a bunch, or ``parts`` that lie apart, and five far from all; with centres."""
    rng = np.random.default_rng(seed)
    bunch = rng.standard_normal((400, 2))
    is_left = bunch[:, 0] < 0
    if parts == "apart":
        bunch[is_left] -= 500.0
    places = 1e3 * np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]])
    X = np.concatenate([bunch, np.repeat(places, 10, axis=0) + rng.random((50, 2))])
    return X, np.stack([bunch[is_left].mean(axis=0), bunch[~is_left].mean(axis=0), *places])


def test_settled_is_who_is_so_alone():
    """In the order of cases: at once not; settled; only when all clusters are looked at not."""
    cases = [bunch_and_others(0, "apart"), bunch_and_others(0, "apart"), bunch_and_others(0, "one")]
    X, centers = (np.stack(parts) for parts in zip(*cases, strict=True))
    centers[0, 2:4] = centers[0, 2] + [[0.3, 0.5], [0.7, 0.5]]  # a place has two, another none
    problems, every, chosen = open_problems(torch.from_numpy(X), None), np.arange(3), Settings(7)
    states = together_lloyd.settle_together(problems, every, torch.from_numpy(centers), chosen)
    moves = MovesTogether.of_none(3, 7, 2)
    assert not are_settled(problems, every, states, moves).any()
    survey_together(problems, every, states, every, moves)
    with mock.patch.object(problems, "open_clusters", wraps=problems.open_clusters) as opened:
        found = are_settled(problems, every, states, moves)
    assert [call.args[0].tolist() for call in opened.call_args_list] == [[1, 2]]
    for number in range(3):
        engine = open_device_engine(torch.from_numpy(X[number]), None, CPU)
        alone = settle(engine, centers[number], chosen, Journal())
        own = survey(engine, alone, chosen)
        np.testing.assert_array_equal(moves.gains[number], own.gains)
        np.testing.assert_array_equal(moves.prices[number], own.prices)
        assert found[number] == is_settled(engine, alone, chosen, own)
    assert found.tolist() == [False, True, False]
    only = are_settled(problems, every[1:], states.at(every[1:]), moves_at(moves, every[1:]))
    assert only.tolist() == [True, False]


def moves_at(moves, positions):
    return MovesTogether(*(getattr(moves, name)[positions] for name in vars(moves)))


@pytest.mark.parametrize("max_rounds", [0, 1, 3, 25])
def test_moves_are_known_where_they_are_alone(max_rounds):
    X = np.concatenate([APART, BATCH, [np.zeros((300, 3))]])
    problems, every, chosen = open_problems(torch.from_numpy(X), None), np.arange(8), Settings(9)
    states = together_lloyd.settle_together(problems, every, problems.X[:, :9].clone(), chosen)
    _, moves = together_exchange.rebalance_together(problems, every, states, chosen, max_rounds)
    for number in range(8):
        engine = open_device_engine(torch.from_numpy(X[number]), None, CPU)
        alone = settle(engine, X[number, :9], chosen, Journal())
        _, own = rebalance(engine, alone, chosen, Journal(), max_rounds)
        assert moves.is_known[number] == (own is not None)
        if own is not None:
            np.testing.assert_array_equal(moves.gains[number], own.gains)
            np.testing.assert_array_equal(moves.donors[number], own.donors)


# ------------------------------------------------------------------ stages, against one alone


@pytest.fixture(params=["large blocks", "small blocks"])
def _blocks(request, monkeypatch):
    """Also blocks and pieces of a few rows, so that problems have several and share some."""
    if request.param == "small blocks":
        monkeypatch.setattr(torch_memory, "HOST_BLOCK_BYTES", 2**14)
        monkeypatch.setattr(torch_memory, "MAX_SUM_ROWS", 70)
        monkeypatch.setattr(torch_sums, "PIECE", 16)
        monkeypatch.setattr(torch_nodes, "GROUP_NUMBERS", 2500)
        monkeypatch.setattr(torch_members, "POWER_SAMPLE", 32)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("weighting", ["none", "own"])
@pytest.mark.parametrize("which", [[0, 1, 2, 3], [1, 3], [2]])
def test_an_assignment_is_that_of_each_alone(weighting, which):
    weights = None if weighting == "none" else torch.from_numpy(WEIGHTS)
    X, which = torch.from_numpy(BATCH), np.array(which)
    problems = open_problems(X, weights)
    centers = X[which, :17] + 0.1
    for moved in (centers, centers + 0.3):
        states = problems.assign(which, moved)
        utilities = problems.utilities(which, 17)
        nodes = problems.open_clusters(which, np.tile([3, 0, 16], (len(which), 1)), 17)
        cut = problems.cut(nodes, np.tile([-1.0, 0.5, 0.3], len(which)), "principal", 3,
                           np.full(len(which), 3))  # fmt: skip
    for position, number in enumerate(which):
        engine = open_device_engine(X[number], None if weights is None else weights[number], CPU)
        engine.assign(centers[position].numpy())
        found = engine.assign((centers[position] + 0.3).numpy())
        np.testing.assert_array_equal(problems.labels[number], engine.labels)
        np.testing.assert_array_equal(
            problems.labels[number], reference.labels(BATCH[number], moved[position].numpy())
        )
        own, means, assignment = states.alone(position)
        np.testing.assert_array_equal(own, moved[position])
        np.testing.assert_array_equal(assignment.sq_errors, found.sq_errors)
        np.testing.assert_array_equal(assignment.sizes, found.sizes)
        assert assignment.n_changed == found.n_changed
        assert states.inertias[position] == found.inertia
        present = found.sizes > 0
        np.testing.assert_array_equal(means[present], found.centroids[present])
        np.testing.assert_allclose(utilities[position], engine.utilities(own), rtol=1e-9)
        opened = engine.open_clusters(np.array([3, 0, 16]))
        parts = engine.cut(opened, np.array([-1.0, 0.5, 0.3]), "principal", 3)
        span = slice(3 * position, 3 * position + 3)
        for field in ("counts", "weights", "means", "scatters"):
            np.testing.assert_array_equal(getattr(nodes[span], field), getattr(opened, field))
            for side in ("left", "right"):
                np.testing.assert_array_equal(
                    getattr(getattr(cut, side)[span], field), getattr(getattr(parts, side), field)
                )


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("weighting", ["none", "own"])
def test_fits_in_small_blocks(weighting):
    assert_as_alone(torch.from_numpy(BATCH), 15, None if weighting == "none" else WEIGHTS)


@pytest.mark.parametrize("blocks", [0, 10**6])
@pytest.mark.parametrize(
    "problem", reference.problems(np.float32), ids=lambda problem: problem.name
)
def test_labels_are_those_of_the_definition(monkeypatch, problem, blocks):
    monkeypatch.setattr(torch_problem_labels, "DIRECT_BLOCKS", blocks)
    X = torch.from_numpy(np.stack([problem.X, problem.X[::-1]]))
    problems = open_problems(X, None)
    problems.assign(np.arange(2), torch.from_numpy(np.stack([problem.centers] * 2)))
    expected = reference.labels(problem.X, problem.centers)
    np.testing.assert_array_equal(problems.labels[0], expected)
    np.testing.assert_array_equal(problems.labels[1], expected[::-1])


@pytest.mark.parametrize("algorithm", ["auto", "lloyd"])
def test_iterations_are_those_of_each_alone(algorithm):
    X = torch.from_numpy(BATCH)
    for max_iter in (1, 2, 7, 300):
        chosen = Settings(15, max_iter=max_iter, accelerate=algorithm == "auto")
        problems, every = open_problems(X, None), np.arange(4)
        states = together_lloyd.settle_together(problems, every, X[:, :15].clone(), chosen)
        states, n_iters, converged = together_lloyd.lloyd_together(problems, every, states, chosen)
        for number in range(4):
            engine = open_device_engine(X[number], None, CPU)
            alone = settle(engine, BATCH[number, :15], chosen, Journal())
            alone, n_iter, has_converged = lloyd(engine, alone, chosen, Journal())
            assert (n_iters[number], converged[number]) == (n_iter, has_converged)
            np.testing.assert_array_equal(states.centers[number], alone.centers)
            np.testing.assert_array_equal(problems.labels[number], engine.labels)


def test_a_threshold_in_doubt_is_decided_alone(monkeypatch):
    expected = pg_kmeans_batch(torch.from_numpy(BATCH), 9, random_state=0, tol=0.01)
    exact = TorchProblems.mean_variances
    monkeypatch.setattr(
        TorchProblems, "mean_variances",
        lambda self, which: (3.0 * exact(self, which)[0], np.full(len(which), np.inf)),
    )  # fmt: skip
    found = pg_kmeans_batch(torch.from_numpy(BATCH), 9, random_state=0, tol=0.01)
    np.testing.assert_array_equal(found[0], expected[0])


def test_variances_are_within_their_rounding():
    X = torch.from_numpy(np.stack([BATCH[0], BATCH[1] + 1e6, 0 * BATCH[2] + 0.1]))
    for weights in (None, torch.from_numpy(WEIGHTS[:3])):
        found, rounding = open_problems(X, weights).mean_variances(np.arange(3))
        for number in range(3):
            engine = open_device_engine(
                X[number], None if weights is None else weights[number], CPU
            )
            assert abs(found[number] - engine.mean_variance()) <= rounding[number]
        assert (rounding[:2] < 1e-9 * np.array([1, 1e12])).all()


# ------------------------------------------------------------------ operations and waits


class Operations(TorchDispatchMode):
    """Counts, inside, what a device is asked for, views apart."""

    VIEWS = ("view", "slice", "select", "unsqueeze", "squeeze", "expand", "detach", "alias",
             "transpose", "permute", "t", "split", "unbind", "_unsafe_view", "_reshape_alias",
             "lift_fresh")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.VIEWS:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def counted(X, n_clusters=12, **parameters):
    """Operations, operations that wait, and copies to the host."""
    with HostReads() as reads, Waits() as waits, Operations() as operations:
        pg_kmeans_batch(X, n_clusters, random_state=0, **parameters)
    return operations.calls.total(), waits.calls.total(), reads.calls["cpu"]


@pytest.mark.parametrize("init", ["partition", "partition-ball", "random"])
def test_work_does_not_grow_with_problems(monkeypatch, init):
    """The same problem many times, so that all take the same way."""
    monkeypatch.setattr(torch_memory, "HOST_BLOCK_BYTES", 2**28)
    X = torch.from_numpy(blobs(400, 3, 30, seed=1))
    counts = {n: counted(X.expand(n, -1, -1), init=init, n_init=1) for n in (2, 8, 64)}
    assert counts[2] == counts[8] == counts[64]


def test_work_does_not_grow_with_problems_some_of_which_are_settled():
    both = np.stack([APART[0], blobs(300, 3, 5, seed=0, spread=8.0)])
    X = torch.from_numpy(np.stack([both] * 32))
    counts = {
        n: counted(X[:n].flatten(0, 1), n_clusters=5, init="partition", n_init=1)
        for n in (2, 8, 32)
    }
    assert counts[2] == counts[8] == counts[32]


def test_two_waits_an_iteration(monkeypatch):
    X = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 1000, 3)))
    few, many = (
        counted(X, init="random", n_init=1, algorithm="lloyd", tol=0.0, max_iter=n) for n in (5, 15)
    )
    assert many[1] - few[1] == 10  # rows in doubt
    assert many[2] - few[2] == 10  # what the host decides by
    assert many[0] - few[0] < 10 * 130
