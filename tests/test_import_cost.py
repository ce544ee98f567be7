"""``import pgkmeans_sk`` loads no optional library, needs none, and compiles nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pgkmeans_sk

ROOT = Path(__file__).resolve().parents[1]

NEVER_LOADED = {
    "torch",
    "triton",
    "dask",
    "distributed",
    "matplotlib",
    "polars",
    "typer",
    "safetensors",
}
# scikit-learn 1.9 and Numba (yaml) import these by themselves where they are installed, so their
# presence says nothing about this package; test_layering.py finds an import of our own.
LOADED_BY_OTHERS = {"pandas", "rich", "yaml"}


def run_python(code: str, **environment: str) -> str:
    """What a new interpreter prints: the one of the tests has long imported everything."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def loaded_by(statement: str) -> set[str]:
    return set(run_python(f"{statement}\nimport sys\nprint(*sys.modules)").split())


def test_loads_no_optional_library():
    loaded = loaded_by("import pgkmeans_sk")
    assert "pgkmeans_sk" in loaded
    assert loaded & NEVER_LOADED == set()


def test_a_loaded_library_is_seen():
    pytest.importorskip("safetensors")
    assert loaded_by("import safetensors") & NEVER_LOADED == {"safetensors"}


# Not None in sys.modules: SciPy takes what is there for the library itself.
REFUSE_IMPORTS = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def test_needs_no_optional_library():
    absent = NEVER_LOADED | LOADED_BY_OTHERS
    run_python(REFUSE_IMPORTS.format(absent=sorted(absent)) + "import pgkmeans_sk")


# Counts compilations of any kind; a look at the cache folder alone would miss uncached functions.
COUNT_COMPILATIONS = """
from numba.core.event import install_recorder
with install_recorder("numba:compile") as recorder:
    {statement}
print(len(recorder.buffer))
"""


@pytest.mark.parametrize(
    ("statement", "compiles"),
    [
        ("import pgkmeans_sk", False),
        ("import numba; numba.njit('f8(f8)')(lambda x: x)", True),  # the counter can count
    ],
)
def test_compiles_nothing(statement, compiles, tmp_path):
    code = COUNT_COMPILATIONS.format(statement=statement)
    printed = run_python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert (int(printed) > 0) == compiles
    # Numba makes empty folders already when it decorates a function.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_names_are_loaded_when_they_are_asked_for():
    loaded = loaded_by("from pgkmeans_sk import PGKMeans")
    assert "pgkmeans_sk.product_quantizer" not in loaded
    assert "pgkmeans_sk.product_quantizer" in loaded_by("from pgkmeans_sk import ProductQuantizer")


def test_arrays_need_not_wait_for_what_others_are_fitted_with():
    rest = {f"engines.{name}" for name in ("block_engine", "tiles", "line_optimum", "numba_limits")}
    rest = {f"pgkmeans_sk.{name}" for name in (*rest, "batch")}
    code = "import numpy as np; from pgkmeans_sk import PGKMeans, pg_kmeans_batch\n"
    fit = "PGKMeans(2).fit(np.random.default_rng(0).random((50, 2)))\n"
    assert loaded_by(code + fit) & rest == set()
    assert loaded_by(code + "pg_kmeans_batch(np.ones((1, 3, 2)) * [[1], [2], [4]], 2)") & rest


def test_all_public_names_are_there():
    assert set(pgkmeans_sk.__all__) == set(dir(pgkmeans_sk))
    for name in pgkmeans_sk.__all__:
        assert getattr(pgkmeans_sk, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'KMeans'"):
        _ = pgkmeans_sk.KMeans
