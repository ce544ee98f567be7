"""InertiaMonitor keeps each iteration of each fit, and nothing else changes."""

import pickle
import time

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pgkmeans_sk import InertiaMonitor, PGKMeans
from tests.problems import rows

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 brought callbacks")
X = rows("normal", 400, 3, seed=0)


def fit(monitor, **parameters):
    parameters = {"n_clusters": 8, "random_state": 0, **parameters}
    return PGKMeans(**parameters).set_callbacks(monitor).fit(X)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"algorithm": "lloyd", "tol": 0.0},
        {"metric": "cosine"},
        {"refine": 2},
        {"size_max": 60},
        {"consolidate": "exact"},
        {"max_iter": 1},
    ],
    ids=str,
)
def test_one_record_for_each_iteration(parameters):
    monitor = InertiaMonitor()
    begin = time.perf_counter()
    kmeans = fit(monitor, **parameters)
    whole = time.perf_counter() - begin
    assert [r.iteration for r in monitor.records] == list(range(1, kmeans.n_iter_ + 1))
    inertias = [r.inertia for r in monitor.records]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[-1] == pytest.approx(kmeans.inertia_, rel=1e-12)
    seconds = [r.seconds for r in monitor.records]
    assert seconds[0] > 0.0
    assert seconds == sorted(seconds)
    assert seconds[-1] <= whole
    alone = PGKMeans(**{"n_clusters": 8, "random_state": 0, **parameters}).fit(X)
    np.testing.assert_array_equal(kmeans.cluster_centers_, alone.cluster_centers_)


def test_starts_are_told_apart():
    monitor = InertiaMonitor()
    kmeans = fit(monitor, init="random", n_init=3)
    assert sorted({r.start for r in monitor.records}) == [0, 1, 2]
    for start in range(3):
        numbers = [r.iteration for r in monitor.records if r.start == start]
        assert numbers == list(range(1, len(numbers) + 1))
    last = {r.start: r.inertia for r in monitor.records}
    assert min(last.values()) == pytest.approx(kmeans.inertia_, rel=1e-12)


def test_fits_are_told_apart():
    monitor = InertiaMonitor()
    for n_clusters in (3, 5):
        fit(monitor, n_clusters=n_clusters)
    assert monitor.n_fits == 2
    assert [r.fit for r in monitor.records] == sorted(r.fit for r in monitor.records)
    assert monitor.records_of() == monitor.records_of(1) == monitor.records_of(-1)
    assert monitor.records_of(0) + monitor.records_of(1) == monitor.records
    for number in (2, -3):
        with pytest.raises(ValueError, match=f"Got fit={number}, but expected one of the 2 fits"):
            monitor.records_of(number)
    with pytest.raises(ValueError, match="one of the 0 fits"):
        InertiaMonitor().records_of()


def test_a_failed_fit_is_a_fit_without_an_end():
    monitor = InertiaMonitor()

    class Stop:
        def setup(self, estimator, context): ...
        def teardown(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context): ...
        def on_fit_task_end(self, estimator, context):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PGKMeans(8).set_callbacks(monitor, Stop()).fit(X)
    assert [r.iteration for r in monitor.records] == [1]
    assert monitor._running == {}
    fit(monitor)
    assert monitor.records_of()[0].iteration == 1


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_one_monitor_hears_a_grid_search(n_jobs):
    from joblib import parallel_config

    monitor = InertiaMonitor()
    pipeline = make_pipeline(StandardScaler(), PGKMeans(random_state=0).set_callbacks(monitor))
    grid = {"pgkmeans__n_clusters": [2, 7]}
    with parallel_config("threading", n_jobs=n_jobs):
        search = GridSearchCV(pipeline, grid, cv=2).fit(X)
    assert monitor.n_fits == 5
    best = search.best_estimator_[-1]
    assert monitor.records_of()[-1].inertia == pytest.approx(best.inertia_, rel=1e-12)
    for number in range(5):
        assert [r.iteration for r in monitor.records_of(number)] == list(
            range(1, len(monitor.records_of(number)) + 1)
        )


def test_clones_share_it_and_copies_do_not():
    monitor = InertiaMonitor()
    estimator = PGKMeans(8).set_callbacks(monitor)
    clone(estimator).fit(X)
    assert monitor.n_fits == 1
    again = pickle.loads(pickle.dumps(estimator.fit(X)))
    np.testing.assert_array_equal(again.labels_, estimator.labels_)
    copied = pickle.loads(pickle.dumps(monitor))
    assert copied.records == monitor.records
    fit(copied)
    assert (copied.n_fits, monitor.n_fits) == (3, 2)


def test_beside_a_progress_bar(capsys):
    pytest.importorskip("rich", reason="scikit-learn draws its bars with it")
    monitor = InertiaMonitor()
    PGKMeans(8).set_callbacks(callback.ProgressBar(), monitor).fit(X)
    assert "100%" in capsys.readouterr().out
    assert monitor.records


def test_nothing_is_printed(capfd):
    fit(InertiaMonitor())
    assert capfd.readouterr() == ("", "")


def test_records_are_a_table():
    pd = pytest.importorskip("pandas")
    monitor = InertiaMonitor()
    fit(monitor)
    table = pd.DataFrame(monitor.records)
    assert list(table.columns) == ["fit", "start", "iteration", "inertia", "seconds"]
    assert len(table) == len(monitor.records)
