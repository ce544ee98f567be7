"""Codebooks of groups of consecutive values: matrices whose columns are groups of a tensor."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pgkmeans_sk.codes.decoder import Decoder
from pgkmeans_sk.codes.description import CompressedDescription
from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.codes.matrix_layout import layout_of
from pgkmeans_sk.codes.storage import StoredTensor, open_tensors, save_tensors
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.weight_files import decompress_file, describe_file
from tests.golden.make import groups
from tests.mutations import Parts

pytest.importorskip("safetensors")


def by_hand(dtype=np.float32):
    """Twelve values in three groups of four; group j has the words j and j + 0.5."""
    books = np.array([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]], dtype).reshape(1, 3, 2, 1)
    decoder = Decoder(codebooks=books, n_features=3, dtype=np.dtype(dtype))
    codes = np.array([[0, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], np.uint8)
    return CompressedMatrix.from_codes(decoder, codes, relative_error=0.0)


EXPECTED = [0, 0, 0.5, 0, 1.5, 1.5, 1, 1, 2.5, 2, 2, 2.5]


@pytest.mark.parametrize("shape", [(12,), (2, 6), (3, 2, 2)])
def test_groups_go_across_rows(shape, tmp_path):
    path = tmp_path / "file"
    tensor = StoredTensor(shape=shape, dtype="F32", matrix=by_hand(), group_size=4)
    save_tensors(path, {"a": tensor})
    with open_tensors(path) as file:
        np.testing.assert_array_equal(file.array("a"), np.reshape(EXPECTED, shape))
        assert (file.compressed["a"].group_size, file.compressed["a"].axis) == (4, 0)
        save_tensors(tmp_path / "again", {"a": replace(tensor, matrix=file.matrix("a"))})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    decompress_file(path, tmp_path / "plain")
    with TensorFile(tmp_path / "plain") as file:
        np.testing.assert_array_equal(file.array("a"), np.reshape(EXPECTED, shape))
    (report,) = describe_file(path).compressed
    assert (report.n_code_words, report.n_unused_words, report.stored_bytes) == (6, 0, 26)


def test_the_version_is_the_least_that_says_it(tmp_path):
    compressed, carried, metadata = groups()
    save_tensors(tmp_path / "groups", compressed, carried, metadata)
    plain = StoredTensor(shape=(4, 3), dtype="F32", matrix=by_hand())
    save_tensors(tmp_path / "rows", {"a": plain})
    for name, version in (("groups", "3"), ("rows", "1")):
        with TensorFile(tmp_path / name) as file:
            assert file.metadata["format_version"] == version


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 5}, "got group_size=5, but expected a divisor of the 12 values"),
        ({"group_size": 0}, "got group_size=0, but expected an int from 1"),
        ({"group_size": True}, "got group_size=True"),
        ({"group_size": 2.0}, "got group_size=2.0"),
        ({"group_size": 6}, r"shape \(2, 6\) with group_size=6, but expected one of 4 rows and 3"),
        ({"axis": 1}, "got axis=1 with group_size=4, but expected 0"),
    ],
)
def test_descriptions_that_are_refused(changes, message):
    fields = {"shape": (2, 6), "dtype": "F32", "group_size": 4, "layout": layout_of(by_hand())}
    with pytest.raises(ValueError, match=message):
        CompressedDescription(**{**fields, **changes})


@pytest.mark.parametrize(
    ("version", "changes", "message"),
    [
        ("3", {"axis": 0}, "got the keys"),
        ("3", {"group_size": None}, "got the keys"),
        ("3", {"group_size": "4"}, "got group_size='4'"),
        ("3", {"group_size": 3}, "got n_books=3, but expected 1 or 4"),
        ("2", {}, "got the keys"),
        ("1", {}, "got the keys"),
    ],
)
def test_entries_that_are_refused(version, changes, message, tmp_path):
    path = tmp_path / "file"
    tensor = StoredTensor(shape=(2, 6), dtype="F32", matrix=by_hand(), group_size=4)
    save_tensors(path, {"a": tensor})
    parts = Parts(path.read_bytes())
    parts.metadata["format_version"] = version
    description = parts.description()
    description["compressed"]["a"].update(changes)
    path.write_bytes(parts.seal(json.dumps(description)).joined())
    with pytest.raises(ValueError, match=f"file: compressed tensor 'a': .*({message})"):
        open_tensors(path)
