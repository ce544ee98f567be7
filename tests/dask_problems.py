"""Rows for tests of dask, and a cluster on this machine. Needs dask."""

from contextlib import contextmanager

import dask
import dask.array as da
import distributed
import numpy as np
import pytest

from pgkmeans_sk.engines import chunks, node_members
from pgkmeans_sk.pipeline import starts
from tests import problems

X = problems.blobs(903, 4, 12, seed=0, spread=3.0).astype(np.float32)
WEIGHTS = np.where(np.arange(903) % 5 == 0, 0.0, np.random.default_rng(0).uniform(0, 3, 903))


def lazy(array, cut):
    return da.from_array(array, chunks=cut)


@pytest.fixture
def many_chunks(monkeypatch):
    """Few rows are cut into chunks, sampled and partitioned like many."""
    monkeypatch.setattr(chunks, "CHUNK_WORK", 2000)
    monkeypatch.setattr(starts, "SAMPLE_ROWS", 150)
    monkeypatch.setattr(node_members, "NODE_NUMBERS", 600)
    monkeypatch.setattr(node_members, "FEWEST_MEMBERS", 8)


@contextmanager
def local_cluster(n_workers, processes=False):
    """A client of a cluster on this machine, which dask then takes."""
    with (
        dask.config.set(scheduler=None),  # outermost: a client that is closed restores its own
        distributed.LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=processes,
            dashboard_address=":0",  # another cluster may have the usual one
            port=0,
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client
