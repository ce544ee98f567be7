"""Compressing one weight, or a group of them, as a job: all that it needs, in plain arrays.

A job can be sent to another process. It knows nothing of files or models, so that no worker has to
import PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from pgkmeans_sk.array_kinds import concatenated
from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.tensor_file import naming
from pgkmeans_sk.feedback import compress_with_feedback
from pgkmeans_sk.product_quantizer import ProductQuantizer
from pgkmeans_sk.quantization.blocks import whole_blocks
from pgkmeans_sk.quantization.errors import sq_errors
from pgkmeans_sk.quiet import no_convergence_warnings
from pgkmeans_sk.spec import TensorSettings

Matrices = dict[str, CompressedMatrix]
"""Compressed weights by name."""

Rows = Any
"""A weight as a matrix: an array, or a tensor on another device, which stays in this process."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightJob:
    """Compresses one weight when it is called.

    Attributes
    ----------
    name : str
        By which it is returned.
    title : str
        By which messages call it.
    rows : ndarray or tensor of shape (n_rows, n_features), floating
        The weight as a matrix, clustered where it is. Never written. A tensor stays in this
        process; with ``second_moment`` or ``zero_row`` an array is needed.
    settings : TensorSettings
        How it is to be compressed.
    random_state : int or None
        Of the quantizer.
    weighting : mapping
        Of ``ProductQuantizer.compress``: ``sample_weight`` and ``importance``, as far as known.
    second_moment : ndarray of shape (n_features, n_features) or None
        Of the layer's inputs, if codes are for the least error of its output.
    zero_row : int or None
        A row of zeros that has to stay one.
    """

    name: str
    title: str
    rows: Rows
    settings: TensorSettings
    random_state: int | None
    weighting: Mapping[str, Any] = field(default_factory=dict)
    second_moment: NDArray[np.float64] | None = None
    zero_row: int | None = None

    def __call__(self) -> Matrices:
        """Compress it.

        Raises
        ------
        ValueError
            If its codebook does not fit into its dtype; the message begins with ``title``.
        """
        quantizer = self.settings.quantizer(self.random_state)
        # Fewer distinct blocks than code words: reports count the words that are not used.
        with naming(self.title), no_convergence_warnings():
            if self.second_moment is None:
                matrix = quantizer.compress(self.rows, **self.weighting)
            else:
                weights = self.weighting.get("sample_weight")
                matrix = compress_with_feedback(
                    self.rows, self.second_moment, quantizer, row_weights=weights
                )
        if self.zero_row is not None:
            matrix = _with_zero_row(matrix, self.rows, self.zero_row)
        return {self.name: matrix}

    def __sizeof__(self) -> int:
        """Bytes of the weight as well: dask hands large arguments to workers past its scheduler."""
        return object.__sizeof__(self) + int(self.rows.nbytes)


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupJob:
    """Compresses several weights with one codebook when it is called.

    Attributes
    ----------
    title : str
        By which messages call the group.
    rows : mapping of str to ndarray or tensor of shape (n_rows, n_features), floating
        The weights as matrices, of one dtype and in one place. Never written.
    settings : TensorSettings
        How they are to be compressed, all of them.
    random_state : int or None
        Of the quantizer.
    """

    title: str
    rows: Mapping[str, Rows]
    settings: TensorSettings
    random_state: int | None

    def __call__(self) -> Matrices:
        """Compress them.

        Raises
        ------
        ValueError
            If they have fewer blocks than code words, or their dtype cannot hold the codebook; the
            message begins with ``title``.
        """
        size = self.settings.block_size
        with naming(self.title), no_convergence_warnings():
            blocks = concatenated([whole_blocks(rows, size) for rows in self.rows.values()])
            shared = self.settings.quantizer(self.random_state).fit(blocks).decoder_
        found = {}
        for name, rows in self.rows.items():
            decoder = Decoder(
                codebooks=shared.codebooks, n_features=rows.shape[1], dtype=shared.dtype
            )
            found[name] = ProductQuantizer.from_decoder(decoder).encode(rows)
        return found

    def __sizeof__(self) -> int:
        """Bytes of the weights as well, as of ``WeightJob``."""
        return object.__sizeof__(self) + sum(int(rows.nbytes) for rows in self.rows.values())


def seeds_of_jobs(random_state: int | None, n_jobs: int) -> list[int]:
    """The seed of each job.

    An int is that of all: what becomes of a weight does not depend on which others there are. None
    draws them from NumPy's global state, before any job begins: whoever has set that gets the same
    result for any number of workers.
    """
    if random_state is not None:
        return [random_state] * n_jobs
    return [int(seed) for seed in check_random_state(None).randint(2**31 - 1, size=n_jobs)]


def _with_zero_row(matrix: CompressedMatrix, rows: Rows, zero_row: int) -> CompressedMatrix:
    """The matrix with a row of zeros that stays one.

    In each codebook the word nearest to zero becomes zero, and is what that row is made of.
    """
    decoder = matrix.decoder
    codes = matrix.codes()
    books = decoder.codebooks.copy()
    for column in range(decoder.n_block_codes):
        stage, block = divmod(column, decoder.n_blocks)
        words = books[stage, 0 if decoder.is_shared else block]
        own = codes[zero_row, column]
        # A word that nothing but this row means would be left without any block.
        is_alone = np.count_nonzero(_codes_of_book(codes, decoder, column) == own) == 1
        word = own if is_alone else np.square(words.astype(np.float64)).sum(axis=1).argmin()
        words[word] = 0.0
        codes[zero_row, column] = word
    decoder = replace(decoder, codebooks=books)
    return CompressedMatrix.from_codes(
        decoder, codes, relative_error=_relative_error(decoder, codes, rows)
    )


def _codes_of_book(codes: NDArray[Any], decoder: Decoder, column: int) -> NDArray[Any]:
    """All codes that refer to the codebook of a column of codes."""
    if not decoder.is_shared:
        return codes[:, column]
    stage = column // decoder.n_blocks
    return codes[:, stage * decoder.n_blocks : (stage + 1) * decoder.n_blocks]


def _relative_error(decoder: Decoder, codes: NDArray[Any], rows: Rows) -> float:
    """``|W - decoded| / |W|`` for the rows of W that the codes stand for."""
    wide = rows.astype(decoder.work_dtype, copy=False)
    lost = float(sq_errors(decoder, wide, codes).sum())
    total = float(np.einsum("ij,ij->", wide, wide, dtype=np.float64))
    return float(np.sqrt(lost / total)) if total else 0.0
