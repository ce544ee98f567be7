"""CodebookWeight: a weight that is computed from a trainable codebook and fixed codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import MatrixLayout, layout_of
from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.nn.devices import encoded
from pgkmeans_sk.nn.dtypes import numpy_dtype, work_dtype
from pgkmeans_sk.nn.layers import matrix_of, tensor_of
from pgkmeans_sk.nn.rotations import undo_rotation
from pgkmeans_sk.nn.stored_weight import StoredWeight

GRADIENTS = ("mean", "sum")
SCALES = ("row_scales", "block_scales", "column_scales")

CODES_AT_ONCE = 1 << 22
"""That are counted together: as integers of 8 bytes they take 32 MB."""


class CodebookWeight(StoredWeight):
    """The parametrization of a compressed weight: code words looked up by codes.

    ``compress_model`` and ``load`` register it; then ``parametrizations.<name>.original`` of a
    module is the codebook, of shape (n_stages, n_books, n_codes, block_size), which optimisers
    train as any other parameter, and ``parametrizations.<name>[0]`` is this. The weight is decoded
    each time it is read; codes do not change.

    Made by ``from_matrix``.

    Attributes
    ----------
    shape : tuple of int
        Of the weight.
    axis : int
        The axis of the weight that is the rows of its matrix; 0 if there is ``group_size``.
    group_size : int or None
        Values of a group of consecutive values of the flattened weight: then the columns of the
        matrix are groups, not rows of the weight.
    codes : uint8 tensor of shape (n_rows, n_block_codes) or (n_rows, n_block_codes, 2)
        The code of each block (``Decoder``); of more than 256 code words the two bytes of the
        code, the lower one first: not every backend can send 16-bit integers to other processes.
    scale_codes : uint8 tensor of shape (n_rows,), or None
        The codes of the rows' sizes.
    row_scales, block_scales, column_scales, rotation_mixer, rotation_signs : tensors, or None
        As of ``Decoder`` and ``Rotation``.
    counts : int32 tensor of shape (n_stages, n_books, n_codes, 1)
        How many blocks have each code, in all weights that share the codebook.
    stored_dtype : numpy dtype
        Of the codebook in files. A codebook of wider numbers is rounded to it before it is used,
        with the gradient passed straight through: what is stored is what is used.
    gradient : {"mean", "sum"}
        What the gradient of a code word is of those of its blocks. The mean is that of iPQ.
    relative_error : float
        As of ``CompressedMatrix``: what was lost when the weight was compressed.

    References
    ----------
    Stock et al. 2019, "And the bit goes down", arXiv:1907.05686, section 3.3, where a code word's
    gradient is the mean over its blocks.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = torch.nn.Linear(64, 512)
    >>> report = nn.compress_model(model)
    >>> (codes_and_words,) = model.parametrizations.weight
    >>> type(codes_and_words).__name__, model.parametrizations.weight.original.shape
    ('CodebookWeight', torch.Size([1, 1, 256, 8]))
    """

    original_is_codebook = True

    codes: Tensor
    counts: Tensor
    scale_codes: Tensor | None
    row_scales: Tensor | None
    block_scales: Tensor | None
    column_scales: Tensor | None
    rotation_mixer: Tensor | None
    rotation_signs: Tensor | None

    def __init__(
        self,
        buffers: Mapping[str, Tensor | None],
        *,
        shape: tuple[int, ...],
        axis: int,
        group_size: int | None = None,
        n_features: int,
        stored_dtype: np.dtype[Any],
        gradient: str,
        relative_error: float,
    ) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=name != "counts")
        self.shape = shape
        self.axis = axis
        self.group_size = group_size
        self.n_features = n_features
        self.stored_dtype = stored_dtype
        self.gradient = gradient
        self.relative_error = relative_error
        self._companions = [self]

    @classmethod
    def from_matrix(
        cls,
        matrix: CompressedMatrix,
        shape: tuple[int, ...],
        axis: int,
        *,
        group_size: int | None = None,
        gradient: str = "mean",
    ) -> CodebookWeight:
        """A parametrization of a weight of ``shape`` whose matrix along ``axis`` is ``matrix``.

        With ``group_size``, the columns of the matrix are groups of the weight (``layers``).
        """
        decoder = matrix.decoder
        codes = matrix.codes()
        blocks = np.ascontiguousarray(codes[:, : decoder.n_block_codes])
        if blocks.dtype != np.uint8:
            blocks = blocks.astype("<u2").view(np.uint8).reshape(*blocks.shape, 2)
        buffers: dict[str, Tensor | None] = {
            "codes": torch.from_numpy(blocks),
            "scale_codes": _tensor(matrix.scale_codes),
            **{name: _tensor(getattr(decoder, name)) for name in SCALES},
            "rotation_mixer": None,
            "rotation_signs": None,
            "counts": torch.zeros((*decoder.codebooks.shape[:3], 1), dtype=torch.int32),
        }
        if decoder.rotation is not None:
            buffers["rotation_mixer"] = _tensor(decoder.rotation.mixer)
            buffers["rotation_signs"] = _tensor(decoder.rotation.signs)
        made = cls(
            buffers,
            shape=tuple(shape),
            axis=axis,
            group_size=group_size,
            n_features=decoder.n_features,
            stored_dtype=decoder.codebooks.dtype,
            gradient=gradient,
            relative_error=matrix.relative_error,
        )
        made.count()
        return made

    # ---------------------------------------------------------------- decoding

    def forward(self, codebook: Tensor) -> Tensor:
        """The weight, in the dtype of ``codebook``."""
        cached = self.cached_weight
        if cached is not None:
            return cached
        return tensor_of(self.decode(codebook), self.shape, self.axis, self.group_size)

    def decode(self, codebook: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rows (n, n_features) of the weight's matrix: all, or those of numbers ``rows`` (n,).

        The same arithmetic as ``Decoder``'s, in float64 for a codebook of float64, else in float32.
        """
        # Unlike codes[rows], this refuses negative numbers, as an embedding does.
        codes = self.codes if rows is None else self.codes.index_select(0, rows)
        n_stages, n_books, n_codes, block_size = codebook.shape
        words = _used_codebook(codebook, self.stored_dtype, self._divisors())
        is_scaled = n_stages > 1 or any(getattr(self, name) is not None for name in SCALES)
        if is_scaled or self.rotation_mixer is not None:
            words = words.to(work_dtype(codebook.dtype))
        # Block j of stage s looks into book (s, j), or (s, 0) if all share one.
        columns = torch.arange(codes.shape[1], device=codes.device)
        books = columns if n_books > 1 else columns // (codes.shape[1] // n_stages)
        found = _looked_up(words.reshape(-1, block_size), _wide(codes) + n_codes * books)
        found = found.reshape(len(codes), n_stages, -1)
        total = found[:, 0]
        for stage in range(1, n_stages):
            total = total + found[:, stage]
        return self._unscaled(total[:, : self.n_features], block_size, rows).to(codebook.dtype)

    def has_column_codebooks(self, codebook: Tensor) -> bool:
        """Whether each column of the matrix is looked up in values of its own, and that is all."""
        n_stages, n_books, _, block_size = codebook.shape
        is_plain = self.rotation_mixer is None and not any(
            getattr(self, n) is not None for n in SCALES
        )
        is_single = n_stages == block_size == 1 and n_books == self.n_features
        return is_plain and is_single and self.codes.ndim == 2

    def decode_columns(self, codebook: Tensor, columns: Tensor) -> Tensor:
        """Columns (n, n_rows) of the matrix with these numbers (n,), each as a row."""
        words = _used_codebook(codebook, self.stored_dtype, self._divisors())[0, :, :, 0]
        codes = self.codes.index_select(1, columns).T
        return words.index_select(0, columns).gather(1, codes.to(torch.int64))

    def _unscaled(self, matrix: Tensor, block_size: int, rows: Tensor | None) -> Tensor:
        """Whatever was divided by is multiplied back, and rotations are undone."""
        if self.block_scales is not None:
            scales = self.block_scales.to(matrix.dtype).repeat_interleave(block_size)
            matrix = matrix * scales[: self.n_features]
        if self.row_scales is not None and self.scale_codes is not None:
            numbers = self.scale_codes
            if rows is not None:
                numbers = numbers.index_select(0, rows)
            matrix = matrix * self.row_scales.to(matrix.dtype)[numbers.to(torch.int32), None]
        if self.rotation_mixer is not None and self.rotation_signs is not None:
            matrix = undo_rotation(matrix, self.rotation_mixer, self.rotation_signs)
        if self.column_scales is not None:
            matrix = matrix * self.column_scales.to(matrix.dtype)
        return matrix

    def _divisors(self) -> Tensor | None:
        return self.counts if self.gradient == "mean" else None

    # ---------------------------------------------------------------- codes

    def count(self) -> None:
        """Count the blocks of each code anew, after codes were changed."""
        n_stages, n_books, n_codes, _ = self.counts.shape
        total = self.counts.new_zeros(n_stages, n_books * n_codes)
        for member in self._companions:
            for part in torch.split(member.codes, CODES_AT_ONCE // member.codes.shape[1] + 1):
                for stage, codes in enumerate(_wide(part).tensor_split(n_stages, 1)):
                    if n_books > 1:  # one after the other
                        codes = codes + n_codes * torch.arange(n_books, device=codes.device)
                    total[stage] += torch.bincount(codes.flatten(), minlength=total.shape[1])
        for member in self._companions:
            member.counts.copy_(total.view_as(self.counts))

    def share_codebook_with(self, others: list[CodebookWeight]) -> None:
        """Say that the codebook is that of ``others`` as well: counts are of all of them."""
        companions = [self, *others]
        for member in companions:
            member._companions = companions
        self.count()

    @property
    def n_unused(self) -> int:
        """Code words that no block of any weight with this codebook means."""
        return int((self.counts == 0).sum())

    def wide_codes(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The codes of blocks as an array (n_rows, n_block_codes), uint8 or uint16."""
        codes = self.codes.detach().cpu().contiguous().numpy()
        return codes if codes.ndim == 2 else codes.view("<u2")[..., 0].astype(np.uint16)

    def reassign(self, codebook: Tensor, weight: Tensor) -> None:
        """Give each block of a dense weight the code of its nearest code word.

        Parameters
        ----------
        codebook : tensor of shape (n_stages, n_books, n_codes, block_size)
            The codebook, which stays as it is.
        weight : tensor of ``shape``
            Any weight; it is not written.

        Raises
        ------
        ValueError
            If the weight has another shape, or values that are not finite.
        """
        if tuple(weight.shape) != self.shape:
            raise ValueError(
                f"Got a weight of shape {tuple(weight.shape)}, but expected {self.shape}."
            )
        rows = matrix_of(weight.detach(), self.axis, self.group_size)
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("Got a weight with NaN or infinity, but expected finite values.")
        rows = rows.to(work_dtype(codebook.dtype))
        codes = encoded(rows, self.decoder(codebook)).to(torch.int32)
        blocks = codes[:, : self.codes.shape[1]]
        if self.codes.ndim == 3:
            blocks = torch.stack([blocks % 256, blocks // 256], dim=2)
        self.codes.copy_(blocks)
        if self.scale_codes is not None:
            self.scale_codes.copy_(codes[:, -1])
        self.count()

    # ---------------------------------------------------------------- other forms

    def decoder(self, codebook: Tensor) -> Decoder:
        """What the codes stand for, as arrays."""
        rotation = None
        if self.rotation_mixer is not None and self.rotation_signs is not None:
            signs = self.rotation_signs.cpu().numpy().astype(np.int8)
            rotation = Rotation(self._stored(self.rotation_mixer), signs)
        scales = {name: getattr(self, name) for name in SCALES}
        return Decoder(
            codebooks=self._stored(codebook),
            n_features=self.n_features,
            dtype=numpy_dtype(codebook.dtype),
            rotation=rotation,
            **{n: None if scale is None else self._stored(scale) for n, scale in scales.items()},
        )

    def to_matrix(self, codebook: Tensor) -> CompressedMatrix:
        """The weight's matrix as packed codes with all that decodes them.

        Raises
        ------
        ValueError
            If the codebook has values that its stored dtype cannot hold.
        """
        decoder = self.decoder(codebook)
        if not all(np.isfinite(values).all() for values in decoder.arrays().values()):
            raise ValueError(
                f"Got a codebook with values that are not finite in {self.stored_dtype}, but "
                "expected numbers that it can hold."
            )
        codes = self.wide_codes()
        if self.scale_codes is not None:
            codes = np.column_stack([codes, self.scale_codes.cpu().numpy().astype(codes.dtype)])
        return CompressedMatrix.from_codes(decoder, codes, relative_error=self.relative_error)

    def stored_layout(self, codebook: Tensor) -> MatrixLayout:
        """Sizes and dtypes of the arrays of ``to_matrix``, without packing codes."""
        empty = CompressedMatrix(
            decoder=self.decoder(codebook),
            packed=np.empty(0, np.uint8),
            scale_codes=None if self.scale_codes is None else np.empty(0, np.uint8),
            n_rows=len(self.codes),
            relative_error=0.0,
            entropy=0.0,
        )
        return layout_of(empty)

    def _stored(self, values: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
        wide = values.detach().cpu().to(work_dtype(values.dtype)).numpy()
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(wide.astype(self.stored_dtype))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.count()

    def extra_repr(self) -> str:
        """What it makes, for printed modules."""
        n_stages, n_books, n_codes, _ = self.counts.shape
        return (
            f"shape={self.shape}, n_codes={n_codes}, n_books={n_books}, n_stages={n_stages}, "
            f"gradient={self.gradient!r}"
        )


def _used_codebook(codebook: Tensor, stored: np.dtype[Any], counts: Tensor | None) -> Tensor:
    """The codebook rounded as it is stored; its gradient divided by ``counts``.

    The value is a constant plus zero, and only the zero knows where it comes from: a function with
    a gradient of its own would say the same, but compilers of graphs take this more easily.
    """
    dtype = getattr(torch, stored.name)
    is_wider = codebook.dtype.itemsize > dtype.itemsize
    value = codebook.detach()
    value = value.to(dtype).to(codebook.dtype) if is_wider else value
    share = codebook if counts is None else codebook / counts.clamp(min=1)
    return value + (share - share.detach())


def _wide(codes: Tensor) -> Tensor:
    """Codes (n, columns) as they count: those of two bytes put together."""
    if codes.ndim == 2:
        return codes
    low, high = codes.to(torch.int64).unbind(2)
    return low + 256 * high


def _looked_up(words: Tensor, numbers: Tensor) -> Tensor:
    """The words (n, b) of these numbers, below one another."""
    if numbers.device.type == "cpu":  # a third of the time of the other in the backward pass
        return words.index_select(0, numbers.reshape(-1))
    return functional.embedding(numbers.reshape(-1), words)  # deterministic on GPUs


def _tensor(array: np.ndarray[Any, np.dtype[Any]] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.array(array))
