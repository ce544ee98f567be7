"""What has to be settled before the first test module is imported: the kernel cache, hypothesis."""

import os
from contextlib import contextmanager
from importlib.util import find_spec
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


def _has_cuda():
    import torch

    return torch.cuda.is_available()


# The engine "torch" leaves tensors on the CPU to the Numba kernels; tests run its own operations
# there, which are those on every other device.
ENGINES = ("numba", "torch")
"""Engines that every test with the fixture ``engine`` runs on; a new engine is added here."""
DEVICES = ("torch-cuda",) if find_spec("torch") and _has_cuda() else ()


def pytest_collection_modifyitems(config, items):
    """Tests of sparse rows are for engines that take them: no others are made."""
    refused = [item for item in items if _is_sparse_on_torch(item)]
    if refused:
        config.hook.pytest_deselected(items=refused)
        items[:] = [item for item in items if not _is_sparse_on_torch(item)]


def _is_sparse_on_torch(item):
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    is_sparse = any("csr" in str(part) for part in item.name.split("[")[-1].rstrip("]").split("-"))
    return is_sparse and str(parameters.get("engine", "")).startswith("torch")


@pytest.fixture(scope="session", params=(*ENGINES, *DEVICES))
def engine(request):
    """A function that opens an engine: ``engine(X, sample_weight=None)``."""
    # Only now: NUMBA_CACHE_DIR has to be set before.
    from pgkmeans_sk.engines import open_engine

    if request.param == "numba":
        yield lambda X, sample_weight=None: open_engine("numba", X, sample_weight)
        return
    import torch

    from pgkmeans_sk.engines.torch_device import open_device_engine

    place = torch.device("cuda" if request.param == "torch-cuda" else "cpu")
    with one_thread():
        yield lambda X, sample_weight=None: open_device_engine(X, sample_weight, place)


@contextmanager
def one_thread():
    """PyTorch on one thread: on small tensors, several wait for each other most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
