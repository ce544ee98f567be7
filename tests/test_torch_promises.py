"""What every fit promises, kept by plain PyTorch operations; and who may import PyTorch."""

import subprocess
import sys
from unittest import mock

import pytest
from hypothesis import given, settings

from tests.conftest import one_thread
from tests.test_promises import assert_promises_kept, problems

pytest.importorskip("torch")

from pgkmeans_sk.engines import torch_device


@pytest.fixture(autouse=True, scope="module")
def _few_threads():
    with one_thread():
        yield


@settings(max_examples=150)
@given(problem=problems())
def test_promises(problem):
    problem.parameters |= {"engine": "torch", "device": "cpu"}
    with mock.patch.object(torch_device, "USES_KERNELS", False):
        assert_promises_kept(problem)


@settings(max_examples=50)
@given(problem=problems(metric="cosine"))
def test_directions(problem):
    problem.parameters |= {"engine": "torch", "device": "cpu"}
    with mock.patch.object(torch_device, "USES_KERNELS", False):
        assert_promises_kept(problem)


def test_nobody_else_imports_torch():
    finished = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, numpy as np; from pgkmeans_sk import PGKMeans;"
            "PGKMeans(2).fit(np.eye(5)).predict(np.eye(5)); assert 'torch' not in sys.modules",
        ],
        check=False,
    )
    assert finished.returncode == 0
