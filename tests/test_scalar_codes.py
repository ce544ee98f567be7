"""Codebooks of single values: quantization/scalar.py, kernels/short_lines.py, kernels/levels.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgkmeans_sk.kernels import short_lines
from pgkmeans_sk.quantization import scalar
from pgkmeans_sk.quantization.scalar import SCHEMES, relative_error, scalar_codes
from tests import reference
from tests.problems import PATTERNS

FLOATS = st.floats(-1e3, 1e3, allow_subnormal=False, width=32)


def errors_of(lines, found, weights=1.0):
    """Weighted squared error of each line."""
    decoded = np.take_along_axis(found.words.astype(np.float64), found.codes.astype(int), axis=1)
    return (weights * (lines - decoded) ** 2).sum(axis=1)


def least_error(line, n_words, weights=None):
    """The optimum, by the plain dynamic program over sorted distinct values."""
    values, numbers = np.unique(line, return_inverse=True)
    if len(values) <= n_words:
        return 0.0
    totals = np.bincount(numbers, weights)
    return reference.line_optimum(reference.line_errors(values, totals), n_words)


# ------------------------------------------------------------------ by hand


def test_kmeans_by_hand():
    lines = np.array([[0.0, 4.0, 6.0, 10.0], [9.0, 1.0, 0.0, 1.0]])
    words, codes = scalar_codes(lines, 1)
    assert words.tolist() == [[2.0, 8.0], [2 / 3, 9.0]]
    assert codes.tolist() == [[0, 0, 1, 1], [1, 0, 0, 0]]
    words, codes = scalar_codes(lines[1:], 2)  # three values for four words
    assert words.tolist() == [[0.0, 1.0, 9.0, 9.0]]
    assert codes.tolist() == [[2, 1, 0, 1]]


def test_kmeans_with_weights_by_hand():
    lines = np.array([[0.0, 4.0, 6.0, 10.0]] * 2)
    weights = np.array([[1.0, 9.0, 9.0, 1.0], [9.0, 1.0, 1.0, 9.0]])
    found = scalar_codes(lines, 1, weights=weights)
    np.testing.assert_allclose(found.words, [[3.6, 6.4], [0.4, 9.6]], rtol=1e-15)


def test_linear_by_hand():
    # Bins 0-2, 2-4, 4-6, 6-8: a value on an edge belongs to the bin above it, the last to the last.
    words, codes = scalar_codes(np.array([[0.0, 1.0, 2.0, 3.0, 8.0, 7.0]]), 2, "linear")
    assert words.tolist() == [[0.5, 2.5, 5.0, 7.5]]  # no value in the third: its middle
    assert codes.tolist() == [[0, 0, 1, 1, 3, 3]]


def test_linear_keeps_its_bins_where_another_word_is_nearer():
    words, codes = scalar_codes(np.array([[0.0, 0.0, 0.0, 0.9, 2.0, 1.0]]), 1, "linear")
    assert words.tolist() == [[0.225, 1.5]]
    assert codes.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_minmax_by_hand():
    words, codes = scalar_codes(np.array([[0.0, 1.0, 2.9, 3.1, 6.0, 5.0]]), 2, "linear-minmax")
    assert words.tolist() == [[0.0, 2.0, 4.0, 6.0]]
    assert codes.tolist() == [[0, 0, 1, 2, 3, 2]]  # of two that are equally near, the first


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_values(scheme):
    lines = np.full((2, 5), -3.0, dtype=np.float32)
    found = scalar_codes(lines, 3, scheme, dtype=np.float16)
    assert (found.codes == 0).all()
    assert (found.words == -3.0).all()
    assert relative_error(lines, found) == 0.0


# ------------------------------------------------------------------ the optimum


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_codebook_is_better(pattern, dtype):
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 17, 40, 130):
        lines = PATTERNS[pattern](rng, 3 * n, 1)[:, 0].astype(dtype).reshape(3, n)
        for n_bits in (1, 2, 3, 5):
            found = scalar_codes(lines, n_bits)
            assert (np.diff(found.words, axis=1) >= 0.0).all()
            for line, error in zip(lines, errors_of(lines, found), strict=True):
                least = least_error(line, 2**n_bits)
                scale = np.abs(line.astype(np.float64)).max() ** 2
                assert error <= least * (1.0 + 1e-9) + 1e-30 * n * scale


def test_no_weighted_codebook_is_better():
    rng = np.random.default_rng(1)
    lines = rng.normal(size=(8, 60)).round(1)
    weights = np.exp(3.0 * rng.normal(size=lines.shape))
    for n_bits in (1, 2, 3):
        errors = errors_of(lines, scalar_codes(lines, n_bits, weights=weights), weights)
        for line, w, error in zip(lines, weights, errors, strict=True):
            assert error <= least_error(line, 2**n_bits, w) * (1.0 + 1e-9)


def test_a_weight_is_as_many_values():
    rng = np.random.default_rng(2)
    line, times = rng.normal(size=30), rng.integers(1, 5, 30)
    once = scalar_codes(line[np.newaxis], 2, weights=times[np.newaxis].astype(float))
    many = scalar_codes(np.repeat(line, times)[np.newaxis], 2)
    np.testing.assert_allclose(once.words, many.words, rtol=1e-12)


@pytest.mark.parametrize("n_bits", [2, 4, 6, 8])
def test_as_good_as_another_exact_library(n_bits):
    kmeans1d = pytest.importorskip("kmeans1d")
    rng = np.random.default_rng(n_bits)
    lines = rng.standard_t(4, size=(3, 700)).astype(np.float32)
    for line, error in zip(lines, errors_of(lines, scalar_codes(lines, n_bits)), strict=True):
        theirs = np.array(kmeans1d.cluster(line, 2**n_bits).centroids)
        distances = np.abs(line[:, np.newaxis].astype(np.float64) - theirs).min(axis=1)
        assert error <= (distances**2).sum() * (1.0 + 1e-9)


def test_long_lines_and_hard_ones_take_the_other_way(monkeypatch):
    """The same optimum, whoever finds it: the dynamic program, or the search for a penalty."""
    rng = np.random.default_rng(3)
    lines = rng.normal(size=(4, 300))
    expected = scalar_codes(lines, 4).words
    monkeypatch.setattr(scalar, "LARGEST_TABLE", 0)
    np.testing.assert_allclose(scalar_codes(lines, 4).words, expected, rtol=1e-12)
    monkeypatch.undo()
    monkeypatch.setattr(scalar, "TOLERANCE", 0.0)
    np.testing.assert_allclose(scalar_codes(lines, 4).words, expected, rtol=1e-12)


def test_a_line_that_float64_is_not_enough_for_is_known():
    """Clusters 1e-9 wide in a range of 1: in prefix sums of squares they are lost."""
    rng = np.random.default_rng(4)
    hard = np.sort(rng.choice([0.0, 0.25, 0.75, 1.0], 200) + 1e-9 * rng.random(200))
    lines = np.stack([np.sort(rng.normal(size=200)), hard])
    words, is_found = np.empty((2, 8)), np.empty(2, dtype=bool)
    ones = np.ones((1, 1))
    short_lines.find_words(lines.copy(), ones, scalar.TOLERANCE, words, is_found, 0, 2)
    assert is_found.tolist() == [True, False]
    error = errors_of(lines, scalar_codes(lines, 3))[1]
    assert error <= least_error(hard, 8) * (1.0 + 1e-9)


def test_rounding_is_not_understated():
    """What the program says of itself holds: no result is further from the optimum than that."""
    rng = np.random.default_rng(5)
    for width in (1e-1, 1e-3, 1e-5, 1e-6):
        line = np.unique(rng.choice([-1.0, 0.3, 1.0], 120) + width * rng.random(120))
        line -= line[len(line) // 2]
        weights, n = np.ones(len(line)), len(line)
        prefixes, cuts = np.empty((3, n + 1)), np.empty((9, n + 1), np.int32)
        short_lines.fill_prefixes(line, weights, prefixes)
        short_lines.fill_cuts(prefixes, n, 8, np.empty(n + 1), np.empty(n + 1), cuts)
        centers = np.empty(8)
        error = short_lines.fill_centers(line, weights, cuts, centers)
        allowed = short_lines.rounding_of(line, weights, prefixes, centers)
        assert error <= least_error(line, 8) + allowed
        assert allowed <= 1e-12 * n


def test_results_do_not_depend_on_threads(monkeypatch):
    lines = np.random.default_rng(6).normal(size=(40, 64)).astype(np.float32)
    monkeypatch.setattr(scalar, "CHUNK_VALUES", 256)
    found = []
    for n_threads in (1, 3):
        monkeypatch.setattr(scalar, "effective_n_threads", lambda n=n_threads: n)
        found += [[scalar_codes(lines, 3, scheme) for scheme in SCHEMES]]
    for one, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one.words, three.words)
        np.testing.assert_array_equal(one.codes, three.codes)


# ------------------------------------------------------------------ all schemes


@settings(max_examples=60, deadline=None)
@given(
    lines=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2), elements=FLOATS),
    n_bits=st.integers(1, 4),
)
def test_invariants(lines, n_bits):
    lines = lines.astype(np.float64)
    kept = lines.copy()
    found = {scheme: scalar_codes(lines, n_bits, scheme) for scheme in SCHEMES}
    np.testing.assert_array_equal(lines, kept)
    errors = {scheme: errors_of(lines, found[scheme]) for scheme in SCHEMES}
    slack = 1e-9 * (lines**2).sum(axis=1)
    assert (errors["kmeans"] <= errors["linear"] + slack).all()
    assert (errors["kmeans"] <= errors["linear-minmax"] + slack).all()
    finer = errors_of(lines, scalar_codes(lines, n_bits + 1))
    assert (finer <= errors["kmeans"] + slack).all()
    width = np.ptp(lines, axis=1, keepdims=True)
    for scheme, n_steps in (("linear", 2**n_bits), ("linear-minmax", 2 * (2**n_bits - 1))):
        words = np.take_along_axis(found[scheme].words, found[scheme].codes.astype(int), axis=1)
        assert (np.abs(lines - words) <= width / n_steps * (1.0 + 1e-6) + 1e-9).all(), scheme
    few = [len(np.unique(line)) <= 2**n_bits for line in lines]
    assert (errors["kmeans"][few] == 0.0).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(scheme, dtype):
    lines = np.random.default_rng(7).normal(size=(3, 50)).astype(dtype)
    found = scalar_codes(lines, 3, scheme, dtype=np.float16)
    assert found.words.dtype == np.float16
    assert found.codes.dtype == np.uint8
    wide = scalar_codes(lines.astype(np.float64), 3, scheme, dtype=np.float16)
    np.testing.assert_allclose(found.words.astype(float), wide.words, rtol=2e-3)
    expected = np.linalg.norm(np.sqrt(errors_of(lines, found)))
    expected /= np.linalg.norm(lines.astype(np.float64))
    assert relative_error(lines, found) == pytest.approx(expected, rel=1e-6)


def test_codes_are_of_the_nearest_stored_word():
    lines = np.random.default_rng(8).normal(size=(2, 5000)) + 300.0  # float16: steps of 1/4
    for scheme in ("kmeans", "linear-minmax"):
        words, codes = scalar_codes(lines, 6, scheme, dtype=np.float16)
        distances = np.abs(lines[..., np.newaxis] - words.astype(np.float64)[:, np.newaxis])
        np.testing.assert_array_equal(codes, distances.argmin(axis=2))
        assert len(np.unique(words[0])) < 64  # some words are one in float16: the first is taken


def test_distinct_values_are_kept():
    lines = np.array([[0.5, -1.25, 3.0, 0.5, 0.0, -1.25]], dtype=np.float32)
    words, codes = scalar_codes(lines, 2, dtype=np.float16)
    np.testing.assert_array_equal(words[0, codes[0]], lines[0])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_words_beyond_the_dtype(scheme):
    lines = np.array([[0.0, 1e6, 2e6]])
    with pytest.raises(ValueError, match=r"Got codebook_dtype='float16', but expected a wider one"):
        scalar_codes(lines, 1, scheme, dtype=np.float16)
