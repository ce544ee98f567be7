"""Files of codes: what was saved is loaded, bit for bit, for ever, and one tensor at a time."""

import re
import sys
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import layout_of, parts_of
from pgkmeans_sk.codes.storage import (
    CarriedTensor,
    StoredTensor,
    load_matrix,
    open_tensors,
    save_matrix,
    save_tensors,
)
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors
from tests.golden.make import FOLDER, MATRICES, MODELS, fractions, group, matrix, model, write
from tests.tensor_files import files

safetensors_numpy = pytest.importorskip("safetensors.numpy")

EXPECTED = {}
for file_name in ("expected.npz", "expected_2.npz", "expected_3.npz"):
    EXPECTED |= np.load(FOLDER / file_name)
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "storage_format.md"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file.safetensors"


def assert_same_matrix(found, expected):
    assert repr(found) == repr(expected)
    assert (found.relative_error, found.entropy) == (expected.relative_error, expected.entropy)
    assert found.decoder.dtype == expected.decoder.dtype
    arrays, others = parts_of(found), parts_of(expected)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.dtype == others[name].dtype
        assert array.flags.aligned
        assert array.flags.writeable
        np.testing.assert_array_equal(array, others[name])
    rotation, other = found.decoder.rotation, expected.decoder.rotation
    if other is not None:
        np.testing.assert_array_equal(rotation.signs, other.signs)
        assert rotation.signs.dtype == np.int8


# ------------------------------------------------------------------ one matrix


@pytest.mark.parametrize("name", MATRICES)
def test_saved_and_loaded(name, path):
    saved = MATRICES[name]()
    saved.save(path)
    loaded = CompressedMatrix.load(path)
    assert_same_matrix(loaded, saved)
    np.testing.assert_array_equal(loaded.decode(), saved.decode())
    content = path.read_bytes()
    loaded.save(str(path))
    assert path.read_bytes() == content
    assert files(path.parent).keys() == {path.name}


def test_numbers_of_any_size(path):
    for relative_error, entropy in ((0.0, 0.0), (1 / 3, 16.0), (1e-99, 9.99e98), (np.pi, 5e-324)):
        saved = matrix(
            MATRICES["shared"]().decoder, 13, relative_error=relative_error, entropy=entropy
        )
        saved.save(path)
        loaded = load_matrix(path)
        assert loaded.relative_error == relative_error
        assert loaded.entropy == (entropy if entropy > 1e-99 else 0.0)


def test_the_library_opens_it(path):
    saved = MATRICES["stages"]()
    saved.save(path)
    arrays = safetensors_numpy.load_file(path)
    expected = {f"matrix.{part}": array for part, array in parts_of(saved).items()}
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)


# ------------------------------------------------------------------ files that must load for ever


@pytest.mark.parametrize("name", MATRICES)
def test_golden_matrix(name):
    loaded = load_matrix(FOLDER / f"{name}.safetensors")
    assert_same_matrix(loaded, MATRICES[name]())
    decoded = loaded.decode()
    assert decoded.dtype == EXPECTED[name].dtype
    np.testing.assert_array_equal(decoded, EXPECTED[name])


def test_golden_model():
    compressed, carried, metadata = model()
    with open_tensors(FOLDER / "model.safetensors") as file:
        assert file.metadata == metadata
        assert file.compressed.keys() == compressed.keys()
        assert file.carried.keys() == carried.keys()
        for name, tensor in compressed.items():
            described = file.compressed[name]
            assert (described.shape, described.dtype) == (tensor.shape, tensor.dtype)
            assert (described.axis, described.aliases) == (tensor.axis, tensor.aliases)
            assert_same_matrix(file.matrix(name), tensor.matrix)
            assert file.array(name).shape == tensor.shape
            for alias in (name, *tensor.aliases):
                np.testing.assert_array_equal(file.array(alias), EXPECTED[f"model {name}"])
        for name, tensor in carried.items():
            described = file.carried[name]
            assert (described.shape, described.dtype) == (tensor.shape, tensor.dtype)
            assert described.aliases == tensor.aliases
            assert file.raw(name) == tensor.source
        np.testing.assert_array_equal(file.array("norm.bias"), EXPECTED["model norm.bias"])
        assert file.array("steps") == 1234567
        assert bytes(file.raw("tied small")) == b"\x00\x38\xb8"


def test_golden_group():
    """Three tensors, one array of codebooks."""
    compressed, _, _ = group()
    with open_tensors(FOLDER / "group.safetensors") as file:
        assert file.compressed.keys() == compressed.keys()
        loaded = {name: file.matrix(name) for name in compressed}
        for name, tensor in compressed.items():
            assert file.compressed[name].codebooks_of == tensor.codebooks_of
            assert_same_matrix(loaded[name], tensor.matrix)
            np.testing.assert_array_equal(file.array(name), EXPECTED[f"group {name}"])
        assert file.array("tied").shape == (2, 4, 5)
    shared = loaded["1.weight"].decoder.codebooks
    assert loaded["0.weight"].decoder.codebooks is shared
    assert loaded["2.weight"].decoder.codebooks is shared
    assert not np.shares_memory(loaded["3.weight"].decoder.codebooks, shared)


def test_golden_files_are_small_and_written_the_same(tmp_path):
    write(tmp_path)
    golden = {p.name: p.read_bytes() for p in FOLDER.glob("*.safetensors")}
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")} == golden
    assert sum(p.stat().st_size for p in FOLDER.glob("*.[sn]*")) < 40_000


def test_the_reader_of_the_document():
    """docs/storage_format.md says enough: a reader that knows nothing else decodes the same."""
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)[1]
    namespace = {}
    exec(compile(code, str(DOCUMENT), "exec"), namespace)
    n_tensors = 0
    for file in FOLDER.glob("*.safetensors"):
        for name, tensor in namespace["read_tensors"](file):
            expected = EXPECTED[file.stem if name == "matrix" else f"{file.stem} {name}"]
            np.testing.assert_array_equal(tensor, expected)
            n_tensors += 1
    assert n_tensors == len(MATRICES) + sum(len(make()[0]) for make in MODELS.values())


# ------------------------------------------------------------------ many tensors


def test_one_tensor_at_a_time(path):
    """Functions are called in order, and what one returned is gone before the next is called."""
    calls = []
    decoder = Decoder(codebooks=fractions((1, 1, 256, 4)), n_features=64, dtype=np.dtype("f4"))

    def make(i):
        calls.append(i)
        made = matrix(decoder, 50_000)
        return made

    layout = layout_of(matrix(decoder, 50_000))
    compressed = {
        f"t{i}": StoredTensor(
            shape=(50_000, 8, 8), dtype="F32", layout=layout, matrix=lambda i=i: make(i)
        )
        for i in range(12)
    }

    def source(i):
        calls.append(i)
        return bytes(1_000_000)

    carried = {
        f"c{i}": CarriedTensor(shape=(1_000_000,), dtype="I8", source=lambda i=i: source(i))
        for i in range(12, 15)
    }
    save_tensors(path, compressed, carried)  # compiles
    calls.clear()
    tracemalloc.start()
    make(0)
    alone = tracemalloc.get_traced_memory()[1]
    calls.clear()
    tracemalloc.reset_peak()
    save_tensors(path, compressed, carried)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert calls == list(range(15))
    assert peak < alone + 5_000_000  # the last one, and a piece of its codes unpacked
    assert path.stat().st_size > 12 * 800_000
    with open_tensors(path) as file:
        assert_same_matrix(file.matrix("t7"), make(7))


def test_compress_and_decompress_a_file(path, tmp_path):
    """What a command line would do."""
    original = tmp_path / "model.safetensors"
    weights = fractions((13, 5, 2))
    entries = [
        TensorEntry("weight", "F32", (13, 5, 2), weights),
        TensorEntry("tied", "F32", (13, 5, 2), weights),
        TensorEntry("bias", "F8_E5M2", (2, 2), b"abcd"),
    ]
    write_tensors(original, entries, {"format": "pt"})
    coded = MATRICES["shared"]()
    with TensorFile(original) as file:
        save_tensors(
            path,
            {
                "weight": StoredTensor(
                    shape=(13, 5, 2), dtype="F32", matrix=coded, aliases=("tied",)
                )
            },
            {"bias": CarriedTensor(shape=(2, 2), dtype="F8_E5M2", source=lambda: file.raw("bias"))},
            metadata=file.metadata,
        )
    restored = tmp_path / "restored.safetensors"
    with open_tensors(path) as file:
        entries = [
            TensorEntry(name, d.dtype, d.shape, lambda name=name: file.original_bytes(name))
            for tensors in (file.compressed, file.carried)
            for key, d in tensors.items()
            for name in (key, *d.aliases)
        ]
        write_tensors(restored, entries, file.metadata)
    with TensorFile(restored) as file:
        assert file.metadata == {"format": "pt"}
        assert bytes(file.raw("bias")) == b"abcd"
        for name in ("weight", "tied"):
            np.testing.assert_array_equal(file.array(name), coded.decode().reshape(13, 5, 2))


def test_restored_dtypes(path):
    coded = MATRICES["stages"]()
    for dtype in ("F64", "F32", "F16", "BF16"):
        save_tensors(path, {"a": StoredTensor(shape=(9, 6), dtype=dtype, matrix=coded)})
        with open_tensors(path) as file:
            raw = file.original_bytes("a")
        write_tensors(path, [TensorEntry("a", dtype, (9, 6), raw)], {})
        with TensorFile(path) as file:
            np.testing.assert_allclose(file.array("a"), coded.decode(), rtol=2.0**-8)


def test_the_version_is_the_least_that_says_it(path):
    """Readers of version 1 still open what has no shared codebooks, and refuse what has."""
    compressed, carried, metadata = group()
    save_tensors(path, compressed, carried, metadata)
    with TensorFile(path) as file:
        assert file.metadata["format_version"] == "2"
        assert "2.weight.codebooks" not in file
    own = {name: replace(tensor, codebooks_of=None) for name, tensor in compressed.items()}
    save_tensors(path, own, carried, metadata)
    with TensorFile(path) as file:
        assert file.metadata["format_version"] == "1"
        assert "codebooks_of" not in file.metadata["description"]
        assert "2.weight.codebooks" in file


def test_damage_to_shared_codebooks_is_found_by_all_that_use_them(path):
    save_tensors(path, *group())
    with TensorFile(path) as file:
        books = bytes(file.raw("1.weight.codebooks"))
    content = bytearray(path.read_bytes())
    content[content.index(books)] ^= 1
    path.write_bytes(content)
    with open_tensors(path) as file:
        file.matrix("3.weight")
        for name in ("0.weight", "1.weight", "2.weight", "tied"):
            with pytest.raises(
                ValueError, match=r"some file.*'1.weight.codebooks': got the CRC-32"
            ):
                file.matrix(name)


def test_a_group_saved_again_has_the_same_bytes(path):
    content = (FOLDER / "group.safetensors").read_bytes()
    with open_tensors(FOLDER / "group.safetensors") as file:
        compressed = {
            name: StoredTensor(
                shape=d.shape,
                dtype=d.dtype,
                matrix=partial(file.matrix, name),
                layout=d.layout,
                axis=d.axis,
                aliases=d.aliases,
                codebooks_of=d.codebooks_of,
            )
            for name, d in file.compressed.items()
        }
        carried = {
            name: CarriedTensor(shape=d.shape, dtype=d.dtype, source=partial(file.raw, name))
            for name, d in file.carried.items()
        }
        save_tensors(path, compressed, carried, file.metadata)
    assert path.read_bytes() == content


def test_shared_codebooks_of_another_byte_order(path):
    """What counts is what is stored."""
    compressed, _, _ = group()
    coded = compressed["1.weight"].matrix
    books = coded.decoder.codebooks.astype(">f4")
    swapped = replace(coded, decoder=replace(coded.decoder, codebooks=books))
    compressed["1.weight"] = replace(compressed["1.weight"], matrix=swapped)
    save_tensors(path, compressed)
    with open_tensors(path) as file:
        np.testing.assert_array_equal(file.array("2.weight"), EXPECTED["group 2.weight"])


def test_damage_to_one_tensor_leaves_the_others(path):
    save_tensors(path, *model())
    content = bytearray(path.read_bytes())
    with open_tensors(path) as file:
        at = content.index(bytes(file.raw("norm.bias")))
    content[at] ^= 1
    path.write_bytes(content)
    with open_tensors(path) as file:
        file.matrix("conv.weight")
        with pytest.raises(ValueError, match=r"some file.*'norm.bias': got the CRC-32 .*damaged"):
            file.raw("norm.bias")


def test_unknown_names_and_closed_files(path):
    save_tensors(path, *model())
    with open_tensors(path) as file:
        with pytest.raises(ValueError, match=r"some file.*'steps'.*of a compressed tensor.*conv"):
            file.matrix("steps")
        for method in (file.raw, file.array, file.original_bytes):
            with pytest.raises(ValueError, match=r"some file.*'other'.*of a carried tensor.*'norm"):
                method("other")
        with pytest.raises(ValueError, match=r"some file.*'small'.*expected one that NumPy"):
            file.array("small")
    with pytest.raises(ValueError, match=r"some file.*got a closed file"):
        file.matrix("conv.weight")
    with pytest.raises(ValueError, match=r"some file.*got the name 'matrix', but expected that"):
        load_matrix(path)


def test_without_the_library(path, monkeypatch):
    saved = MATRICES["shared"]()
    saved.save(path)
    before = files(path.parent)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install pgkmeans_sk\[io\]"):
        CompressedMatrix.load(path)
    with pytest.raises(ImportError, match=r"pip install pgkmeans_sk\[io\]"):
        saved.save(path)
    assert files(path.parent) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted(error, path):
    save_matrix(path, MATRICES["shared"]())
    before = files(path.parent)

    def fail():
        raise error("stop")

    compressed, carried, metadata = model()
    carried["last"] = CarriedTensor(shape=(1,), dtype="U8", source=fail)
    with pytest.raises(error, match="stop"):
        save_tensors(path, compressed, carried, metadata)
    coded = compressed["conv.weight"].matrix
    late = StoredTensor(shape=(13, 10), dtype="F32", matrix=fail, layout=layout_of(coded))
    with pytest.raises(error, match="stop"):
        save_tensors(path, {**compressed, "late": late})
    assert files(path.parent) == before
