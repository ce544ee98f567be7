"""A fit of rows on disk: its time and its peak of memory, and the same rows in memory.

Each fit runs in a process of its own. The peak is the kernel's high-water mark of everything that
is resident (VmHWM), interpreter, libraries and mapped pages included: what a limit of a container
would count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_mebibytes, as_number, as_seconds, as_whole

Result = dict[str, Any]
STORED, IN_MEMORY = "on disk", "in memory"
_PART = 500_000  # rows that are made at once
_N_BLOBS = 5000


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    n_rows: int = 40_000_000
    n_features: int = 32
    n_clusters: int = 1024
    max_iter: int = 2
    memory_limit: int = 2**28
    init: str = "partition"
    compared_rows: int = 1_000_000  # so many are also clustered in memory
    folder: str = ""  # where the file of rows goes; "" is a temporary one


def write_rows(path: Path, n_rows: int, n_features: int) -> None:
    """Write float32 rows around random centres."""
    rng = np.random.default_rng(0)
    centers = (3.0 * rng.standard_normal((_N_BLOBS, n_features))).astype(np.float32)
    with path.open("wb") as file:
        for start in range(0, n_rows, _PART):
            n_part = min(_PART, n_rows - start)
            rows = rng.standard_normal((n_part, n_features), dtype=np.float32)
            rows += centers[rng.integers(0, _N_BLOBS, n_part)]
            rows.tofile(file)


def fit_once(path: Path, way: str, n_rows: int, plan: Plan) -> dict[str, Any]:
    """Fit the first rows of a file in this (fresh) process."""
    from pgkmeans_sk import PGKMeans, RowBlocks

    rows: Any = np.memmap(path, np.float32, "r", shape=(n_rows, plan.n_features))
    rows = RowBlocks(rows, memory_limit=plan.memory_limit) if way == STORED else np.array(rows)
    kmeans = PGKMeans(
        plan.n_clusters, init=plan.init, n_init=1, max_iter=plan.max_iter, tol=0.0, random_state=0
    )
    begin = time.perf_counter()
    kmeans.fit(rows)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "way": way,
        "n": n_rows,
        "d": plan.n_features,
        "k": plan.n_clusters,
        "bytes_of_rows": 4 * n_rows * plan.n_features,
        "seconds": seconds,
        "peak_bytes": 1024 * peak,
        "inertia": kmeans.inertia_,
        "n_iter": kmeans.n_iter_,
    }


def run(plan: Plan, console: Console) -> Result:
    """Write the file, fit it, and compare a part of it with the same rows in memory."""
    rows = []
    with tempfile.TemporaryDirectory(dir=plan.folder or None) as folder:
        path = Path(folder) / "rows.bin"
        console.print(f"writing {plan.n_rows} rows to {path}")
        write_rows(path, plan.n_rows, plan.n_features)
        few = min(plan.compared_rows, plan.n_rows)
        units = [(STORED, few), (IN_MEMORY, few)]
        units += [(STORED, plan.n_rows)] if plan.n_rows > few else []
        for way, n_rows in units:
            with console.status(f"{way}, {n_rows} rows"):
                rows.append(_in_fresh_process(path, way, n_rows, plan))
    return {
        "kind": "stored",
        "settings": {key: value for key, value in asdict(plan).items() if key != "folder"},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
        "skipped": [],
    }


def _in_fresh_process(path: Path, way: str, n_rows: int, plan: Plan) -> dict[str, Any]:
    request = json.dumps([str(path), way, n_rows, asdict(plan)])
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.stored", request],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"The fit {way} failed:\n{child.stderr.strip()}")
    found: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    return found


def sheets(result: Result) -> list[Sheet]:
    """Make one table of all fits."""
    table = [
        (
            row["way"],
            as_whole(row["n"]),
            as_mebibytes(row["bytes_of_rows"]),
            as_mebibytes(row["peak_bytes"]),
            as_seconds(row["seconds"]),
            as_number(row["inertia"], 12),
        )
        for row in result["rows"]
    ]
    settings = result["settings"]
    n_steps = settings["max_iter"]
    title = (
        f"d = {settings['n_features']}, K = {settings['n_clusters']}, float32, "
        f"{n_steps} iteration{'s' * (n_steps != 1)} from init={settings['init']!r}"
    )
    caption = "The peak is all that is resident in the process, libraries included."
    columns = ("rows are", "n", "MiB of rows", "MiB at the peak", "seconds", "inertia")
    return [Sheet(title, columns, table, caption)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One fit in a fresh process (for the harness).")
    parser.add_argument("request", help="JSON list: path, way, rows, plan")
    path, way, n_rows, settings = json.loads(parser.parse_args().request)
    sys.stdout.write("\n" + json.dumps(fit_once(Path(path), way, n_rows, Plan(**settings))))
