"""Weights compressed for the least error of a layer's output."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from pgkmeans_sk import ProductQuantizer
from pgkmeans_sk.feedback import compress_with_feedback, output_shift, relative_output_error
from tests import reference_codes
from tests.reference_codes import rotation_matrix


def layer(n=96, d=24, seed=0, rank=None, dtype=np.float32):
    """Weights (n, d), and the second moment of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, rank or d)) @ rng.normal(size=(rank or d, d))
    x *= np.exp(rng.normal(size=d))
    return rng.normal(size=(n, d)).astype(dtype), x.T @ x / len(x)


def quantizer(block_size=4, n_codes=16, **parameters):
    given = {"codebook": "shared", "codebook_dtype": "float16", "random_state": 0, **parameters}
    return ProductQuantizer(block_size, n_codes, **given)


def test_error_is_what_the_docstring_says():
    W, H = layer()
    small = quantizer().compress(W)
    E = W.astype(float) - small.decode()
    expected = np.trace(E @ H @ E.T) / np.trace(W @ H @ W.T.astype(float))
    assert relative_output_error(small, W, H) == pytest.approx(expected, rel=1e-9)
    assert relative_output_error(small, small.decode(), H) == 0.0


def test_error_of_a_layer_without_output():
    zeros = np.zeros((32, 8), dtype=np.float32)
    W, H = layer(32, 8)
    with pytest.warns(UserWarning, match="distinct"):
        nothing = quantizer(4, 4).compress(zeros)
    assert relative_output_error(nothing, zeros, H) == 0.0
    assert relative_output_error(quantizer(4, 4).compress(W), zeros, H) == np.inf


@pytest.mark.parametrize("block_size", [1, 3, 4, 5])
@pytest.mark.parametrize("options", [{}, {"scale": "row"}, {"scale": "block"}])
def test_outputs_change_less_than_by_plain_quantization(block_size, options):
    W, H = layer()
    pq = quantizer(block_size, **options)
    before = pq.get_params()
    plain, better = pq.compress(W), compress_with_feedback(W, H, pq, damping=1e-3)
    assert relative_output_error(better, W, H) < 0.8 * relative_output_error(plain, W, H)
    assert pq.get_params() == before
    scales = better.decoder.column_scales
    assert better.nbytes == plain.nbytes + scales.nbytes
    assert scales.dtype == np.float16


@pytest.mark.parametrize("rotation", ["hadamard", "opq"])
def test_rotations(rotation):
    W, H = layer()
    pq = quantizer(4, rotation=rotation, codebook_dtype=None)
    plain, better = pq.compress(W), compress_with_feedback(W, H, pq)
    matrix = rotation_matrix(better.decoder.rotation)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-5)
    assert relative_output_error(better, W, H) < 0.7 * relative_output_error(plain, W, H)


def test_each_ingredient_helps():
    W, H = layer(256, 32)
    pq = quantizer(4, 32)
    errors = [
        relative_output_error(compress_with_feedback(W, H, pq, damping=0.0, **effort), W, H)
        for effort in ({"n_descents": 0}, {"n_descents": 1}, {"n_descents": 4})
    ]
    assert errors[0] > 1.05 * errors[1] > 1.05 * errors[2]
    swept_twice = compress_with_feedback(W, H, pq, damping=0.0, n_sweeps=3, n_descents=0)
    assert relative_output_error(swept_twice, W, H) < errors[0]


@pytest.mark.parametrize("block_size", [1, 4, 7])
def test_without_correlation_it_is_at_least_as_good_as_plain_quantization(block_size):
    W, _ = layer(128, 28)
    pq = quantizer(block_size)
    plain = pq.compress(W)
    same = compress_with_feedback(W, np.eye(28), pq, damping=0.0)
    assert same.relative_error <= plain.relative_error * (1 + 1e-6)


def test_what_is_recorded():
    W, H = layer()
    small = compress_with_feedback(W, H, quantizer())
    decoded = small.decode()
    np.testing.assert_allclose(
        decoded, reference_codes.decode(small.decoder, small.codes()), rtol=1e-5, atol=1e-6
    )
    error = np.linalg.norm(W - decoded) / np.linalg.norm(W)
    assert small.relative_error == pytest.approx(error, rel=1e-5)
    shares = np.bincount(small.codes().ravel()) / small.codes().size
    assert small.entropy == pytest.approx(-(shares * np.log2(shares)).sum())
    assert (small.shape, small.dtype) == ((96, 24), np.float32)
    words = small.decoder.codebooks[0, 0]
    assert [tuple(word) for word in words] == sorted(tuple(word) for word in words)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(dtype):
    W, H = layer(dtype=dtype)
    before = W.copy(), H.copy()
    small = compress_with_feedback(W, H, quantizer(codebook_dtype=None))
    assert small.dtype == small.decode().dtype == small.decoder.codebooks.dtype == dtype
    np.testing.assert_array_equal(W, before[0])
    np.testing.assert_array_equal(H, before[1])
    assert relative_output_error(small, W, H) < 0.3


def test_default_quantizer_and_lists():
    W, H = layer(512, 16)
    small = compress_with_feedback(W.tolist(), H.tolist())
    decoder = small.decoder
    assert (decoder.block_size, decoder.n_codes, small.dtype) == (8, 256, np.float64)


def test_same_bits_for_any_number_of_threads():
    W, H = layer(700, 40)
    results = []
    for n_threads in (1, 2, 5):
        with threadpool_limits(limits=n_threads):
            small = compress_with_feedback(W, H, quantizer(8, 64), n_sweeps=2)
        results.append((small.packed.tobytes(), small.decoder.codebooks.tobytes()))
    assert results[0] == results[1] == results[2]


@settings(max_examples=40)
@given(
    st.integers(2, 40),
    st.integers(1, 13),
    st.integers(1, 6),
    st.integers(2, 20),
    st.integers(0, 3),
    st.integers(0, 2**16),
)
def test_any_shape(n, d, block_size, n_codes, rank, seed):
    W, H = layer(n, d, seed, rank=rank or None)
    n_blocks = n * (d // min(block_size, d))
    pq = quantizer(block_size, min(n_codes, n_blocks)) if n_blocks >= 2 else None
    if pq is None:
        return
    small = compress_with_feedback(W, H, pq)
    codes = small.codes()
    assert len(np.unique(codes)) == pq.n_codes  # none is unused
    assert np.isfinite(small.decode()).all()
    assert relative_output_error(small, W, H) <= 1.5


def test_as_many_codes_as_blocks():
    W, H = layer(8, 8)
    small = compress_with_feedback(W, H, quantizer(4, 16, codebook_dtype="float32"))
    assert sorted(small.codes().ravel()) == list(range(16))
    assert relative_output_error(small, W, H) < 1e-8


def test_fewer_distinct_blocks_than_codes():
    W, H = layer(64, 8)
    W = np.sign(W[:, :1]) * np.ones(8, dtype=np.float32)
    small = compress_with_feedback(W, H, quantizer(4, 8))
    assert len(np.unique(small.codes())) == 8
    assert relative_output_error(small, W, H) < 1e-4


def test_dead_inputs_and_singular_moments():
    W, H = layer(128, 24, rank=5)
    H[:, 7] = H[7] = 0.0
    small = compress_with_feedback(W, H, quantizer())
    assert relative_output_error(small, W, H) < 0.05
    # Weights that nothing is known about do not run away.
    assert np.abs(small.decode()[:, 7]).max() < 10 * np.abs(W[:, 7]).max()


def test_large_weights_in_few_rows():
    """A codebook of sampled blocks would miss them: then errors handed on grew without bound."""
    W, H = layer(4000, 24)
    W[17] *= 50.0
    small = compress_with_feedback(W, H, quantizer(4, 16, rows_per_code=8))
    assert relative_output_error(small, W, H) < 0.4


def test_row_weights():
    W, H = layer()
    weights = np.where(np.arange(96) < 48, 1.0, 1e-3)
    plain = compress_with_feedback(W, H, quantizer())
    weighted = compress_with_feedback(W, H, quantizer(), row_weights=weights)

    def error_of_first_half(small):
        E = (W - small.decode())[:48].astype(float)
        return np.trace(E @ H @ E.T)

    assert error_of_first_half(weighted) < 0.95 * error_of_first_half(plain)
    ones = compress_with_feedback(W, H, quantizer(), row_weights=np.ones(96))
    np.testing.assert_array_equal(ones.codes(), plain.codes())


def test_drift_makes_up_for_other_inputs():
    """The layer before gives z instead of x; outputs should still be W x."""
    rng = np.random.default_rng(1)
    W, _ = layer(96, 24)
    x = rng.normal(size=(4000, 24)) @ rng.normal(size=(24, 24))
    z = x @ (np.eye(24) + 0.2 * rng.normal(size=(24, 24))) + 0.1 * rng.normal(size=x.shape)
    H, drift = z.T @ z / len(z), (x @ W.T - z @ W.T).T @ z / len(z)

    def error(small):
        return np.mean((x @ W.T - z @ small.decode().T) ** 2) / np.mean((x @ W.T) ** 2)

    pq = quantizer(2, 256)
    straight, drifting = (compress_with_feedback(W, H, pq, drift=d) for d in (None, drift))
    assert error(drifting) < 0.3 * error(straight)
    exact = np.linalg.norm(W - drifting.decode()) / np.linalg.norm(W)
    assert drifting.relative_error == pytest.approx(exact, rel=1e-5)


def test_shift_of_the_bias():
    W, _ = layer()
    x = np.random.default_rng(0).normal(size=(50, 24)) + 3.0
    small = quantizer().compress(W)
    shift = output_shift(small, W, x.mean(axis=0))
    outputs = x @ small.decode().T + shift
    np.testing.assert_allclose(outputs.mean(axis=0), (x @ W.T).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (np.eye(5), r"second_moment of shape \(5, 5\), but expected \(24, 24\)"),
        (np.full((24, 24), np.nan), "second_moment with values that are not finite"),
        (np.zeros((24, 24)), "second_moment that is zero or not symmetric"),
        (np.triu(np.ones((24, 24))), "second_moment that is zero or not symmetric"),
        (np.diag(np.arange(24.0) - 1.0), "second_moment with negative eigenvalues"),
    ],
)
def test_wrong_moments_are_refused(moment, message):
    W, H = layer()
    with pytest.raises(ValueError, match=message):
        compress_with_feedback(W, moment, quantizer())
    with pytest.raises(ValueError, match=message):
        relative_output_error(compress_with_feedback(W, H, quantizer()), W, moment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": quantizer(codebook="per_block")}, "codebook='per_block', but.*'shared'"),
        ({"quantizer": quantizer(n_stages=2)}, "n_stages=2, but expected 1"),
        ({"quantizer": quantizer(n_codes=600)}, "Got 576 blocks.*n_codes=600"),
        ({"quantizer": quantizer(block_size=0)}, "block_size=0"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"n_sweeps": 0}, "n_sweeps=0"),
        ({"n_descents": -1}, "n_descents=-1"),
        ({"row_weights": -np.ones(96)}, "sample_weight"),
        ({"drift": np.ones((24, 96))}, r"drift of shape \(24, 96\), but expected \(96, 24\)"),
        ({"drift": np.full((96, 24), np.inf)}, "drift of shape .* finite"),
        ({"weight": np.full((96, 24), np.nan)}, "NaN"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    W, H = layer()
    arguments = {"weight": W, "second_moment": H, "quantizer": quantizer(), **changes}
    with pytest.raises(ValueError, match=message):
        compress_with_feedback(**arguments)


def test_other_wrong_types_and_shapes():
    W, H = layer()
    with pytest.raises(TypeError, match="quantizer of type str"):
        compress_with_feedback(W, H, "pq")
    small = quantizer().compress(W)
    with pytest.raises(ValueError, match="weight of shape"):
        relative_output_error(small, W[:5], H)
    with pytest.raises(ValueError, match="mean of shape"):
        output_shift(small, W, np.ones(5))
