"""The steps of error feedback, one by one, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.rotation import random_hadamard
from pgkmeans_sk.quantization.code_steps import Sweep, descended
from pgkmeans_sk.quantization.encode import Encoder
from pgkmeans_sk.quantization.feedback import Effort, damped, drifted, minimised, prepared_problem
from pgkmeans_sk.quantization.output_problem import OutputProblem
from pgkmeans_sk.quantization.word_steps import refitted, with_all_words_used
from tests import reference_feedback as reference
from tests.reference_codes import slices


def exact(words):
    return words


def problem_of(n=30, d=11, size=3, n_codes=9, seed=0):
    """A problem, words, and codes that use all of them if there are enough blocks."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(d, d)) * np.exp(rng.normal(size=d))
    problem = OutputProblem(
        rng.normal(size=(n, d)), A.T @ A + 0.1 * np.eye(d), rng.uniform(0.5, 2.0, n), size
    )
    codes = rng.integers(0, n_codes, (n, -(-d // size))).astype(np.int32)
    n_first = min(n_codes, codes.size)
    codes.ravel()[:n_first] = range(n_first)
    return problem, codes, rng.normal(size=(n_codes, size))


SHAPES = [(30, 11, 3, 9), (9, 4, 1, 3), (20, 10, 10, 5), (70, 12, 6, 20), (5, 7, 4, 300)]


@pytest.mark.parametrize("shape", SHAPES)
def test_error_and_gradient(shape):
    problem, codes, words = problem_of(*shape)
    choice = problem.evaluated(codes, words)
    rows, metric, weights = problem.rows, problem.metric, problem.weights
    expected = reference.objective(rows, metric, weights, codes, words)
    assert choice.error == pytest.approx(expected, rel=1e-10)
    errors = rows - reference.decoded(codes, words, rows.shape[1])
    np.testing.assert_allclose(choice.gradient, errors @ metric, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_sweep_is_the_published_one(shape):
    problem, _, words = problem_of(*shape)
    codes, targets = Sweep(problem)(words)
    expected, wanted = reference.sweep(problem.rows, problem.metric, words)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(targets, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_a_pass_of_descent_takes_the_best_word_of_each_block(shape):
    problem, codes, words = problem_of(*shape)
    found = descended(problem, problem.evaluated(codes, words), 1)
    kept = np.zeros(codes.shape, dtype=bool)
    for word in range(len(words)):
        kept.ravel()[np.flatnonzero(codes.ravel() == word)[:1]] = True
    expected = codes.copy()
    for i in range(len(codes)):
        for p in range(codes.shape[1]):
            if kept[i, p]:
                continue
            trials = np.repeat(expected[i : i + 1], len(words), axis=0)
            trials[:, p] = range(len(words))
            errors = problem.rows[i] - reference.decoded(trials, words, len(problem.metric))
            expected[i, p] = np.einsum("ki,ij,kj->k", errors, problem.metric, errors).argmin()
    np.testing.assert_array_equal(found.codes, expected)


@settings(max_examples=30)
@given(st.sampled_from(SHAPES[:4]), st.integers(0, 10_000), st.integers(1, 4))
def test_no_step_raises_the_error_or_empties_a_word(shape, seed, n_passes):
    problem, codes, words = problem_of(*shape, seed=seed)
    choice = problem.evaluated(codes, words)
    for _ in range(2):
        for step in (
            lambda now: descended(problem, now, n_passes),
            lambda now: refitted(problem, now, lambda w: w.astype(np.float16).astype(float), 5),
        ):
            after = step(choice)
            again = problem.evaluated(after.codes, after.words)
            assert again.error == pytest.approx(after.error, rel=1e-9)
            assert after.error <= choice.error
            assert len(np.unique(after.codes)) == len(words)
            choice = after


def test_steps_do_not_write_to_what_they_are_given():
    problem, codes, words = problem_of()
    choice = problem.evaluated(codes, words)
    before = [array.copy() for array in (problem.rows, codes, words, choice.gradient)]
    descended(problem, choice, 2)
    refitted(problem, choice, exact, 3)
    Sweep(problem)(words)
    after = (problem.rows, codes, words, choice.gradient)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_words_are_those_of_least_squares(shape):
    problem, codes, words = problem_of(*shape)
    n_codes, size = words.shape
    found = refitted(problem, problem.evaluated(codes, words), exact, 500)
    weights = np.sqrt(np.repeat(problem.weights, len(problem.metric)))
    root = np.linalg.cholesky(problem.metric)
    matrix = reference.design(codes, problem.metric, n_codes, size) * weights[:, np.newaxis]
    wanted = (problem.rows @ root).ravel() * weights
    best = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    least = np.sum((matrix @ best - wanted) ** 2)
    assert found.error == pytest.approx(least, rel=1e-5)


def test_rounding_that_makes_it_worse_is_not_taken():
    problem, codes, words = problem_of()
    choice = problem.evaluated(codes, words)
    assert refitted(problem, choice, lambda w: w + 100.0, 5) is choice
    assert refitted(problem, choice, lambda w: np.full_like(w, np.nan), 5) is choice


def test_unused_words_get_the_block_that_gains_most():
    """Two words, all blocks with the first; only one block is far from it."""
    rows = np.array([[1.0, 1.0], [1.0, 9.0], [1.0, 1.2]])
    problem = OutputProblem(rows, np.eye(2), np.ones(3), 1)
    choice = problem.evaluated(np.zeros((3, 2), dtype=np.int32), np.array([[1.0], [-5.0]]))
    found = with_all_words_used(problem, choice, exact)
    np.testing.assert_array_equal(found.codes, [[0, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(found.words, [[1.0], [9.0]])
    assert found.error == pytest.approx(0.04)


@pytest.mark.parametrize("shape", [*SHAPES[:4], (25, 7, 2, 100)])
def test_all_words_become_used(shape):
    problem, codes, words = problem_of(*shape)
    start = problem.evaluated(np.zeros_like(codes), words)
    found = with_all_words_used(problem, start, exact)
    assert len(np.unique(found.codes)) == len(words)
    assert found.error < start.error


def test_rows_of_a_problem_do_not_depend_on_one_another():
    problem, _, words = problem_of(200, 12, 4, 16)
    some = OutputProblem(problem.rows[77:80], problem.metric, problem.weights[77:80], 4)
    np.testing.assert_array_equal(Sweep(some)(words)[0], Sweep(problem)(words)[0][77:80])


def test_of_several_sweeps_the_best_is_kept():
    problem, _, words = problem_of(200, 12, 4, 16)
    errors = [
        minimised(problem, words, exact, Effort(n_sweeps=n, n_descents=0)).error for n in (1, 2, 4)
    ]
    assert errors[0] > errors[1] >= errors[2]


def test_damping():
    np.testing.assert_allclose(damped(np.diag([1.0, 3.0]), 0.5), np.diag([2.0, 4.0]))


def test_drifted_rows_are_the_optimum_of_both_errors():
    """The gradient of ``E|y - Q x|^2 + damping |W - Q|^2`` vanishes there."""
    rng = np.random.default_rng(0)
    x, W = rng.normal(size=(50, 6)), rng.normal(size=(3, 6))
    y = rng.normal(size=(50, 3))
    H, drift = x.T @ x / 50, (y - x @ W.T).T @ x / 50
    Q = drifted(W, drift, H + 0.3 * np.eye(6))
    gradient = (y - x @ Q.T).T @ x / 50 + 0.3 * (W - Q)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


@pytest.mark.parametrize("part", ["column_scales", "block_scales", "row_scales", "rotation"])
def test_errors_in_prepared_rows_cost_what_they_cost_in_the_output(part):
    rng = np.random.default_rng(0)
    parts = {
        "column_scales": rng.uniform(0.5, 2.0, 12),
        "block_scales": rng.uniform(0.5, 2.0, 4),
        "row_scales": np.sort(rng.uniform(0.5, 2.0, 256)),
        "rotation": random_hadamard(12, np.random.RandomState(0)),
    }
    books = rng.normal(size=(1, 1, 8, 3))
    decoder = Decoder(codebooks=books, n_features=12, dtype=np.dtype(np.float64))
    # Column scales with each of the others, as a fit makes them.
    decoder = replace(decoder, **{name: parts[name] for name in ("column_scales", part)})
    X, A = rng.normal(size=(20, 12)), rng.normal(size=(12, 12))
    weights = rng.uniform(0.5, 2.0, 20)
    problem, scale_codes = prepared_problem(Encoder(decoder), X, A @ A.T, weights)
    codes = rng.integers(0, 8, (20, 4)).astype(np.int32)
    all_codes = codes.astype(np.uint8)
    if scale_codes is not None:
        all_codes = np.column_stack([all_codes, scale_codes])
    errors = X - decoder.decode(all_codes)
    expected = np.einsum("i,ij,jk,ik->", weights, errors, A @ A.T, errors)
    assert problem.evaluated(codes, books[0, 0]).error == pytest.approx(expected, rel=1e-9)
    assert [s.stop for s in problem.blocks] == [s.stop for s in slices(12, 3)]
