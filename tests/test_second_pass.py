"""A pass soon after another one gives what a pass over all centres would give, to the last bit."""

import dataclasses

import numpy as np
import pytest

from pgkmeans_sk.engines import chunks, dense_pass, looks
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from pgkmeans_sk.kernels import second_pass
from tests import reference
from tests.reference import LAYOUTS

PROBLEMS = [*reference.problems(np.float32), *reference.problems(np.float64)]


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(looks, "SECOND_PASS_CENTERS", 1)
    monkeypatch.setattr(chunks, "CHUNK_WORK", 2000)


def assert_same_as_alone(engine, X, sample_weight, centers):
    """One more pass of ``engine``, announced as the last, is that of a new engine."""
    found, alone = engine.assign(centers, last=True), NumbaEngine(X, sample_weight)
    expected = alone.assign(centers, last=True)
    np.testing.assert_array_equal(engine.labels, alone.labels)
    for field in ("centroids", "sizes", "sq_errors"):
        one, other = (np.asarray(getattr(each, field)) for each in (found, expected))
        assert one.tobytes() == other.tobytes(), field
    return found


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
@pytest.mark.parametrize("share", [0.0, 1e-9, 1e-3, 0.1, 2.0])
def test_second_pass_is_one_like_any_other(problem, share):
    rng = np.random.default_rng(4)
    centers = problem.centers
    moved = centers + share * np.abs(centers).max() * rng.standard_normal(centers.shape)
    moved = np.clip(moved, -1e150, 1e150).astype(centers.dtype)
    sample_weight = reference.sample_weights(len(problem.X))["some zero"]
    engine = NumbaEngine(problem.X, sample_weight)
    before = engine.assign(centers)
    found = assert_same_as_alone(engine, problem.X, sample_weight, moved)
    np.testing.assert_array_equal(engine.labels, reference.labels(problem.X, moved))
    assert found.n_changed <= len(problem.X)
    if share == 0.0:
        assert found.n_changed == 0
        assert found.inertia == before.inertia


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "cs" not in name])
@pytest.mark.parametrize("scale", [1e-165, 1e-158, 1e-22, 1.0, 1e19, 1e150])
def test_layouts_and_scales(layout, scale):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((700, 5)) * scale
    X = LAYOUTS[layout](X)
    centers = rng.standard_normal((40, 5)) * scale
    engine = NumbaEngine(X, None)
    engine.assign(centers)
    with np.errstate(over="ignore"):
        assert_same_as_alone(engine, X, None, centers * (1 + 1e-3 * rng.standard_normal((40, 5))))


def test_few_rows_are_looked_at_again(monkeypatch):
    counts = []

    def counted(*arguments):
        result = second_pass.assign_again(*arguments)
        counts.append(result[2])
        return result

    monkeypatch.setattr(dense_pass, "assign_again", counted)
    rng = np.random.default_rng(6)
    X = rng.standard_normal((2000, 4)).astype(np.float32)
    centers = X[:64].copy()
    for share, at_least, at_most in ((0.0, 0, 20), (1e-3, 0, 200), (10.0, 1500, 2000)):
        engine = NumbaEngine(X, None)
        engine.assign(centers)
        moved = centers + np.float32(share) * rng.standard_normal((64, 4)).astype(np.float32)
        assert_same_as_alone(engine, X, None, moved)
        assert at_least <= sum(counts) <= at_most
        counts.clear()


def test_bounds_serve_once():
    rng = np.random.default_rng(7)
    X = rng.standard_normal((2000, 4))
    engine = NumbaEngine(X, None)
    engine.assign(X[:64])
    for scale in (1.0, 1.001, 1.002, 3.0):
        found = assert_same_as_alone(engine, X, None, scale * X[:64])
        assert dataclasses.is_dataclass(found)
    engine.assign(X[:64])
    engine.assign(X[100:140])  # another number of centres
    assert_same_as_alone(engine, X, None, X[:64])
