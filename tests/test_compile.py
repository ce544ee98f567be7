"""Compiled kernels on disk: found again by the next process, and by no other version."""

import gc
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np

import pgkmeans_sk
from pgkmeans_sk.kernels import compile as module
from pgkmeans_sk.kernels.directions import fill_lengths
from pgkmeans_sk.kernels.points import dense_points

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


def test_a_kernel_without_memory_leaves_references_as_they_were():
    table = np.arange(12.0).reshape(3, 4)
    rows = dense_points(table)
    compiled = module.kernel_without_memory(sum_of_row)
    assert compiled(table, rows, 1) == 44.0
    before = [sys.getrefcount(array) for array in (table, rows.base)]
    for _ in range(100):
        compiled(table, rows, 2)
    assert [sys.getrefcount(array) for array in (table, rows.base)] == before
    gone = weakref.ref(table)
    del table, rows
    gc.collect()
    assert gone() is None


def sum_of_row(table, rows, i):
    row = table[i]
    total = 0.0
    for t in range(row.size):
        total += row[t] + rows.base[i * rows.row_step + t]
    return total


def test_a_numba_that_counts_all_references_still_compiles(monkeypatch):
    monkeypatch.setattr(module, "_WITHOUT_MEMORY", {})
    assert module.kernel_without_memory(abs_of)(-3.0) == 3.0


def abs_of(x):
    return abs(x)
