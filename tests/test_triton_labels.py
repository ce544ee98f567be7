"""The fused kernel, in Triton's interpreter: it is chosen when Triton is imported, so elsewhere."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

# Rows and centres where a label is easily got wrong, in layouts and short dtypes that the kernel
# reads; and shapes around the sizes of its tiles.
SCRIPT = """
import numpy as np
import torch

from pgkmeans_sk.engines import torch_labels
from pgkmeans_sk.engines.torch_device import open_device_engine
from pgkmeans_sk.engines.triton_labels import nearest_two
from tests import reference

n_calls = 0


def counted(*arguments):
    global n_calls
    n_calls += 1
    return torch_labels_fused(*arguments)


torch_labels_fused = torch_labels._two_nearest_fused
torch_labels._two_nearest_fused = counted
torch_labels._is_fused = lambda X: X.dtype != torch.float64
cpu = torch.device("cpu")

for problem in reference.problems(np.float32):
    if problem.X.shape[1] > 100:  # the interpreter takes its time
        continue
    expected = reference.labels(problem.X, problem.centers)
    opened = open_device_engine(problem.X, None, cpu)
    np.testing.assert_array_equal(opened.nearest(problem.centers), expected, problem.name)
    plain = open_device_engine(problem.X.astype(np.float64), None, cpu)
    if len(problem.centers) > 1:
        found, exact = (each.utilities(problem.centers) for each in (opened, plain))
        norms = np.abs(problem.X - np.median(problem.X, axis=0)).max() ** 2
        norms += np.abs(problem.centers - np.median(problem.X, axis=0)).max() ** 2
        d = problem.X.shape[1]
        atol = 8 * d * (d + 30) * np.finfo(np.float32).eps * len(problem.X) * norms
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=atol, err_msg=problem.name)

rng = np.random.default_rng(0)
for n, d, k in ((1, 1, 2), (64, 15, 64), (65, 16, 65), (63, 33, 2), (130, 17, 129)):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        X = torch.from_numpy(rng.standard_normal((n, 2 * d))).to(dtype)
        for rows in (X[:, ::2], X[:, :d].T.contiguous().T):
            centers = rng.standard_normal((k, d)).astype(np.float32)
            expected = reference.labels(rows.double().numpy(), centers)
            found = open_device_engine(rows, None, cpu).nearest(centers)
            np.testing.assert_array_equal(found, expected)

X = torch.from_numpy(rng.standard_normal((70, 5)).astype(np.float32))
columns, starts = X[:3].T.contiguous(), torch.tensor([0.0, 1.0, -1.0])
best, second, place, sq_norms = nearest_two(X, torch.ones(5), columns, starts)
values = starts + (X.double() - 1) @ columns.double()
ordered = values.sort(dim=1)
np.testing.assert_allclose(best, ordered.values[:, 0], atol=1e-5)
np.testing.assert_allclose(second, ordered.values[:, 1], atol=1e-5)
np.testing.assert_array_equal(place, ordered.indices[:, 0])
np.testing.assert_allclose(sq_norms, (X - 1).square().sum(dim=1), rtol=1e-5)
tied = nearest_two(X, torch.zeros(5), torch.zeros((5, 100)), torch.zeros(100))
assert not tied[2].any() and not (tied[1] - tied[0]).any()  # of several, the lowest
assert nearest_two(X, torch.ones(5), columns[:, :1].contiguous(), starts[:1])[1].isinf().all()
print(n_calls)
"""


def test_fused_labels():
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 50
