"""How many bits a code would need if frequent codes were written shorter.

No coder that looks at one code at a time comes below the entropy, so it says what entropy coding
could save before anybody tries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.validation import InvalidParameterError, check_integer

CHUNK_CODES = 2**16
"""Codes counted at once: ``np.bincount`` makes a copy of 8 bytes for each."""


def entropy_bits(
    codes: NDArray[np.integer[Any]], n_codes: int, axis: int | None = None
) -> float | NDArray[np.float64]:
    """Shannon entropy of codes, in bits per code.

    It is that of the frequencies found. With few codes for each of ``n_codes`` it lies below that
    of the source, by some ``(n_codes - 1) / (2 ln(2) codes.size)`` bits.

    Parameters
    ----------
    codes : ndarray of shape (n, m), or any shape with ``axis=None``, of integers
        Numbers from 0 to ``n_codes - 1``.
    n_codes : int
        How many different codes there may be.
    axis : {None, 0}, default=None
        None takes all codes together; 0 each column for itself.

    Returns
    -------
    bits : float, or ndarray of shape (m,), float64
        0 to log2(n_codes); 0 if there are no codes.

    Raises
    ------
    ValueError
        If a code is out of range, or ``codes`` does not have such a dtype or shape.

    Examples
    --------
    Halves and quarters: 1/2 * 1 + 1/4 * 2 + 1/4 * 2 = 1.5 bits.

    >>> import numpy as np
    >>> codes = np.array([[0, 3], [0, 3], [1, 3], [2, 3]], dtype=np.uint8)
    >>> entropy_bits(codes[:, 0], n_codes=4)
    1.5
    >>> entropy_bits(codes, n_codes=4, axis=0)
    array([1.5, 0. ])
    """
    codes = np.asarray(codes)
    check_integer("n_codes", n_codes, 1)
    if codes.dtype.kind not in "iu":
        raise InvalidParameterError(f"Got codes of dtype {codes.dtype}, but expected integers.")
    if axis is None:
        return float(_entropy(_counts(codes.ravel(order="K"), int(n_codes))))
    if axis != 0:
        raise InvalidParameterError(f"Got axis={axis!r}, but expected None or 0.")
    if codes.ndim != 2:
        raise ValueError(f"Got codes of shape {codes.shape}, but expected (n, m) with axis=0.")
    bits = np.empty(codes.shape[1])
    # Many columns of few codes are common (a codebook for each row of a weight): some at once.
    step = max(1, CHUNK_CODES // max(len(codes), int(n_codes)))
    for start in range(0, codes.shape[1], step):
        columns = codes[:, start : start + step]
        bits[start : start + step] = _column_entropies(columns, int(n_codes))
    return bits


def _column_entropies(codes: NDArray[Any], n_codes: int) -> NDArray[np.float64]:
    n_columns = codes.shape[1]
    if n_columns == 1:
        return np.array([_entropy(_counts(codes[:, 0], n_codes))])
    _check_range(codes, n_codes)
    places = codes.astype(np.intp) + n_codes * np.arange(n_columns)
    counts = np.bincount(places.ravel(), minlength=n_codes * n_columns)
    frequencies = counts.reshape(n_columns, n_codes) / max(1, len(codes))
    logs = np.log2(frequencies, out=np.zeros_like(frequencies), where=frequencies > 0.0)
    return np.asarray(0.0 - (frequencies * logs).sum(axis=1))


def _counts(codes: NDArray[Any], n_codes: int) -> NDArray[np.int64]:
    """How often each code occurs in ``codes`` (n,): (n_codes,)."""
    counts = np.zeros(n_codes, dtype=np.int64)
    for start in range(0, codes.size, CHUNK_CODES):
        chunk = codes[start : start + CHUNK_CODES]
        _check_range(chunk, n_codes)
        counts += np.bincount(chunk.astype(np.intp), minlength=n_codes)
    return counts


def _check_range(codes: NDArray[Any], n_codes: int) -> None:
    for extreme in (codes.min(initial=0), codes.max(initial=0)):
        if not 0 <= extreme < n_codes:
            raise ValueError(
                f"Got code {extreme}, but expected codes from 0 to {n_codes - 1} with "
                f"n_codes={n_codes}."
            )


def _entropy(counts: NDArray[np.int64]) -> float:
    frequencies = counts[counts > 0] / max(1, counts.sum())
    return float(0.0 - (frequencies * np.log2(frequencies)).sum())
