"""Files of weights in which several tensors use the codebooks of one: reports and the way back."""

from dataclasses import replace

import numpy as np
import pytest

from pgkmeans_sk.codes.packing import pack
from pgkmeans_sk.codes.storage import save_tensors
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.codes.usage import Usage
from pgkmeans_sk.weight_files import decompress_file, describe_file
from tests.golden.make import FOLDER, group

pytest.importorskip("safetensors")

GROUP = FOLDER / "group.safetensors"
EXPECTED = np.load(FOLDER / "expected_2.npz")


def test_decompressed(tmp_path):
    report = decompress_file(GROUP, tmp_path / "restored")
    with TensorFile(tmp_path / "restored") as file:
        assert set(file.names) == {*(f"{i}.weight" for i in range(4)), "tied", "1.bias"}
        for name in ("0.weight", "1.weight", "2.weight", "3.weight"):
            expected = EXPECTED[f"group {name}"]
            if name == "0.weight":
                expected = expected.astype(np.float16)
            np.testing.assert_array_equal(file.array(name), expected)
            assert file.array(name).dtype == expected.dtype
        np.testing.assert_array_equal(file.array("tied"), EXPECTED["group 2.weight"])
        np.testing.assert_array_equal(file.array("1.bias"), np.array([0.5, -1.25], np.float32))
    described = describe_file(GROUP)
    assert report.original_bytes == described.original_bytes
    assert [t.stored_bytes for t in report.tensors] == [t.stored_bytes for t in described.tensors]
    assert [t.n_unused_words for t in report.tensors] == [0, 0, 0, 5, 0]


def test_codebooks_count_where_they_are_stored():
    report = describe_file(GROUP)
    assert report.n_bytes == GROUP.stat().st_size
    assert report.n_bytes == report.header_bytes + sum(t.stored_bytes for t in report.tensors)
    by_name = {tensor.name: tensor for tensor in report.tensors}
    books = 4 * 2 * 7 * 3
    assert by_name["0.weight"].stored_bytes == 16  # 7 rows of 2 stages of 3 codes of 3 bits
    assert by_name["1.weight"].stored_bytes == 15 + books
    assert by_name["2.weight"].stored_bytes == 12 + 4 * 10
    assert [by_name[f"{i}.weight"].n_code_words for i in range(4)] == [0, 14, 0, 8]
    owners = [by_name[f"{i}.weight"].codebooks_of for i in range(4)]
    assert owners == ["1.weight", None, "1.weight", None]
    assert by_name["0.weight"].to_dict()["codebooks_of"] == "1.weight"


def with_codes(tensor, codes):
    """The same tensor with other codes, (n_rows, n_columns)."""
    return replace(tensor, matrix=replace(tensor.matrix, packed=pack(np.uint8(codes).ravel(), 3)))


def test_a_word_that_one_of_them_means_is_used(tmp_path):
    """In the first stage 0 to 3 of seven, in the second 0, 1 and 4."""
    compressed, _, _ = group()
    first = with_codes(compressed["0.weight"], np.tile([1, 2, 3, 4, 4, 4], (7, 1)))
    owner = with_codes(compressed["1.weight"], np.tile([0, 1, 0, 1], (10, 1)))
    save_tensors(tmp_path / "file", {"0.weight": first, "1.weight": owner})
    for make in (describe_file, lambda path: decompress_file(path, tmp_path / "restored")):
        report = make(tmp_path / "file")
        assert [t.n_unused_words for t in report.tensors] == [0, 3 + 4]
        assert report.n_unused_words == 7

    usage = Usage()
    usage.add("a", first.matrix)
    assert usage.counts("a") == (14, 10)
    usage.add("b", owner.matrix)
    usage.add("a", owner.matrix)
    assert usage.counts("a") == (14, 7)
    assert usage.counts("b") == (14, 10)


def test_info_names_the_tensor_that_stores_them():
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from pgkmeans_sk.cli.app import app

    shown = CliRunner().invoke(app, ["info", str(GROUP)]).stdout
    lines = {line.split()[0]: line for line in shown.splitlines() if ".weight" in line}
    assert lines["0.weight"].rstrip().endswith("of 1.weight")
    assert lines["1.weight"].rstrip().endswith("14/14")
    assert lines["2.weight"].startswith("2.weight = tied")
    assert "4 tensors compressed. 1 carried bit for bit." in shown
