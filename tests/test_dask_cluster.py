"""Rows on the workers of a cluster: whose client is taken, and what happens when some are lost."""

import os
import pickle
import signal

import pytest

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

from dask.base import collections_to_expr  # noqa: E402

from pgkmeans_sk import PGKMeans  # noqa: E402
from pgkmeans_sk.engines import dask_blocks, dask_graph, tile_memory  # noqa: E402
from tests.dask_problems import WEIGHTS, X, lazy, local_cluster, many_chunks  # noqa: E402, F401
from tests.test_row_blocks import assert_same_fit  # noqa: E402


@pytest.mark.usefixtures("many_chunks")
def test_a_client_in_use_is_taken():
    with dask.config.set({"distributed.worker.memory.target": False}), local_cluster(2):
        parameters = {"n_clusters": 20, "random_state": 0, "init": "random", "n_init": 1}
        expected = PGKMeans(**parameters).fit(X, sample_weight=WEIGHTS)
        rows = lazy(X, (100, 4)).persist()
        distributed.wait(rows)
        assert set(dask_blocks._workers_of(list(rows.to_delayed().ravel()))) == set(range(10))
        found = PGKMeans(**parameters).fit(rows, sample_weight=WEIGHTS)
        assert_same_fit(found, expected)
        assert len(tile_memory.memory) == 0


def test_the_scheduler_is_gone():
    kmeans = PGKMeans(3, random_state=0).fit(X)
    with local_cluster(1) as client:
        rows = lazy(X, (250, 4))

        def init(rows, n_clusters, random_state):
            client.close()  # what a scheduler does to its clients when it goes
            return X[:n_clusters]

        kmeans.set_params(init=init, n_init=1)
        expected = pickle.dumps(vars(kmeans) | {"init": None})
        with pytest.raises(ConnectionError, match="what it was before"):
            kmeans.fit(rows)
        assert pickle.dumps(vars(kmeans) | {"init": None}) == expected


def test_tasks_that_prefer_a_worker_need_others(monkeypatch):
    # dask never runs one that does not, and is asked for when all workers are gone for a moment.
    class Worker:
        status = "running"
        nthreads = staticmethod(lambda: {"tcp://there:1": 1})
        run = staticmethod(lambda *arguments, **options: None)

    monkeypatch.setattr(dask_blocks, "_client", lambda: Worker)
    monkeypatch.setattr(dask_blocks, "_workers_of", lambda rows: dict.fromkeys(range(9), "there"))
    preferring, others = set(), set()

    def compute(tasks, original=dask_graph.compute):
        expression = collections_to_expr(tasks)
        preferred = expression.__dask_annotations__().get("workers", {})
        for key, task in expression.__dask_graph__().items():
            if preferred.get(key) is None:
                others.add(key[0].split("-")[0])
            else:
                assert preferred[key] == ["there"]
                assert task.dependencies
                preferring.add(key[0].split("-")[0])
        return original(tasks)

    monkeypatch.setattr(dask_graph, "compute", compute)
    parameters = {"n_clusters": 20, "random_state": 0, "init": "random", "n_init": 1}
    with dask.config.set(scheduler="synchronous"):
        found = PGKMeans(**parameters).fit(lazy(X, (100, 4)), sample_weight=lazy(WEIGHTS, (100,)))
        assert_same_fit(found, PGKMeans(**parameters).fit(X, sample_weight=WEIGHTS))
    assert {"begin", "go_on", "last_of", "add_run", "count_present"} <= preferring
    assert {"Pass", "array"} <= others


@pytest.mark.slow
def test_workers_are_killed_in_the_middle(monkeypatch):
    parameters = {"n_clusters": 20, "random_state": 0, "init": "random", "n_init": 1}
    expected = PGKMeans(**parameters).fit(X)
    with local_cluster(2, processes=True) as client:
        rows = lazy(X, (100, 4)).persist()
        distributed.wait(rows)
        n_passes = 0

        def compute(tasks, original=dask_graph.compute):
            nonlocal n_passes
            n_passes += 1
            if n_passes in (4, 7):  # one; and then all that are there
                processes = list(client.run(os.getpid).values())
                for process in processes[: 1 if n_passes == 4 else None]:
                    os.kill(process, signal.SIGKILL)
            return original(tasks)

        monkeypatch.setattr(dask_graph, "compute", compute)
        found = PGKMeans(**parameters).fit(rows)
        assert n_passes > 7
        assert_same_fit(found, expected)
