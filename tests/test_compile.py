"""Compiled kernels on disk: found again by the next process, and by no other version."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pgkmeans_sk
from pgkmeans_sk.kernels import compile as module
from pgkmeans_sk.kernels.directions import fill_lengths

PACKAGE = Path(pgkmeans_sk.__file__).parent

LENGTH = """
import numpy as np
from pgkmeans_sk.kernels.directions import fill_lengths
from pgkmeans_sk.kernels.points import dense_points
lengths = np.empty(1)
fill_lengths(dense_points(np.array([[3.0, 4.0]])), lengths)
print(lengths[0], sum(fill_lengths.stats.cache_hits.values()))
"""


def length(folder: Path) -> list[float]:
    """The length of (3, 4) by the package in ``folder``, and how often it came from the cache."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": ""}
    printed = subprocess.run(
        [sys.executable, "-c", LENGTH],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [float(number) for number in printed.split()]


def test_an_edit_of_a_helper_is_seen(tmp_path):
    # Numba's own cache looks at directions.py only; the helper is in points.py.
    shutil.copytree(PACKAGE, tmp_path / "pgkmeans_sk", ignore=shutil.ignore_patterns("__pycache__"))
    assert length(tmp_path) == [5, 0]
    assert length(tmp_path) == [5, 1]
    helper = tmp_path / "pgkmeans_sk" / "kernels" / "points.py"
    text = helper.read_text()
    line = "            x = context.cast(builder, x, points.types[0].dtype, target.dtype)\n"
    assert text.count(line) == 1
    helper.write_text(text.replace(line, f"{line}            x = builder.fadd(x, x)\n"))
    assert length(tmp_path) == [10, 0]


def test_the_folder_is_named_after_the_sources():
    assert module.fingerprint() in str(fill_lengths._cache.cache_path)
    assert len(module.fingerprint()) == 16


def test_a_numba_that_keeps_its_cache_elsewhere_still_compiles(monkeypatch):
    def moved(cache):
        raise AttributeError("'FunctionCache' object has no attribute '_impl'")

    monkeypatch.setattr(module, "_keep_apart", moved)
    assert module.kernel(abs_of)(-3.0) == 3.0


def abs_of(x):
    return abs(x)
