"""What Quant-Noise puts in the place of a block: one module for each kind of noise.

Each takes the matrix of a weight (n_rows, n_columns), and the numbers of some rows or None for all.
It returns phi of all blocks of these rows, as a tensor that broadcasts to them, in the dtype of the
matrix; which of the blocks are taken is decided elsewhere. Nothing is written or random.

References
----------
Fan et al. 2020, "Training with Quantization Noise for Extreme Model Compression",
arXiv:2004.07320. "proxy", "pq" and "intN" are the noise of the paper; that "mean" is the mean of
all blocks of the weight is our reading.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from pgkmeans_sk.nn.devices import clustered_matrix
from pgkmeans_sk.nn.dtypes import work_dtype
from pgkmeans_sk.quiet import no_convergence_warnings
from pgkmeans_sk.spec import TensorSettings

BLOCK_KINDS = ("proxy", "pq", "mean")
"""Kinds that replace blocks; all others are intN, which replaces single values."""
FEWEST_BITS = 2
MOST_BITS = 16


class Dropped(nn.Module):
    """phi = 0, which stands for any quantization: kind "proxy"."""

    def forward(self, matrix: Tensor, rows: Tensor | None = None) -> Tensor:
        """A zero."""
        return matrix.new_zeros(())


class MeanBlock(nn.Module):
    """phi = the mean of all blocks of the matrix: kind "mean"."""

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size

    def forward(self, matrix: Tensor, rows: Tensor | None = None) -> Tensor:
        """The mean block, once for each block of a row: (n_columns,).

        A narrower last block counts for the values that it has, and takes the first of the mean.
        """
        n_columns = matrix.shape[1]
        n_blocks = -(-n_columns // self.block_size)
        columns = matrix.mean(0, dtype=work_dtype(matrix.dtype))
        n_missing = n_blocks * self.block_size - n_columns
        total = nn.functional.pad(columns, (0, n_missing)).view(n_blocks, -1).sum(0)
        counts = torch.full_like(total, n_blocks)
        counts[self.block_size - n_missing :] -= 1
        return (total / counts).to(matrix.dtype).repeat(n_blocks)[:n_columns]


class NearestWord(nn.Module):
    """phi = the code word of the block, by product quantization: kind "pq".

    Codebook and codes are those of the matrix that ``refresh`` was given last, so that a read costs
    a look-up.

    Parameters
    ----------
    settings : TensorSettings
        ``block_size``, ``n_codes``, ``max_iter``, ``rows_per_code`` and ``codebook_dtype`` of the
        quantizer, whose codebook all blocks share.
    random_state : int
        Of the quantizer.

    Attributes
    ----------
    codebook : tensor of shape (n_codes, block_size)
        In the dtype of the matrix, rounded as it would be stored.
    codes : tensor of shape (n_rows, n_blocks), uint8, or int32 for more than 256 code words
        The code of each block.
    """

    codebook: Tensor
    codes: Tensor

    def __init__(self, settings: TensorSettings, random_state: int) -> None:
        super().__init__()
        self.settings = replace(settings, codebook="shared", n_stages=1, rotation=None, scale=None)
        self.random_state = random_state

    def refresh(self, matrix: Tensor) -> None:
        """Find codebook and codes for ``matrix`` (n_rows, n_columns), the same each time.

        Raises
        ------
        ValueError
            If it has fewer blocks than code words, or values that are not finite.
        """
        dtype = work_dtype(matrix.dtype)
        quantizer = self.settings.quantizer(self.random_state)
        with no_convergence_warnings():  # then all blocks are represented exactly: no fault here
            codes = torch.as_tensor(quantizer.fit_transform(clustered_matrix(matrix.to(dtype))))
        codes = codes.to(torch.uint8 if self.settings.n_codes <= 256 else torch.int32)
        words = torch.from_numpy(quantizer.codebooks_[0, 0]).to(dtype)
        for name, found in (("codebook", words.to(matrix.dtype)), ("codes", codes)):
            if hasattr(self, name):  # whoever holds the buffer sees the new one
                getattr(self, name).copy_(found)
            else:
                self.register_buffer(name, found.to(matrix.device))

    def forward(self, matrix: Tensor, rows: Tensor | None = None) -> Tensor:
        """The code words of all blocks, side by side as in the matrix."""
        codes = self.codes if rows is None else self.codes[rows]
        words = nn.functional.embedding(codes.to(torch.int32), self.codebook)
        return words.flatten(1)[:, : matrix.shape[1]].to(matrix.dtype)


class Rounded(nn.Module):
    """phi = the value rounded to one of ``2**n_bits`` evenly spaced ones: kind "intN".

    With step ``s = (max - min) / (2**n_bits - 1)`` and zero-point ``z = round(min / s)`` of the
    matrix, a value w becomes ``s * clip(round(w / s), z, z + 2**n_bits - 1)``. The range is widened
    to include zero, which is thus exact, as in integer arithmetic.

    References
    ----------
    arXiv:2004.07320, section 3.1.
    """

    def __init__(self, n_bits: int) -> None:
        super().__init__()
        self.n_bits = n_bits

    def forward(self, matrix: Tensor, rows: Tensor | None = None) -> Tensor:
        """The matrix, each value rounded."""
        dtype = work_dtype(matrix.dtype)
        least, greatest = torch.aminmax(matrix)
        least, greatest = least.to(dtype).clamp(max=0.0), greatest.to(dtype).clamp(min=0.0)
        n_steps = 2**self.n_bits - 1
        step = (greatest - least) / n_steps
        step = torch.where(step > 0.0, step, 1.0)  # all values are zero, and stay so
        lowest = torch.round(least / step)
        values = (matrix if rows is None else matrix[rows]).to(dtype)
        levels = torch.clamp(torch.round(values / step), lowest, lowest + n_steps)
        return (levels * step).to(matrix.dtype)


def n_bits_of(kind: str) -> int | None:
    """N of a kind "intN"; None if it is another.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind in BLOCK_KINDS:
        return None
    found = re.fullmatch(r"int([1-9][0-9]?)", kind) if isinstance(kind, str) else None
    if found is None or not FEWEST_BITS <= int(found[1]) <= MOST_BITS:
        raise ValueError(
            f"Got kind={kind!r}, but expected 'proxy', 'pq', 'mean', 'int8', 'int4' or another "
            f"width from 'int{FEWEST_BITS}' to 'int{MOST_BITS}'."
        )
    return int(found[1])


def phi_of(kind: str, matrix: Tensor, settings: TensorSettings, random_state: int) -> nn.Module:
    """What a kind of noise makes of blocks of ``settings.block_size`` values of ``matrix``."""
    n_bits = n_bits_of(kind)
    if n_bits is not None:
        return Rounded(n_bits)
    if kind == "proxy":
        return Dropped()
    if kind == "mean":
        return MeanBlock(settings.block_size)
    phi = NearestWord(settings, random_state)
    phi.refresh(matrix)
    return phi
