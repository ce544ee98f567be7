"""What has to be settled before the first test module is imported: the kernel cache, hypothesis."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]


# Kernels are kept apart by the state of their sources (kernels/compile.py); this keeps them out of
# the package. Numba reads the variable when it is imported, so this stands here, outside any hook;
# workers of pytest-xdist import this file too, and subprocesses of tests inherit it.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache"))

# The default finds the same examples in each run, so that a red test is red for everybody. A first
# example includes compilation, hence no deadline. The other profile searches anew each time:
#     pytest --hypothesis-profile=thorough
settings.register_profile("default", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("thorough", derandomize=False, deadline=None, max_examples=2000)
settings.load_profile("default")


ENGINES = ("numba",)
"""Engines that every test with the fixture ``engine`` runs on; a new engine is added here."""


@pytest.fixture(scope="session", params=ENGINES)
def engine(request):
    """A function that opens an engine: ``engine(X, sample_weight=None)``."""
    # Only now: NUMBA_CACHE_DIR has to be set before.
    from pgkmeans_sk.engines import open_engine

    return lambda X, sample_weight=None: open_engine(request.param, X, sample_weight)
