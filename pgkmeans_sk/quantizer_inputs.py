"""What ``ProductQuantizer`` takes as rows and as codes, and who works on them."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np

from pgkmeans_sk import validation
from pgkmeans_sk.array_kinds import as_numpy, is_dask, is_tensor
from pgkmeans_sk.arrays import check_rows, check_weights
from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.search import METRICS, nearest_rows
from pgkmeans_sk.engines import block_rows, is_in_blocks, lazy_rows
from pgkmeans_sk.engines.block_engine import BlockEngine
from pgkmeans_sk.inputs import check_columns
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.in_blocks import ChunkDecoder, ChunkEncoder, InBlocks
from pgkmeans_sk.quantization.in_memory import InMemory
from pgkmeans_sk.quantization.settings import QuantizerSettings
from pgkmeans_sk.quantization.training_rows import TrainingRows
from pgkmeans_sk.quantizer_parameters import check_codes


class QuantizerRows(Protocol):
    """Checked rows, wherever they are; ``in_memory.py`` says what methods do."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def output_dtype(self) -> np.dtype[Any]:
        """Of decoded rows."""

    def training(self, settings: QuantizerSettings) -> TrainingRows:
        """The rows as ``fit_quantizer`` takes them."""

    def codes(self, encoder: Encoder) -> Any:
        """Codes (n, n_columns), where the rows are."""

    def mean_sq_error(self, encoder: Encoder) -> float:
        """Weighted mean over the rows of the squared error when they are encoded and decoded."""

    def compressed(self, encoder: Encoder) -> CompressedMatrix:
        """Packed codes, with how far they are off."""


def check_input(estimator: Any, X: Any, sample_weight: Any, *, reset: bool) -> QuantizerRows:
    """Rows and weights, checked before any work."""
    if is_tensor(X):
        tensors = _tensors()
        tensors.check_tensor(X)
        X = check_rows(estimator, X, reset=reset)
        return cast(QuantizerRows, tensors.tensor_rows(X, check_weights(sample_weight, X)))
    is_half = getattr(X, "dtype", None) == np.float16
    if is_in_blocks(X):
        check_columns(estimator, X, reset=reset)
        carrier = cast(BlockEngine, block_rows(X, sample_weight).open(None)).carrier
        return InBlocks(carrier, _output_dtype(carrier.dtype, is_half))
    X = validation.check_rows(estimator, X, reset=reset, accept_sparse=False)
    weights = validation.check_weights(sample_weight, X)
    return InMemory(X, weights, _output_dtype(X.dtype, is_half))


def _tensors() -> Any:
    """What is done with tensors; PyTorch is there if somebody has one."""
    return import_module("pgkmeans_sk.quantization.torch_tensors")


def _output_dtype(dtype: Any, is_half: bool) -> np.dtype[Any]:
    return np.dtype(np.float16 if is_half else dtype)


def codes_of(estimator: Any, X: Any, encoder: Encoder) -> Any:
    """Codes (n, n_columns) of rows; those of dask are computed later, and not looked at yet."""
    if not is_dask(X):
        return check_input(estimator, X, None, reset=False).codes(encoder)
    check_columns(estimator, X, reset=False)
    decoder = encoder.decoder
    return lazy_rows(X).each(ChunkEncoder(encoder), decoder.n_columns, decoder.code_dtype)


def decoded(codes: Any, decoder: Decoder) -> Any:
    """Rows (n, n_features) that codes stand for; those of dask are computed later."""
    if is_tensor(codes):
        return _tensors().decoded(codes, decoder)
    if not is_dask(codes):
        return decoder.decode(check_codes(codes, decoder))
    lazy = lazy_rows(codes)
    # A table like the chunks, but empty: kind and width are known before anything is computed.
    check_codes(np.empty((0, lazy.n_columns), lazy.dtype), decoder)
    return lazy.each(ChunkDecoder(decoder, check_codes), decoder.n_features, decoder.dtype)


def searched(estimator: Any, queries: Any, codes: Any, k: int, metric: str) -> tuple[Any, Any]:
    """Values (q, k) and rows (q, k) of ``topk``: found where codes are, given where queries are."""
    decoder: Decoder = estimator.decoder_
    if is_tensor(queries):
        _tensors().check_tensor(queries)
        queries = check_rows(estimator, queries, reset=False)
    else:
        queries = validation.check_rows(estimator, queries, reset=False, accept_sparse=False)
    validation.check_choice("metric", metric, METRICS)
    if is_tensor(codes):
        found = _tensors().searched(decoder, queries, codes, k, metric)
    else:
        found = nearest_rows(decoder, as_numpy(queries), check_codes(codes, decoder), k, metric)
        if is_tensor(queries):
            found = _tensors().as_queries(found, queries)
    return cast(tuple[Any, Any], found)
