"""What other libraries can take: plain product quantization, a codebook for each block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.product_quantizer import ProductQuantizer


def plain_codebooks(pq: ProductQuantizer, library: str) -> NDArray[np.float32]:
    """Code words (n_blocks, n_codes, block_size), float32, for a library that knows no more.

    A codebook that blocks share is repeated, and scales of blocks and columns are multiplied in.

    Raises
    ------
    ValueError
        If the quantizer has stages, a rotation, sizes of rows or a narrower last block.
    """
    check_is_fitted(pq)
    decoder: Decoder = pq.decoder_
    refused = {
        f"n_stages={decoder.n_stages}": decoder.n_stages > 1,
        f"rotation={pq.rotation!r}": decoder.rotation is not None,
        "scale='row'": decoder.row_scales is not None,
        f"{decoder.n_features} columns in blocks of {decoder.block_size}": (
            decoder.n_features % decoder.block_size > 0
        ),
    }
    for name, is_so in refused.items():
        if is_so:
            raise ValueError(f"Got {name}, but expected what {library} knows: none of these.")
    shape = (decoder.n_blocks, decoder.n_codes, decoder.block_size)
    books = np.broadcast_to(decoder.codebooks[0], shape).astype(np.float32)
    factors = decoder.block_factors().astype(np.float32)
    if decoder.column_scales is not None:
        factors = factors * decoder.column_scales.astype(np.float32)
    return np.ascontiguousarray(books * factors.reshape(decoder.n_blocks, 1, -1))


def quantizer_of(codebooks: NDArray[Any]) -> ProductQuantizer:
    """A fitted quantizer with code words (n_blocks, n_codes, block_size), as float32."""
    codebooks = np.array(codebooks, dtype=np.float32)
    n_blocks, _, block_size = codebooks.shape
    decoder = Decoder(
        codebooks=codebooks[np.newaxis],
        n_features=n_blocks * block_size,
        dtype=np.dtype(np.float32),
    )
    return ProductQuantizer.from_decoder(decoder)
