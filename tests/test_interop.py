"""To faiss and nanopq, and back: the same code words, codes and distances."""

import numpy as np
import pytest

from pgkmeans_sk import ProductQuantizer
from pgkmeans_sk.interop.faiss import (
    from_faiss,
    from_faiss_codes,
    from_index,
    to_faiss,
    to_faiss_codes,
    to_index,
)
from pgkmeans_sk.interop.nanopq import from_nanopq, to_nanopq
from tests import reference_codes as reference

faiss = pytest.importorskip("faiss")
nanopq = pytest.importorskip("nanopq")


def table(n=600, d=12, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * rng.uniform(1, 4, d)).astype(np.float32)


def assert_same_but_for_ties(ours, theirs, decoder, X):
    """Codes may differ where two words are equally far up to rounding; here hardly ever."""
    assert (ours != theirs).mean() < 1e-3
    assert reference.margins(decoder, X, theirs).max() < 1e-4


@pytest.mark.parametrize("n_codes", [4, 16, 64, 256, 512])
@pytest.mark.parametrize("block_size", [3, 4])
def test_to_faiss_and_back(n_codes, block_size):
    X = table()
    pq = ProductQuantizer(block_size, n_codes, random_state=0).fit(X)
    codes = pq.transform(X)
    theirs = to_faiss(pq)
    their_codes = from_faiss_codes(theirs.compute_codes(X), pq.code_bits_, codes.shape[1])
    assert their_codes.dtype == codes.dtype
    assert_same_but_for_ties(codes, their_codes, pq.decoder_, X)
    packed = to_faiss_codes(codes, pq.code_bits_)
    np.testing.assert_array_equal(theirs.decode(packed), pq.inverse_transform(codes))
    back = from_faiss(theirs)
    np.testing.assert_array_equal(back.codebooks_, pq.codebooks_)
    np.testing.assert_array_equal(back.transform(X), codes)
    assert (back.block_size, back.n_codes, back.codebook) == (block_size, n_codes, "per_block")


@pytest.mark.parametrize("n_codes", [16, 64, 256])
def test_index_finds_the_same(n_codes):
    X, queries = table(), table(20, seed=1)
    pq = ProductQuantizer(4, n_codes, random_state=0).fit(X)
    codes = pq.transform(X)
    index = to_index(pq, codes)
    distances, rows = index.search(queries, 10)
    ours, our_rows = pq.topk(queries, codes, 10)
    np.testing.assert_allclose(ours, distances, rtol=1e-5)
    # Rows with equal codes are equally far; faiss puts them in another order.
    np.testing.assert_array_equal(
        pq.inverse_transform(codes[rows[:, 0]]), pq.inverse_transform(codes[our_rows[:, 0]])
    )
    back, back_codes = from_index(index)
    np.testing.assert_array_equal(back_codes, codes)
    np.testing.assert_array_equal(back.codebooks_, pq.codebooks_)


def test_index_of_faiss_to_here():
    X = table(3000)
    index = faiss.IndexPQ(12, 3, 6)
    index.train(X)
    index.add(X)
    pq, codes = from_index(index)
    assert codes.shape == (3000, 3)
    assert_same_but_for_ties(pq.transform(X), codes, pq.decoder_, X)
    np.testing.assert_array_equal(pq.inverse_transform(codes), index.reconstruct_n(0, 3000))


@pytest.mark.parametrize("n_bits", [1, 3, 5, 8, 11, 16])
@pytest.mark.parametrize("n_columns", [1, 3, 8])
def test_rows_of_packed_codes(n_bits, n_columns):
    dtype = np.uint8 if n_bits <= 8 else np.uint16
    codes = np.random.default_rng(0).integers(0, 2**n_bits, (50, n_columns)).astype(dtype)
    packed = to_faiss_codes(codes, n_bits)
    assert packed.shape == (50, -(-n_columns * n_bits // 8))
    np.testing.assert_array_equal(from_faiss_codes(packed, n_bits, n_columns), codes)
    value = sum(int(code) << (n_bits * j) for j, code in enumerate(codes[7]))
    assert int.from_bytes(packed[7].tobytes(), "little") == value


def test_shared_codebooks_and_scales_are_written_out():
    X = table()
    pq = ProductQuantizer(4, 16, codebook="shared", scale="block", random_state=0)
    pq.fit(X, importance=np.linspace(1, 4, 12))
    codes = pq.transform(X)
    decoded = to_faiss(pq).decode(to_faiss_codes(codes, 4))
    np.testing.assert_allclose(decoded, pq.inverse_transform(codes), rtol=1e-5)


def test_nanopq_and_back():
    X = table()
    pq = ProductQuantizer(4, 50, random_state=0).fit(X)
    codes = pq.transform(X)
    theirs = to_nanopq(pq)
    assert_same_but_for_ties(codes, theirs.encode(X), pq.decoder_, X)
    np.testing.assert_array_equal(theirs.decode(codes), pq.inverse_transform(codes))
    query = table(1, seed=1)
    distances = theirs.dtable(query[0]).adist(codes)
    ours, _ = pq.topk(query, codes, 600)
    np.testing.assert_allclose(ours[0], np.sort(distances), rtol=1e-5)
    back = from_nanopq(theirs)
    np.testing.assert_array_equal(back.transform(X), codes)


@pytest.mark.parametrize("convert", [to_faiss, to_nanopq])
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_stages": 2}, "n_stages=2"),
        ({"rotation": "hadamard"}, "rotation='hadamard'"),
        ({"scale": "row"}, "scale='row'"),
        ({"block_size": 5}, "12 columns in blocks of 5"),
    ],
)
def test_what_others_do_not_know(convert, parameters, message):
    pq = ProductQuantizer(4, 16, random_state=0).set_params(**parameters).fit(table())
    with pytest.raises(ValueError, match=f"Got {message}, but expected what"):
        convert(pq)


def test_faiss_wants_powers_of_two():
    pq = ProductQuantizer(4, 20, random_state=0).fit(table())
    with pytest.raises(ValueError, match="Got n_codes=20, but expected a power of two"):
        to_faiss(pq)


def test_nanopq_that_cannot_come_here():
    with pytest.raises(ValueError, match="expected a trained one"):
        from_nanopq(nanopq.PQ(M=2, Ks=4, verbose=False))
    X = table()
    dot = nanopq.PQ(M=3, Ks=4, metric="dot", verbose=False).fit(X)
    with pytest.raises(ValueError, match="metric='dot'"):
        from_nanopq(dot)


@pytest.mark.parametrize(
    "parameters",
    [
        {"codebook": "shared", "n_stages": 2},
        {"rotation": "hadamard", "scale": "row"},
        {"rotation": "opq", "scale": "block", "codebook_dtype": "float16"},
    ],
)
def test_from_a_decoder(parameters):
    X = table()
    pq = ProductQuantizer(4, 16, random_state=0, **parameters).fit(X)
    again = ProductQuantizer.from_decoder(pq.decoder_)
    np.testing.assert_array_equal(again.transform(X), pq.transform(X))
    np.testing.assert_array_equal(again.n_effective_codes_, pq.n_effective_codes_)
    assert again.bits_per_weight_ == pq.bits_per_weight_
    for name, value in parameters.items():
        assert getattr(again, name) == value
