"""CompressedMatrix: packed codes with all that is needed to decode them."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.entropy import entropy_bits
from pgkmeans_sk.codes.packing import code_bits, pack, unpack, unpack_rows
from pgkmeans_sk.codes.search import METRICS, nearest_rows
from pgkmeans_sk.validation import check_choice


@dataclass(frozen=True, eq=False, kw_only=True)
class CompressedMatrix:
    """A matrix as packed codes and codebooks; made by ``ProductQuantizer.compress``.

    Attributes
    ----------
    decoder : Decoder
        What codes stand for.
    packed : ndarray of shape (ceil(n_rows * n_block_codes * code_bits / 8),), uint8
        The codes of all rows, row after row, ``code_bits`` bits each (docs/storage_format.md).
    scale_codes : ndarray of shape (n_rows,), uint8, or None
        The codes of the rows' sizes, if the decoder has ``row_scales``.
    n_rows : int
        Rows of the matrix.
    relative_error : float
        ``|W - decode()| / |W|`` in the Frobenius norm, when it was made.
    entropy : float
        Shannon entropy of the blocks' codes, in bits per code, averaged over the columns of codes
        (or of all codes, if blocks share a codebook): what an entropy coder could reach at best.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> W = np.random.default_rng(0).normal(size=(512, 64)).astype(np.float32)
    >>> small = ProductQuantizer(8, 16, codebook="shared", random_state=0).compress(W)
    >>> small.shape, small.nbytes, small.code_bits
    ((512, 64), 2560, 4)
    >>> sq_distances, rows = small.topk(W[:1], k=3)
    >>> rows.shape
    (1, 3)
    """

    decoder: Decoder
    packed: NDArray[np.uint8]
    scale_codes: NDArray[np.uint8] | None
    n_rows: int
    relative_error: float
    entropy: float

    @classmethod
    def from_codes(
        cls, decoder: Decoder, codes: NDArray[Any], *, relative_error: float
    ) -> CompressedMatrix:
        """The matrix of these ``codes`` (n, n_columns), packed, with their entropy.

        Codes must be below ``n_codes``; that is checked by whoever reads them.
        """
        blocks = codes[:, : decoder.n_block_codes]
        has_scales = decoder.row_scales is not None
        return cls(
            decoder=decoder,
            packed=pack(blocks, code_bits(decoder.n_codes)),
            scale_codes=codes[:, -1].astype(np.uint8) if has_scales else None,
            n_rows=len(codes),
            relative_error=relative_error,
            entropy=_mean_entropy(blocks, decoder),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return self.n_rows, self.decoder.n_features

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the decoded matrix."""
        return self.decoder.dtype

    @property
    def code_bits(self) -> int:
        """Bits of a packed code."""
        return code_bits(self.decoder.n_codes)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, codebooks, scales and rotation: all but the header of a file."""
        scales = 0 if self.scale_codes is None else self.scale_codes.nbytes
        return int(self.packed.nbytes + scales + self.decoder.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """``8 * nbytes`` over the number of values of the matrix."""
        return 8 * self.nbytes / (self.n_rows * self.decoder.n_features)

    def codes(self, rows: ArrayLike | None = None) -> NDArray[Any]:
        """Codes (n, n_columns) as ``ProductQuantizer.transform`` gives them, of all rows or some.

        Parameters
        ----------
        rows : array-like of int, default=None
            Numbers of rows, in any order; None means all.
        """
        width = self.decoder.n_block_codes
        if rows is None:
            count = self.n_rows * width
            found = unpack(self.packed, self.code_bits, count, total=count)
            found = found.reshape(self.n_rows, width)
        else:
            rows = np.asarray(rows)
            # The last byte may have room for codes of rows that are not there.
            found = unpack_rows(self.packed, self.code_bits, width, rows, n_rows=self.n_rows)
        if self.scale_codes is None:
            return found
        scales = self.scale_codes if rows is None else self.scale_codes[rows]
        return np.column_stack([found, scales.astype(found.dtype)])

    def decode(self, rows: ArrayLike | None = None) -> NDArray[np.floating]:
        """The matrix, or some of its rows, as ``ProductQuantizer.inverse_transform`` gives it.

        Parameters
        ----------
        rows : array-like of int, default=None
            Numbers of rows, in any order; None means all.
        """
        return self.decoder.decode(self.codes(rows))

    def topk(
        self, queries: ArrayLike, k: int = 10, metric: str = "sqeuclidean"
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """The ``k`` rows nearest to each query, as ``ProductQuantizer.topk`` finds them.

        Codes are unpacked for the call: a byte or two for each.
        """
        check_choice("metric", metric, METRICS)
        rows = check_array(queries, dtype=[np.float64, np.float32])
        if rows.shape[1] != self.decoder.n_features:
            raise ValueError(
                f"Got queries with {rows.shape[1]} columns, but expected {self.decoder.n_features}."
            )
        return nearest_rows(self.decoder, rows, self.codes(), k, metric)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one safetensors file (docs/storage_format.md); needs the extra ``io``."""
        from pgkmeans_sk.codes.storage import save_matrix

        save_matrix(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> CompressedMatrix:
        """Read a file that ``save`` wrote; needs the extra ``io``."""
        from pgkmeans_sk.codes.storage import load_matrix

        found = load_matrix(path)
        if not isinstance(found, cls):
            raise ValueError(
                f"{path}: got a {type(found).__name__}, but expected a CompressedMatrix"
            )
        return found

    def __repr__(self) -> str:
        """Say how large it is and how well it stands for the matrix."""
        rows, columns = self.shape
        return (
            f"CompressedMatrix({rows} x {columns} {self.dtype}, {self.nbytes} bytes, "
            f"{self.bits_per_weight:.3g} bits per weight, "
            f"relative error {self.relative_error:.3g})"
        )


def _mean_entropy(blocks: NDArray[Any], decoder: Decoder) -> float:
    """Bits per code, averaged over columns of codes; over stages, if blocks share codebooks."""
    if decoder.is_shared:
        stages = np.split(blocks, decoder.n_stages, axis=1)
        return float(np.mean([entropy_bits(stage, decoder.n_codes) for stage in stages]))
    return float(np.mean(entropy_bits(blocks, decoder.n_codes, axis=0)))
