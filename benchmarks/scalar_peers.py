"""Codebooks of single values beside other libraries: every weight matrix, and rows of many.

Each library finds 2^bits words for the values of a matrix; only the words count, and one judge
gives each value the nearest of them. Exact methods find the same error up to rounding; nobody can
find less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import available_memory

Values = NDArray[np.float32]  # (n,)
Words = NDArray[np.floating]  # (K,)

OURS = "pgkmeans-sk"
LARGEST_FOR_RESTARTS = 2_000_000
"""Values up to which ten restarts are minutes, not an hour."""
BY_ROW = "encoder.layer."
"""How the names of the 36 matrices begin that are quantized row by row."""


@dataclass(frozen=True)
class Library:
    """One way to find words; ``bytes_per_cell`` of tables with a cell per value and word."""

    name: str
    module: str  # that must be importable
    words: Callable[[Values, int], Words]
    is_exact: bool = True
    bytes_per_cell: int = 0
    largest: int | None = None  # values, beyond which it is left out

    def why_not(self, n_values: int, n_words: int) -> str | None:
        """Return why it is left out for so many values; None if it is not."""
        if find_spec(self.module) is None:
            return f"no module {self.module}"
        needed = self.bytes_per_cell * n_values * n_words
        if needed > 0.6 * available_memory():
            return f"would need {needed / 2**30:.0f} GiB"
        if self.largest is not None and n_values > self.largest:
            return f"10 restarts on {n_values} values would take too long"
        return None


def _ours(values: Values, n_words: int) -> Words:
    from pgkmeans_sk.quantization.scalar import scalar_codes

    return scalar_codes(values[np.newaxis], n_words.bit_length() - 1).words[0]


def _kmeans1d(values: Values, n_words: int) -> Words:
    import kmeans1d

    return np.array(kmeans1d.cluster(values, n_words).centroids)


def _faiss_exact(values: Values, n_words: int) -> Words:
    import faiss

    words = np.empty(n_words, dtype=np.float32)
    faiss.kmeans1d(faiss.swig_ptr(values), len(values), n_words, faiss.swig_ptr(words))
    return words


def _faiss(values: Values, n_words: int) -> Words:
    import faiss

    found = faiss.Kmeans(
        1, n_words, niter=25, nredo=10, seed=1, max_points_per_centroid=len(values)
    )
    found.train(values[:, np.newaxis])
    return np.array(found.centroids[:, 0])


def _sklearn(values: Values, n_words: int) -> Words:
    from sklearn.cluster import KMeans

    found = KMeans(n_words, n_init=10, random_state=0).fit(values[:, np.newaxis])
    return np.array(found.cluster_centers_[:, 0])


LIBRARIES = (
    Library(OURS, "pgkmeans_sk", _ours),
    Library("kmeans1d", "kmeans1d", _kmeans1d, bytes_per_cell=8),
    Library("faiss.kmeans1d", "faiss", _faiss_exact, bytes_per_cell=16),
    Library("faiss.Kmeans, 10 restarts", "faiss", _faiss, is_exact=False,
            largest=LARGEST_FOR_RESTARTS),
    Library("scikit-learn, 10 restarts", "sklearn", _sklearn, is_exact=False,
            largest=LARGEST_FOR_RESTARTS),
)  # fmt: skip


def sq_error(values: Values, words: Words) -> float:
    """Judge words: squared error of the nearest of them for each value, in float64."""
    ordered = np.unique(np.asarray(words, dtype=np.float64))
    middles = 0.5 * (ordered[1:] + ordered[:-1])
    error = 0.0
    for part in np.array_split(values, max(1, len(values) // 2**20)):
        nearest = ordered[np.searchsorted(middles, part)]
        error += float(np.square(part - nearest).sum())
    return error


def on_each_matrix(library: Library, n_bits: int, matrices: Mapping[str, Values]) -> dict[str, Any]:
    """Quantize each matrix as one line; return errors, seconds and what was left out, by name."""
    found: dict[str, Any] = {"matrices": {}, "skipped": {}}
    for name, values in matrices.items():
        reason = library.why_not(values.size, 2**n_bits)
        if reason is not None:
            found["skipped"][name] = reason
            continue
        flat = np.ascontiguousarray(values).ravel()
        begin, cpu = time.perf_counter(), time.process_time()
        words = library.words(flat, 2**n_bits)
        found["matrices"][name] = {
            "n": flat.size,
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": time.process_time() - cpu,
            "sq_error": sq_error(flat, words),
        }
    return found


def by_row(library: Library, n_bits: int, matrices: Mapping[str, Values]) -> dict[str, Any]:
    """Find words for each row of each matrix; ours takes all rows of a matrix at once."""
    seconds = cpu_seconds = error = 0.0
    n_lines = n_values = 0
    for rows in matrices.values():
        begin, cpu = time.perf_counter(), time.process_time()
        words = _words_of_rows(library, rows, 2**n_bits)
        seconds += time.perf_counter() - begin
        cpu_seconds += time.process_time() - cpu
        error += sum(sq_error(row, own) for row, own in zip(rows, words, strict=True))
        n_lines += len(rows)
        n_values += rows.size
    return {
        "n_lines": n_lines,
        "n_values": n_values,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "sq_error": error,
    }


def _words_of_rows(library: Library, rows: NDArray[np.float32], n_words: int) -> Any:
    if library.name == OURS:
        from pgkmeans_sk.quantization.scalar import scalar_codes

        return scalar_codes(rows, n_words.bit_length() - 1).words
    return [library.words(row, n_words) for row in rows]


def compile_kernels(n_bits: int) -> None:
    """Pay for compilation before anything is timed."""
    from pgkmeans_sk.quantization.scalar import SCHEMES, scalar_codes

    rng = np.random.default_rng(0)
    for shape in ((2, 50), (1, 200_000)):
        for scheme in SCHEMES:
            scalar_codes(rng.normal(size=shape).astype(np.float32), n_bits, scheme)
