"""Sizes are predicted to the byte, from shapes and settings alone."""

from dataclasses import replace

import numpy as np
import pytest

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.description import CarriedDescription, CompressedDescription
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import MatrixLayout, layout_of
from pgkmeans_sk.codes.packing import pack
from pgkmeans_sk.codes.rotation import Rotation, random_hadamard
from pgkmeans_sk.codes.size import (
    bits_per_weight,
    file_bytes,
    matrix_bytes,
    planned_layout,
    tensor_bytes,
)
from pgkmeans_sk.codes.storage import StoredTensor, load_matrix, save_matrix, save_tensors
from pgkmeans_sk.codes.tensor_dtypes import NUMPY_NAMES
from tests.golden.make import MATRICES, group, model
from tests.test_storage import assert_same_matrix

pytest.importorskip("safetensors")


def random_layout(rng):
    """Any layout at all, small."""

    def maybe():
        return rng.choice([None, "F64", "F32", "F16"])

    n_features, block_size = int(rng.integers(1, 25)), int(rng.integers(1, 9))
    n_blocks = -(-n_features // block_size)
    odd = n_features // (n_features & -n_features)
    mixer_size = rng.choice([None, odd, n_features])
    return MatrixLayout(
        n_rows=int(rng.integers(1, 30)),
        n_features=n_features,
        block_size=block_size,
        n_codes=int(rng.choice([2, 3, 5, 16, 17, 256, 257, 1000])),
        n_books=int(rng.choice([1, n_blocks])),
        n_stages=int(rng.integers(1, 4)),
        dtype=str(rng.choice(["F64", "F32", "F16"])),
        codebook_dtype=str(rng.choice(["F64", "F32", "F16"])),
        row_scale_dtype=maybe(),
        block_scale_dtype=maybe(),
        column_scale_dtype=maybe(),
        mixer_size=mixer_size,
        mixer_dtype=None if mixer_size is None else str(rng.choice(["F64", "F32", "F16"])),
    )


def random_matrix(layout, rng):
    """Any values of a layout."""

    def scales(dtype, size):
        return None if dtype is None else rng.normal(size=size).astype(NUMPY_NAMES[dtype])

    rotation = None
    if layout.mixer_size is not None:
        signs = random_hadamard(layout.n_features, np.random.RandomState(0)).signs
        mixer = np.linalg.qr(rng.normal(size=(layout.mixer_size, layout.mixer_size)))[0]
        rotation = Rotation(mixer.astype(NUMPY_NAMES[layout.mixer_dtype]), signs)
    books = (layout.n_stages, layout.n_books, layout.n_codes, layout.block_size)
    decoder = Decoder(
        codebooks=rng.normal(size=books).astype(NUMPY_NAMES[layout.codebook_dtype]),
        n_features=layout.n_features,
        dtype=np.dtype(NUMPY_NAMES[layout.dtype]),
        row_scales=scales(layout.row_scale_dtype, 256),
        block_scales=scales(layout.block_scale_dtype, layout.n_blocks),
        column_scales=scales(layout.column_scale_dtype, layout.n_features),
        rotation=rotation,
    )
    codes = rng.integers(0, layout.n_codes, layout.n_packed_codes, np.uint16)
    scale_codes = rng.integers(0, 256, layout.n_rows, np.uint8)
    return CompressedMatrix(
        decoder=decoder,
        packed=pack(codes, layout.code_bits),
        scale_codes=None if layout.row_scale_dtype is None else scale_codes,
        n_rows=layout.n_rows,
        relative_error=float(rng.random()),
        entropy=float(16 * rng.random()),
    )


@pytest.mark.parametrize("seed", range(60))
def test_any_matrix(seed, tmp_path):
    rng = np.random.default_rng(seed)
    layout = random_layout(rng)
    coded = random_matrix(layout, rng)
    assert layout_of(coded) == layout
    parts = matrix_bytes(layout)
    assert sum(parts.values()) == coded.nbytes
    assert bits_per_weight(layout) == pytest.approx(coded.bits_per_weight, rel=1e-12)

    save_matrix(tmp_path / "file", coded)
    shape = (layout.n_rows, layout.n_features)
    described = CompressedDescription(shape=shape, dtype=layout.dtype, layout=layout)
    predicted = file_bytes({"matrix": described})
    assert sum(predicted.values()) == (tmp_path / "file").stat().st_size
    assert {f"matrix.{part}": size for part, size in parts.items()} | {
        "": predicted[""]
    } == predicted

    loaded = load_matrix(tmp_path / "file")
    assert_same_matrix(loaded, coded)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(loaded.decode(), coded.decode())


def predicted_bytes(compressed, carried, metadata):
    """By what is known of tensors without their arrays."""
    described = {
        name: CompressedDescription(
            shape=t.shape,
            dtype=t.dtype,
            axis=t.axis,
            aliases=t.aliases,
            layout=layout_of(t.matrix),
            codebooks_of=t.codebooks_of,
        )
        for name, t in compressed.items()
    }
    plain = {
        name: CarriedDescription(shape=t.shape, dtype=t.dtype, aliases=t.aliases)
        for name, t in carried.items()
    }
    found = file_bytes(described, plain, metadata)
    for name, tensor in described.items():
        parts = [size for key, size in found.items() if key.rpartition(".")[0] == name]
        assert tensor_bytes(tensor) == sum(parts)
    return found


def test_shared_codebooks_count_once(tmp_path):
    save_tensors(tmp_path / "file", *group())
    predicted = predicted_bytes(*group())
    assert sum(predicted.values()) == (tmp_path / "file").stat().st_size
    assert {name for name in predicted if name.endswith(".codebooks")} == {
        "1.weight.codebooks",
        "3.weight.codebooks",
    }
    assert predicted["1.weight.codebooks"] == 4 * 2 * 7 * 3
    compressed, carried, metadata = group()
    own = {name: replace(tensor, codebooks_of=None) for name, tensor in compressed.items()}
    save_tensors(tmp_path / "larger", own, carried, metadata)
    assert (
        sum(predicted_bytes(own, carried, metadata).values())
        == (tmp_path / "larger").stat().st_size
    )


def test_a_model(tmp_path):
    save_tensors(tmp_path / "file", *model())
    predicted = predicted_bytes(*model())
    assert sum(predicted.values()) == (tmp_path / "file").stat().st_size
    assert predicted["norm.bias"] == 30
    assert predicted["conv.weight.codes"] == 15  # 13 rows of 3 codes of 3 bits
    assert predicted["empty"] == 0


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-300, 1e-99, 0.1, 123456.789, 9.9e98])
def test_the_same_size_for_any_numbers(value, tmp_path):
    coded = MATRICES["shared"]()
    save_matrix(tmp_path / "a", coded)
    save_matrix(tmp_path / "b", replace(coded, relative_error=value, entropy=value))
    assert (tmp_path / "a").stat().st_size == (tmp_path / "b").stat().st_size


@pytest.mark.parametrize("value", [-1e-9, np.nan, np.inf, 1e99])
@pytest.mark.parametrize("name", ["relative_error", "entropy"])
def test_numbers_that_have_no_such_form(name, value, tmp_path):
    coded = replace(MATRICES["shared"](), **{name: value})
    with pytest.raises(ValueError, match=rf"some file.*tensor 'a': got {name}=.*expected a number"):
        save_tensors(
            tmp_path / "some file", {"a": StoredTensor(shape=(13, 10), dtype="F32", matrix=coded)}
        )
    assert list(tmp_path.iterdir()) == []


SIZES = {"n_rows": 4, "n_features": 12, "block_size": 4, "n_codes": 16, "n_books": 3}
WRONG_LAYOUTS = [
    *[
        ({name: value}, f"got {name}=")
        for name in SIZES
        for value in (0, -1, 1.0, True, None, 2**63)
    ],
    ({"n_stages": 0}, "got n_stages=0, but expected an int from 1"),
    ({"n_codes": 65537}, "got n_codes=65537, but expected 2 to 65536"),
    ({"n_codes": 1}, "got n_codes=1, but expected 2 to 65536"),
    ({"n_books": 2}, "got n_books=2, but expected 1 or 3, one for each block"),
    ({"dtype": "BF16"}, "got dtype='BF16', but expected one of F64, F32, F16"),
    ({"codebook_dtype": "U8"}, "got codebook_dtype='U8', but expected one of F64"),
    ({"row_scale_dtype": []}, r"got row_scale_dtype=\[\], but expected one of F64"),
    ({"mixer_size": 3}, "got mixer_size=3 and mixer_dtype=None, but expected both or neither"),
    ({"mixer_dtype": "F32"}, "got mixer_size=None and mixer_dtype='F32', but expected both"),
    ({"mixer_size": 5, "mixer_dtype": "F32"}, "got mixer_size=5, but expected a divisor of n_f"),
    ({"mixer_size": 2, "mixer_dtype": "F32"}, "mixer_size=2.*with a power of two as quotient"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_LAYOUTS)
def test_wrong_layout(change, message):
    with pytest.raises(ValueError, match=message):
        MatrixLayout(**{**SIZES, **change})


def test_planned_layouts():
    """In the words of a ProductQuantizer."""
    layout = planned_layout((100, 48))
    assert (layout.n_rows, layout.n_features, layout.block_size, layout.n_books) == (100, 48, 8, 6)
    assert matrix_bytes(layout) == {"codes": 600, "codebooks": 4 * 256 * 48}
    layout = planned_layout(
        (100, 48),
        block_size=5,
        n_codes=16,
        codebook="shared",
        n_stages=2,
        rotation="hadamard",
        scale="row",
        has_column_scales=True,
        codebook_dtype="F16",
    )
    assert matrix_bytes(layout) == {
        "codes": 1000,
        "codebooks": 2 * 2 * 16 * 5,
        "scale_codes": 100,
        "row_scales": 512,
        "column_scales": 96,
        "rotation_mixer": 2 * 3 * 3,
        "rotation_signs": 6,
    }
    layout = planned_layout((9, 3), block_size=8, scale="block", rotation="opq", dtype="F64")
    assert layout.block_size == 3
    assert matrix_bytes(layout)["block_scales"] == 8
    assert matrix_bytes(layout)["rotation_mixer"] == 72


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook": "own"}, "codebook='own', but expected one of 'per_block', 'shared'"),
        ({"rotation": "pca"}, "rotation='pca', but expected one of 'hadamard', 'opq'"),
        ({"scale": "column"}, "scale='column', but expected one of 'row', 'block'"),
        ({"n_codes": 1}, "n_codes=1, but expected 2 to 65536"),
        ({"block_size": 0}, "block_size=0, but expected an int from 1"),
        ({"shape": (3, 0)}, "n_features=0, but expected an int from 1"),
        ({"dtype": "float32"}, "dtype='float32', but expected one of F64"),
    ],
)
def test_wrong_plans(change, message):
    with pytest.raises(ValueError, match=message):
        planned_layout(**{"shape": (3, 4), **change})


def test_sizes_that_no_memory_holds():
    """Arithmetic is exact, and nothing is allocated."""
    layout = MatrixLayout(n_rows=10**15, n_features=10**6, block_size=8, n_codes=4096, n_books=1)
    assert matrix_bytes(layout)["codes"] == 10**15 * 125_000 * 12 // 8
    assert bits_per_weight(layout) == pytest.approx(1.5)
