"""Search in codes: distances between queries as they are and rows as they decode (asymmetric).

Without decoding: the squared distance is a sum over blocks, and what a block adds depends on the
query and one of ``n_codes`` code words. For a chunk of queries all of these are put into tables;
then each row costs one look-up per code (Jégou, Douze and Schmid 2011, section 3.B).

That is so if a row is its code words side by side. If code words of several stages are added up,
or rows have sizes of their own, ``|q - x|^2 = |q|^2 + |x|^2 - 2 q.x`` does the same: inner products
are sums over codes, and the norms of rows are found by decoding once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.lookup import distance_tables, queries_at_once, scan_topk
from pgkmeans_sk.validation import check_integer

METRICS = ("sqeuclidean", "inner_product")
"""Accepted names of the parameter ``metric``."""

NUMBERS_AT_ONCE = 2**20
"""Values that are decoded at a time for the norms of rows."""


def nearest_rows(
    decoder: Decoder, queries: NDArray[np.floating], codes: NDArray[Any], k: int, metric: str
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """The ``k`` best of the rows with ``codes`` (n, n_columns), for each of ``queries`` (q, d).

    Returns values (q, k) in the decoder's working dtype, best first, and numbers of rows (q, k).
    """
    check_k(k, len(codes))
    queries = queries.astype(decoder.work_dtype, copy=False)
    plan = _Plan(decoder, codes, metric)
    step = min(queries_at_once(decoder.n_block_codes, decoder.n_codes, queries.dtype), len(queries))
    tables = np.empty((step, decoder.n_block_codes, decoder.n_codes), dtype=queries.dtype)
    values = np.empty((len(queries), k), dtype=queries.dtype)
    rows = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), max(step, 1)):
        some = slice(start, start + step)
        values[some], rows[some] = plan.search(queries[some], k, tables)
    return values, rows


def check_k(k: int, n_rows: int) -> None:
    """Raise unless so many of the rows can be found."""
    check_integer("k", k, 1)
    if k > n_rows:
        raise ValueError(f"Got k={k}, but expected at most {n_rows}, the number of rows.")


class _Plan:
    """How distances to all rows are put together from tables.

    ``base[i] + factor[i] * (sum of the tables' entries for row i)``, with tables of squared
    distances or of inner products.
    """

    def __init__(self, decoder: Decoder, codes: NDArray[Any], metric: str) -> None:
        self.decoder, self.metric = decoder, metric
        self.codes = codes[:, : decoder.n_block_codes]
        self.books = books_of_columns(decoder)
        self.factor: NDArray[np.floating] | None = None
        if decoder.row_scales is not None:
            self.factor = decoder.row_scales.astype(decoder.work_dtype)[codes[:, -1]]
        self.scales_queries = scales_queries(decoder)
        self.adds_up = decoder.n_stages == 1 and self.factor is None and not self.scales_queries
        self.norms: NDArray[np.floating] | None = None
        if metric == "sqeuclidean" and not self.adds_up:
            self.norms = _sq_norms(decoder, codes)

    def search(
        self, queries: NDArray[np.floating], k: int, memory: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        """Values (q, k) and rows (q, k) for a chunk of ``queries`` (q, d); tables go to memory."""
        decoder = self.decoder
        turned = queries
        if self.scales_queries and decoder.column_scales is not None:
            turned = turned * decoder.column_scales.astype(queries.dtype)
        if decoder.rotation is not None:
            turned = decoder.rotation.apply(turned)
        direct = self.metric == "sqeuclidean" and self.norms is None
        tables = distance_tables(
            turned,
            self.books,
            "sqeuclidean" if direct else "inner_product",
            out=memory[: len(queries)],
        )
        if direct:
            return scan_topk(tables, self.codes, k)
        if self.metric == "inner_product":
            return scan_topk(tables, self.codes, k, factor=self.factor, largest=True)
        tables *= -2.0
        values, rows = scan_topk(tables, self.codes, k, base=self.norms, factor=self.factor)
        values += np.einsum("ij,ij->i", queries, queries)[:, np.newaxis]
        return np.maximum(values, 0.0), rows  # rounding may leave less than nothing


def scales_queries(decoder: Decoder) -> bool:
    """Whether queries are scaled: the scales of columns come after the rotation of rows."""
    return decoder.rotation is not None and decoder.column_scales is not None


def books_of_columns(decoder: Decoder) -> NDArray[np.floating]:
    """Code words with the scales of blocks and, where nothing lies between them, of columns.

    (n_stages, n_books, n_codes, block_size) in the working dtype; a book for each block if scaled.
    """
    books = decoder.codebooks.astype(decoder.work_dtype, copy=False)
    factors = decoder.block_factors()
    if decoder.rotation is None and decoder.column_scales is not None:
        factors = factors * decoder.column_scales.astype(factors.dtype)
    elif decoder.block_scales is None:
        return books
    n_blocks, size = decoder.n_blocks, decoder.block_size
    padded = np.pad(factors, (0, n_blocks * size - len(factors))).reshape(n_blocks, 1, size)
    return books * padded


def _sq_norms(decoder: Decoder, codes: NDArray[Any]) -> NDArray[np.floating]:
    """Squared length of each decoded row, (n,) in the working dtype."""
    norms = np.empty(len(codes), dtype=decoder.work_dtype)
    step = max(1, NUMBERS_AT_ONCE // decoder.n_features)
    for start in range(0, len(codes), step):
        some = slice(start, start + step)
        rows = decoder.rows_of(codes[some])
        norms[some] = np.einsum("ij,ij->i", rows, rows)
    return norms
