"""Search among codes on a device: ``codes/search.py`` in PyTorch operations.

Tables of some queries at a time; then, for some rows of codes at a time, one look-up and one
addition for each column of codes, and the best rows so far. Both sizes follow the memory that is
free, and change no result: scores are added up in the order of the columns, and equal ones are
ordered by row number.
"""

from __future__ import annotations

import torch

from pgkmeans_sk.codes.search import books_of_columns, scales_queries
from pgkmeans_sk.engines.torch_memory import block_rows, blocks
from pgkmeans_sk.engines.torch_sums import row_sums
from pgkmeans_sk.quantization.torch_codec import DTYPES, TensorCodec
from pgkmeans_sk.quantization.torch_rotation import applied

MAX_QUERIES = 1024
"""Queries that are searched for at a time, at most: more would leave few rows for each look."""
SCORE_BYTES = 40
"""Working memory for a score, about: sums, what is added, and how equal ones are counted."""


def nearest_rows(
    codec: TensorCodec, queries: torch.Tensor, codes: torch.Tensor, k: int, metric: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` best of the rows with ``codes`` (n, n_columns), for each of ``queries`` (q, d).

    Returns values (q, k) in the decoder's working dtype, best first, and numbers of rows (q, k).
    All tensors are on the device of ``codec``, and are checked.
    """
    dtype = DTYPES[codec.decoder.work_dtype]
    queries = queries.to(dtype)
    plan = _Plan(codec, codes, metric)
    values = torch.empty((len(queries), k), dtype=dtype, device=codec.device)
    rows = torch.empty((len(queries), k), dtype=torch.int64, device=codec.device)
    table_bytes = 4 * codec.decoder.n_block_codes * codec.decoder.n_codes * values.element_size()
    step = min(MAX_QUERIES, block_rows(codec.device, table_bytes))
    for start, stop in blocks(len(queries), step):
        values[start:stop], rows[start:stop] = plan.search(queries[start:stop], k)
    return values, rows


class _Plan:
    """How distances to all rows are put together from tables, as in ``codes/search.py``."""

    def __init__(self, codec: TensorCodec, codes: torch.Tensor, metric: str) -> None:
        decoder = codec.decoder
        self.codec, self.codes, self.metric = codec, codes, metric
        dtype = DTYPES[decoder.work_dtype]
        self.books = codec.sent(books_of_columns(decoder), dtype)
        self.factor: torch.Tensor | None = None
        if decoder.row_scales is not None:
            self.factor = codec.sent(decoder.row_scales, dtype)[codes[:, -1].to(torch.int64)]
        adds_up = decoder.n_stages == 1 and self.factor is None and not scales_queries(decoder)
        self.norms: torch.Tensor | None = None
        if metric == "sqeuclidean" and not adds_up:
            self.norms = torch.cat(
                [
                    row_sums(codec.rows_of(codes[start:stop]).square_())
                    for start, stop in codec.row_blocks(len(codes))
                ]
            )

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (q, k) and rows (q, k) for some ``queries`` (q, d)."""
        decoder, turned = self.codec.decoder, queries
        if scales_queries(decoder) and decoder.column_scales is not None:
            turned = turned * self.codec.sent(decoder.column_scales, queries.dtype)
        if decoder.rotation is not None:
            turned = applied(decoder.rotation, turned)
        direct = self.metric == "sqeuclidean" and self.norms is None
        tables = _tables(turned, self.books, decoder.n_blocks, is_product=not direct)
        if self.norms is not None:
            tables *= -2.0
        values, rows = self._scanned(tables, k, self.metric == "inner_product")
        if self.norms is not None:
            values = (values + row_sums(queries.square())[:, None]).clamp_(min=0.0)
        return values, rows

    def _scanned(
        self, tables: torch.Tensor, k: int, largest: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``k`` best scores (q, k), and the rows that have them."""
        n_queries, n_columns, _ = tables.shape
        best: list[torch.Tensor] = []
        size = block_rows(tables.device, SCORE_BYTES * n_queries + 8 * n_columns)
        for start, stop in blocks(len(self.codes), size):
            codes = self.codes[start:stop, :n_columns].to(torch.int64).T.contiguous()
            scores = tables[:, 0].index_select(1, codes[0])
            for c in range(1, n_columns):
                scores += tables[:, c].index_select(1, codes[c])
            if self.factor is not None:
                scores *= self.factor[start:stop]
            if self.norms is not None:
                scores += self.norms[start:stop]
            found, columns = least(scores.neg_() if largest else scores, k)
            numbers = columns + start
            if best:  # earlier rows come first, and stay before later ones that are as good
                found, numbers = torch.cat([best[0], found], 1), torch.cat([best[1], numbers], 1)
                found, order = found.sort(dim=1, stable=True)
                found, numbers = found[:, :k], numbers.gather(1, order[:, :k])
            best = [found, numbers]
        return best[0].neg() if largest else best[0], best[1]


def least(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` least of each row of ``scores`` (q, m), rising, and their columns; all if m <= k.

    Of equal scores the lowest columns: ``torch.topk`` names any of them, so it only says where the
    limit is.
    """
    n_queries, n_columns = scores.shape
    columns = torch.arange(n_columns, device=scores.device).expand(n_queries, n_columns)
    if n_columns > k:
        limit = scores.topk(k, dim=1, largest=False).values[:, -1:]
        is_below, is_limit = scores < limit, scores == limit
        room = k - is_below.sum(dim=1, keepdim=True)
        chosen = is_below | (is_limit & (is_limit.cumsum(dim=1) <= room))
        columns = chosen.nonzero()[:, 1].view(n_queries, k)
    values, order = scores.gather(1, columns).sort(dim=1, stable=True)
    return values, columns.gather(1, order)


def _tables(
    queries: torch.Tensor, books: torch.Tensor, n_blocks: int, is_product: bool
) -> torch.Tensor:
    """Products or squared distances (q, n_stages * n_blocks, n_codes) of blocks to words."""
    n_stages, _, n_codes, size = books.shape
    n_queries, d = queries.shape
    padded = torch.nn.functional.pad(queries, (0, n_blocks * size - d))
    parts = padded.view(n_queries, n_blocks, size)
    shape = n_queries, n_stages, n_blocks, n_codes
    tables = torch.zeros(shape, dtype=queries.dtype, device=queries.device)
    for t in range(size):
        # The last block may be narrower.
        wide = n_blocks if (n_blocks - 1) * size + t < d else n_blocks - 1
        x = parts[:, None, :wide, t, None]
        words = books[:, :, :, t].expand(n_stages, n_blocks, n_codes)[None, :, :wide]
        if is_product:
            tables[:, :, :wide] += x * words
        else:
            tables[:, :, :wide] += (x - words).square_()
    return tables.view(n_queries, n_stages * n_blocks, n_codes)
