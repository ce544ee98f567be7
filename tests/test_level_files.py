"""Files with tensors of uniform levels: as they are described, decompressed, and refused."""

import json

import numpy as np
import pytest

pytest.importorskip("safetensors")

from pgkmeans_sk.codes.level_matrix import LevelMatrix
from pgkmeans_sk.codes.storage import StoredTensor, open_tensors, save_tensors
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.weight_files import decompress_file, describe_file
from tests.golden.make import FOLDER, levels, shared
from tests.mutations import Parts, reseal

LEVELS = FOLDER / "levels.safetensors"


def test_described():
    report = describe_file(LEVELS)
    found = {tensor.name: tensor for tensor in report.compressed}
    compressed = levels()[0]
    assert found.keys() == compressed.keys()
    for name in ("one width", "every width", "rows"):
        assert found[name].stored_bytes == compressed[name].matrix.nbytes
        assert (found[name].n_code_words, found[name].n_unused_words) == (0, 0)
        assert found[name].relative_error == compressed[name].matrix.relative_error
    assert found["codebook"].n_code_words == 8
    assert report.n_bytes == LEVELS.stat().st_size


def test_decompressed(tmp_path):
    decompress_file(LEVELS, tmp_path / "plain")
    compressed = levels()[0]
    with TensorFile(tmp_path / "plain") as file:
        decoded = compressed["every width"].matrix.decode()
        np.testing.assert_array_equal(file.array("every width"), decoded.T)
        rows = compressed["rows"].matrix.decode().reshape(4, 2, 3)
        assert file.dtype("rows") == "BF16"
        for name in ("rows", "tied rows"):
            np.testing.assert_array_equal(file.array(name), np.moveaxis(rows, 0, 2))


def test_on_the_command_line():
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from pgkmeans_sk.cli.app import app

    found = CliRunner().invoke(app, ["info", str(LEVELS)])
    assert found.exit_code == 0
    lines = [line.split() for line in found.output.splitlines()]
    assert ["one", "width", "5x7", "5.029", "25.00", "%", "levels"] in lines


def test_version(tmp_path):
    matrix = LevelMatrix.from_values(np.eye(3, dtype=np.float32), 2)
    matrix.save(tmp_path / "file")
    with TensorFile(tmp_path / "file") as file:
        assert file.metadata["format_version"] == "3"
        assert file.names == ("matrix.ranges", "matrix.codes")


def changed(entry, **changes):
    entry.update(changes)


CLAIMS = {
    "keys": (lambda e: changed(e, axis=None) or e.pop("axis"), "got the keys"),
    "both kinds": (lambda e: changed(e, block_size=1), "got the keys"),
    "a codebook's": (lambda e: e.pop("widths"), "got the keys"),
    "others' codebooks": (lambda e: changed(e, codebooks_of="codebook"), "got the keys"),
    "no list": (lambda e: changed(e, widths={}), "got {}, but expected a JSON array"),
    "no pair": (lambda e: changed(e, widths=[[2, 10, 3]]), r"got the width \[2, 10, 3\]"),
    "no pairs": (lambda e: changed(e, widths=[2, 10]), "got 2, but expected a JSON array"),
    "text": (lambda e: changed(e, widths=[["2", 24]]), "bits of a width='2'"),
    "more values": (lambda e: changed(e, widths=[[2, 10], [5, 15]]), "those of 24 values"),
    "other widths": (lambda e: changed(e, widths=[[2, 10], [9, 14]]), "'codes': got dtype U8 and"),
    "one width": (lambda e: changed(e, widths=[[4, 24]]), "'widths': got one, but expected none"),
    "huge range_size": (lambda e: changed(e, range_size=2**62), "at most the 24 values"),
    "no range_size": (lambda e: changed(e, range_size=None), "got range_size=None"),
    "group_size": (lambda e: changed(e, group_size=12), "'widths': got the last byte 22, but"),
    "no ranges": (lambda e: e["crc32"].pop("ranges"), "range_dtype=\"no array 'ranges'\""),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_entries_that_are_refused(case, tmp_path):
    change, message = CLAIMS[case]
    parts = Parts(LEVELS.read_bytes())
    description = parts.description()
    change(description["compressed"]["rows"])
    path = tmp_path / "file"
    path.write_bytes(parts.seal(json.dumps(description)).joined())
    with pytest.raises(ValueError, match=f"file: .*({message})"), open_tensors(path) as file:
        file.matrix("rows")


def data(name, at, byte):
    """The golden file with a byte of an array replaced, and all checksums right."""
    parts = Parts(LEVELS.read_bytes())
    begin, end = parts.header[name]["data_offsets"]
    parts.data[range(begin, end)[at]] = byte
    return reseal(parts).joined()


@pytest.mark.parametrize(
    ("name", "at", "byte", "message"),
    [
        # Two streams: 10 values of 2 bits in 3 bytes, 14 of 5 bits in 9
        ("rows.codes", 2, 0xF0, "'codes': got the last byte 240, but expected spare bits of 0"),
        ("rows.codes", -1, 0xFF, "'codes': got the last byte 255, but expected spare bits of 0"),
        ("rows.widths", 0, 0b11111, "'widths': got 0 values of 2 bits, but expected 10"),
        ("rows.widths", 0, 0b1111001, "'widths': got the last byte 121, but expected spare"),
        ("rows.ranges", 1, 0x7C, "'ranges': got the range inf to 93.0"),
        ("rows.ranges", 3, 0xFE, "'ranges': got the range 0.0 to nan"),
        ("rows.ranges", 3, 0xD5, "'ranges': got the range 0.0 to -93.0"),
    ],
)
def test_values_that_are_refused(name, at, byte, message, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data(name, at, byte))
    with open_tensors(path) as file:
        file.matrix("one width")
        with pytest.raises(ValueError, match=f"file: tensor 'rows': {message}"):
            file.matrix("rows")


def test_numbers_of_widths_that_there_are_not(tmp_path):
    """Three widths need two bits, which can say a fourth."""
    matrix = LevelMatrix.from_values(np.eye(4, dtype=np.float32), [1, 2, 3, 1], group_size=4)
    matrix.packed_widths[0] = 0b11100100
    with pytest.raises(ValueError, match="'widths': got the number 3, but expected one of 3"):
        matrix.save(tmp_path / "file")


def test_codebooks_of_a_tensor_of_levels(tmp_path):
    matrix = LevelMatrix.from_values(np.eye(4, dtype=np.float32), 2)
    stored = {
        "a": StoredTensor(shape=(13, 10), dtype="F32", matrix=shared(), codebooks_of="b"),
        "b": StoredTensor(shape=(4, 4), dtype="F32", matrix=matrix),
    }
    with pytest.raises(ValueError, match="codebooks_of='b', which has levels, but expected one w"):
        save_tensors(tmp_path / "file", stored)
    grouped = StoredTensor(shape=(4, 4), dtype="F32", matrix=matrix, group_size=4)
    with pytest.raises(ValueError, match="got levels with group_size=4"):
        save_tensors(tmp_path / "file", {"b": grouped})
