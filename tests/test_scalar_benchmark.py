"""The study of scalar codebooks: its judge, its parts on small models, its tables."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console
from threadpoolctl import threadpool_limits

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="the encoder is transformers'")
pytest.importorskip("kmeans1d")

from benchmarks import (  # noqa: E402
    classifier,
    data,
    finetune,
    report,
    scalar,
    scalar_peers,
    training,
)
from benchmarks.scalar_peers import LIBRARIES, Library  # noqa: E402
from benchmarks.units import FinishedUnits, Units  # noqa: E402
from pgkmeans_sk import nn as compressing  # noqa: E402
from tests.study_models import small_examples, use_small_sentences  # noqa: E402

QUIET = Console(quiet=True)
EXACT = ("pgkmeans-sk", "kmeans1d")


@pytest.fixture(autouse=True)
def one_thread():
    """Small problems are slower on many threads, those of faiss by far."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def table_of(sheet):
    """A sheet as a dictionary: first cell of a row -> column -> cell."""
    return {row[0]: dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows}


# ------------------------------------------------------------------ peers


def test_judge_takes_the_nearest_word():
    values = np.array([0.0, 1.0, 2.9, 10.0], dtype=np.float32)
    assert scalar_peers.sq_error(values, np.array([9.0, 1.0, 1.0])) == pytest.approx(1 + 1.9**2 + 1)


def test_judge_is_a_brute_force_search():
    rng = np.random.default_rng(0)
    values, words = rng.normal(size=500).astype(np.float32), rng.normal(size=7)
    distances = np.abs(values[:, np.newaxis].astype(np.float64) - words).min(axis=1)
    assert scalar_peers.sq_error(values, words) == pytest.approx((distances**2).sum(), rel=1e-12)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_no_library_finds_less(library):
    pytest.importorskip(library.module)
    rng = np.random.default_rng(1)
    matrices = {"a": rng.normal(size=(6, 50)).astype(np.float32)}
    ours = scalar_peers.on_each_matrix(LIBRARIES[0], 3, matrices)
    theirs = scalar_peers.on_each_matrix(library, 3, matrices)
    ratio = theirs["matrices"]["a"]["sq_error"] / ours["matrices"]["a"]["sq_error"]
    assert ratio >= 1.0 - scalar.LOWER
    if library.is_exact:
        assert ratio == pytest.approx(1.0, rel=1e-6)
        by_row = [scalar_peers.by_row(one, 2, matrices) for one in (LIBRARIES[0], library)]
        assert by_row[0]["n_lines"] == 6
        assert by_row[0]["sq_error"] == pytest.approx(by_row[1]["sq_error"], rel=1e-6)


def test_what_is_left_out_says_why():
    def words(values, n_words):
        raise AssertionError("was to be left out")

    matrices = {"a": np.zeros((30, 40), dtype=np.float32)}
    for options, reason in (
        ({"module": "no_such_module"}, "no module no_such_module"),
        ({"module": "numpy", "bytes_per_cell": 2**40}, r"GiB"),
        ({"module": "numpy", "largest": 1000}, "1200 values"),
    ):
        found = scalar_peers.on_each_matrix(Library("one", words=words, **options), 4, matrices)
        assert found["matrices"] == {}
        assert reason in found["skipped"]["a"]


# ------------------------------------------------------------------ all parts, small


@pytest.fixture
def small_study(monkeypatch, tmp_path):
    """A small model, sentences of few words and made-up examples."""
    use_small_sentences(monkeypatch, tmp_path)
    examples = {part: small_examples(16, seed) for seed, part in enumerate(("train", "dev"))}
    monkeypatch.setattr(classifier, "load_task", lambda task, part, limit: examples[part])
    monkeypatch.setattr(finetune, "MODELS", tmp_path / "models")
    monkeypatch.setitem(finetune.EPOCHS, "SST-2", 1.0)
    names = "embeddings.some", "encoder.layer.0.a", "encoder.layer.0.b"
    rng = np.random.default_rng(2)
    weights = {name: rng.normal(size=(6, 40)).astype(np.float32) for name in names}
    monkeypatch.setattr(data, "model_weights", lambda: weights)
    monkeypatch.setattr(scalar, "LIBRARIES", [one for one in LIBRARIES if one.name in EXACT])


PLAN = scalar.Plan(
    parts=scalar.PARTS,
    peer_bits=[2],
    restart_bits=[2],
    row_bits=[3],
    bits=[1, 2],
    granularities=["tensor"],
    training_bits=[2],
    schemes=["kmeans", "linear"],
)


def test_runs_and_goes_on(small_study, tmp_path, monkeypatch):
    units = Units("scalar", tmp_path)
    result = scalar.run(PLAN, QUIET, units)
    json.dumps(result)
    assert [len(unit["matrices"]) for unit in result["peers"]] == [3, 3]
    assert result["by_row"][0]["n_lines"] == 12
    assert [(row["bits"], row["scheme"]) for row in result["rows"]] == [
        (bits, scheme) for bits in (1, 2) for scheme in ("kmeans", "linear")
    ]
    # Six linear layers in each of two layers, the pooler, and three embeddings.
    assert {row["n_weights"] for row in result["rows"]} == {16}
    assert [row["scheme"] for row in result["training"]] == ["kmeans", "linear"]
    peers, rows, schemes, trained = scalar.sheets(result)
    assert table_of(peers)["pgkmeans-sk"]["less than ours"] == "0"
    assert table_of(rows)["pgkmeans-sk"]["SSE to ours"] == "+0.0e+00"
    assert schemes.title.startswith("A codebook for each tensor: 16 weights, without training")
    assert set(table_of(schemes)) == {"1", "2"}
    assert len(trained.rows) == 2
    assert report.compare(result, result).rows

    def not_again(*arguments, **options):
        raise AssertionError("ran again")

    for module, name in ((compressing, "scalar_quantize"), (scalar_peers, "by_row"),
                         (training, "fine_tune")):  # fmt: skip
        monkeypatch.setattr(module, name, not_again)
    again = scalar.run(PLAN, QUIET, units)
    for part in ("peers", "by_row", "rows", "training"):
        assert again[part] == result[part]
    with pytest.raises(AssertionError, match="ran again"):
        scalar.run(dataclasses.replace(PLAN, training_rate=1e-3), QUIET, units)


def test_what_is_not_finished_is_named(small_study, tmp_path):
    scalar.run(dataclasses.replace(PLAN, parts=["peers", "schemes"], bits=[1]), QUIET,
               Units("scalar", tmp_path))  # fmt: skip
    plan = dataclasses.replace(PLAN, parts=["peers", "rows", "schemes"])
    result = scalar.run(plan, QUIET, FinishedUnits("scalar", tmp_path))
    assert [row["bits"] for row in result["rows"]] == [1, 1]
    assert len(result["peers"]) == 2
    assert result["by_row"] == []
    assert [skip["run"] for skip in result["skipped"]] == [
        "rows, pgkmeans-sk, 3 bits", "rows, kmeans1d, 3 bits",
        "kmeans, tensor, 2 bits", "linear, tensor, 2 bits",
    ]  # fmt: skip
    result["rows"].pop()  # a scheme without a result
    assert table_of(scalar.sheets(result)[-1])["1"]["kmeans"] != "-"


def test_only_codebooks_are_trained(small_study, tmp_path, monkeypatch):
    before, after = {}, {}
    train = finetune.Study.train

    def watched(self, model, *others, **options):
        if any(p.ndim == 4 for p in model.parameters()):
            before.update({name: p.detach().clone() for name, p in model.named_parameters()})
            train(self, model, *others, **options)
            after.update(model.named_parameters())
        else:
            train(self, model, *others, **options)

    monkeypatch.setattr(finetune.Study, "train", watched)
    plan = dataclasses.replace(PLAN, parts=["training"], schemes=["kmeans"])
    scalar.run(plan, QUIET, Units("scalar", tmp_path))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.endswith("original") for name in changed)
    assert "head.weight" in before


def test_totals():
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Linear(8, 32))
    weights = [layer.weight.detach().clone() for layer in model]
    squares = {f"{i}.weight": float(weight.square().sum()) for i, weight in enumerate(weights)}
    quantized = compressing.scalar_quantize(model, 2)
    found = scalar.totals(quantized, squares)
    lost = sum(
        float((layer.weight.detach() - weight).square().sum())
        for layer, weight in zip(model, weights, strict=True)
    )
    assert found["relative_error"] == pytest.approx(np.sqrt(lost / sum(squares.values())), rel=1e-5)
    assert found["bits_per_weight"] == pytest.approx(2 + 2 * 4 * 16 / 384)
    assert found["n_weights"] == 2
