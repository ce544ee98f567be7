"""Look-up tables of queries: what each block of a query makes with each word of its book."""

from __future__ import annotations

from pgkmeans_sk.kernels.compile import kernel


@kernel
def fill_tables(
    queries,  # IN (q, d) float
    start,  # IN first query of this chunk
    stop,  # IN one past the last
    words,  # IN (n_stages, n_books, block_size, n_codes) float, the books' words as columns
    n_blocks,  # IN
    is_product,  # IN bool: inner products, else squared distances
    tables,  # OUT (q, n_stages * n_blocks, n_codes) float
):
    """Products or squared distances of the blocks of queries to words, feature by feature in order.

    Queries come innermost but one: the book of a block stays in the nearest cache for all of them.
    """
    n_stages, n_books, block_size, n_codes = words.shape
    zero = words.dtype.type(0.0)
    for column in range(n_stages * n_blocks):
        s, j = column // n_blocks, column % n_blocks
        book = j if n_books > 1 else 0
        first = j * block_size
        width = min(block_size, queries.shape[1] - first)
        for i in range(start, stop):
            for code in range(n_codes):
                tables[i, column, code] = zero
            for t in range(width):
                x = queries[i, first + t]
                if is_product:
                    for code in range(n_codes):
                        tables[i, column, code] += x * words[s, book, t, code]
                else:
                    for code in range(n_codes):
                        difference = x - words[s, book, t, code]
                        tables[i, column, code] += difference * difference
