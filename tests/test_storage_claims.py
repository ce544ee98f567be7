"""What a file claims is not believed until its tensors bear it out; checksums are right here."""

import json
import tracemalloc

import numpy as np
import pytest

from pgkmeans_sk.codes.storage import (
    CarriedTensor,
    collect_tensors,
    load_matrix,
    open_tensors,
    save_tensors,
)
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors
from pgkmeans_sk.weight_files import describe_file
from tests.golden.make import FOLDER, group, model
from tests.mutations import Parts, reseal
from tests.tensor_files import refused

pytest.importorskip("safetensors")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some file"


def test_other_formats_and_versions(path):
    write_tensors(path, [TensorEntry("a", "U8", (1,), b"x")], {"format": "pt"})
    with refused(
        "safetensors file with the format 'pt', but expected 'pgkmeans_sk': it was not wri"
    ):
        open_tensors(path)
    write_tensors(path, [], {})
    with refused("safetensors file with the format None, but expected 'pgkmeans_sk'"):
        load_matrix(path)
    for version, message in (
        ("4", "'4', but expected '1', '2', '3': the file was written by a newer v"),
        ("17", "got format_version '17'.*newer version"),
        ("0", "got format_version '0', but expected '1', '2', '3'$"),
        ("1.0", "got format_version '1.0', but expected '1', '2', '3'$"),
        ("", "got format_version '', but expected '1', '2', '3'$"),
    ):
        parts = Parts((FOLDER / "shared.safetensors").read_bytes())
        parts.metadata["format_version"] = version
        path.write_bytes(parts.joined())
        with refused(message):
            load_matrix(path)
    for key in ("description", "description_crc32"):
        parts = Parts((FOLDER / "shared.safetensors").read_bytes())
        del parts.metadata[key]
        path.write_bytes(parts.joined())
        with refused(f"got no '{key}' in the metadata, but expected it"):
            load_matrix(path)


def test_files_that_another_library_wrote(path):
    """Such a library has a format of its own."""
    compressed, carried, metadata = group()
    entries, texts = collect_tensors(compressed, carried, metadata)
    write_tensors(path, entries, {**texts, "format": "pt"})
    with open_tensors(path) as file, open_tensors(FOLDER / "group.safetensors") as golden:
        assert file.compressed == golden.compressed
        assert file.carried == golden.carried
        assert file.metadata == golden.metadata
        for name in file.compressed:
            np.testing.assert_array_equal(file.array(name), golden.array(name))
    assert describe_file(path).is_compressed
    write_tensors(path, entries, {**texts, "format": "pt", "content_format": "other"})
    with refused("format 'pt', but expected 'pgkmeans_sk'"):
        open_tensors(path)


def test_metadata_of_other_tools_does_no_harm(path):
    parts = Parts((FOLDER / "shared.safetensors").read_bytes())
    parts.metadata["author"] = "somebody"
    path.write_bytes(parts.joined())
    load_matrix(path)


def claim(*keys, value):
    """A change of a description: what lies at ``keys`` of the tensor "matrix"."""

    def change(description):
        holder = description["compressed"]["matrix"]
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value

    return change


TENSOR = "some file: compressed tensor 'matrix': "
CLAIMS = {
    "rows": (claim("shape", value=[10**12, 10]), TENSOR + "'codes': got dtype U8 and shape .15,."),
    "columns": (claim("shape", value=[13, 10**15]), TENSOR + "'codes': got dtype U8 and shape .15"),
    "huge": (claim("shape", value=[10**30, 10]), TENSOR + "got a size of the shape=1000"),
    "a huge product": (claim("shape", value=[2**62] * 9), TENSOR + "got n_features="),
    "no shape": (claim("shape", value=[]), TENSOR + "got axis=0, but expected one of the 0 axes"),
    "zero": (claim("shape", value=[13, 0]), TENSOR + "got a size of the shape=0, but expected an"),
    "true": (claim("shape", value=[True, 10]), TENSOR + "got a size of the shape=True"),
    "a float": (claim("shape", value=[13.0, 10]), TENSOR + "got a size of the shape=13.0"),
    "an object": (claim("shape", value={"0": 13}), TENSOR + "got .*, but expected a JSON array"),
    "axis beyond": (
        claim("axis", value=-1),
        TENSOR + "got axis=-1, but expected one of the 2 axes",
    ),
    "dtype": (claim("dtype", value="U8"), TENSOR + "got dtype='U8', but expected one of F64, F32"),
    "decoded": (claim("decoded_dtype", value="BF16"), TENSOR + "got dtype='BF16', but expected"),
    "list as dtype": (claim("decoded_dtype", value=["F32"]), TENSOR + r"got dtype=\['F32'\], but"),
    "block": (claim("block_size", value=5), TENSOR + "'codes': .*"),
    "codes": (claim("n_codes", value=9), TENSOR + "'codes': .* expected U8 and .20,."),
    "fewer codes": (claim("n_codes", value=7), TENSOR + "'codebooks': got dtype F32 and shape"),
    "many codes": (
        claim("n_codes", value=65537),
        TENSOR + "got n_codes=65537, but expected 2 to",
    ),
    "books": (claim("n_books", value=2), TENSOR + "got n_books=2, but expected 1 or 3"),
    "a book each": (claim("n_books", value=3), TENSOR + "'codebooks': got dtype F32 and shape"),
    "stages": (claim("n_stages", value=2), TENSOR + "'codes': .* expected U8 and .30,."),
    "aliases": (
        claim("aliases", value=[3]),
        TENSOR + r"got aliases \[3\], but expected an array of",
    ),
    "own alias": (
        claim("aliases", value=["matrix"]),
        "some file: got two tensors of the name 'mat",
    ),
    "error": (
        claim("relative_error", value=0.5),
        TENSOR + "got relative_error=0.5, but expected a",
    ),
    "NaN": (
        claim("entropy", value="nan"),
        TENSOR + "got entropy='nan', but expected a number such",
    ),
    "a real NaN": (
        claim("entropy", value=float("nan")),
        "some file: 'description': got NaN, but ex",
    ),
    "crc": (
        claim("crc32", "codes", value="12345"),
        TENSOR + "got the CRC-32 '12345', but expected",
    ),
    "other crc": (
        claim("crc32", "codes", value="0" * 8),
        "some file: tensor 'matrix.codes': got the",
    ),
    "an array more": (
        claim("crc32", "row_scales", value="0" * 8),
        TENSOR + "got no tensor 'matrix.row_scales' in the file",
    ),
    "a key more": (claim("crc33", value={}), TENSOR + "got the keys .*, but expected"),
    "no tensors": (
        lambda d: d.update(compressed=[]),
        r"some file: got \[\], but expected a JSON obj",
    ),
    "fewer tensors": (
        lambda d: d["compressed"].clear(),
        "got a tensor 'matrix.codebooks' that the",
    ),
    "another section": (lambda d: d.update(other=1), "some file: got the keys .*'other'"),
    "metadata": (
        lambda d: d["metadata"].update(a=1),
        "some file: got metadata 'a': 1, but expected two Uni",
    ),
    "carried": (
        lambda d: d["carried"].update(a={"shape": [], "dtype": "F32", "aliases": [], "crc32": ""}),
        "some file: carried tensor 'a': got no tensor 'a' in the file, but expected one",
    ),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_claims_that_the_tensors_do_not_bear_out(case, path):
    change, message = CLAIMS[case]
    parts = Parts((FOLDER / "shared.safetensors").read_bytes())
    description = parts.description()
    change(description)
    path.write_bytes(parts.seal(json.dumps(description)).joined())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            load_matrix(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_version_2_of_a_file_without_shared_codebooks(path):
    """More than its writer needed; it means the same."""
    parts = Parts((FOLDER / "shared.safetensors").read_bytes())
    parts.metadata["format_version"] = "2"
    path.write_bytes(parts.joined())
    load_matrix(path)


MEMBER = "compressed tensor '2.weight': "
GROUP_CLAIMS = {
    "no name": (
        "2.weight",
        {"codebooks_of": 1},
        MEMBER + "got codebooks_of=1, but expected the na",
    ),
    "null": (
        "2.weight",
        {"codebooks_of": None},
        MEMBER + "got codebooks_of=None, but expected the",
    ),
    "nobody": (
        "2.weight",
        {"codebooks_of": "4.weight"},
        MEMBER + "got no tensor '4.weight.codebooks' in the file, but expected one",
    ),
    "carried": (
        "2.weight",
        {"codebooks_of": "1.bias"},
        MEMBER + "got no tensor '1.bias.codebooks'",
    ),
    "alias": (
        "2.weight",
        {"codebooks_of": "tied"},
        MEMBER + "got no tensor 'tied.codebooks' in th",
    ),
    "itself": ("2.weight", {"codebooks_of": "2.weight"}, MEMBER + "got no tensor '2.weight.codebo"),
    "other books": (
        "2.weight",
        {"codebooks_of": "3.weight"},
        MEMBER
        + r"'codebooks': got dtype F32 and shape \(1, 1, 8, 4\), but expected F32 and \(2, 1,",
    ),
    "other stages": ("2.weight", {"n_stages": 1}, MEMBER + "'codes': got|'codebooks': got dtype F"),
    "other codes": ("2.weight", {"n_codes": 5}, MEMBER + "'codebooks': got dtype F32 and shape"),
    "other blocks": ("2.weight", {"block_size": 4}, MEMBER + "'codes|codebooks': got dtype"),
    "those of its own": (
        "2.weight",
        {"crc32": {"codes": "00000000", "codebooks": "94802816"}},
        MEMBER + "got no tensor '2.weight.codebooks' in the file",
    ),
    "in another's place": (
        "1.weight",
        {"codebooks_of": "3.weight"},
        "tensor '1.weight': 'codebooks': got some, but expected none beside those of '3.weight'",
    ),
}


@pytest.mark.parametrize("case", GROUP_CLAIMS)
def test_claims_about_shared_codebooks(case, path):
    name, change, message = GROUP_CLAIMS[case]
    parts = Parts((FOLDER / "group.safetensors").read_bytes())
    description = parts.description()
    description["compressed"][name].update(change)
    path.write_bytes(parts.seal(json.dumps(description)).joined())
    with refused(message):
        open_tensors(path)


def test_codebooks_of_a_tensor_that_is_not_compressed(path):
    """It is in the file under the right name, and yet nobody's codebooks."""
    compressed, _, _ = group()
    books = compressed["1.weight"].matrix.decoder.codebooks
    stray = CarriedTensor(shape=books.shape, dtype="F32", source=books.tobytes())
    save_tensors(path, {n: compressed[n] for n in ("1.weight", "2.weight")}, {"x.codebooks": stray})
    parts = Parts(path.read_bytes())
    description = parts.description()
    description["compressed"]["2.weight"]["codebooks_of"] = "x"
    path.write_bytes(parts.seal(json.dumps(description)).joined())
    with refused("tensor '2.weight': got codebooks_of='x', but expected the name of a compressed"):
        open_tensors(path)


def test_version_1_has_no_shared_codebooks(path):
    parts = Parts((FOLDER / "group.safetensors").read_bytes())
    parts.metadata["format_version"] = "1"
    path.write_bytes(parts.joined())
    with refused("compressed tensor '0.weight': got the keys .*'codebooks_of'.*, but expected"):
        open_tensors(path)


MODEL_CLAIMS = {
    "shape": (
        lambda d: d["carried"]["norm.bias"].update(shape=[3, 5]),
        r"\(5, 3\).*\[3, 5\]|\(3, 5\)",
    ),
    "true for 1": (
        lambda d: d["carried"]["small"].update(shape=[3.0]),
        "carried tensor 'small': got",
    ),
    "dtype": (lambda d: d["carried"]["norm.bias"].update(dtype="F16"), "got dtype BF16 .*'F16'"),
    "list as dtype": (lambda d: d["carried"]["norm.bias"].update(dtype=[]), "got dtype BF16"),
    "crc": (
        lambda d: d["carried"]["empty"].update(crc32=0),
        "'empty': got the CRC-32 0, but expected",
    ),
    "not mentioned": (
        lambda d: d["carried"].pop("steps"),
        "got a tensor 'steps' that the descript",
    ),
    "alias": (lambda d: d["carried"]["steps"].update(aliases=["empty"]), "of the name 'empty'"),
    "surrogate": (
        lambda d: d["carried"]["steps"].update(aliases=["\ud800"]),
        "but expected Unicode",
    ),
}


@pytest.mark.parametrize("case", MODEL_CLAIMS)
def test_claims_about_carried_tensors(case, path):
    save_tensors(path, *model())
    change, message = MODEL_CLAIMS[case]
    parts = Parts(path.read_bytes())
    description = parts.description()
    change(description)
    path.write_bytes(parts.seal(json.dumps(description)).joined())
    with refused(message):
        open_tensors(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'description': Expecting value"),
        ("{}", "got the keys .., but expected .'carried', 'compressed', 'metadata'."),
        ("[" * 100_000, "'description': nested too deeply"),
        (
            '{"carried":{},"carried":{}}',
            "'description': got the key 'carried' twice, but expected it",
        ),
        ("9" * 5000, "'description': Exceeds the limit"),
        ("3", ": got 3, but expected a JSON object"),
    ],
)
def test_descriptions_that_are_none(text, message, path):
    parts = Parts((FOLDER / "shared.safetensors").read_bytes())
    path.write_bytes(parts.seal(text).joined())
    with refused(message):
        open_tensors(path)


@pytest.mark.parametrize(
    ("name", "part", "data", "message"),
    [
        (
            "per_block",
            "codes",
            b"\x07",
            "tensor 'matrix': 'codes': got the code 7, but expected codes",
        ),
        ("shared", "codes", b"\x01" * 15, None),  # any bits are codes below 8, and none is spare
        (
            "shared",
            "codebooks",
            b"\x00\x00\xc0\x7f",
            "'codebooks': got the value nan, but expected",
        ),
        ("stages", "row_scales", b"\x00\x00\x80\xff", "'row_scales': got the value -inf"),
        ("hadamard", "rotation_mixer", bytes(36), "'rotation_mixer': got a matrix M .* off by 1"),
        ("one_bit", "codes", b"\x02", "'codes': got the last byte 2, but expected spare bits of 0"),
    ],
)
def test_values_that_are_none(name, part, data, message, path):
    """With all checksums right."""
    parts = Parts((FOLDER / f"{name}.safetensors").read_bytes())
    begin = parts.header[f"matrix.{part}"]["data_offsets"][0]
    parts.data[begin : begin + len(data)] = data
    if name == "shared" and part == "codes":
        parts.data[-1] &= 0b00111111
    path.write_bytes(reseal(parts).joined())
    if message is None:
        load_matrix(path).decode()
        return
    with refused(message):
        load_matrix(path)
