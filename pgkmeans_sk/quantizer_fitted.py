"""The fitted attributes of a quantizer, of a fit or of a decoder."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.packing import code_bits
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.stages import Fitted


def remember_codebooks(estimator: Any, fitted: Fitted) -> None:
    """Set the fitted attributes."""
    decoder = fitted.encoder.decoder
    estimator._encoder, estimator.decoder_ = fitted.encoder, decoder
    estimator.codebooks_ = decoder.codebooks
    estimator.n_effective_codes_ = fitted.n_effective_codes
    estimator.n_iter_ = fitted.n_iter
    estimator.code_bits_ = code_bits(decoder.n_codes)
    bits = decoder.n_block_codes * estimator.code_bits_ + 8 * (decoder.row_scales is not None)
    estimator.bits_per_weight_ = bits / decoder.n_features
    estimator._n_features_out = decoder.n_columns


def warn_of_copies(estimator: Any, stacklevel: int) -> None:
    """Warn if codebooks have copies of code words."""
    n_effective = estimator.n_effective_codes_
    n_short = int((n_effective < estimator.n_codes).sum())
    if n_short:
        warnings.warn(
            f"{n_short} of {n_effective.size} codebooks have fewer than n_codes="
            f"{estimator.n_codes} distinct code words, one of them {n_effective.min()}: "
            "there are no more distinct blocks. Code words beyond are copies of the first.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )


def parameters_of(decoder: Decoder) -> dict[str, Any]:
    """The parameters of a quantizer that a decoder shows."""
    rotation = None
    if decoder.rotation is not None:
        rotation = "opq" if decoder.rotation.width == 1 else "hadamard"
    scale = "row" if decoder.row_scales is not None else None
    return {
        "block_size": decoder.block_size,
        "n_codes": decoder.n_codes,
        "codebook": "shared" if decoder.is_shared else "per_block",
        "n_stages": decoder.n_stages,
        "rotation": rotation,
        "scale": "block" if decoder.block_scales is not None else scale,
        "codebook_dtype": decoder.codebooks.dtype.name,
    }


def fitted_of(decoder: Decoder) -> Fitted:
    """What a fit that has led to ``decoder`` would have found."""
    books = decoder.codebooks.reshape(-1, decoder.n_codes, decoder.block_size)
    n_distinct = [len(np.unique(book, axis=0)) for book in books]
    return Fitted(Encoder(decoder), np.reshape(n_distinct, decoder.codebooks.shape[:2]))
