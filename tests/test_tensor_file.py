"""Reading safetensors files: any dtype bit for bit, and only what is valid."""

import os
import struct

import numpy as np
import pytest

from pgkmeans_sk.codes.tensor_dtypes import (
    ITEM_BITS,
    NUMPY_NAMES,
    dtype_name,
    stored_bytes,
    to_array,
    to_bytes,
)
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors
from tests.tensor_files import ENTRIES, METADATA, content, items, raw_file, refused

safetensors_numpy = pytest.importorskip("safetensors.numpy")
ml_dtypes = pytest.importorskip("ml_dtypes")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file.safetensors"


@pytest.fixture
def written(path):
    write_tensors(path, ENTRIES, METADATA)
    return path


# ------------------------------------------------------------------ what was written is read


def test_all_dtypes_bit_for_bit(written):
    with TensorFile(written) as file:
        assert file.metadata == METADATA
        assert set(file.names) == {entry.name for entry in ENTRIES}
        assert file.n_bytes == written.stat().st_size
        for name, dtype, shape, source in ENTRIES:
            assert name in file
            assert (file.dtype(name), file.shape(name)) == (dtype, shape)
            assert bytes(file.raw(name)) == content(source)
    assert "other" not in file


def test_arrays(written):
    with TensorFile(written) as file:
        for dtype, numpy_name in NUMPY_NAMES.items():
            found = file.array(f"a.{dtype}")
            assert found.dtype == np.dtype(numpy_name)
            assert found.flags.writeable
            assert found.flags.c_contiguous
            assert found.tobytes() == bytes(file.raw(f"a.{dtype}"))
        halves = np.frombuffer(file.raw("a.BF16"), ml_dtypes.bfloat16).reshape(3, 4)
        found = file.array("a.BF16")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, halves.astype(np.float32))
        assert file.array("empty").shape == (2, 0, 5)
        assert file.array("scalar").shape == ()
        for dtype in ITEM_BITS.keys() - NUMPY_NAMES.keys() - {"BF16"}:
            with refused(f"tensor 'a.{dtype}': got dtype {dtype}, but expected one"):
                file.array(f"a.{dtype}")


def test_the_library_reads_the_same(path):
    entries = [TensorEntry(d, d, (2, 3), items(d, (2, 3))) for d in NUMPY_NAMES]
    write_tensors(path, entries, {})
    found = safetensors_numpy.load_file(path)
    assert found.keys() == set(NUMPY_NAMES)
    for entry in entries:
        assert found[entry.name].shape == (2, 3)
        assert found[entry.name].dtype == NUMPY_NAMES[entry.name]
        assert found[entry.name].tobytes() == content(entry.source)


def test_torch_reads_the_same(path):
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    values = np.array([[1.0, -0.0, 3.140625], [np.inf, 2.0**-130, -7.0]], dtype=np.float32)
    entries = [
        TensorEntry(d, d, (2, 3), to_bytes(values, d)) for d in ("F64", "F32", "F16", "BF16")
    ]
    write_tensors(path, [*entries, TensorEntry("codes", "U8", (3,), b"abc")], METADATA)
    found = load_file(path)
    assert found["BF16"].dtype == torch.bfloat16
    assert found["codes"].tolist() == [97, 98, 99]
    with TensorFile(path) as file:
        for entry in entries:
            np.testing.assert_array_equal(found[entry.name].double(), file.array(entry.name))


def test_what_the_library_writes(path):
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.arange(3, dtype=np.uint8)}
    safetensors_numpy.save_file(arrays, path, metadata={"k": "v"})
    with TensorFile(path) as file:
        assert file.names == ("b", "a")
        assert file.metadata == {"k": "v"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.array(name), array)


def test_items_that_are_not_aligned(path):
    head = (
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        '"b":{"dtype":"F64","shape":[2],"data_offsets":[1,17]}}'
    )
    raw_file(path, head, b"x" + struct.pack("<2d", 0.5, -2.0))
    with TensorFile(path) as file:
        found = file.array("b")
        assert found.flags.aligned
        assert found.tolist() == [0.5, -2.0]
        assert file.metadata == {}


def test_raw_is_read_only_and_outlives_the_file(written):
    with TensorFile(written) as file:
        raw = file.raw("odd")
    assert raw.readonly
    written.unlink()
    assert bytes(raw) == b"abc"
    with refused(r"got a closed file, but expected an open"):
        file.raw("odd")
    for method in (file.raw, file.array, file.dtype, file.shape):
        with refused(r"got the name 'nothing'"):
            method("nothing")


# ------------------------------------------------------------------ dtypes


def test_bfloat16_is_rounded_as_elsewhere():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, np.uint32)
    ties = (rng.integers(0, 2**16, 5000, np.uint32) << 16) + 0x8000
    edges = np.array([0, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 1])
    values = np.concatenate([bits, ties, ties + 1, ties - 1, edges.astype(np.uint32)])
    values = values.view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    found = np.frombuffer(to_bytes(values, "BF16"), ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    numbers = ~np.isnan(values)
    assert found[numbers].tobytes() == expected[numbers].tobytes()


@pytest.mark.parametrize("dtype", [*NUMPY_NAMES, "BF16"])
def test_bytes_and_back(dtype):
    values = (np.arange(24).reshape(2, 3, 4) * 2).astype(NUMPY_NAMES.get(dtype, "f4"))
    for array in (
        values,
        values.T,
        values[:, ::2],
        values[:0],
        values.astype(f">{values.dtype.str[1:]}"),
    ):
        raw = to_bytes(array, dtype)
        assert raw.nbytes == stored_bytes(dtype, array.shape)
        np.testing.assert_array_equal(to_array(raw, dtype, array.shape), array)


def test_names_of_dtypes():
    for name, numpy_name in NUMPY_NAMES.items():
        assert dtype_name(np.dtype(numpy_name)) == name
        assert dtype_name(np.dtype(f">{numpy_name}")) == name
    for dtype in (np.complex128, np.bool_, "S4", ml_dtypes.bfloat16):
        with pytest.raises(ValueError, match=r"got dtype .*, but expected one of F64"):
            dtype_name(np.dtype(dtype))
    for function in (lambda: to_bytes(np.zeros(2), "C64"), lambda: to_array(b"", "BOOL", (0,))):
        with pytest.raises(ValueError, match="but expected one that NumPy can hold"):
            function()
    with pytest.raises(ValueError, match="got dtype 'F7', but expected one of F64"):
        stored_bytes("F7", (1,))
    with pytest.raises(ValueError, match="got 12 bits of F4, but expected whole bytes"):
        stored_bytes("F4", (3,))
    with pytest.raises(ValueError, match=r"got 3 bytes, but expected 8 for dtype F32 and shape"):
        to_array(b"abc", "F32", (2,))


# ------------------------------------------------------------------ files that are not valid

ONE = '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
WRONG_HEADERS = {
    "not JSON": ("{,}", b"", "not a valid safetensors file"),
    "not UTF-8": (b'{"\xff":1}', b"", "not a valid safetensors file.*(?i:utf-8)"),
    "a list": ("[]", b"", "not a valid safetensors file"),
    "nested": ("[" * 100_000, b"", "not a valid safetensors file"),
    "no data": (ONE, b"", "not a valid safetensors file"),
    "too much data": (ONE, b"12", "not a valid safetensors file"),
    "unknown dtype": (ONE.replace("U8", "U9"), b"1", "not a valid safetensors file.*U9"),
    "more than there is": (ONE.replace("[1]", "[9]"), b"1", "not a valid safetensors file"),
    "negative": (ONE.replace("[1]", "[-1]"), b"1", "not a valid safetensors file"),
    "overflow": (ONE.replace("[1]", f"[{2**40},{2**40}]"), b"1", "not a valid safetensors file"),
    "metadata of numbers": ('{"__metadata__":{"a":1}}', b"", "not a valid safetensors file"),
    # These are accepted by the library.
    "a tensor twice": (
        ONE[:-1] + "," + ONE[1:],
        b"1",
        "got the key 'a' twice, but expected it once",
    ),
    "metadata twice": ('{"__metadata__":{"k":"1","k":"2"}}', b"", "got the key 'k' twice"),
    "NaN beside": (ONE[:-2] + ',"x":NaN}}', b"1", "not a valid safetensors file"),
    "a list for a tensor": (
        '{"a":["U8",[1],[0,1]]}',
        b"1",
        r"tensor 'a': got \['U8', \[1\], \[0, 1\]\], but expected a JSON object",
    ),
    "beyond int64": (
        f'{{"a":{{"dtype":"U8","shape":[0,{2**63}],"data_offsets":[0,0]}}}}',
        b"",
        f"tensor 'a': got the shape .0, {2**63}., but expected sizes of at most",
    ),
}


@pytest.mark.parametrize("case", WRONG_HEADERS)
def test_wrong_header(case, path):
    head, data, message = WRONG_HEADERS[case]
    raw_file(path, head, data)
    with refused(message):
        TensorFile(path)


def test_wrong_length(path, written):
    whole = written.read_bytes()
    for end in (0, 1, 7, 8, 9, 100, len(whole) - 1):
        path.write_bytes(whole[:end])
        with refused("not a valid safetensors file"):
            TensorFile(path)
    for length in (2**64 - 1, 2**63, 10**8 + 1, 10**8, len(whole)):
        raw_file(path, ONE, b"1", length)
        with refused("not a valid safetensors file"):
            TensorFile(path)


def test_no_file_at_all(tmp_path):
    with pytest.raises(FileNotFoundError):
        TensorFile(tmp_path / "nothing")
    with pytest.raises(OSError, match=r"[Dd]irectory|[Dd]enied"):
        TensorFile(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="pipe: not a regular file"):
            TensorFile(tmp_path / "pipe")
