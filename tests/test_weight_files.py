"""Files of weights: what is compressed and what carried, sizes to the byte, and the way back."""

import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from pgkmeans_sk.codes.storage import open_tensors
from pgkmeans_sk.codes.tensor_dtypes import to_bytes
from pgkmeans_sk.codes.tensor_file import TensorFile
from pgkmeans_sk.spec import Rule, Spec, TensorSettings
from pgkmeans_sk.validation import InvalidParameterError
from pgkmeans_sk.weight_files import compress_file, decompress_file, describe_file
from pgkmeans_sk.weight_plan import plan_file
from tests.model_files import METADATA, MODEL, WORDS, entry, normal, write_model

pytest.importorskip("safetensors")

ODD = "odd \N{GREEK SMALL LETTER OMEGA}\n[red]name\x1b[31m"
SETTINGS = TensorSettings(block_size=4, n_codes=16)
COMPRESSED = {
    *(f"layer.{i}.weight" for i in range(4)),
    "conv.weight",
    "ragged.weight",
    "embedding.weight",
    "narrow.weight",
    ODD,
}


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model.safetensors")


def by_name(report):
    return {tensor.name: tensor for tensor in report.tensors}


def check_decompressed(source, restored, spec, random_state=0):
    """Carried tensors bit for bit; compressed ones as ``inverse_transform`` gives them."""
    with TensorFile(source) as before, TensorFile(restored) as after:
        assert set(after.names) == set(before.names)
        assert dict(after.metadata) == dict(before.metadata)
        plan = plan_file(source, spec)
        settings = {
            name: tensor.settings
            for tensor in plan.tensors
            if tensor.layout is not None
            for name in (tensor.name, *tensor.aliases)
        }
        for name in before.names:
            assert (after.shape(name), after.dtype(name)) == (
                before.shape(name),
                before.dtype(name),
            )
            expected = before.raw(name)
            if name in settings:
                rows = before.array(name).reshape(before.shape(name)[0], -1)
                quantizer = settings[name].quantizer(random_state).fit(rows)
                rows = quantizer.inverse_transform(quantizer.transform(rows))
                expected = to_bytes(rows, before.dtype(name))
            assert bytes(after.raw(name)) == bytes(expected), name


def test_there_and_back(model, tmp_path):
    small, restored = tmp_path / "small.safetensors", tmp_path / "restored.safetensors"
    report = compress_file(model, small, SETTINGS)
    assert {tensor.name for tensor in report.compressed} == COMPRESSED
    decompress_file(small, restored)
    check_decompressed(model, restored, SETTINGS)
    assert restored.stat().st_size == model.stat().st_size


def test_why_tensors_are_carried(model, tmp_path):
    report = compress_file(model, tmp_path / "small", SETTINGS)
    reasons = {tensor.name: tensor.carried_because for tensor in report.carried}
    assert reasons == {
        "layer.0.bias": "fewer than 2 axes",
        "tiny.weight": "fewer blocks than n_codes=16",
        "numbers": "dtype I64",
        "small numbers": "dtype U8",
        "scalar": "fewer than 2 axes",
        "empty": "no values",
        "mask": "holds NaN or infinity",
        "eighths": "dtype F8_E4M3",
        "truth": "dtype BOOL",
    }


def test_skipped_small_and_unprofitable(model, tmp_path):
    spec = Spec.from_dict(
        {
            "defaults": {"block_size": 4, "n_codes": 16, "min_size": 1050},
            "rules": [
                {"match": "layer.0.*", "skip": True},
                {"match": "layer.1.*", "rotation": "opq", "codebook_dtype": "float32"},
                {"match": "nothing", "skip": True},
            ],
        }
    )
    report = compress_file(model, tmp_path / "small", spec)
    reasons = {tensor.name: tensor.carried_because for tensor in report.tensors}
    assert reasons["layer.0.weight"] == "skipped by the spec"
    assert reasons["ragged.weight"] == "fewer than min_size=1050 values"
    assert reasons["layer.1.weight"] == "codes would take more bytes"
    assert report.unused_rules == ("match 'nothing'",)


VARIANTS = {
    "per block": {"codebook": "per_block"},
    "stages": {"n_stages": 2},
    "hadamard": {"rotation": "hadamard"},
    "opq": {"rotation": "opq"},
    "row scales": {"scale": "row"},
    "block scales": {"scale": "block"},
    "dtype of the data": {"codebook_dtype": None},
    "odd bits": {"n_codes": 11, "block_size": 3},
    "wide blocks": {"block_size": 1000, "n_codes": 4},
    "all": {"codebook": "per_block", "n_stages": 2, "rotation": "hadamard", "scale": "row"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_size_is_predicted_and_decoding_exact(model, tmp_path, name):
    spec = TensorSettings(**{"block_size": 4, "n_codes": 8, **VARIANTS[name]})
    small, restored = tmp_path / "small.safetensors", tmp_path / "restored.safetensors"
    predicted = plan_file(model, spec).predicted_bytes()
    report = compress_file(model, small, spec)
    assert report.compressed
    assert small.stat().st_size == sum(predicted.values()) == report.n_bytes
    assert report.header_bytes == predicted[""]
    assert report.n_bytes == report.header_bytes + sum(t.stored_bytes for t in report.tensors)
    decompress_file(small, restored)
    check_decompressed(model, restored, spec)


# ---------------------------------------------------------------- reports


def test_report_of_compressing(model, tmp_path):
    report = compress_file(model, tmp_path / "small", SETTINGS)
    tensor = by_name(report)["layer.0.weight"]
    rows = normal(2, 64, 32)
    matrix = SETTINGS.quantizer().compress(rows)
    assert (tensor.shape, tensor.dtype, tensor.original_bytes) == ((64, 32), "F32", 8192)
    assert tensor.stored_bytes == matrix.nbytes
    assert tensor.bits_per_weight == matrix.bits_per_weight
    error = np.linalg.norm(rows - matrix.decode()) / np.linalg.norm(rows)
    assert tensor.relative_error == pytest.approx(error)
    assert tensor.entropy == matrix.entropy
    assert (tensor.n_code_words, tensor.n_unused_words) == (16, 0)
    assert tensor.seconds > 0
    assert report.original_bytes == model.stat().st_size
    assert sum(t.original_bytes for t in report.tensors) < report.original_bytes
    assert report.seconds >= sum(t.seconds for t in report.compressed)
    assert report.n_unused_words == 0
    assert report.metadata == METADATA


def test_describing_says_the_same(model, tmp_path):
    small = tmp_path / "small.safetensors"
    made, read = compress_file(model, small, SETTINGS), describe_file(small)
    assert (read.n_bytes, read.header_bytes) == (made.n_bytes, made.header_bytes)
    assert read.original_bytes == made.original_bytes
    facts = ("aliases", "shape", "dtype", "original_bytes", "stored_bytes", "relative_error")
    facts += ("entropy", "n_code_words", "n_unused_words", "bits_per_weight")
    for name, tensor in by_name(made).items():
        for fact in facts:
            assert getattr(by_name(read)[name], fact) == getattr(tensor, fact), (name, fact)


def test_describing_a_plain_file(model):
    report = describe_file(model)
    assert not report.is_compressed
    assert report.n_bytes == report.original_bytes == model.stat().st_size
    assert len(report.carried) == len(MODEL)
    assert by_name(report)["small numbers"].stored_bytes == 256


def test_reports_are_plain_types(model, tmp_path):
    import json

    report = compress_file(model, tmp_path / "small", SETTINGS)
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["n_bytes"] == report.n_bytes
    assert [tensor["name"] for tensor in content["tensors"]] == [t.name for t in report.tensors]
    pandas = pytest.importorskip("pandas")
    assert pandas.DataFrame(content["tensors"]).stored_bytes.sum() + report.header_bytes == (
        report.n_bytes
    )


def test_unused_words_are_counted(tmp_path):
    rows = np.repeat(normal(0, 5, 4), 20, axis=0)  # 5 distinct blocks for 8 code words
    model = write_model(tmp_path / "model", [entry("w", "F32", rows)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = compress_file(model, tmp_path / "small", TensorSettings(block_size=4, n_codes=8))
    assert report.n_unused_words == by_name(report)["w"].n_unused_words == 3
    assert describe_file(tmp_path / "small").n_unused_words == 3


def test_words_of_each_book_and_stage_count(tmp_path):
    rows = np.hstack([normal(0, 50, 4), np.ones((50, 4), np.float32)])
    model = write_model(tmp_path / "model", [entry("w", "F32", rows)])
    settings = TensorSettings(block_size=4, n_codes=8, codebook="per_block")
    report = compress_file(model, tmp_path / "small", settings)
    assert (report.tensors[0].n_code_words, report.n_unused_words) == (16, 7)


# ---------------------------------------------------------------- ties


def test_tied_tensors_are_stored_once(model, tmp_path):
    report = compress_file(model, tmp_path / "small", SETTINGS)
    tied = by_name(report)["embedding.weight"]
    assert tied.aliases == ("head.weight",)
    assert "head.weight" not in by_name(report)
    assert tied.original_bytes == 2 * WORDS.nbytes
    with open_tensors(tmp_path / "small") as file:
        np.testing.assert_array_equal(file.array("head.weight"), file.array("embedding.weight"))


def test_equal_tensors_with_other_settings_are_not_tied(model, tmp_path):
    spec = Spec(SETTINGS, (Rule(match="head.*", settings={"n_codes": 32}),))
    report = compress_file(model, tmp_path / "small", spec)
    assert by_name(report)["head.weight"].n_code_words == 32
    assert by_name(report)["embedding.weight"].aliases == ()


def test_what_ties_and_what_does_not(tmp_path):
    big, small = normal(0, 64, 32), normal(1, 20, 8)
    zeros = np.zeros((64, 32), np.float32)
    almost = big.copy()
    almost[-1, -1] += 1.0
    tensors = {"a": big, "b": almost, "c": small, "d": small, "e": big, "f": big.reshape(32, 64)}
    entries = [entry(name, "F32", array) for name, array in tensors.items()]
    entries += [entry("g", "F32", zeros), entry("h", "F32", -zeros)]  # equal, not bit for bit
    model = write_model(tmp_path / "model", entries)
    report = compress_file(model, tmp_path / "small", Spec().only(["a", "e"]))
    assert {t.name: t.aliases for t in report.tensors} == {
        "a": ("e",), "b": (), "c": (), "d": (), "f": (), "g": (), "h": ()
    }  # fmt: skip


def test_carried_tensors_tie_too(model, tmp_path):
    report = compress_file(model, tmp_path / "small", TensorSettings(skip=True))
    assert by_name(report)["embedding.weight"].aliases == ("head.weight",)
    restored = tmp_path / "restored"
    decompress_file(tmp_path / "small", restored)
    assert restored.read_bytes() == model.read_bytes()


# ---------------------------------------------------------------- the same each time


def test_same_bytes_for_any_number_of_threads(model, tmp_path):
    spec = TensorSettings(block_size=4, n_codes=16, rotation="hadamard", n_stages=2)
    contents = []
    for n_threads in (1, 2, 3):
        with threadpool_limits(n_threads):
            compress_file(model, tmp_path / "small", spec, random_state=5)
        contents.append((tmp_path / "small").read_bytes())
    assert contents[0] == contents[1] == contents[2]
    compress_file(model, tmp_path / "small", spec, random_state=6)
    assert (tmp_path / "small").read_bytes() != contents[0]
    compress_file(model, tmp_path / "small", spec, random_state=None)


def test_result_of_a_tensor_does_not_depend_on_the_others(model, tmp_path):
    compress_file(model, tmp_path / "all", SETTINGS)
    compress_file(model, tmp_path / "one", Spec(SETTINGS).only(["ragged*"]))
    with open_tensors(tmp_path / "all") as file, open_tensors(tmp_path / "one") as other:
        np.testing.assert_array_equal(
            file.matrix("ragged.weight").packed, other.matrix("ragged.weight").packed
        )


# ---------------------------------------------------------------- progress, memory


@pytest.mark.parametrize("step", ["compress", "decompress", "describe"])
def test_progress(model, tmp_path, step):
    told = []

    def progress(name, done, total):
        told.append((name, done, total))

    compress_file(model, tmp_path / "small", SETTINGS, progress=progress)
    if step == "decompress":
        told.clear()
        decompress_file(tmp_path / "small", tmp_path / "restored", progress=progress)
    if step == "describe":
        told.clear()
        describe_file(tmp_path / "small", progress=progress)
    names = [name for name, _, _ in told]
    assert set(names) >= COMPRESSED
    assert names[-1] == ""
    shares = [done / total for _, done, total in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len({total for _, _, total in told}) == 1


@pytest.mark.parametrize("step", ["compress", "decompress", "describe"])
def test_memory_is_that_of_a_layer(tmp_path, step):
    """The file has 24 layers; what is allocated at a time stays near one of them."""
    layers = [entry(f"{i}.weight", "F32", normal(i, 512, 256)) for i in range(24)]
    model = write_model(tmp_path / "model", layers)
    layer_bytes = 512 * 256 * 4
    settings = TensorSettings(n_codes=32)
    first = write_model(tmp_path / "first", layers[:1])
    del layers
    compress_file(first, tmp_path / "small", settings)  # compiles, as the next two do
    decompress_file(tmp_path / "small", tmp_path / "restored")
    describe_file(tmp_path / "small")
    if step != "compress":
        compress_file(model, tmp_path / "small", settings)
    tracemalloc.start()
    try:
        if step == "compress":
            compress_file(model, tmp_path / "small", settings)
        elif step == "decompress":
            decompress_file(tmp_path / "small", tmp_path / "restored")
        else:
            describe_file(tmp_path / "small")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * layer_bytes


# ---------------------------------------------------------------- errors


def test_nothing_is_left_behind_by_an_error(tmp_path):
    fine, wrong = normal(0, 64, 32), np.full((64, 32), 1e-9, np.float32) * normal(1, 64, 32)
    model = write_model(tmp_path / "model", [entry("a", "F32", fine), entry("b", "F32", wrong)])
    target = tmp_path / "small"
    target.write_bytes(b"before")
    message = "model: tensor 'b': Got codebook_dtype='float16', but expected a wider one"
    with pytest.raises(ValueError, match=message):
        compress_file(model, target, SETTINGS)
    assert target.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "small"}
    settings = TensorSettings(block_size=4, n_codes=16, codebook_dtype="float32")
    assert compress_file(model, target, settings).tensors[1].relative_error < 1


def test_interrupted(model, tmp_path):
    def progress(name, done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_file(model, tmp_path / "small", SETTINGS, progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_wrong_files(model, tmp_path):
    small, other = tmp_path / "small", tmp_path / "other"
    compress_file(model, small, SETTINGS)
    with pytest.raises(ValueError, match="small: got a file of codes, but expected one of plain"):
        compress_file(small, other)
    with pytest.raises(ValueError, match=r"model\.safetensors: "):
        decompress_file(model, other)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no tensors")
    for function in (plan_file, describe_file):
        with pytest.raises(ValueError, match="garbage: not a valid safetensors file"):
            function(garbage)
    with pytest.raises(FileNotFoundError):
        compress_file(tmp_path / "missing", other)
    assert not other.exists()


def test_damage_is_found_when_describing(model, tmp_path):
    small = tmp_path / "small"
    compress_file(model, small, SETTINGS)
    content = bytearray(small.read_bytes())
    content[-3] ^= 1
    small.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        describe_file(small)


@pytest.mark.parametrize("random_state", [-1, 0.5, "0", True])
def test_wrong_random_state(model, tmp_path, random_state):
    with pytest.raises(InvalidParameterError, match="random_state"):
        compress_file(model, tmp_path / "small", random_state=random_state)


def test_wrong_spec(model, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'block_size'"):
        compress_file(model, tmp_path / "small", {"defaults": {"blocksize": 4}})
    with pytest.raises(TypeError, match="spec of type"):
        compress_file(model, tmp_path / "small", "spec.yaml")


@pytest.mark.parametrize("option", [{"feedback": True}, {"group": "all"}])
def test_what_only_a_model_can_have(model, tmp_path, option):
    with pytest.raises(ValueError, match=r"for '.*' of a file, but expected it for a model only"):
        compress_file(model, tmp_path / "small", {"defaults": option})
    assert not (tmp_path / "small").exists()


def test_a_file_without_tensors(tmp_path):
    model = write_model(tmp_path / "model", [])
    report = compress_file(model, tmp_path / "small")
    assert (report.tensors, report.bits_per_weight) == ((), 0.0)
    assert report.n_bytes == report.header_bytes == (tmp_path / "small").stat().st_size
    decompress_file(tmp_path / "small", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == model.read_bytes()


def test_two_at_once(model, tmp_path):
    """Reports and files of calls in several threads do not mix."""
    compress_file(model, tmp_path / "alone", SETTINGS)
    targets = [tmp_path / str(i) for i in range(3)]
    threads = [threading.Thread(target=compress_file, args=(model, t, SETTINGS)) for t in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {t.read_bytes() for t in targets} == {(tmp_path / "alone").read_bytes()}
