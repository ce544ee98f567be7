"""Workers of joblib, by any of its backends."""

from contextlib import contextmanager

import joblib
import pytest


@contextmanager
def workers(backend, n_jobs=2):
    """``n_jobs`` workers of a backend, which ``joblib.Parallel`` then takes."""
    if backend != "dask":
        with joblib.parallel_config(backend=backend, n_jobs=n_jobs):
            yield
        return
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=":0",  # another cluster may have the usual one
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask", n_jobs=n_jobs),
    ):
        yield
