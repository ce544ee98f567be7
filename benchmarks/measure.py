"""One neutral judge for every library, and the description of where a number was taken.

Libraries report their own inertia in their own arithmetic, some on a subsample, some for the
centres of the iteration before. So only the returned centres count here: they are judged on all
points, in float64, by one brute-force assignment that belongs to none of the libraries under test.
"""

from __future__ import annotations

import datetime
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

_CHUNK_BYTES = 4 << 20  # of float64 scores; stays in cache, measured fastest between 1 and 64 MiB

MEASURED_PACKAGES = (
    "pgkmeans-sk",
    "numpy",
    "scipy",
    "scikit-learn",
    "numba",
    "scikit-learn-intelex",
    "faiss-cpu",
    "superkmeans",
    "fast-pytorch-kmeans",
    "torch",
    "transformers",
    "kmeans1d",
)


@dataclass(frozen=True)
class Verdict:
    """What a set of centres is worth on all points."""

    labels: NDArray[np.intp]  # (n,) index of the nearest centre; ties go to the lowest index
    sse: float  # summed squared distance to the nearest centre
    n_empty: int  # centres that own no point


def nearest_centers(
    X: NDArray[np.floating], centers: NDArray[np.floating]
) -> tuple[NDArray[np.intp], float]:
    """Return the labels (n,) and the SSE of the exact nearest-centre assignment in float64.

    Centres with a NaN or infinite coordinate own no point. Both sides are shifted by the mean of
    the centres first, since |c|^2 - 2 x.c loses digits far from the origin; the SSE is summed from
    plain differences, so that expansion decides labels only.
    """
    K, d = centers.shape
    usable = np.isfinite(centers).all(axis=1)
    if not usable.any():
        raise ValueError(f"Got {K} centres, but expected at least one without NaN or infinity.")
    exact = np.where(usable[:, None], centers, 0.0).astype(np.float64)
    origin = exact[usable].mean(axis=0)
    shifted = exact - origin
    # Scores in one product: (x, 1) . (-2c, |c|^2) = |x - c|^2 - |x|^2.
    right = np.empty((d + 1, K))
    right[:d] = -2.0 * shifted.T
    right[d] = np.where(usable, np.einsum("kd,kd->k", shifted, shifted), np.inf)

    n = len(X)
    n_chunk = max(1, min(n, _CHUNK_BYTES // (8 * K)))
    labels = np.empty(n, dtype=np.intp)

    def assign(start: int) -> float:
        stop = min(n, start + n_chunk)
        left = np.ones((stop - start, d + 1))
        np.subtract(X[start:stop], origin, out=left[:, :d])
        (left @ right).argmin(axis=1, out=labels[start:stop])
        difference = left[:, :d] - shifted[labels[start:stop]]
        return float(np.einsum("nd,nd->", difference, difference))

    # One thread per core over chunks, and one BLAS thread in each: products this small are cut up
    # by BLAS at a loss, and its waiting threads slow down tenfold as soon as a core is busy.
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(usable_cores()) as pool:
        return labels, sum(pool.map(assign, range(0, n, n_chunk)))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # looking for the loaded libraries takes milliseconds


def judge(X: NDArray[np.floating], centers: NDArray[np.floating]) -> Verdict:
    """Judge centres (K, d) on all points (n, d): labels, SSE and the number of empty clusters."""
    labels, sse = nearest_centers(X, centers)
    n_empty = int((np.bincount(labels, minlength=len(centers)) == 0).sum())
    return Verdict(labels, sse, n_empty)


def package_versions() -> dict[str, str]:
    """Return the versions of the libraries that the numbers depend on; absent ones say so."""
    found: dict[str, str] = {}
    for name in MEASURED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if found["pgkmeans-sk"] == "not installed":  # run from a checkout that was never installed
        found["pgkmeans-sk"] = "checkout"
    return found


def _cpu_model() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Describe the machine and the moment; the load average tells whether it was busy."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(_total_memory() / 2**30, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "thread_limits": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.endswith("_NUM_THREADS")
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Return the bytes that can be allocated now without swapping (all memory where unknown)."""
    mem_info = Path("/proc/meminfo")
    if mem_info.is_file():
        for line in mem_info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _total_memory()
