"""Triton's kernels: in its interpreter, and compiled for GPUs that need not be here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")


ROOT = Path(__file__).resolve().parents[1]


def run_program(name, *arguments, **environment):
    """What a program beside this file prints as JSON."""
    finished = subprocess.run(
        [sys.executable, "-m", f"tests.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
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
