"""Studies of compressed models: arms, training, iPQ and their tables, on a small random encoder."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="the encoder is transformers'")

from benchmarks import (  # noqa: E402
    classifier,
    finetune,
    ipq,
    report,
    sentences,
    training,
    weight_arms,
)
from benchmarks.classifier import Batch, Encoded  # noqa: E402
from benchmarks.training import Training  # noqa: E402
from benchmarks.units import Units  # noqa: E402
from benchmarks.weight_arms import ARMS, Job, Setting  # noqa: E402
from pgkmeans_sk import nn as compressing  # noqa: E402
from tests.study_models import (  # noqa: E402
    VOCABULARY,
    WORDS,
    small_classifier,
    small_encoder,
    small_examples,
    use_small_sentences,
)

QUIET = Console(quiet=True)
TWO = Setting(2, 8)


@pytest.fixture(autouse=True)
def two_threads():
    """A small model is slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestClassifier:
    def test_padding_changes_nothing(self):
        encoder = small_encoder()
        short, long = small_examples(2)[0], Encoded([2, *[4] * 9, 3], [0] * 11)
        with torch.inference_mode():
            alone = classifier.mean_states(encoder, Batch.of([short]))
            padded = classifier.mean_states(encoder, Batch.of([short, long]))
        torch.testing.assert_close(padded[:1], alone)

    def test_embeddings_are_in_the_order_of_the_sentences(self, tmp_path):
        encoder = small_encoder()
        vocabulary = tmp_path / "vocab.txt"
        vocabulary.write_text("\n".join(WORDS) + "\n")
        tokenizer = classifier.WordPiece(vocabulary)
        texts = ["a good film", "dog", "a bad dog runs", "runs"]
        together = classifier.embed(encoder, tokenizer, texts)
        alone = [classifier.embed(encoder, tokenizer, [text])[0] for text in texts]
        np.testing.assert_allclose(together, alone, atol=1e-6)

    @pytest.mark.parametrize("order", [None, 0])
    def test_batches_hold_each_example_once(self, order):
        examples = [Encoded([1] * (1 + i % 7), [0], i) for i in range(50)]
        rng = None if order is None else np.random.default_rng(order)
        found = list(classifier.batches(examples, 8, rng))
        assert sorted(example.label for batch in found for example in batch) == list(range(50))
        assert [len(batch) for batch in found].count(8) == 6
        lengths = [{len(example.tokens) for example in batch} for batch in found]
        assert max(map(len, lengths)) <= 3  # sorted: about equal ones are together

    def test_calibration_counts_tokens_and_no_padding(self):
        examples = small_examples()
        model = small_classifier()
        calibration = classifier.calibrated(model, examples)
        n_tokens = sum(len(example.tokens) for example in examples)
        name = "encoder.encoder.layer.1.output.dense.weight"
        assert calibration[name].n_rows == n_tokens
        counts = calibration["encoder.embeddings.word_embeddings.weight"].counts
        assert counts.sum() == n_tokens
        assert len(counts) == VOCABULARY


class TestTraining:
    def test_learning_rate_rises_and_falls(self):
        factors = [training.factor(step, 10, 0.2) for step in range(10)]
        np.testing.assert_allclose(factors, [0.5, 1.0, *np.arange(8, 0, -1) / 8])

    def test_it_learns_and_repeats(self):
        examples = small_examples(64)
        plan = Training(epochs=6, learning_rate=3e-3, batch_size=8)
        before = training.accuracy(small_classifier(), examples)
        states = []
        for _ in range(2):
            model = small_classifier()
            training.fine_tune(model, examples, plan, seed=0)
            states.append(model.state_dict())
        assert training.accuracy(model, examples) > max(before, 0.9)
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), name

    def test_parts_of_an_epoch(self):
        steps = []
        plan = Training(epochs=1.5, batch_size=8)
        training.fine_tune(
            small_classifier(), small_examples(32), plan, 0, each_step=lambda *s: steps.append(s)
        )
        assert steps == [(step, 6) for step in range(1, 7)]

    def test_a_teacher_of_the_same_scores_teaches_nothing_more(self):
        batch = Batch.of(small_examples(4))
        model = small_classifier()
        alone = training._loss(model, batch, None)
        torch.testing.assert_close(training._loss(model, batch, model), 0.5 * alone)

    def test_codebooks_do_not_decay(self):
        model = small_classifier()
        rules = [{"match": "head.weight", "skip": True}]
        spec = {"defaults": {"block_size": 2, "n_codes": 4}, "rules": rules}
        compressing.compress_model(model, spec)
        with_decay, without = training._groups(model, 0.01)
        assert with_decay["params"] == [model.head.weight]
        assert {p.ndim for p in without["params"]} == {1, 4}


class TestArms:
    names = ("encoder.layer.0.attention.self.query.weight", "encoder.layer.1.output.dense.weight")

    @pytest.mark.parametrize("arm", list(ARMS))
    def test_records_say_what_became_of_the_weights(self, arm):
        if arm == "faiss":
            pytest.importorskip("faiss")
        model = small_encoder()
        weights = {name: model.get_parameter(name).detach().clone() for name in self.names}
        calibration = None
        if ARMS[arm].wants_calibration:
            calibration = classifier.calibrated(model, small_examples())
        job = Job(dict.fromkeys(self.names, TWO), calibration=calibration)
        small = ARMS[arm].compress(model, job)
        assert list(small) == list(self.names)
        for name, record in small.items():
            W = weights[name].double()
            parametrized = model.get_submodule(name.removesuffix(".weight"))
            lost = float((W - parametrized.weight.detach().double()).square().sum())
            # Errors are recorded in float32, relative to the weight.
            assert record.sq_error == pytest.approx(lost, rel=1e-3)
            assert record.squares == pytest.approx(float(W.square().sum()), rel=1e-5)
            assert record.n_values == W.numel()
            # 3 bits a code, and 8 code words of 2 values in float16.
            assert record.n_bytes >= W.numel() // 2 * 3 // 8 + 8 * 2 * 2
            assert record.n_empty_last == 0
            assert not record.gave_up
        others = set(model.state_dict()) - {name.replace(".weight", "") for name in self.names}
        assert sum("parametrizations" in name and "original" in name for name in others) == 2

    def test_an_arm_without_the_calibration_that_it_wants(self):
        with pytest.raises(ValueError, match="no calibration"):
            ARMS["compress_model + feedback"].compress(small_encoder(), Job({self.names[0]: TWO}))

    def test_the_baseline_that_gives_up_is_recorded(self):
        """One distinct block: no perturbation makes more than two clusters of it."""
        model = torch.nn.Sequential(torch.nn.Linear(8, 32))
        torch.nn.init.constant_(model[0].weight, 1.0)
        (record,) = ARMS["iPQ baseline"].compress(model, Job({"0.weight": TWO})).values()
        assert record.gave_up
        assert record.n_passes == 100
        assert record.n_empty_last > 0

    def test_totals(self):
        first = weight_arms.Small(100, 50, 4.0, 0.75, 1, 0, 2, False, 1.0)
        second = dataclasses.replace(first, n_values=60, sq_error=0.25, gave_up=True)
        total = weight_arms.totals({"a": first, "b": second})
        assert total["bits_per_weight"] == 8 * 100 / 160
        assert total["relative_error"] == pytest.approx(np.sqrt(1.0 / 8.0))
        assert (total["n_passes"], total["n_gave_up"], total["n_weights"]) == (4, 1, 2)
        unknown = dataclasses.replace(second, n_passes=None)
        assert weight_arms.totals({"a": first, "b": unknown})["n_passes"] is None

    def test_the_command_line_knows_the_arms(self):
        assert set(sentences.ARMS) == set(ARMS)
        assert set(finetune.ARMS) <= set(ARMS)
        assert tuple(ipq.SIZES) == finetune.SIZES
        assert tuple(classifier.TASKS) == finetune.TASKS
        assert not any("," in name for name in (*ARMS, *ipq.SIZES))


class TestIterativeQuantization:
    sizes = ipq.Sizes(Setting(4, 4), Setting(2, 4), Setting(2, 8))

    def test_groups_hold_each_weight_once(self):
        model = small_classifier()
        groups = {group: ipq.names_of(model, group) for group in ipq.GROUPS}
        assert {group: len(names) for group, names in groups.items()} == {
            "feed-forward": 4,
            "embeddings": 1,
            "attention": 8,
        }
        assert len({name for names in groups.values() for name in names}) == 13

    @pytest.mark.parametrize("arm", ["iPQ baseline", "PG", "compress_model + importance"])
    def test_stages(self, arm):
        model = small_classifier()
        examples = small_examples(32)
        seen = []

        def train(model, number):
            seen.append([n for n, _ in model.named_parameters() if n.endswith("original")])
            training.fine_tune(model, examples, Training(epochs=1, learning_rate=1e-3), number)

        result = ipq.compressed_and_trained(
            model,
            ARMS[arm],
            self.sizes,
            0,
            calibrate=lambda model: classifier.calibrated(model, examples),
            train=train,
            judge=lambda model: training.accuracy(model, examples),
        )
        assert [len(names) for names in seen] == [4, 5, 13]
        assert [stage["group"] for stage in result["stages"]] == list(ipq.GROUPS)
        assert result["accuracy"] == training.accuracy(model, examples)
        assert result["n_weights"] == 13
        assert result["ratio"] == pytest.approx(32 / result["bits_per_weight"])
        key = "encoder.encoder.layer.0.attention.self.key"
        assert model.get_submodule(key).parametrizations.weight.original.shape == (1, 1, 8, 2)


FINETUNE = {
    "fine_tuned": [
        {"task": "SST-2", "seed": seed, "noise": noise, "accuracy": accuracy, "seconds": 100.0}
        for seed, noise, accuracy in ((0, 0.0, 0.88), (1, 0.0, 0.86), (0, 0.1, 0.87))
    ],
    "rows": [
        {
            "task": "SST-2",
            "sizes": "paper",
            "arm": arm,
            "seed": seed,
            "noise": 0.0,
            "distil": False,
            "uncompressed": 0.5,
            "accuracy": accuracy,
            "bits_per_weight": 1.25,
            "ratio": 25.6,
            "n_weights": 37,
            "n_empty_first": 3,
            "n_empty_last": 0,
            "n_passes": None if arm == "compress_model" else 2,
            "n_gave_up": 0,
            "seconds": 10.0,
            "training_seconds": 300.0,
            "all_seconds": 310.0,
        }
        for arm, seed, accuracy in (
            ("iPQ baseline", 0, 0.84),
            ("iPQ baseline", 1, 0.84),
            ("compress_model", 0, 0.87),
            ("compress_model", 1, 0.85),
        )
    ],
    "kind": "finetune",
    "settings": {},
    "machine": {"cpu": "a processor", "cores": 2, "date": "2026-01-02", "python": "3.11"},
    "versions": {"numpy": "2.0"},
}


def table_of(sheet):
    """A sheet as a dictionary: first cell of a row -> column -> cell."""
    return {row[0]: dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows}


def test_finetune_tables(tmp_path):
    whole, compressed = finetune.sheets(FINETUNE)
    assert whole.rows[0][:4] == ("SST-2", "0", "87.00 % (86.00 - 88.00)", "2")
    ours = table_of(compressed)["compress_model"]
    assert ours["accuracy, mean (least - most)"] == "86.00 % (85.00 - 87.00)"
    assert ours["points to uncompressed"] == "-1.00"
    assert ours["points to baseline"] == "+2.00"
    assert ours["passes"] == "-"
    assert table_of(compressed)["iPQ baseline"]["passes"] == "4"
    assert compressed.title == "SST-2, paper: 37 weights, 2 seeds"
    assert "| iPQ baseline | 0 | 84.00 %" in report.to_markdown(FINETUNE, "somewhere.json")
    assert report.compare(FINETUNE, FINETUNE).rows[0][-4:] == ("310.0", "310.0", "1.00", "0 -> 0")


@pytest.fixture
def small_tasks(monkeypatch):
    """The small encoder and made-up examples in the place of the real ones."""
    monkeypatch.setattr(classifier, "load_encoder", small_encoder)
    monkeypatch.setattr(
        classifier,
        "load_task",
        lambda task, part, limit: small_examples(16, seed=0 if part == "train" else 1),
    )
    monkeypatch.setitem(ipq.SIZES, "paper", TestIterativeQuantization.sizes)
    monkeypatch.setitem(finetune.EPOCHS, "SST-2", 1.0)


def test_finetune_runs_and_goes_on(small_tasks, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "MODELS", tmp_path / "models")
    units = Units("study", tmp_path)
    plan = finetune.Plan(tasks=["SST-2"], sizes=["paper"], noise=[0.0, 0.5], seeds=[3])
    result = finetune.run(plan, QUIET, units)
    json.dumps(result)
    assert [(run["noise"], run["seed"]) for run in result["fine_tuned"]] == [(0.0, 3), (0.5, 3)]
    assert [(row["noise"], row["arm"]) for row in result["rows"]] == [
        (noise, arm) for noise in (0.0, 0.5) for arm in finetune.ARMS
    ]
    files = {Path(run["file"]).name for run in result["fine_tuned"]}
    assert files == {path.name for path in (tmp_path / "models").iterdir()}

    def not_again(*arguments):
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "fine_tune", not_again)
    again = finetune.run(plan, QUIET, units)
    assert again["rows"] == result["rows"]
    finetune.sheets(again)
    with pytest.raises(AssertionError, match="trained again"):
        finetune.run(dataclasses.replace(plan, stage_rate=1e-3), QUIET, units)


def test_a_lost_model_is_trained_again(small_tasks, tmp_path):
    study = finetune.Study(finetune.Plan(), QUIET, Units("study", tmp_path), tmp_path / "models")
    first = study.fine_tuned("SST-2", 0, 0.0)
    path = tmp_path / "models" / first["file"]
    path.unlink()
    assert study.fine_tuned("SST-2", 0, 0.0)["accuracy"] == first["accuracy"]
    assert path.is_file()


@pytest.fixture
def small_sentences(monkeypatch, tmp_path):
    use_small_sentences(monkeypatch, tmp_path)


def test_sentences_run_and_go_on(small_sentences, tmp_path, monkeypatch):
    arms = ["PG", "compress_model", "compress_model + feedback"]
    plan = sentences.Plan(arms=arms, specs=["auto"], block_sizes=[2], n_codes=[8])
    monkeypatch.setitem(
        sentences.SPECS, "auto", {"defaults": {"block_size": 2, "n_codes": 8, "feedback": True}}
    )
    units = Units("study", tmp_path)
    result = sentences.run(plan, QUIET, units)
    json.dumps(result)
    assert [(row["arm"], row["subset"]) for row in result["rows"]] == [
        (arm, subset) for arm in arms for subset in sentences.SUBSETS
    ]
    # Six linear layers in each of two layers, the pooler, and the word embeddings.
    assert [row["n_weights"] for row in result["rows"]] == [13, 14] * 3
    assert all(-1.0 <= row["spearman"] <= 1.0 for row in result["rows"])
    assert result["rows"][-1]["n_calibration"] == 1000
    assert sentences.run(plan, QUIET, units)["rows"] == result["rows"]
    linear, _, whole = sentences.sheets(result)
    assert [row[:2] for row in whole.rows] == [("auto", way) for way in sentences.WAYS]
    # What the spec compresses, in the file's bits: positions as well.
    assert int(whole.rows[0][4]) == result["specs"][0]["n_weights"] > 0
    assert linear.title.startswith("13 weights (linear), blocks of 2, 8 codes; uncompressed")
    assert set(table_of(linear)) == set(arms)


def test_sentences_table_of_several_seeds():
    rows = [
        {"arm": "PG", "subset": "linear", "block_size": 8, "n_codes": 256, "seed": seed,
         "spearman": spearman, "n_weights": 37, "bits_per_weight": 1.1, "relative_error": 0.5,
         "n_empty_first": seed, "n_empty_last": 0, "n_passes": 1, "n_gave_up": 0, "seconds": 2.0}
        for seed, spearman in ((1, 0.7), (2, 0.8))
    ]  # fmt: skip
    (sheet,) = sentences.sheets({"settings": {"uncompressed": 0.9}, "rows": rows, "specs": []})
    row = table_of(sheet)["PG"]
    assert row["Spearman"] == "0.7500 (0.7000 - 0.8000)"
    assert row["to uncompressed"] == "-0.1500"
    assert (row["empty at first"], row["passes"]) == ("3", "2")
    assert "2 seeds" in sheet.caption
