"""What the first fit costs in a fresh process, with an empty and with a warm compilation cache.

Compile time is part of the product, so it is measured where a user meets it: in a new interpreter,
from before the import to after the first fit of a small table. scikit-learn, which compiles nothing
at run time, is the yardstick.
"""

from __future__ import annotations

# Only light imports here: what this module imports would be missing from the measured import.
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

N_CLUSTERS = 64


def measure_first_fit(library: str, table: Path) -> dict[str, float]:
    """Import a library and fit twice in this (fresh) process; return the seconds of each step."""
    begin = time.perf_counter()
    if library == "scikit-learn":
        from sklearn.cluster import KMeans as Estimator
    else:
        from pgkmeans_sk import PGKMeans as Estimator
    imported = time.perf_counter()
    import numpy as np  # already imported by either library

    X = np.load(table)
    loaded = time.perf_counter()
    Estimator(N_CLUSTERS, random_state=0).fit(X)
    first = time.perf_counter()
    Estimator(N_CLUSTERS, random_state=0).fit(X)
    second = time.perf_counter()
    return {
        "import_seconds": imported - begin,
        "first_fit_seconds": first - loaded,
        "second_fit_seconds": second - first,
    }


def _in_fresh_process(library: str, table: Path, cache: Path) -> dict[str, float]:
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.cold", library, str(table)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"The cold run of {library} failed:\n{child.stderr.strip()}")
    seconds: dict[str, float] = json.loads(child.stdout.strip().splitlines()[-1])
    return seconds


def run(console: Console, repeats: int = 3) -> dict[str, Any]:
    """Measure ours cold and warm, and scikit-learn, on the digits table; medians of ``repeats``."""
    from statistics import median

    import numpy as np

    from benchmarks import data
    from benchmarks.measure import machine, package_versions
    from benchmarks.peers import OURS

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "digits.npy"
        np.save(table, data.load("digits"))
        for library, state in ((OURS, "cold"), (OURS, "warm"), ("scikit-learn", "warm")):
            samples = []
            for repeat in range(repeats):
                # A new directory per run is an empty cache; "warm" comes back to the first one,
                # which the first cold run has filled.
                number = repeat if state == "cold" else 0
                with console.status(f"{library}, {state}, run {repeat + 1} of {repeats}"):
                    cache = Path(folder) / f"cache{number}"
                    samples.append(_in_fresh_process(library, table, cache))
            rows.append(
                {
                    "library": library,
                    "state": state,
                    **{key: median(sample[key] for sample in samples) for key in samples[0]},
                    "import_and_first_fit_seconds": median(
                        sample["import_seconds"] + sample["first_fit_seconds"] for sample in samples
                    ),
                }
            )
    return {
        "kind": "cold",
        "settings": {"case": "digits", "n_clusters": N_CLUSTERS, "repeats": repeats},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
        "skipped": [],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="First fit in a fresh process (for the harness).")
    parser.add_argument("library")
    parser.add_argument("table", type=Path)
    arguments = parser.parse_args()
    seconds = measure_first_fit(arguments.library, arguments.table)
    sys.stdout.write("\n" + json.dumps(seconds))
