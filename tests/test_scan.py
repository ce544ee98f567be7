"""Search by look-up tables: against sums and a stable sort, and what is refused."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from pgkmeans_sk.codes import lookup
from pgkmeans_sk.codes.lookup import decode_blocks, distance_tables, queries_at_once, scan_topk
from pgkmeans_sk.kernels.lookups import lanes_of
from tests import reference

ROOT = Path(__file__).resolve().parents[1]

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
code_dtypes = pytest.mark.parametrize("code_dtype", [np.uint8, np.uint16])


def problem(
    n_queries=11, n=203, n_columns=5, n_codes=6, dtype=np.float32, code_dtype=np.uint8,
    small_integers=False, seed=0,
):  # fmt: skip
    """Random tables and codes; with small integers, many scores are equal."""
    rng = np.random.default_rng(seed)
    shape = n_queries, n_columns, n_codes
    tables = rng.integers(-2, 3, shape) if small_integers else rng.standard_normal(shape)
    return tables.astype(dtype), rng.integers(0, n_codes, (n, n_columns)).astype(code_dtype)


def assert_finds(tables, codes, k, base=None, factor=None, largest=False):
    scores, rows = scan_topk(tables, codes, k, base, factor, largest=largest)
    assert (scores.dtype, rows.dtype) == (tables.dtype, np.int64)
    all_scores = reference.lookup_scores(tables, codes, base, factor)
    expected_scores, expected_rows = reference.best_rows(all_scores, k, largest)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


# ------------------------------------------------------------------ the scan


def test_by_hand():
    tables = np.array([[[0, 1], [5, 2]], [[3, 0], [0, 0]]], dtype=np.float32)
    codes = np.array([[0, 0], [0, 1], [1, 1], [1, 0]], dtype=np.uint8)
    # Scores: 5, 2, 3, 6 and 3, 3, 0, 0.
    scores, rows = scan_topk(tables, codes, 3)
    np.testing.assert_array_equal(scores, [[2, 3, 5], [0, 0, 3]])
    np.testing.assert_array_equal(rows, [[1, 2, 0], [2, 3, 0]])
    scores, rows = scan_topk(tables, codes, 2, largest=True)
    np.testing.assert_array_equal(scores, [[6, 5], [3, 3]])
    np.testing.assert_array_equal(rows, [[3, 0], [0, 1]])
    # 10 - 2 * 5, 20 - 2 * 2, ...
    base, factor = np.array([10.0, 20.0, 30.0, 40.0]), np.full(4, -2.0)
    scores, rows = scan_topk(tables, codes, 4, base, factor)
    np.testing.assert_array_equal(scores, [[0, 16, 24, 28], [4, 14, 30, 40]])
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3]] * 2)


@dtypes
@code_dtypes
@pytest.mark.parametrize("n_queries", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33])
def test_numbers_of_queries(n_queries, code_dtype, dtype):
    tables, codes = problem(n_queries, dtype=dtype, code_dtype=code_dtype)
    assert_finds(tables, codes, 10)


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("n_queries", [1, 6])
def test_few_rows(n_queries, n):
    tables, codes = problem(n_queries, n)
    for k in range(1, n + 1):
        assert_finds(tables, codes, k)


@pytest.mark.parametrize("k", [1, 2, 7, 100, 203])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("small_integers", [False, True])
def test_numbers_of_rows_sought(k, largest, small_integers):
    tables, codes = problem(small_integers=small_integers)
    assert_finds(tables, codes, k, largest=largest)


@pytest.mark.parametrize("n_queries", [1, 11])
@pytest.mark.parametrize("largest", [False, True])
def test_all_rows_equal(n_queries, largest):
    tables, codes = problem(n_queries)
    codes[:] = codes[0]
    assert_finds(tables, codes, 20, largest=largest)
    assert scan_topk(tables, codes, 5)[1].tolist() == [[0, 1, 2, 3, 4]] * n_queries


@pytest.mark.parametrize("step", [1, -1])
def test_rising_and_falling_scores(step):
    tables = np.arange(256.0, dtype=np.float32).reshape(1, 1, 256)[[0] * 9]
    assert_finds(tables, np.arange(256, dtype=np.uint8)[::step, np.newaxis], 30)


@dtypes
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("n_queries", [1, 11])
def test_base_and_factor(n_queries, largest, dtype):
    tables, codes = problem(n_queries, dtype=dtype)
    rng = np.random.default_rng(1)
    base, factor = rng.standard_normal((2, len(codes)))
    for given_base in (None, base, base.astype(np.float32)):
        for given_factor in (None, factor, np.abs(factor)[::-1]):
            assert_finds(tables, codes, 12, given_base, given_factor, largest)


@pytest.mark.parametrize("n_queries", [1, 11])
def test_infinite_scores(n_queries):
    tables, codes = problem(n_queries)
    tables[:, 0, 0] = np.inf
    tables[:, 1, 1] = np.inf
    assert_finds(tables, codes, 203)
    assert_finds(-tables, codes, 203)
    codes[:, 0] = 0
    assert_finds(tables, codes, 10)


@code_dtypes
@pytest.mark.parametrize("n_queries", [1, 9])
def test_all_codes_of_a_type(n_queries, code_dtype):
    n_codes = np.iinfo(code_dtype).max + 1
    tables, codes = problem(n_queries, 50, 2, n_codes, code_dtype=code_dtype)
    codes[7] = n_codes - 1
    assert_finds(tables, codes, 5)


def test_layouts():
    tables, codes = problem(code_dtype=np.uint16)
    expected = scan_topk(tables, codes, 10)
    wide = np.full((2 * len(codes), codes.shape[1] + 3), 5, dtype=np.uint16)
    views = [wide[::2, 1:-2], wide[::-2, 2:-1], np.empty_like(codes, order="F")]
    for view in views:
        view[:] = codes
        view.flags.writeable = False
        np.testing.assert_array_equal(scan_topk(tables, view, 10), expected)
    np.testing.assert_array_equal(scan_topk(np.asfortranarray(tables), codes, 10), expected)
    frozen = tables.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(scan_topk(frozen, codes, 10), expected)


SEARCH_IN_A_NARROW_WORLD = """
import numpy as np
from pgkmeans_sk.kernels.vectors import vector_bytes
from tests.test_decode import assert_decodes, problem as codes_and_books
from tests.test_scan import assert_finds, problem
for dtype in (np.float32, np.float64):
    for n_queries in (1, 3, 11):
        assert_finds(*problem(n_queries, dtype=dtype), 10)
    assert_decodes(*codes_and_books(n_stages=2), dtype)
print(vector_bytes())
"""


def test_narrower_vectors_find_the_same():
    finished = subprocess.run(
        [sys.executable, "-c", SEARCH_IN_A_NARROW_WORLD],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CPU_NAME": "generic"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == 16  # otherwise the test tested nothing


def test_inputs_are_left_alone():
    tables, codes = problem()
    base = factor = np.linspace(1.0, 2.0, len(codes), dtype=np.float32)
    before = [array.copy() for array in (tables, codes, base)]
    scan_topk(tables, codes, 3, base, factor, largest=True)
    for array, old in zip((tables, codes, base), before, strict=True):
        np.testing.assert_array_equal(array, old)


@pytest.mark.parametrize("n_queries", [1, 3, 11, 70])
@pytest.mark.parametrize("small_integers", [False, True])
def test_threads_and_chunks_do_not_matter(n_queries, small_integers, monkeypatch):
    tables, codes = problem(n_queries, 700, small_integers=small_integers)
    expected = scan_topk(tables, codes, 9)
    with threadpoolctl.threadpool_limits(1):
        np.testing.assert_array_equal(scan_topk(tables, codes, 9), expected)
    monkeypatch.setattr(lookup, "SCAN_CHUNK", 100)
    monkeypatch.setattr(lookup, "ROWS_PER_CODE", 1)
    monkeypatch.setattr(lookup, "ROWS_PER_BEST", 1)
    for most in (1, 2, 3, 8, 32):
        monkeypatch.setattr(lookup, "MAX_TASKS", most)
        np.testing.assert_array_equal(scan_topk(tables, codes, 9), expected)
    # As many chunks as there can be, each with no more rows than are sought.
    assert len(lookup._parts(1, 700, 5, 6, 35, 8)[1]) == 21
    np.testing.assert_array_equal(scan_topk(tables, codes, 35)[1][:, :9], expected[1])


@pytest.mark.parametrize("n_queries", [1, 7, 8, 9, 300, 10_000])
@pytest.mark.parametrize("n", [1, 100, 10**6])
def test_parts_cover_everything_once(n_queries, n):
    k = min(n, 10)
    queries, rows = lookup._parts(n_queries, n, 16, 256, k, 8)
    for bounds, size in ((queries, n_queries), (rows, n)):
        assert bounds[0] == 0
        assert bounds[-1] == size
        assert all(start < stop for start, stop in pairwise(bounds))
    assert all(start % 8 == 0 for start in queries[:-1])
    assert min(np.diff(rows)) >= k
    assert (len(queries) - 1) * (len(rows) - 1) <= lookup.MAX_TASKS


def test_a_query_does_not_depend_on_the_others():
    tables, codes = problem(20)
    scores, rows = scan_topk(tables, codes, 10)
    for query in (0, 7, 8, 19):
        alone = scan_topk(tables[query : query + 1], codes, 10)
        np.testing.assert_array_equal(alone[0][0], scores[query])
        np.testing.assert_array_equal(alone[1][0], rows[query])


@given(
    n_queries=st.integers(1, 20),
    n=st.integers(1, 60),
    n_columns=st.integers(1, 9),
    n_codes=st.integers(1, 20),
    share=st.floats(0.0, 1.0),
    small_integers=st.booleans(),
    largest=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(n_queries, n, n_columns, n_codes, share, small_integers, largest, seed):
    tables, codes = problem(
        n_queries, n, n_columns, n_codes, small_integers=small_integers, seed=seed
    )
    assert_finds(tables, codes, 1 + round(share * (n - 1)), largest=largest)


def test_no_queries():
    tables, codes = problem(0)
    scores, rows = scan_topk(tables, codes, 3)
    assert scores.shape == rows.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 204}, ValueError, "Got k=204, but expected at most the number of rows, 203"),
        ({"k": 0}, ValueError, "k=0"),
        ({"k": 1.0}, ValueError, "k=1.0"),
        ({"tables": np.zeros((5, 6))}, ValueError, r"Got tables of shape \(5, 6\)"),
        ({"tables": np.zeros((2, 0, 6))}, ValueError, r"Got tables of shape \(2, 0, 6\)"),
        ({"tables": np.zeros((2, 5, 6), np.float16)}, TypeError, "dtype of tables float16"),
        ({"tables": np.zeros((2, 5, 5))}, ValueError, "Got a code of 5, .* below 5"),
        ({"tables": np.zeros((2, 4, 6))}, ValueError, r"expected \(n, 4\)"),
        ({"codes": np.zeros((9, 5), bool)}, TypeError, "Got codes of dtype bool"),
        ({"base": np.zeros(202)}, ValueError, r"Got base of shape \(202,\).*\(203,\)"),
        ({"factor": np.zeros((203, 1))}, ValueError, r"Got factor of shape \(203, 1\)"),
    ],
)
def test_what_is_refused(change, error, message):
    tables, codes = problem()
    with pytest.raises(error, match=message):
        scan_topk(**{"tables": tables, "codes": codes, "k": 3} | change)


# ------------------------------------------------------------------ the tables


def books_and_queries(
    n_queries=9, n_features=19, block_size=4, n_codes=7, n_stages=1, shared=False, dtype=np.float32
):
    rng = np.random.default_rng(n_features)
    n_books = 1 if shared else -(-n_features // block_size)
    codebooks = rng.standard_normal((n_stages, n_books, n_codes, block_size), dtype=np.float32)
    return rng.standard_normal((n_queries, n_features)).astype(dtype), codebooks


def test_tables_by_hand():
    codebooks = np.array([[[[1, 2], [0, 3]], [[4, 0], [5, 0]]]], dtype=np.float16)
    queries = np.array([[1, 1, 2]], dtype=np.float32)
    distances = distance_tables(queries, codebooks, "sqeuclidean")
    np.testing.assert_array_equal(distances, [[[1, 5], [4, 9]]])
    products = distance_tables(queries, codebooks, "inner_product")
    np.testing.assert_array_equal(products, [[[3, 3], [8, 10]]])


@dtypes
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("metric", "n_stages"), [("sqeuclidean", 1), ("inner_product", 1), ("inner_product", 3)]
)
def test_tables_are_those_of_the_twin(metric, n_stages, shared, dtype):
    for n_features, block_size in ((19, 4), (16, 8), (3, 5), (6, 1)):
        queries, codebooks = books_and_queries(
            9, n_features, block_size, n_stages=n_stages, shared=shared, dtype=dtype
        )
        found = distance_tables(queries, codebooks, metric)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, reference.distance_tables(queries, codebooks, metric))


def test_tables_of_views_and_into_memory(monkeypatch):
    queries, codebooks = books_and_queries(40)
    expected = distance_tables(queries, codebooks, "sqeuclidean")
    monkeypatch.setattr(lookup, "TABLE_CHUNK", 1000)
    wide = np.zeros((80, 40), dtype=np.float32)[::2, ::-2][:, :19]
    wide[:] = queries
    wide.flags.writeable = False
    out = np.empty_like(expected)
    assert distance_tables(wide, codebooks[:, :, :, ::-1][..., ::-1], "sqeuclidean", out=out) is out
    np.testing.assert_array_equal(out, expected)
    with threadpoolctl.threadpool_limits(1):
        again = distance_tables(queries, codebooks, "sqeuclidean")
    np.testing.assert_array_equal(again, expected)
    assert distance_tables(queries[:0], codebooks, "sqeuclidean").shape == (0, 5, 7)


@pytest.mark.parametrize("n_stages", [1, 2])
def test_search_finds_what_decoded_rows_say(n_stages):
    queries, codebooks = books_and_queries(n_stages=n_stages, dtype=np.float64)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 7, (150, 5 * n_stages)).astype(np.uint8)
    decoded = decode_blocks(codes, codebooks, 19, out_dtype=np.float64)
    distances = reference.sq_distances(queries, decoded)
    rows = np.argsort(distances, axis=1, kind="stable")[:, :10]
    products = distance_tables(queries, codebooks, "inner_product")
    norms = np.einsum("nd,nd->n", decoded, decoded)
    scores, found = scan_topk(products, codes, 10, norms, np.full(150, -2.0))
    np.testing.assert_array_equal(found, rows)
    nearest = np.take_along_axis(distances, rows, axis=1)
    np.testing.assert_allclose(
        scores + np.einsum("qd,qd->q", queries, queries)[:, np.newaxis], nearest, rtol=1e-12
    )
    if n_stages == 1:
        scores, found = scan_topk(distance_tables(queries, codebooks, "sqeuclidean"), codes, 10)
        np.testing.assert_array_equal(found, rows)
        np.testing.assert_allclose(scores, nearest, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metric": "cosine"}, ValueError, "Got metric='cosine'"),
        ({"queries": np.zeros(19)}, ValueError, r"Got queries of shape \(19,\)"),
        ({"queries": np.zeros((2, 19), int)}, TypeError, "dtype of queries int64"),
        ({"queries": np.zeros((2, 21))}, ValueError, "5 books, but expected 1 or 6"),
        ({"codebooks": np.zeros((2, 5, 7, 4))}, ValueError, "2 stages, but expected 1"),
        ({"out": np.zeros((9, 5, 7))}, ValueError, "dtype float64, but expected"),
        ({"out": np.zeros((9, 7, 5), np.float32).swapaxes(1, 2)}, ValueError, "C-contiguous"),
    ],
)
def test_tables_that_are_refused(change, error, message):
    queries, codebooks = books_and_queries()
    arguments = {"queries": queries, "codebooks": codebooks, "metric": "sqeuclidean"} | change
    with pytest.raises(error, match=message):
        distance_tables(**arguments)


@dtypes
def test_queries_at_once(dtype):
    lanes = lanes_of(np.dtype(dtype).itemsize)
    for n_columns, n_codes in ((1, 1), (16, 256), (48, 256), (8, 65536), (1000, 65536)):
        number = queries_at_once(n_columns, n_codes, dtype)
        assert number >= lanes
        assert number % lanes == 0
        tables = number * n_columns * n_codes * np.dtype(dtype).itemsize
        assert tables <= lookup.TABLES_BYTES or number == lanes
