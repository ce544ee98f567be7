"""Tensors on a device without float64: results are there, the work is done on the host."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests import short_device

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not short_device.is_possible(), reason="this PyTorch makes no device up")
def test_without_float64():
    finished = subprocess.run(
        [sys.executable, "-m", "tests.short_device"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    outcomes = json.loads(finished.stdout.splitlines()[-1])
    assert outcomes.keys() == short_device.CHECKS.keys()
    failed = {name: outcome for name, outcome in outcomes.items() if outcome}
    assert not failed, "\n".join(f"{name}:\n{outcome}" for name, outcome in failed.items())
