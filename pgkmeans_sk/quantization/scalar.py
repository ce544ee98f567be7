"""Codebooks of single values: the optimum of k-means, or levels of equal distance.

Every *line* of values gets a codebook of its own: a whole tensor is one line, its rows are many.

- "kmeans": the words with the least squared error of all. Short lines go to a dynamic program in
  float64, many at a time (``kernels/short_lines.py``); long ones, and those for which float64 is
  not enough, to ``engines/line_optimum.py``.
- "linear": bins of equal width over the range, each represented by the mean of its values, as in
  arXiv:2010.07109.
- "linear-minmax": words at equal distances, the first and last of them the least and the greatest
  value; each value gets the nearest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.engines.line_optimum import optimal_centers
from pgkmeans_sk.kernels import levels, short_lines
from pgkmeans_sk.quantization.settings import rounded_to
from pgkmeans_sk.threads import effective_n_threads, run_tasks

SCHEMES = ("kmeans", "linear", "linear-minmax")

CHUNK_VALUES = 2**16
"""That a thread takes at once."""
LARGEST_TABLE = 2**17
"""Values times words of a line, up to which the dynamic program is the faster way."""
TOLERANCE = 1e-6
"""What rounding may add to the squared error of a line, in the worst case, relative to it."""

Lines = NDArray[np.floating]
Words = NDArray[np.float64]


class ScalarCodes(NamedTuple):
    """Codebooks as they are stored, and codes."""

    words: NDArray[np.floating]  # (p, K), rising
    codes: NDArray[np.uint8]  # (p, n)


def scalar_codes(
    lines: Lines,
    n_bits: int,
    scheme: str = "kmeans",
    *,
    dtype: Any = np.float64,
    weights: NDArray[np.float64] | None = None,
) -> ScalarCodes:
    """Find ``2**n_bits`` words for each line, and the code of each value.

    Parameters
    ----------
    lines : ndarray of shape (p, n), float16, float32 or float64
        The values; at least one. Not written.
    n_bits : int
        1 to 8.
    scheme : {"kmeans", "linear", "linear-minmax"}
        How words are found. Of equal values, "kmeans" gives copies of the last word where fewer
        values than words differ.
    dtype : dtype
        Of the words as they are stored. Codes are those of the nearest stored words; with "linear",
        those of the bins.
    weights : ndarray of shape (p, n), float64, or None
        What the squared error of each value counts, > 0; for "kmeans" only.

    Raises
    ------
    ValueError
        If ``dtype`` cannot hold the words to within 1 %.

    Examples
    --------
    >>> import numpy as np
    >>> lines = np.array([[0.0, 1.0, 2.0, 10.0], [5.0, 5.0, 6.0, 7.0]])
    >>> words, codes = scalar_codes(lines, 1)
    >>> words
    array([[ 1. , 10. ],
           [ 5. ,  6.5]])
    >>> codes
    array([[0, 0, 0, 1],
           [0, 0, 1, 1]], dtype=uint8)
    """
    if lines.dtype == np.float16:  # kernels know no such numbers
        lines = lines.astype(np.float32)
    n_words = 2**n_bits
    words = np.empty((len(lines), n_words))
    codes = np.empty(lines.shape, dtype=np.uint8)
    if scheme == "linear":
        _for_chunks(lines, lambda begin, end: levels.find_bins(lines, words, codes, begin, end))
        return ScalarCodes(rounded_to(dtype, words, "code words"), codes)
    if scheme == "kmeans":
        optimal_words(lines, weights, words)
    else:
        low, high = (extreme(axis=1, keepdims=True) for extreme in (lines.min, lines.max))
        words[:] = np.linspace(low, high, n_words, axis=1, dtype=np.float64)[..., 0]
    stored = rounded_to(dtype, words, "code words")
    used = stored.astype(np.float64)
    _for_chunks(lines, lambda begin, end: levels.find_nearest(lines, used, codes, begin, end))
    return ScalarCodes(stored, codes)


def relative_error(lines: Lines, found: ScalarCodes) -> float:
    """``|lines - decoded| / |lines|`` in the Frobenius norm; 0 if all values are."""
    if lines.dtype == np.float16:
        lines = lines.astype(np.float32)
    words = found.words.astype(np.float64)
    errors = np.empty(len(lines))
    _for_chunks(
        lines,
        lambda begin, end: levels.sum_sq_errors(lines, words, found.codes, errors, begin, end),
    )
    total = float(np.einsum("ij,ij->", lines, lines, dtype=np.float64))
    return float(np.sqrt(errors.sum() / total)) if total else 0.0


def optimal_words(lines: Lines, weights: NDArray[np.float64] | None, words: Words) -> None:
    """Set ``words`` (p, K) to those of the least squared error, each line for itself."""
    is_found = np.zeros(len(lines), dtype=np.bool_)
    if lines.shape[1] * words.shape[1] <= LARGEST_TABLE:

        def solve_chunk(begin: int, end: int) -> None:
            part, w = _sorted(lines[begin:end], None if weights is None else weights[begin:end])
            out = words[begin:end], is_found[begin:end]
            short_lines.find_words(part, w, TOLERANCE, *out, 0, len(part))

        _for_chunks(lines, solve_chunk)
    rest = np.flatnonzero(~is_found)

    def solve_one(number: int) -> None:
        p = rest[number]
        words[p] = _words_of(lines[p], None if weights is None else weights[p], words.shape[1])

    run_tasks(solve_one, len(rest), effective_n_threads())


def _words_of(line: Lines, weights: NDArray[np.float64] | None, n_words: int) -> Words:
    """The words of one line, however long, whatever its values."""
    found = optimal_centers(line, weights, n_words)
    if found is not None:
        return found
    distinct = np.unique(line).astype(np.float64)
    assert len(distinct) < n_words  # up to 256 words are affordable for any number of values
    return np.pad(distinct, (0, n_words - len(distinct)), mode="edge")


def _sorted(lines: Lines, weights: NDArray[np.float64] | None) -> tuple[Lines, NDArray[np.float64]]:
    """A sorted copy of each line, with the weights of its values."""
    if weights is None:
        return np.sort(lines, axis=1), np.ones((1, 1))
    order = np.argsort(lines, axis=1)
    return np.take_along_axis(lines, order, axis=1), np.take_along_axis(weights, order, axis=1)


def _for_chunks(lines: Lines, work: Any) -> None:
    """Call ``work(begin, end)`` for some lines at a time, on several threads."""
    n_lines, n = lines.shape
    size = max(1, CHUNK_VALUES // n)
    run_tasks(
        lambda i: work(i * size, min((i + 1) * size, n_lines)),
        -(-n_lines // size),
        effective_n_threads(),
    )
