"""To and from faiss: ``faiss.ProductQuantizer`` and ``faiss.IndexPQ``.

Both sides have the same code words, so they give the same codes (but for rows that are equally far
from two words up to rounding) and the same distances (up to rounding).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.packing import pack, unpack
from pgkmeans_sk.interop.plain import plain_codebooks, quantizer_of
from pgkmeans_sk.product_quantizer import ProductQuantizer
from pgkmeans_sk.quantizer_parameters import check_codes

__all__ = ["from_faiss", "from_index", "to_faiss", "to_index"]

CODES_AT_ONCE = 2**20
"""Codes that are packed at a time where rows of faiss end within a byte."""


def to_faiss(pq: ProductQuantizer) -> Any:
    """The same quantizer in faiss.

    Parameters
    ----------
    pq : ProductQuantizer
        Fitted; of one stage, without rotation and sizes of rows, ``n_codes`` a power of two.

    Returns
    -------
    faiss.ProductQuantizer
        Trained; codebooks in float32.

    Raises
    ------
    ValueError
        If faiss cannot have such a quantizer.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.interop.faiss import to_faiss
    >>> X = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    >>> pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    >>> theirs = to_faiss(pq)
    >>> theirs.M, theirs.nbits, theirs.code_size
    (4, 4, 2)
    """
    import faiss

    codebooks = plain_codebooks(pq, "faiss")
    n_blocks, n_codes, block_size = codebooks.shape
    n_bits = pq.code_bits_
    if n_codes != 2**n_bits:
        raise ValueError(f"Got n_codes={n_codes}, but expected a power of two for faiss.")
    theirs = faiss.ProductQuantizer(n_blocks * block_size, n_blocks, n_bits)
    faiss.copy_array_to_vector(codebooks.ravel(), theirs.centroids)
    return theirs


def from_faiss(theirs: Any) -> ProductQuantizer:
    """The same quantizer here.

    Parameters
    ----------
    theirs : faiss.ProductQuantizer
        Trained.

    Returns
    -------
    pq : ProductQuantizer
        Fitted, with a codebook for each block.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.interop.faiss import from_faiss, to_faiss
    >>> X = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    >>> pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    >>> again = from_faiss(to_faiss(pq))
    >>> bool((again.transform(X) == pq.transform(X)).all())
    True
    """
    import faiss

    shape = (theirs.M, theirs.ksub, theirs.dsub)
    return quantizer_of(faiss.vector_to_array(theirs.centroids).reshape(shape))


def to_index(pq: ProductQuantizer, codes: Any) -> Any:
    """An index of faiss over rows that are given by their codes.

    Parameters
    ----------
    pq : ProductQuantizer
        As in ``to_faiss``.
    codes : array-like of shape (n_samples, n_blocks), integers
        From ``pq.transform``.

    Returns
    -------
    faiss.IndexPQ
        Its ``search`` finds what ``pq.topk`` finds.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.interop.faiss import to_index
    >>> X = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    >>> pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    >>> index = to_index(pq, pq.transform(X))
    >>> sq_distances, rows = index.search(X[:2], 3)
    >>> rows.shape
    (2, 3)
    """
    import faiss

    theirs = to_faiss(pq)
    index = faiss.IndexPQ(theirs.d, theirs.M, theirs.nbits)
    index.pq = theirs
    index.is_trained = True
    index.add_sa_codes(to_faiss_codes(check_codes(codes, pq.decoder_), theirs.nbits))
    return index


def from_index(index: Any) -> tuple[ProductQuantizer, NDArray[Any]]:
    """Quantizer and codes of an index of faiss.

    Parameters
    ----------
    index : faiss.IndexPQ
        Trained.

    Returns
    -------
    pq : ProductQuantizer
        Fitted.
    codes : ndarray of shape (n_samples, n_blocks), uint8 or uint16
        Of the rows in the index.

    Examples
    --------
    >>> import numpy as np
    >>> from pgkmeans_sk import ProductQuantizer
    >>> from pgkmeans_sk.interop.faiss import from_index, to_index
    >>> X = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    >>> pq = ProductQuantizer(4, 16, random_state=0).fit(X)
    >>> again, codes = from_index(to_index(pq, pq.transform(X)))
    >>> bool((codes == pq.transform(X)).all())
    True
    """
    import faiss

    packed = faiss.vector_to_array(index.codes).reshape(index.ntotal, index.code_size)
    return from_faiss(index.pq), from_faiss_codes(packed, index.pq.nbits, index.pq.M)


def to_faiss_codes(codes: NDArray[Any], n_bits: int) -> NDArray[np.uint8]:
    """Codes (n, m) as faiss packs them, (n, ceil(m * n_bits / 8)): each row begins with a byte.

    Within a row the order of bits is that of ``pack``.
    """
    n_rows, n_columns = codes.shape
    n_bytes = -(-n_columns * n_bits // 8)
    if n_columns * n_bits % 8 == 0:
        return pack(codes, n_bits).reshape(n_rows, n_bytes)
    packed = np.empty((n_rows, n_bytes), dtype=np.uint8)
    for some in _chunks(n_rows, n_columns * n_bits):
        bits = codes[some, :, np.newaxis] >> np.arange(n_bits, dtype=codes.dtype) & 1
        packed[some] = np.packbits(
            bits.astype(np.uint8).reshape(len(bits), -1), axis=1, bitorder="little"
        )
    return packed


def from_faiss_codes(packed: NDArray[np.uint8], n_bits: int, n_columns: int) -> NDArray[Any]:
    """The opposite of ``to_faiss_codes``: (n, n_columns), uint8 or uint16."""
    n_rows = len(packed)
    if n_columns * n_bits % 8 == 0:
        return unpack(packed.ravel(), n_bits, n_rows * n_columns).reshape(n_rows, n_columns)
    dtype = np.uint8 if n_bits <= 8 else np.uint16
    place_values: NDArray[Any] = (1 << np.arange(n_bits)).astype(dtype)
    codes = np.empty((n_rows, n_columns), dtype=dtype)
    for some in _chunks(n_rows, n_columns * n_bits):
        bits = np.unpackbits(packed[some], axis=1, count=n_columns * n_bits, bitorder="little")
        bits = bits.reshape(-1, n_columns, n_bits)
        codes[some] = np.multiply(bits, place_values, dtype=dtype).sum(axis=2, dtype=dtype)
    return codes


def _chunks(n_rows: int, bits_of_row: int) -> list[slice]:
    step = max(1, CODES_AT_ONCE // bits_of_row)
    return [slice(start, start + step) for start in range(0, n_rows, step)]
