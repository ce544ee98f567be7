"""Orthogonal maps of rows that take few numbers to say: random Hadamard, or any matrix at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.kernels.hadamard import transform_pieces
from pgkmeans_sk.threads import effective_n_threads, run_tasks

ROWS_AT_ONCE = 8192
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
            n_chunks = -(-len(rows) // ROWS_AT_ONCE)

            def task(c: int) -> None:
                stop = min((c + 1) * ROWS_AT_ONCE, len(rows))
                transform_pieces(rows, self.width, c * ROWS_AT_ONCE, stop)

            run_tasks(task, n_chunks, effective_n_threads())
        return rows

    def _mixed(
        self, rows: NDArray[np.floating], mixer: NDArray[np.floating]
    ) -> NDArray[np.floating]:
        """The mixer's part, as a new C-ordered array."""
        mixer = mixer.astype(rows.dtype)
        if len(mixer) == 1:
            return rows * mixer[0, 0]
        if self.width == 1:
            return np.ascontiguousarray(rows @ mixer.T)
        pieces = rows.reshape(len(rows), len(mixer), self.width)
        return np.matmul(mixer, pieces).reshape(rows.shape)


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
