"""Triton's kernels: in its interpreter, compiled for GPUs elsewhere, and on one that is here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pgkmeans_sk.engines.torch_labels import label_rows, pack_centers  # noqa: E402
from pgkmeans_sk.engines.torch_passes import label_by_kernel  # noqa: E402
from pgkmeans_sk.engines.torch_totals import (  # noqa: E402
    LabelledRows,
    added_by_kernels,
    added_by_operations,
    new_totals,
)

ROOT = Path(__file__).resolve().parents[1]


def run_program(name, *arguments, **environment):
    """What a program beside this file prints as JSON."""
    finished = subprocess.run(
        [sys.executable, "-m", f"tests.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_interpreted():
    outcomes = run_program("interpreted_kernels", TRITON_INTERPRET="1")
    assert len(outcomes) > 15
    failed = {name: outcome for name, outcome in outcomes.items() if outcome}
    assert not failed, "\n".join(f"{name}:\n{outcome}" for name, outcome in failed.items())


def test_compiled(tmp_path):
    # Ampere and Hopper: products there are of different instructions.
    without = {name: "" for name in ("TRITON_INTERPRET",) if name in os.environ}
    found = run_program("compiled_kernels", "80", "90", TRITON_CACHE_DIR=str(tmp_path), **without)
    for kernels in found.values():
        assert kernels["label_long_kernel"]["tf32"] > 0  # on tensor cores
        for name in ("window_sums_kernel", "run_sums_kernel", "block_sums_kernel"):
            assert kernels[name]["fma.rn.f64"] == 0  # products are rounded before they are added
        # Labels may be found by fused products; no order of sums is left to chance.
        assert kernels["label_short_kernel"]["fma.rn.f32"] > 0
        assert not any(counts["atom"] for counts in kernels.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("n", "d", "k"), [(700_000, 8, 256), (200_000, 128, 1000), (5000, 3, 2)])
def test_on_a_gpu(n, d, k, dtype, weighted):
    X = torch.randn((n, d), device="cuda").to(dtype)
    exact, origin = X[:k].double(), torch.ones(d, device="cuda")
    expected = label_rows(X, pack_centers(exact, origin))
    labels = label_by_kernel(X, exact, origin)
    assert torch.equal(labels, expected)
    weights = torch.rand(n, device="cuda", dtype=torch.float64) if weighted else None
    rows = LabelledRows(X, labels, weights)
    totals = added_by_operations(rows, exact, new_totals(exact))
    assert torch.equal(added_by_kernels(rows, exact, new_totals(exact)), totals)
