"""The pipeline as a whole: starts, the best of several, and what is reported of it."""

import numpy as np
import pytest
from scipy import sparse

from pgkmeans_sk.pipeline import run
from pgkmeans_sk.pipeline.settings import Journal, Settings
from pgkmeans_sk.pipeline.starts import STARTS, fixed_start
from tests import reference
from tests.test_empty_clusters import column

forms = pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix], ids=["dense", "csr"])
all_starts = pytest.mark.parametrize("name", STARTS)

# Three pairs; three centres among the first two of them are a local optimum.
PAIRS = column(0, 1, 10, 11, 100, 101)
GOOD, POOR = column(0.5, 10.5, 100.5), column(0, 1, 60)


def rng():
    return np.random.RandomState(0)


@all_starts
@forms
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighting", ["none", "some zero"])
def test_every_start_gives_as_many_centres_as_asked_for(engine, name, form, dtype, weighting):
    X = np.random.default_rng(1).standard_normal((150, 3)).astype(dtype)
    weights = reference.sample_weights(150)[weighting]
    starts = [
        STARTS[name](engine(form(X), weights), Settings(11), rng(), Journal()) for _ in range(2)
    ]
    assert starts[0].shape == (11, 3)
    assert starts[0].dtype == np.float64
    assert len(np.unique(starts[0], axis=0)) == 11
    # Inside the box of the rows that count.
    present = X if weights is None else X[weights > 0]
    assert (present.min(axis=0) <= starts[0]).all()
    assert (starts[0] <= present.max(axis=0)).all()
    assert starts[0].tobytes() == starts[1].tobytes()  # the same seed, the same bytes


def test_default_start_on_a_sample(engine, monkeypatch):
    # Otherwise only more than 262144 rows are sampled.
    monkeypatch.setattr("pgkmeans_sk.pipeline.starts.SAMPLE_ROWS", 300)
    X = np.random.default_rng(1).standard_normal((2000, 2))
    settings = Settings(5)
    found = run(engine(X), [STARTS["partition"]], settings, rng())
    other = run(engine(X), [STARTS["partition"]], settings, np.random.RandomState(1))
    whole = run(engine(X), [STARTS["k-means++"]], settings, rng())
    assert found.inertia < 1.05 * whole.inertia
    assert found.centers.tobytes() != other.centers.tobytes()  # another sample, another path


def test_default_start_on_samples_of_samples(engine, monkeypatch):
    # Otherwise only tables of 65536 rows begin on a part of them.
    monkeypatch.setattr("pgkmeans_sk.pipeline.starts.NESTED_FROM", 200)
    monkeypatch.setattr("pgkmeans_sk.pipeline.starts.NESTED_FROM_PER_CLUSTER", 40)
    X = np.random.default_rng(1).standard_normal((3000, 2))
    X[7] = 1e3  # hardly a sample has it, and it is worth a cluster of its own
    opened, sizes = engine(X), []
    sample = type(opened).sample

    def watched(self, n_rows, random_state):
        sizes.append(n_rows)
        return sample(self, n_rows, random_state)

    monkeypatch.setattr(type(opened), "sample", watched)
    settings = Settings(5)
    found, again = (run(engine(X), [STARTS["partition"]], settings, rng()) for _ in range(2))
    whole = run(engine(X), [STARTS["k-means++"]], settings, rng())
    assert sizes == [750, 187] * 2
    assert found.centers.tobytes() == again.centers.tobytes()
    assert np.abs(found.centers - 1e3).sum(axis=1).min() == 0.0
    assert found.inertia < 1.05 * whole.inertia


def test_fixed_start_copies_the_centres_of_the_user(engine):
    start = fixed_start(GOOD.astype(np.float32))(engine(PAIRS), Settings(3), rng(), Journal())
    assert start.dtype == np.float64
    start[:] = 0
    np.testing.assert_array_equal(fixed_start(GOOD)(engine(PAIRS), Settings(3), rng(), None), GOOD)


@forms
@pytest.mark.parametrize("order", [[GOOD, POOR], [POOR, GOOD], [POOR, GOOD, POOR]])
def test_the_best_start_wins(engine, form, order):
    opened = engine(form(PAIRS))
    starts = [fixed_start(centers) for centers in order]
    solution = run(opened, starts, Settings(3, accelerate=False), rng())
    assert solution.inertia == pytest.approx(1.5)
    np.testing.assert_allclose(np.sort(solution.centers, axis=0), GOOD)
    np.testing.assert_array_equal(solution.labels, reference.labels(PAIRS, solution.centers))
    assert solution.n_effective_clusters == 3
    assert solution.converged


def test_of_equal_starts_the_first_wins(engine):
    # The same clusters in another order have the same inertia.
    starts = [fixed_start(GOOD), fixed_start(GOOD[::-1])]
    for first, centers in ((starts, GOOD), (starts[::-1], GOOD[::-1])):
        np.testing.assert_allclose(run(engine(PAIRS), first, Settings(3), rng()).centers, centers)


@forms
def test_log_of_repairs_is_that_of_the_best_start(engine, form):
    # One of two equal centres is empty. The donor is the last pair, whose centre is far off, so
    # that the other four rows stay together for good.
    opened, repaired = engine(form(PAIRS)), fixed_start(column(0, 0, 60))
    solution = run(opened, [repaired], Settings(3), rng())
    assert solution.inertia == pytest.approx(2 * (4.5**2 + 5.5**2))
    (repair,) = solution.repair_log
    assert (repair.iteration, repair.n_empty, repair.donors) == (0, 1, (2,))
    for starts in ([repaired, fixed_start(GOOD)], [fixed_start(GOOD), repaired]):
        solution = run(opened, starts, Settings(3), rng())
        assert (solution.inertia, solution.repair_log) == (pytest.approx(1.5), ())


@forms
def test_surplus_centres_come_last_as_copies(engine, form):
    X = column(0.1, 0.1, 5.2, 5.2, 9.4)
    start = fixed_start(column(-50, 9, 0, -60, 5))
    solution = run(engine(form(X)), [start], Settings(5), rng())
    assert solution.n_effective_clusters == 3
    np.testing.assert_allclose(np.sort(solution.centers[:3], axis=0), column(0.1, 5.2, 9.4))
    np.testing.assert_array_equal(solution.centers[3:], solution.centers[[0, 0]])
    assert set(solution.labels) == {0, 1, 2}  # a copy owns nothing: ties go to the lowest number
    assert solution.inertia == pytest.approx(0, abs=1e-12)
    np.testing.assert_array_equal(solution.labels, reference.labels(X, solution.centers))


class Listener:
    """A monitor that writes down the events of all starts."""

    def __init__(self):
        self.events = []

    def begin_start(self, number):
        self.events.append(("begin", number))

    def end_iteration(self, number, centers, inertia):
        self.events.append(number)
        return False

    def end_start(self):
        self.events.append("end")


def test_monitor_hears_of_every_start(engine):
    listener = Listener()
    starts = [fixed_start(GOOD), fixed_start(POOR)]
    solution = run(engine(PAIRS), starts, Settings(3), rng(), monitor=listener)
    begins = [
        place
        for place, event in enumerate(listener.events)
        if event in (("begin", 0), ("begin", 1))
    ]
    first, second = listener.events[: begins[1]], listener.events[begins[1] :]
    for number, events in enumerate((first, second)):
        assert events[0] == ("begin", number)
        assert events[1:-1] == list(range(1, len(events) - 1))
        assert events[-1] == "end"
    assert solution.n_iter == len(first) - 2  # the good start is the first
