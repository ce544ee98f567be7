"""What cannot be stored is said before an old file is touched: by tensor, value, expectation."""

from dataclasses import replace

import numpy as np
import pytest

from pgkmeans_sk.codes.matrix_layout import layout_of
from pgkmeans_sk.codes.rotation import Rotation
from pgkmeans_sk.codes.storage import CarriedTensor, StoredTensor, save_matrix, save_tensors
from tests.golden.make import MATRICES, group
from tests.tensor_files import files, refused

pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file"


def never():
    raise AssertionError("names are compared before anything is made")


def stored(name="shared", **changes):
    coded = MATRICES[name]()
    lazy = {"matrix": never, "layout": layout_of(coded), "shape": coded.shape, "dtype": "F32"}
    return StoredTensor(**{**lazy, **changes})


def carried(**changes):
    return CarriedTensor(**{"shape": (1,), "dtype": "U8", "source": never, **changes})


WRONG_NAMES = {
    "carried as an array": (
        {"a": stored()},
        {"a.codes": carried()},
        "got two tensors to store as 'a.codes'",
    ),
    "carried as compressed": ({"a": stored()}, {"a": carried()}, "two tensors of the name 'a'"),
    "alias as compressed": (
        {"a": stored(aliases=("b",)), "b": stored()},
        {},
        "two tensors of the name 'b'",
    ),
    "alias as carried": ({"a": stored(aliases=("b",))}, {"b": carried()}, "of the name 'b'"),
    "alias as alias": ({}, {"a": carried(aliases=("c",)), "b": carried(aliases=("c",))}, "'c'"),
    "own alias": ({"a": stored(aliases=("a",))}, {}, "two tensors of the name 'a', but expected"),
    "arrays of two": ({"a": stored(), "a.codes": stored()}, {"a.codes.codes": carried()}, "'a.cod"),
    "no Unicode": ({"\ud800": stored()}, {}, r"the name '\\ud800', but expected Unicode"),
    "no Unicode in an alias": ({"a": stored(aliases=("\ud800",))}, {}, "but expected Unicode"),
    "not a string": ({3: stored()}, {}, "the name 3, but expected Unicode"),
    "reserved": ({}, {"__metadata__": carried()}, "'__metadata__'"),
    "dtype": ({"a": stored(dtype="F8_E4M3")}, {}, "tensor 'a': got dtype='F8_E4M3'.*F64, F32, F16"),
    "shape": (
        {"a": stored(shape=(10, 13))},
        {},
        r"'a': got the shape \(10, 13\) with axis=0.*13 r",
    ),
    "axis": ({"a": stored(shape=(10, 13), axis=2)}, {}, "'a': got axis=2, but expected one of the"),
    "scalar": ({"a": stored(shape=())}, {}, "'a': got axis=0, but expected one of the 0 axes"),
    "empty": ({"a": stored(shape=(0, 10))}, {}, "'a': got a size of the shape=0, but expected an"),
    "no layout": ({"a": stored(layout=None)}, {}, "'a': got a function .* expected its layout"),
    "books of none": (
        {"a": stored(codebooks_of="b")},
        {"b": carried()},
        "tensor 'a': got codebooks_of='b', but expected the name of a compressed tensor",
    ),
    "books of an alias": (
        {"a": stored(codebooks_of="c"), "b": stored(aliases=("c",))},
        {},
        "'a': got codebooks_of='c', but expected the name of a compressed",
    ),
    "own books of another": (
        {"a": stored(codebooks_of="a")},
        {},
        "'a': got codebooks_of='a', but expected a tensor with codebooks of its own",
    ),
    "a chain": (
        {"a": stored(codebooks_of="b"), "b": stored(codebooks_of="c"), "c": stored()},
        {},
        "'a': got codebooks_of='b', but expected .* not those of 'c'",
    ),
    "other books": (
        {"a": stored(codebooks_of="b"), "b": stored("float16", dtype="F16")},
        {},
        r"'a': got codebooks_of='b', which are F16 of the shape \(1, 2, 300, 1\), but expected F32 "
        r"of the shape \(1, 1, 8, 4\)",
    ),
    "no name": ({"a": stored(codebooks_of=3)}, {}, "'a': got codebooks_of=3, but expected the na"),
    "no hash": (
        {"a": stored(codebooks_of=[])},
        {},
        r"'a': got codebooks_of=\[\], but expected the",
    ),
    "carried dtype": ({}, {"a": carried(dtype="float32")}, "'a': got dtype 'float32'"),
}


@pytest.mark.parametrize("case", WRONG_NAMES)
def test_refused_before_anything_is_made(case, path):
    path.write_bytes(b"old")
    compressed, plain, message = WRONG_NAMES[case]
    with refused(message):
        save_tensors(path, compressed, plain)
    assert files(path.parent) == {path.name: b"old"}


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": "\ud800"}, {2: "b"}])
def test_metadata_that_is_not_text(metadata, path):
    with refused("got metadata .*, but expected two Unicode strings"):
        save_tensors(path, {"a": stored()}, metadata=metadata)
    assert files(path.parent) == {}


def changed(name, **changes):
    """A matrix whose decoder or own fields are others."""
    coded = MATRICES[name]()
    own = {key: changes.pop(key) for key in ("packed", "scale_codes", "n_rows") if key in changes}
    return replace(coded, decoder=replace(coded.decoder, **changes), **own)


def books(name, value):
    found = MATRICES[name]().decoder.codebooks.copy()
    found.flat[5] = value
    return found


HADAMARD = MATRICES["hadamard"]().decoder.rotation
ZEROS = np.zeros(256, np.uint8)
WRONG_MATRICES = {
    "NaN": (changed("shared", codebooks=books("shared", np.nan)), "'codebooks': got the value nan"),
    "infinity": (changed("shared", codebooks=books("shared", -np.inf)), "got the value -inf, but"),
    "flat codebooks": (changed("shared", codebooks=np.ones((8, 4))), "expected four axes"),
    "integers": (changed("shared", codebooks=np.ones((1, 1, 8, 4), int)), "codebook_dtype='I64'"),
    "complex": (
        changed("shared", codebooks=np.ones((1, 1, 8, 4), complex)),
        "got dtype complex128",
    ),
    "too few books": (changed("per_block", codebooks=np.ones((1, 2, 5, 4))), "got n_books=2, but"),
    "code beyond": (
        changed("per_block", packed=MATRICES["per_block"]().packed | 7),
        "got the code 7",
    ),
    "too few codes": (
        changed("shared", packed=ZEROS[:14]),
        r"'codes': got dtype U8 and shape \(14,\)",
    ),
    "wide codes": (changed("shared", packed=np.zeros(15, np.uint16)), "'codes': got dtype U16"),
    "spare bits": (changed("shared", packed=ZEROS[:15] + 255), "'codes': got the last byte 255"),
    "no sizes": (changed("stages", scale_codes=None), "'scale_codes': got none, but expected one"),
    "sizes of nothing": (changed("shared", scale_codes=ZEROS[:13]), "'scale_codes': got one, but"),
    "few row scales": (changed("stages", row_scales=np.ones(255)), r"'row_scales': .*\(255,\)"),
    "NaN in scales": (
        changed("stages", block_scales=np.full(3, np.nan)),
        "'block_scales': got the",
    ),
    "few block scales": (changed("stages", block_scales=np.ones(2)), r"'block_scales': .*\(2,\)"),
    "column scales": (
        changed("stages", column_scales=np.ones((6, 1))),
        r"'column_scales': .*\(6, 1",
    ),
    "signs": (
        changed("hadamard", rotation=Rotation(HADAMARD.mixer, ZEROS[:48])),
        "signs .* 1 or -1",
    ),
    "few signs": (
        changed("hadamard", rotation=Rotation(HADAMARD.mixer, HADAMARD.signs[:47])),
        "rotation's signs .*, but expected 48",
    ),
    "mixer": (
        changed("hadamard", rotation=Rotation(HADAMARD.mixer * 1.1, HADAMARD.signs)),
        "'rotation_mixer': .*off by 0.2.*expected an orthogonal one",
    ),
    "huge mixer": (
        changed("hadamard", rotation=Rotation(HADAMARD.mixer * 1e30, HADAMARD.signs)),
        "'rotation_mixer': .*expected an orthogonal one",
    ),
    "mixer's shape": (
        changed("hadamard", rotation=Rotation(np.ones((3, 2)), HADAMARD.signs)),
        r"'rotation_mixer': got dtype F64 and shape \(3, 2\)",
    ),
    "rows": (changed("shared", n_rows=12), "'codes': got dtype U8 and shape"),
    "dtype": (
        changed("shared", dtype=np.dtype(np.int32)),
        "got dtype='I32', but expected one of F64",
    ),
}


@pytest.mark.parametrize("case", WRONG_MATRICES)
def test_matrices_that_could_not_be_loaded(case, path):
    path.write_bytes(b"old")
    coded, message = WRONG_MATRICES[case]
    with refused(message):
        save_matrix(path, coded)
    assert files(path.parent) == {path.name: b"old"}


@pytest.mark.parametrize("late", ["0.weight", "1.weight", "2.weight"])
def test_other_codebooks_than_those_of_the_group(late, path):
    """One bit of one code word: no matrix changes by being saved. In any order, lazily or not."""
    path.write_bytes(b"old")
    compressed, plain, metadata = group()
    tensor = compressed[late]
    words = tensor.matrix.decoder.codebooks.copy()
    words[words == 0] = -0.0
    other = replace(tensor.matrix, decoder=replace(tensor.matrix.decoder, codebooks=words))
    np.testing.assert_array_equal(other.decode(), tensor.matrix.decode())
    first = "1.weight" if late == "0.weight" else "0.weight"
    rest = {name: compressed[name] for name in compressed if name not in (first, late)}
    message = f"tensor '{late}': got other codebooks than tensor '{first}', .* of '1.weight'"
    for made in (other, lambda: other):
        changed = replace(tensor, matrix=made, layout=layout_of(other))
        with refused(message):
            save_tensors(path, {first: compressed[first], late: changed, **rest}, plain, metadata)
        assert files(path.parent) == {path.name: b"old"}


def test_codebooks_in_memory_that_is_used_again(path):
    """Whoever makes matrices one by one may make all of them in the same array."""
    compressed, _, _ = group()
    words = np.empty_like(compressed["1.weight"].matrix.decoder.codebooks)

    def make(name, shift):
        coded = compressed[name].matrix
        words[...] = coded.decoder.codebooks + shift
        return replace(coded, decoder=replace(coded.decoder, codebooks=words))

    lazy = {
        name: replace(
            compressed[name],
            layout=layout_of(compressed[name].matrix),
            matrix=lambda name=name, shift=shift: make(name, shift),
        )
        for name, shift in (("0.weight", 0), ("1.weight", 1))
    }
    with refused("tensor '1.weight': got other codebooks than tensor '0.weight'"):
        save_tensors(path, lazy)


def test_another_matrix_than_announced(path):
    tensor = stored("shared", matrix=MATRICES["one_bit"])
    with refused("tensor 'a': got a matrix of MatrixLayout.*, but expected MatrixLayout"):
        save_tensors(path, {"a": tensor})
    assert files(path.parent) == {}
