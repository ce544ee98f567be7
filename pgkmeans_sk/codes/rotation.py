"""Orthogonal maps of rows that take few numbers to say: random Hadamard, or any matrix at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.kernels.rotate import mix_pieces, transform_pieces
from pgkmeans_sk.threads import effective_n_threads, run_tasks

ROWS_AT_ONCE = 1024
"""Rows of a chunk when rows are rotated."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """The orthogonal matrix ``kron(mixer, H) @ diag(signs)``.

    H is the Hadamard matrix of width ``d / m``, scaled to be orthogonal, for the (m, m) ``mixer``.
    With m = 1 this is a Hadamard matrix; with m = d, H is 1, and the mixer may be any rotation.

    Attributes
    ----------
    mixer : ndarray of shape (m, m), floating
        An orthogonal matrix; m divides d, and d / m is a power of two.
    signs : ndarray of shape (d,), int8
        Each 1 or -1.
    """

    mixer: NDArray[np.floating]
    signs: NDArray[np.int8]

    @property
    def width(self) -> int:
        """Columns of the Hadamard matrix."""
        return len(self.signs) // len(self.mixer)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes when stored: the mixer, and a bit for each sign."""
        return int(self.mixer.nbytes) + -(-len(self.signs) // 8)

    def apply(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        """``X`` (n, d) with each row rotated, as a new array."""
        return self._mixed(self._transformed(X * self.signs.astype(X.dtype)), self.mixer)

    def undo(self, Y: NDArray[np.floating]) -> NDArray[np.floating]:
        """The opposite of ``apply``: for (n, d) rotated rows, those they came from."""
        X = self._transformed(self._mixed(Y, self.mixer.T))
        X *= self.signs.astype(X.dtype)
        return X

    def _transformed(self, rows: NDArray[np.floating]) -> NDArray[np.floating]:
        """The Hadamard part, in place: it is its own inverse."""
        if self.width > 1:
            _over_rows(lambda *some: transform_pieces(rows, self.width, *some), len(rows))
        return rows

    def _mixed(
        self, rows: NDArray[np.floating], mixer: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        """The mixer's part, as a new array."""
        return mixed_pieces(rows, mixer.T)


def mixed_pieces(rows: NDArray[np.floating], matrix: NDArray[np.floating]) -> NDArray[np.floating]:
    """``rows @ matrix``, where values of rows (n, d) may be pieces of d / m values; a new array.

    Unlike a product by BLAS, a row gives the same bits in any company. ``matrix`` is (m, m).
    """
    rows = np.ascontiguousarray(rows)
    columns = np.ascontiguousarray(matrix, dtype=rows.dtype)
    mixed = np.empty_like(rows)
    _over_rows(lambda *some: mix_pieces(rows, columns, *some, mixed), len(rows))
    return mixed


def _over_rows(task: Callable[[int, int], None], n_rows: int) -> None:
    """Call ``task(start, stop)`` for chunks of rows, on several cores."""
    n_chunks = -(-n_rows // ROWS_AT_ONCE)

    def run_chunk(c: int) -> None:
        task(c * ROWS_AT_ONCE, min((c + 1) * ROWS_AT_ONCE, n_rows))

    run_tasks(run_chunk, n_chunks, effective_n_threads())


def random_hadamard(n_features: int, rng: np.random.RandomState) -> Rotation:
    """A random rotation of few numbers: random signs, a Hadamard matrix, and the odd factor of d.

    Parameters
    ----------
    n_features : int
        d, which need not be a power of two: 384 columns are 3 pieces of 128, each transformed, and
        a random (3, 3) rotation between them.
    rng : RandomState
        Where signs and rotation come from.
    """
    signs = (2 * rng.randint(2, size=n_features) - 1).astype(np.int8)
    odd = n_features // (n_features & -n_features)
    return Rotation(random_orthogonal(odd, rng), signs)


def random_orthogonal(size: int, rng: np.random.RandomState) -> NDArray[np.float64]:
    """A random orthogonal matrix (size, size), uniform among all (Stewart 1980)."""
    if size == 1:
        return np.ones((1, 1))
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    # Without the signs of r's diagonal it would depend on how the decomposition chooses them.
    return np.ascontiguousarray(q * np.sign(np.diag(r)))


def any_rotation(matrix: NDArray[np.floating]) -> Rotation:
    """The rotation ``x -> matrix @ x`` for an orthogonal matrix (d, d)."""
    return Rotation(matrix, np.ones(len(matrix), dtype=np.int8))
