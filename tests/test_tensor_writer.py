"""Writing safetensors files: one tensor in memory at a time, all of a file or nothing."""

import json
import os
import stat
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from pgkmeans_sk.codes.tensor_dtypes import ITEM_BITS, stored_bytes
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.codes.tensor_writer import (
    TensorEntry,
    TensorSpec,
    header,
    header_bytes,
    open_writer,
    write_tensors,
)
from tests.tensor_files import ENTRIES, METADATA, files, refused

pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file.safetensors"


@pytest.fixture
def written(path):
    write_tensors(path, ENTRIES, METADATA)
    return path


# ------------------------------------------------------------------ layout


def test_layout(written):
    raw = written.read_bytes()
    specs = [TensorSpec(*entry[:3]) for entry in ENTRIES]
    start = header_bytes(specs, METADATA)
    assert raw[:start] == header(specs, METADATA)
    assert start % 8 == 0
    assert start == 8 + int.from_bytes(raw[:8], "little")
    assert len(raw) == start + sum(stored_bytes(s.dtype, s.shape) for s in specs)
    entries = json.loads(raw[8:start])
    assert entries.pop("__metadata__") == METADATA
    widths = [ITEM_BITS[entry["dtype"]] for entry in entries.values()]
    assert widths == sorted(widths, reverse=True)
    end = 0
    for entry in entries.values():
        assert entry["data_offsets"][0] == end
        assert end * 8 % max(8, ITEM_BITS[entry["dtype"]]) == 0  # aligned to its own items
        end = entry["data_offsets"][1]


def test_same_file_for_any_order(path, written):
    other = path.with_name("other")
    write_tensors(other, reversed(ENTRIES), METADATA)
    assert other.read_bytes() == written.read_bytes()


def test_no_tensors_and_no_metadata(path):
    write_tensors(path, [], {})
    assert path.read_bytes() == struct.pack("<Q", 8) + b"{}      "
    with TensorFile(path) as file:
        assert file.names == ()
        assert file.metadata == {}


def test_one_tensor_in_memory_at_a_time(path):
    megabyte = 1 << 20
    entries = [
        TensorEntry(f"{i:02}", "U8", (megabyte,), lambda i=i: bytes([i]) * megabyte)
        for i in range(20)
    ]
    tracemalloc.start()
    write_tensors(path, entries, {})
    with TensorFile(path) as file:
        assert all(file.raw(name)[-1] == int(name) for name in file.names)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * megabyte


def test_header_last(path):
    """Tensors in any order, and metadata that is known only after them."""
    specs = [TensorSpec("a", "U8", (2,)), TensorSpec("b", "F32", (1,))]
    with open_writer(path, specs, {"sum": "0000"}) as writer:
        writer.write("a", b"xy")
        writer.write("b", np.float32(2.0))
        writer.metadata = {"sum": "1234"}
    with TensorFile(path) as file:
        assert file.metadata == {"sum": "1234"}
        assert bytes(file.raw("a")) == b"xy"
        assert file.array("b").tolist() == [2.0]


# ------------------------------------------------------------------ what cannot be written


def entry(name="a", dtype="U8", shape=(2,), source=b"xy"):
    return TensorEntry(name, dtype, shape, source)


WRONG_ENTRIES = {
    "twice": ([entry(), entry()], "got a second tensor 'a', but expected unique names"),
    "reserved": ([entry("__metadata__")], "'__metadata__'"),
    "surrogate": ([entry("\ud800")], r"the name '\\ud800', but expected Unicode"),
    "not a string": ([entry(3)], "the name 3, but expected Unicode"),
    "dtype": ([entry(dtype="float32")], "tensor 'a': got dtype 'float32', but expected one of F64"),
    "negative": ([entry(shape=(-1, -2))], r"tensor 'a': got the shape \(-1, -2\)"),
    "part of a byte": ([entry(dtype="F4", shape=(3,))], "tensor 'a': got 12 bits of F4"),
    "too short": ([entry(source=b"x")], "tensor 'a': got 1 bytes, but expected 2"),
    "too long": ([entry(source=lambda: b"xyz")], "tensor 'a': got 3 bytes, but expected 2"),
    "strided": ([entry(source=np.zeros(4, np.uint8)[::2])], "tensor 'a'.*contiguous in C order"),
}


@pytest.mark.parametrize("case", WRONG_ENTRIES)
def test_wrong_entries(case, path):
    path.write_bytes(b"old")
    entries, message = WRONG_ENTRIES[case]
    with refused(message):
        write_tensors(path, entries, {})
    assert files(path.parent) == {path.name: b"old"}


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": "\udfff"}, {"a": None}])
def test_wrong_metadata(metadata, path):
    with refused("got metadata .*, but expected two Unicode"):
        write_tensors(path, [entry()], metadata)
    assert files(path.parent) == {}


def test_header_that_nobody_would_read(path, monkeypatch):
    monkeypatch.setattr("pgkmeans_sk.codes.tensor_writer.LARGEST_HEADER", 80)
    write_tensors(path, [entry()], {})
    old = path.read_bytes()
    with refused("got a header of 112 bytes, but expected at most 80"):
        write_tensors(path, [entry(), entry("b")], {})
    assert files(path.parent) == {path.name: old}


def test_metadata_of_another_length_and_tensors_left_out(path):
    path.write_bytes(b"old")

    def write(data, metadata):
        with open_writer(path, [TensorSpec("a", "U8", (1,))], {"k": "1"}) as writer:
            writer.metadata = metadata
            if data is not None:
                writer.write("a", data)

    with refused("got a header of [0-9]+ bytes, but expected [0-9]+"):
        write(b"x", {"k": "1" * 20})
    with refused("got no bytes for tensor 'a', but expected them"):
        write(None, {"k": "2"})
    assert files(path.parent) == {path.name: b"old"}


# ------------------------------------------------------------------ all or nothing


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("is_new", [True, False])
def test_an_error_in_a_source(error, is_new, path):
    def fail():
        assert len(files(path.parent)) == 2 - is_new  # it is being written
        raise error("mine")

    if not is_new:
        path.write_bytes(b"old")
    before = files(path.parent)
    with pytest.raises(error, match=r"^mine$"):
        write_tensors(path, [entry("wide", "F64", (1,), bytes(8)), entry(source=fail)], {})
    assert files(path.parent) == before


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_at_the_end(function, error, path, monkeypatch):
    def fail(*args):
        raise error("disk full")

    path.write_bytes(b"old")
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(error, match="disk full"):
        write_tensors(path, [entry()], {})
    assert files(path.parent) == {path.name: b"old"}


def test_the_library_has_the_last_word(path, monkeypatch):
    """What it would not read is not left behind, even if this writer were wrong."""
    path.write_bytes(b"old")
    monkeypatch.setattr("pgkmeans_sk.codes.tensor_writer.LARGEST_HEADER", 0)
    monkeypatch.setattr(
        "pgkmeans_sk.codes.tensor_writer.header",
        lambda specs, metadata: b"\x08" + bytes(7) + b"{}    ,,",
    )
    with refused("not a valid safetensors file"):
        write_tensors(path, [entry()], {})
    assert files(path.parent) == {path.name: b"old"}


def test_a_file_written_over_the_one_that_is_read(path):
    write_tensors(path, [entry(source=b"ab")], {"k": "v"})
    with TensorFile(path) as file:
        write_tensors(path, [entry(source=lambda: bytes(file.raw("a"))[::-1])], file.metadata)
        assert bytes(file.raw("a")) == b"ab"
    with TensorFile(path) as file:
        assert bytes(file.raw("a")) == b"ba"


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_permissions(path):
    umask = os.umask(0o027)
    try:
        write_tensors(path, [entry()], {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_tensors(path, [entry()], {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(umask)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
def test_links_are_followed_and_other_things_refused(path, tmp_path):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    path.symlink_to(target)
    for _ in range(2):
        write_tensors(path, [entry()], {})
        assert path.is_symlink()
        assert files(tmp_path / "far").keys() == {"target"}
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: got a device or pipe, but expected the name of a"):
        write_tensors(tmp_path / "pipe", [entry()], {})
    with pytest.raises(IsADirectoryError, match="far: got a directory, but expected the name of"):
        write_tensors(tmp_path / "far", [entry()], {})
    with pytest.raises(FileNotFoundError):
        write_tensors(tmp_path / "nowhere" / "file", [entry()], {})
    assert files(tmp_path / "far").keys() == {"target"}


def test_a_long_name(tmp_path):
    name = "x" * 255
    write_tensors(tmp_path / name, [entry()], {})
    assert files(tmp_path).keys() == {name}


def test_without_the_library(path, monkeypatch):
    write_tensors(path, [entry()], {})
    before = files(path.parent)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for function in (lambda: TensorFile(path), lambda: write_tensors(path, [entry()], {})):
        with pytest.raises(ImportError, match=r"pip install pgkmeans_sk\[io\]"):
            function()
    assert files(path.parent) == before
