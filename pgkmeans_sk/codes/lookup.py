"""Rows from codes, and searching codes by look-up tables, on plain arrays.

Three steps over the kernels ``decode.py``, ``tables.py`` and ``scan.py``. A search is the last two,
for some queries at a time: their tables, then the rows with the least or largest sums of looked-up
numbers. No matrix of queries by rows is made.

Shapes
------
A row of d features is cut into ``n_blocks`` blocks of ``block_size`` columns; the last may be
narrower, and its words are then padded. Codes (n, n_stages * n_blocks) are stage-major: column
``s * n_blocks + j`` is the code of block j in stage s. Codebooks are (n_stages, n_books, n_codes,
block_size), where n_books is n_blocks, or 1 when all blocks share a book.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pgkmeans_sk.codes.plain_arrays import (
    Codes,
    Floats,
    check_codes,
    check_length,
    check_output,
    checked_dtype,
    flat,
    flat_codes,
    flat_output,
    layout_of,
    one_or_each,
    read_only,
)
from pgkmeans_sk.kernels.decode import decode_stage, scale_rows
from pgkmeans_sk.kernels.lookups import lanes_of
from pgkmeans_sk.kernels.scan import scan
from pgkmeans_sk.kernels.tables import fill_tables
from pgkmeans_sk.threads import effective_n_threads, run_tasks
from pgkmeans_sk.validation import check_choice, check_integer

DECODED_CHUNK = 2**17
"""Numbers in a chunk of decoded rows: half a MiB of float32, still in cache for the next stage."""
TABLES_BYTES = 2**23
"""Memory for the tables of the queries that are searched for at a time."""
TABLE_CHUNK = 2**20
"""Multiplications in a chunk of queries whose tables are filled, about: 0.1 ms."""
MAX_TASKS = 32
"""How many parts a search is cut into, about."""
SCAN_CHUNK = 2**19
"""Looked-up numbers in a chunk of rows, at least: 0.2 ms for one query."""
ROWS_PER_CODE = 16
"""Rows in a chunk for each code, at least, so that bringing tables into order does not weigh."""
ROWS_PER_BEST = 8
"""Rows in a chunk for each of the k best, at least, so that merging chunks does not."""


def decode_blocks(
    codes: Codes,
    codebooks: NDArray[np.floating],
    n_features: int,
    *,
    out_dtype: DTypeLike = np.float32,
    block_scales: NDArray[np.floating] | None = None,
    row_factors: NDArray[np.floating] | None = None,
    out: Floats | None = None,
) -> Floats:
    """Decode codes: a block is the sum over stages of the words that its codes name.

    Parameters
    ----------
    codes : ndarray of shape (n, n_stages * n_blocks), uint8 or uint16
        Read where they are if the codes of a row lie side by side, else copied.
    codebooks : ndarray of shape (n_stages, n_books, n_codes, block_size), float
        Converted to ``out_dtype`` first.
    n_features : int
        d, the width of decoded rows; n_blocks is d / block_size, rounded up.
    out_dtype : float32 or float64, default=float32
        The precision of the sums and of the result.
    block_scales : ndarray of shape (n_blocks,), optional
        What each block is multiplied by after summation.
    row_factors : ndarray of shape (n,), optional
        What each row is then multiplied by.
    out : ndarray of shape (n, d), out_dtype, optional
        Where to write; numbers of a row lie side by side, rows may lie apart.

    Returns
    -------
    ndarray of shape (n, d), out_dtype
        ``out``, or a new array. Beyond it, memory for the converted codebooks is needed.
    """
    dtype = checked_dtype("out_dtype", out_dtype)
    layout = layout_of(codebooks, n_features)
    check_codes(codes, layout.n_columns, layout.n_codes)
    n = len(codes)
    result = np.empty((n, n_features), dtype) if out is None else out
    check_output("out", result, (n, n_features), dtype)
    scales = np.ones(n_features, dtype)
    if block_scales is not None:
        check_length("block_scales", block_scales, layout.n_blocks)
        scales = np.repeat(np.asarray(block_scales, dtype), layout.block_size)[:n_features]
    scales = read_only(scales)
    factors, factor_step = one_or_each("row_factors", row_factors, n, 1.0, dtype)
    is_scaled = block_scales is not None or row_factors is not None
    if n == 0:
        return result
    out_base, out_step = flat_output(result)
    code_base, code_step = flat_codes(codes)
    books = flat(codebooks, dtype)
    book_size = layout.n_codes * layout.block_size
    book_step = book_size if layout.n_books > 1 else 0
    stage_step = book_size * layout.n_books

    def decode_chunk(start: int, stop: int) -> None:
        for s in range(layout.n_stages):
            decode_stage(
                code_base, code_step, s * layout.n_blocks, books, s * stage_step, book_step,
                layout.block_size, start, stop, s == 0, out_base, out_step, n_features,
            )  # fmt: skip
        if is_scaled:
            scale_rows(scales, factors, factor_step, start, stop, out_base, out_step)

    _over_chunks(decode_chunk, n, max(1, DECODED_CHUNK // n_features))
    return result


def queries_at_once(n_columns: int, n_codes: int, dtype: DTypeLike) -> int:
    """How many queries to make tables for at a time: about ``TABLES_BYTES``, in whole vectors.

    More gain nothing, and fewer would leave some cores without work.
    """
    itemsize = np.dtype(dtype).itemsize
    lanes = lanes_of(itemsize)
    return max(1, TABLES_BYTES // (n_columns * n_codes * itemsize * lanes)) * lanes


def distance_tables(
    queries: Floats,
    codebooks: NDArray[np.floating],
    metric: Literal["sqeuclidean", "inner_product"],
    *,
    out: Floats | None = None,
) -> Floats:
    """Tables that turn a search among codes into sums: one number for each word of each column.

    With ``"sqeuclidean"``, the sum over the columns of a row of codes is the squared distance of
    the query to the decoded row, if there is one stage. With ``"inner_product"``, it is the inner
    product (no sign is changed) for any number of stages; squared distances are then
    ``|x|^2 + |y|^2 - 2 x.y``: let ``base`` of ``scan_topk`` be the squared norms of decoded rows
    and ``factor`` -2.

    Parameters
    ----------
    queries : ndarray of shape (q, d), float32 or float64
        The tables have their dtype, and sums over the columns of a block are made in it.
    codebooks : ndarray of shape (n_stages, n_books, n_codes, block_size), float
        Brought into that dtype and an order of (n_stages, n_books, block_size, n_codes) first; not
        copied if they are a view (``np.swapaxes(words, 2, 3)``) of an array that has both.
    metric : {"sqeuclidean", "inner_product"}
        What a block of a query makes with a word.
    out : ndarray of the shape and dtype of the result, C-contiguous, optional
        Where to write: fresh memory costs about as much as the tables.

    Returns
    -------
    ndarray of shape (q, n_stages * n_blocks, n_codes)
        ``out``, or a new array: 16 KiB a query in float32, for 16 blocks and 256 codes. Beyond it,
        memory for the converted codebooks is needed.
    """
    check_choice("metric", metric, ("sqeuclidean", "inner_product"))
    if queries.ndim != 2:
        raise ValueError(f"Got queries of shape {queries.shape}, but expected (q, n_features).")
    dtype = checked_dtype("dtype of queries", queries.dtype)
    n_queries, n_features = queries.shape
    layout = layout_of(codebooks, n_features)
    if metric == "sqeuclidean" and layout.n_stages > 1:
        raise ValueError(
            f"Got metric='sqeuclidean' with {layout.n_stages} stages, but expected 1 stage: "
            "squared distances to the words of several stages do not add up. Use 'inner_product'."
        )
    shape = (n_queries, layout.n_columns, layout.n_codes)
    tables = np.empty(shape, dtype) if out is None else out
    check_output("out", tables, shape, dtype)
    if not (tables.flags.c_contiguous and tables.flags.writeable and tables.flags.aligned):
        raise ValueError(f"Got out with flags\n{tables.flags}, but expected a C-contiguous array.")
    words = read_only(np.ascontiguousarray(np.swapaxes(codebooks, 2, 3), dtype))
    rows = read_only(np.ascontiguousarray(queries))

    def fill_chunk(start: int, stop: int) -> None:
        fill_tables(rows, start, stop, words, layout.n_blocks, metric == "inner_product", tables)

    work = layout.n_stages * n_features * layout.n_codes
    _over_chunks(fill_chunk, n_queries, max(1, TABLE_CHUNK // work))
    return tables


def scan_topk(
    tables: Floats,
    codes: Codes,
    k: int,
    base: NDArray[np.floating] | None = None,
    factor: NDArray[np.floating] | None = None,
    *,
    largest: bool = False,
) -> tuple[Floats, NDArray[np.int64]]:
    """The k rows of codes with the least scores for each query.

    The score of row i is ``base[i] + factor[i] * sum(tables[query, c, codes[i, c]] for each c)``,
    added up in the order of the columns in the dtype of the tables: float32 tables give float32
    sums, as in faiss. Scores must not be NaN. The result has the same bits for any number of
    threads, and what a query finds does not depend on the others.

    Parameters
    ----------
    tables : ndarray of shape (q, n_columns, n_codes), float32 or float64
        From ``distance_tables``.
    codes : ndarray of shape (n, n_columns), uint8 or uint16
        Read where they are if the codes of a row lie side by side, else copied.
    k : int
        1 <= k <= n.
    base, factor : ndarray of shape (n,), optional
        Converted to the dtype of the tables; 0 and 1 if absent.
    largest : bool, default=False
        Find the largest scores instead.

    Returns
    -------
    scores : ndarray of shape (q, k), dtype of the tables
        From the best to the worst.
    rows : ndarray of shape (q, k), int64
        Their row numbers. Of equal scores, the lowest row number comes first.

    Notes
    -----
    Beyond the result, memory is needed for the tables of 8 queries (32 bytes for each code of each
    column; as many queries as fit a vector register) in each thread, and for up to 32 results of k
    rows for each query if there are so few queries that rows are divided among the threads.
    """
    check_integer("k", k, 1)
    if tables.ndim != 3 or 0 in tables.shape[1:]:
        raise ValueError(
            f"Got tables of shape {tables.shape}, but expected (q, n_columns, n_codes)."
        )
    dtype = checked_dtype("dtype of tables", tables.dtype)
    n_queries, n_columns, n_codes = tables.shape
    check_codes(codes, n_columns, n_codes)
    n = len(codes)
    if k > n:
        raise ValueError(f"Got k={k}, but expected at most the number of rows, {n}.")
    if n_queries == 0:
        return np.empty((0, k), dtype), np.empty((0, k), np.int64)
    sign = -1.0 if largest else 1.0
    bases, base_step = one_or_each("base", base, n, 0.0, dtype, sign)
    factors, factor_step = one_or_each("factor", factor, n, 1.0, dtype, sign)
    code_base, code_step = flat_codes(codes)
    numbers = flat(tables, dtype)
    queries, rows = _parts(n_queries, n, n_columns, n_codes, k, lanes_of(dtype.itemsize))
    scores = np.empty((len(rows) - 1, n_queries, k), dtype)
    found = np.empty(scores.shape, np.int64)

    def scan_part(task: int) -> None:
        group, chunk = divmod(task, len(rows) - 1)
        scan(
            numbers, n_columns, n_codes, queries[group], queries[group + 1], code_base, code_step,
            rows[chunk], rows[chunk + 1], bases, base_step, factors, factor_step,
            scores[chunk], found[chunk],
        )  # fmt: skip

    run_tasks(scan_part, (len(queries) - 1) * (len(rows) - 1), effective_n_threads())
    best, numbers_of_best = _merged(scores, found)
    return (-best if largest else best), numbers_of_best


def _parts(
    n_queries: int, n: int, n_columns: int, n_codes: int, k: int, lanes: int
) -> tuple[list[int], list[int]]:
    """Bounds of the groups of queries and of the chunks of rows, by the shape of the problem alone.

    Many queries are divided among tasks, each of which looks at all rows; of few queries, each
    group of as many as share a vector is looked up by several tasks in parts of the rows.
    """
    n_groups = -(-n_queries // lanes)
    per_task = -(-n_groups // MAX_TASKS)
    queries = [*range(0, n_queries, per_task * lanes), n_queries]
    at_least = max(SCAN_CHUNK // n_columns, ROWS_PER_CODE * n_codes, ROWS_PER_BEST * k)
    n_chunks = max(1, min(n // at_least, MAX_TASKS // (len(queries) - 1)))
    return queries, [n * c // n_chunks for c in range(n_chunks + 1)]


def _merged(scores: Floats, rows: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """The k least of the results (n_chunks, q, k) of chunks, which come in the order of rows."""
    n_chunks, n_queries, k = scores.shape
    if n_chunks == 1:
        return scores[0], rows[0]
    scores = scores.transpose(1, 0, 2).reshape(n_queries, n_chunks * k)
    rows = rows.transpose(1, 0, 2).reshape(n_queries, n_chunks * k)
    order = np.argsort(scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _over_chunks(task: Callable[[int, int], None], n: int, per_chunk: int) -> None:
    """Call ``task(start, stop)`` for chunks of so many of n rows."""
    run_tasks(
        lambda c: task(c * per_chunk, min(n, (c + 1) * per_chunk)),
        -(-n // per_chunk),
        effective_n_threads(),
    )
