"""DKMWeight: a weight that is softly clustered in training, and as it is stored otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import MatrixLayout
from pgkmeans_sk.codes.tensor_dtypes import dtype_name
from pgkmeans_sk.nn.dtypes import numpy_dtype, work_dtype
from pgkmeans_sk.nn.layers import matrix_of, tensor_of
from pgkmeans_sk.nn.soft_gradients import at_fixed_point, full_precision, moved, softened
from pgkmeans_sk.nn.soft_kmeans import Points, SoftKMeans, nearest
from pgkmeans_sk.nn.stored_weight import StoredWeight

DISTANCES = ("squared", "euclidean")


@dataclass(frozen=True, kw_only=True)
class DKMSettings:
    """How centroids follow a weight; as of ``dkm``.

    Attributes
    ----------
    max_iter : int
        Iterations of a read.
    tol : float
        A read ends when centroids move by less, relative to their spread.
    backward : {"unrolled", "implicit", "jfb"}
        Through which iterations gradients go.
    distance : {"squared", "euclidean"}
        What attention is by.
    """

    max_iter: int = 5
    tol: float = 1e-4
    backward: str = "unrolled"
    distance: str = "squared"


class DKMWeight(StoredWeight):
    """The parametrization of a weight that is trained by differentiable k-means.

    ``dkm`` registers it. The original is the weight itself, dense, and is what optimisers train. In
    training mode, a read moves the centroids to the weight by some iterations of soft k-means, and
    returns the weight with each block replaced by the mean of all centroids, weighted by its
    attention to them. In evaluation mode, a block is its nearest centroid, rounded as it is stored;
    there is no gradient then.

    Attributes
    ----------
    shape : tuple of int
        Of the weight.
    axis : int
        The axis of the weight that is the rows of its matrix.
    centroids : tensor of shape (n_codes, block_size)
        Those after the last read in training mode, where the next one begins.
    tau_bits : int64 tensor of shape ()
        The temperature, a float64 taken for an integer: so it is exact in a model of halves.
    settings : DKMSettings
        How centroids follow the weight.
    stored_dtype : numpy dtype
        Of the centroids in files, and so in evaluation mode.
    zero_row : int or None
        A row that is zero and stays so: that of padding, in an embedding.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> layer = torch.nn.Linear(16, 64)
    >>> report = nn.dkm(layer, bits=3, block_size=2)
    >>> weight = layer.parametrizations.weight[0]
    >>> weight.centroids.shape
    torch.Size([8, 2])
    >>> weight.codes(layer.parametrizations.weight.original).shape
    torch.Size([64, 8])
    """

    centroids: Tensor
    tau_bits: Tensor

    def __init__(
        self,
        centroids: Tensor,
        *,
        shape: tuple[int, ...],
        axis: int,
        tau: float,
        settings: DKMSettings,
        stored_dtype: np.dtype[Any],
        zero_row: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("centroids", centroids.detach().clone())
        self.register_buffer("tau_bits", torch.tensor(tau, dtype=torch.float64).view(torch.int64))
        self.shape = tuple(shape)
        self.axis = axis
        self.settings = settings
        self.stored_dtype = stored_dtype
        self.zero_row = zero_row
        self._last_start: Tensor | None = None

    @property
    def tau(self) -> float:
        """The temperature."""
        return float(self.tau_bits.view(torch.float64))

    @property
    def n_codes(self) -> int:
        """Centroids."""
        return int(self.centroids.shape[0])

    @property
    def block_size(self) -> int:
        """Values of a block."""
        return int(self.centroids.shape[1])

    # ---------------------------------------------------------------- training

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as it is used, in its dtype."""
        if self.training:
            with full_precision(weight.device):
                return tensor_of(self._soft_matrix(weight), self.shape, self.axis)
        cached = self.cached_weight
        return self.dense(weight) if cached is None else cached

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What the original becomes when the weight is set: the same."""
        return weight

    def _soft_matrix(self, weight: Tensor) -> Tensor:
        matrix = self._with_zero_row(matrix_of(weight, self.axis))
        blocks, rest = self._cut(matrix)
        # Single numbers of 16 bits stay what they are: that equal ones are one point is seen there.
        wide = work_dtype(weight.dtype)
        rows = blocks if self.block_size == 1 else blocks.to(wide)
        points = Points.of(rows if rows.element_size() == 2 else rows.to(wide))
        kmeans = self._kmeans(wide)
        centroids = self._settled(kmeans, points, rows)
        soft = softened(kmeans, points, rows, centroids).reshape(len(matrix), -1)
        if rest is not None:  # as in a ProductQuantizer, narrower blocks move no centroids
            narrow = rest.to(wide)
            first = centroids[:, : rest.shape[1]]
            soft = torch.cat([soft, softened(kmeans, Points.of(narrow), narrow, first)], 1)
        return self._with_zero_row(soft.to(weight.dtype))

    def _settled(self, kmeans: SoftKMeans, points: Points, rows: Tensor) -> Tensor:
        """The centroids of this read, as functions of the rows; kept for the next."""
        # Checkpointed activations are computed again within the backward pass, and gradients are
        # right only if they come out as before.
        is_again = torch._C._current_graph_task_id() != -1
        if is_again and self._last_start is not None:
            start = self._last_start
        else:
            start = self.centroids.to(points.values.dtype, copy=True)
        settings = self.settings
        centroids = start
        if settings.backward == "unrolled":
            for _ in range(settings.max_iter):
                before, centroids = centroids, moved(kmeans, points, rows, centroids)
                if _is_close(before, centroids, settings.tol):
                    break
        else:
            for _ in range(settings.max_iter - 1):
                before, centroids = centroids, kmeans.moved(points, centroids)[0]
                if _is_close(before, centroids, settings.tol):
                    break
            last = at_fixed_point if settings.backward == "implicit" else moved
            centroids = last(kmeans, points, rows, centroids)
        if not is_again:
            self._last_start = start
            self.centroids.copy_(centroids.detach())
        return centroids

    def _kmeans(self, dtype: torch.dtype) -> SoftKMeans:
        tau = self.tau_bits.view(torch.float64).to(dtype)
        return SoftKMeans(tau, self.settings.distance == "squared")

    # ---------------------------------------------------------------- as it is stored

    def codes(self, weight: Tensor) -> Tensor:
        """The number of the centroid of each block: (n_rows, n_blocks), int64."""
        with torch.no_grad(), full_precision(weight.device):
            wide = work_dtype(weight.dtype)
            matrix = matrix_of(weight.detach(), self.axis).to(wide)
            blocks, rest = self._cut(matrix)
            words = self._words(wide)
            codes = nearest(blocks, words).view(len(matrix), -1)
            if rest is None:
                return codes
            narrow = nearest(rest, words[:, : rest.shape[1]].contiguous())
            return torch.cat([codes, narrow.unsqueeze(1)], 1)

    def decode(self, original: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows (n, n_features) of the stored weight's matrix: all, or those of numbers ``rows``."""
        codes = self.codes(original)
        if rows is not None:
            codes = codes.index_select(0, rows)
        words = self._words(work_dtype(original.dtype))
        found = words.index_select(0, codes.reshape(-1)).reshape(len(codes), -1)
        return found[:, : self._n_features].to(original.dtype)

    def to_matrix(self, original: Tensor) -> CompressedMatrix:
        """The weight's matrix as packed codes and codebook.

        Raises
        ------
        ValueError
            If there are centroids that their stored dtype cannot hold.
        """
        words = self._words(torch.float64).cpu().numpy().astype(self.stored_dtype)
        if not np.isfinite(words).all():
            raise ValueError(
                f"Got centroids that are not finite in {self.stored_dtype}, but expected numbers "
                "that it can hold."
            )
        decoder = Decoder(
            codebooks=words[np.newaxis, np.newaxis],
            n_features=self._n_features,
            dtype=numpy_dtype(original.dtype),
        )
        codes = self.codes(original).cpu().numpy().astype(decoder.code_dtype)
        return CompressedMatrix.from_codes(
            decoder, codes, relative_error=self._relative_error(original)
        )

    def stored_layout(self, original: Tensor) -> MatrixLayout:
        """Sizes and dtypes of the arrays of ``to_matrix``."""
        return MatrixLayout(
            n_rows=self.shape[self.axis],
            n_features=self._n_features,
            block_size=self.block_size,
            n_codes=self.n_codes,
            n_books=1,
            dtype=dtype_name(numpy_dtype(original.dtype)),
            codebook_dtype=dtype_name(self.stored_dtype),
        )

    def _words(self, dtype: torch.dtype) -> Tensor:
        """Centroids as they are stored, in a wider dtype."""
        stored = self.centroids.to(getattr(torch, self.stored_dtype.name)).to(dtype)
        if self.zero_row is None:
            return stored
        # What a padding row of zeros is made of.
        least = stored.square().sum(1).argmin()
        is_least = torch.arange(self.n_codes, device=stored.device) == least
        return stored.masked_fill(is_least.unsqueeze(1), 0.0)

    def _relative_error(self, original: Tensor) -> float:
        wide = work_dtype(original.dtype)
        exact = original.detach().to(wide)
        size = float(exact.norm())
        return float((self.dense(original).to(wide) - exact).norm()) / size if size else 0.0

    # ---------------------------------------------------------------- blocks

    @property
    def _n_features(self) -> int:
        return prod(self.shape) // self.shape[self.axis]

    def _cut(self, matrix: Tensor) -> tuple[Tensor, Tensor | None]:
        """All whole blocks (m, b) of the matrix, and what is left of each row, if anything is."""
        n_whole = matrix.shape[1] // self.block_size * self.block_size
        blocks = matrix[:, :n_whole].reshape(-1, self.block_size)
        return blocks, matrix[:, n_whole:] if n_whole < matrix.shape[1] else None

    def _with_zero_row(self, matrix: Tensor) -> Tensor:
        if self.zero_row is None:
            return matrix
        # Made there: a copy from the host would be waited for.
        index = torch.full((), self.zero_row, dtype=torch.int64, device=matrix.device)
        return matrix.index_fill(0, index, 0.0)

    def extra_repr(self) -> str:
        """Settings, for printed modules."""
        return (
            f"n_codes={self.n_codes}, block_size={self.block_size}, tau={self.tau:.3g}, "
            f"max_iter={self.settings.max_iter}, backward={self.settings.backward!r}"
        )


def _is_close(before: Tensor, after: Tensor, tol: float) -> bool:
    """Whether an iteration moved centroids by no more than ``tol`` times their spread."""
    before, after = before.detach(), after.detach()
    spread = (after - after.mean(0)).norm()
    return bool((after - before).norm() <= tol * spread)
