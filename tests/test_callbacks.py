"""scikit-learn's callbacks hear of a fit, may stop it, and are no condition for one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.engines.numba_cpu import NumbaEngine
from tests.problems import blobs, rows

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 brought callbacks")
ROOT = Path(__file__).resolve().parents[1]
X = rows("normal", 400, 3, seed=0)


class Recorder:
    """Keeps all it hears; asks to stop when ``stop_when`` says so."""

    def __init__(self, stop_when=lambda context, estimator: False):
        self.stop_when = stop_when
        self.events = []
        self.inertias = []
        self.seen = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X):
        self.events.append(f"begin {context.task_name} {context.task_id}")
        self.seen.append(X)

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        self.events.append(f"end {context.task_name} {context.task_id}")
        if context.task_name == "iteration":
            self.inertias.append(fitted_estimator.inertia_)
            assert fitted_estimator.score(X) == pytest.approx(-fitted_estimator.inertia_, rel=1e-9)
            assert fitted_estimator.transform(X).shape == (len(X), estimator.n_clusters)
            assert len(set(fitted_estimator.predict(X))) == estimator.n_clusters
            return self.stop_when(context, fitted_estimator)
        return None


def fit(recorder, **parameters):
    return PGKMeans(**{"n_clusters": 8, "random_state": 0, **parameters}).set_callbacks(recorder)


# ------------------------------------------------------------------ hearing


@pytest.mark.parametrize("algorithm", ["auto", "lloyd"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_inertia_falls_and_states_can_predict(algorithm, metric):
    recorder = Recorder()
    estimator = fit(recorder, algorithm=algorithm, metric=metric).fit(X)
    assert len(recorder.inertias) == estimator.n_iter_ > 1
    assert recorder.inertias == sorted(recorder.inertias, reverse=True)
    assert recorder.inertias[-1] == pytest.approx(estimator.inertia_, rel=1e-12)


def test_order_of_events():
    recorder = Recorder()
    fit(recorder, init="random", n_init=2, max_iter=2, tol=0.0).fit(X)
    one_start = ["begin start {0}"]
    for i in range(2):
        one_start += [f"begin iteration {i}", f"end iteration {i}"]
    one_start += ["end start {0}"]
    starts = [event.format(number) for number in range(2) for event in one_start]
    assert recorder.events == ["setup", "begin fit 0", *starts, "end fit 0", "teardown"]


def test_rows_are_those_of_the_user():
    recorder = Recorder()
    fit(recorder).fit(X)
    assert all(seen is X or np.shares_memory(seen, X) for seen in recorder.seen)


def test_result_is_the_same_as_without():
    heard, alone = fit(Recorder()).fit(X), PGKMeans(8, random_state=0).fit(X)
    np.testing.assert_array_equal(heard.cluster_centers_, alone.cluster_centers_)
    assert set(vars(heard)) - set(vars(alone)) == {"_skl_callbacks"}


def test_the_tree_of_tasks_is_made_for_those_who_may_look_at_it(monkeypatch):
    made, make = [], PGKMeans._init_callback_context

    def noted(estimator, **parameters):
        made.append(estimator)
        return make(estimator, **parameters)

    monkeypatch.setattr(PGKMeans, "_init_callback_context", noted)
    PGKMeans(3).fit(X)
    assert made == []
    fit(Recorder()).fit(X)
    assert len(made) == 1
    # Callbacks of a meta-estimator may look at the tasks below.
    GridSearchCV(PGKMeans(), {"n_clusters": [2, 3]}, cv=2, refit=False).fit(X)
    assert len(made) == 5


def test_clones_keep_callbacks():
    recorder = Recorder()
    clone(fit(recorder)).fit(X)
    assert recorder.events[-1] == "teardown"


# ------------------------------------------------------------------ stopping


def assert_consistent(estimator):
    np.testing.assert_array_equal(estimator.labels_, estimator.predict(X))
    assert estimator.inertia_ == -estimator.score(X)
    assert len(np.unique(estimator.labels_)) == estimator.n_clusters
    estimator.partial_fit(X)


def test_early_stop():
    # scikit-learn#7574, #24524: nine hours without a word, and no way to end them.
    recorder = Recorder(lambda context, estimator: context.task_id == 2)
    estimator = fit(recorder, tol=0.0, init="random", n_init=1, algorithm="lloyd").fit(X)
    assert estimator.n_iter_ == 3
    assert recorder.events[-3:] == ["end start 0", "end fit 0", "teardown"]
    three = PGKMeans(8, tol=0.0, init="random", n_init=1, algorithm="lloyd", random_state=0)
    three.set_params(max_iter=3).fit(X)
    np.testing.assert_array_equal(estimator.cluster_centers_, three.cluster_centers_)
    assert_consistent(estimator)


def test_early_stop_with_momentum():
    for n_iter in (1, 2, 3):
        recorder = Recorder(lambda context, estimator, n=n_iter: context.task_id == n - 1)
        estimator = fit(recorder, tol=0.0, init="random", n_init=1).fit(X)
        assert estimator.n_iter_ == n_iter
        assert estimator.inertia_ == pytest.approx(recorder.inertias[-1], rel=1e-12)
        assert_consistent(estimator)


def test_early_stop_ends_one_start_not_all():
    recorder = Recorder(lambda context, estimator: context.task_id == 1)
    fit(recorder, tol=0.0, init="random", n_init=3).fit(X)
    assert len(recorder.inertias) == 6


# ------------------------------------------------------------------ errors


def test_torn_down_after_an_error_of_their_own():
    def fail(context, estimator):
        raise KeyboardInterrupt

    recorder = Recorder(fail)
    for estimator in (PGKMeans(8), PGKMeans(8).fit(X)):
        before = dict(vars(estimator))
        with pytest.raises(KeyboardInterrupt):
            estimator.set_callbacks(recorder).fit(X + 1.0)
        assert recorder.events[-1] == "teardown"
        assert vars(estimator.set_callbacks()) == before


def test_torn_down_after_an_error_of_the_fit(monkeypatch):
    recorder = Recorder()
    estimator = fit(recorder, init="random", n_init=1)

    def out_of_memory(*args):
        raise MemoryError

    monkeypatch.setattr(NumbaEngine, "assign", out_of_memory)
    with pytest.raises(MemoryError):
        estimator.fit(X)
    assert recorder.events == ["setup", "begin fit 0", "begin start 0", "teardown"]
    monkeypatch.undo()
    recorder.events.clear()
    estimator.fit(X)
    assert recorder.events[-2:] == ["end fit 0", "teardown"]


def test_nothing_is_set_up_for_wrong_input():
    recorder = Recorder()
    with pytest.raises(ValueError, match="NaN"):
        fit(recorder).fit(X * np.nan)
    assert recorder.events == []


# ------------------------------------------------------------------ progress bars


def test_progress_bar(capsys):
    pytest.importorskip("rich", reason="scikit-learn draws its bars with it")
    estimator = PGKMeans(8, init="random", n_init=2, random_state=0)
    estimator.set_callbacks(callback.ProgressBar()).fit(X)
    shown = capsys.readouterr().out
    assert "PGKMeans - fit" in shown
    assert "start" in shown
    assert "100%" in shown
    assert_consistent(estimator)


# ------------------------------------------------------------------ without callbacks

WITHOUT_CALLBACKS = """
import sys
import numpy as np
import sklearn.cluster  # scikit-learn 1.9 cannot do without its callbacks
sys.modules["sklearn.callback"] = None  # how Python marks a module that must not be found
import pgkmeans_sk.callbacks
from pgkmeans_sk import PGKMeans
assert pgkmeans_sk.callbacks.CallbackSupportMixin.__module__ == "pgkmeans_sk.callbacks"
X = np.random.default_rng(0).normal(size=(300, 3))
estimator = PGKMeans(9, random_state=0).fit(X)
assert not hasattr(estimator, "set_callbacks")
assert (estimator.predict(X) == estimator.labels_).all() and len(set(estimator.labels_)) == 9
estimator.partial_fit(X)
try:
    PGKMeans(9).fit(X * np.nan)
except ValueError:
    print(estimator.cluster_centers_.sum().hex())
"""


def run_python(code):
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


def test_older_scikit_learn_has_no_callbacks():
    printed = run_python(WITHOUT_CALLBACKS).stdout
    rows = np.random.default_rng(0).normal(size=(300, 3))
    estimator = PGKMeans(9, random_state=0).fit(rows).partial_fit(rows)
    assert printed.strip() == estimator.cluster_centers_.sum().hex()


# ------------------------------------------------------------------ verbose

VERBOSE = """
import logging
from pgkmeans_sk import PGKMeans
PGKMeans(3, verbose={verbose}).fit([[0.0], [1.0], [2.0], [5.0]])
assert logging.getLogger("pgkmeans_sk").handlers == []
"""


@pytest.mark.parametrize("verbose", [0, 1])
def test_verbose_is_heard_on_standard_error(verbose):
    heard = run_python(VERBOSE.format(verbose=verbose))
    assert heard.stdout == ""
    assert ("iteration 1: inertia" in heard.stderr) == (verbose > 0)


def test_verbose_is_heard_where_logging_is_set_up(caplog, capsys):
    caplog.set_level("INFO", "pgkmeans_sk")
    PGKMeans(3, verbose=0).fit(blobs(50, 2, 3, seed=0))
    assert caplog.messages == []
    PGKMeans(3, verbose=1).fit(blobs(50, 2, 3, seed=0))
    assert any("iteration 1: inertia" in message for message in caplog.messages)
    assert capsys.readouterr().out == ""
