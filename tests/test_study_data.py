"""Of the studies of compressed models: sentences, the yardstick, and runs that are kept."""

import json

import numpy as np
import pytest

from benchmarks import glue, sts
from benchmarks.units import Units
from benchmarks.wordpiece import WordPiece


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two of the tasks, and a line or two in each file."""
    files = {
        "SST-2/train.tsv": "1\ta good film\n0\tbad \n",
        "RTE/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tA dog.\tIt runs.\tentailment\n",
        "STS-B/dev.csv": "a\tb\tc\td\t4.5\tA dog.\tThe dog.\n\n"
        "a\tb\tc\td\t0.0\tA dog.\tA film.\textra\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv(glue.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


class TestGlue:
    def test_each_layout(self, folder):
        assert glue.examples("SST-2", "train") == [
            glue.Example(("a good film",), "1"),
            glue.Example(("bad",), "0"),
        ]
        assert glue.examples("RTE", "dev") == [glue.Example(("A dog.", "It runs."), "entailment")]

    def test_a_folder_that_is_not_there_is_asked_for(self, folder, monkeypatch):
        monkeypatch.setenv(glue.FOLDER_VARIABLE, str(folder / "nowhere"))
        with pytest.raises(FileNotFoundError, match=f"nowhere: set {glue.FOLDER_VARIABLE}"):
            glue.examples("SST-2", "train")

    def test_a_file_that_is_not_there_is_named(self, folder):
        with pytest.raises(FileNotFoundError, match=r"SST-2/dev\.tsv, which is needed for SST-2"):
            glue.examples("SST-2", "dev")


class TestSpearman:
    def test_pairs(self, folder):
        pairs = sts.load_pairs("dev")
        assert pairs == sts.Pairs(("A dog.", "A dog."), ("The dog.", "A film."), [4.5, 0.0])
        assert sts.load_pairs("dev", 1).scores == [4.5]

    @pytest.mark.parametrize("length", [1.0, 7.0])  # lengths do not count
    @pytest.mark.parametrize(
        ("scores", "correlation"),
        [
            ([5.0, 2.0, 1.0], 1.0),
            ([0.0, 1.0, 2.0], -1.0),
            ([2.0, 5.0, 1.0], 0.5),  # 1 - 6 (1 + 1 + 0) / (3 * 8)
        ],
    )
    def test_ranks(self, length, scores, correlation):
        # Angles to the first: 0.1, 0.5 and 1 radian.
        angles = {"first": 0.0, "near": 0.1, "farther": 0.5, "far": 1.0}

        def embed(sentences):
            assert len(sentences) == 4  # each once
            chosen = np.array([angles[sentence] for sentence in sentences])
            return length * np.stack([np.cos(chosen), np.sin(chosen)], axis=1)

        pairs = sts.Pairs(["first"] * 3, ["near", "farther", "far"], scores)
        assert sts.spearman(embed, pairs) == pytest.approx(correlation)


class TestWordPiece:
    @pytest.fixture
    def tokenizer(self, tmp_path):
        vocabulary = tmp_path / "vocab.txt"
        vocabulary.write_text("[UNK]\n[CLS]\n[SEP]\na\nb\nc\n")
        return WordPiece(vocabulary)

    def test_two_sentences(self, tokenizer):
        assert tokenizer.encode_parts(["a b", "c"]) == [[1, 3, 4, 2], [5, 2]]
        assert tokenizer.encode_parts(["a b"]) == [[1, 3, 4, 2]]

    def test_the_longer_one_is_shortened(self, tokenizer):
        parts = tokenizer.encode_parts(["a b c a b c", "c b"], longest=8)
        assert parts == [[1, 3, 4, 5, 2], [5, 4, 2]]


TOLD = {"sizes": (8, 4), "seed": 0}


class TestUnits:
    def test_a_finished_unit_is_not_run_again(self, tmp_path):
        units = Units("study", tmp_path)
        first = units.run("arm, 8 x 256", TOLD, lambda: {"accuracy": 0.5})

        def not_again():
            raise AssertionError("ran twice")

        assert Units("study", tmp_path).run("arm, 8 x 256", TOLD, not_again) == first
        assert first["result"] == {"accuracy": 0.5}
        assert {"cpu", "date", "load_average"} <= first["machine"].keys()
        assert "numpy" in first["versions"]

    def test_a_unit_that_is_told_something_else_runs_again(self, tmp_path):
        units = Units("study", tmp_path)
        units.run("arm", TOLD, lambda: {"accuracy": 0.5})
        other = units.run("arm", TOLD | {"seed": 1}, lambda: {"accuracy": 0.7})
        assert other["result"] == {"accuracy": 0.7}
        assert units.finished("arm", TOLD) is None

    def test_a_unit_that_fails_leaves_nothing(self, tmp_path):
        units = Units("study", tmp_path)
        with pytest.raises(ZeroDivisionError):
            units.run("arm", TOLD, lambda: {"accuracy": 1 / 0})
        assert units.finished("arm", TOLD) is None
        assert not list(tmp_path.rglob("*.json"))

    def test_a_unit_can_be_forgotten(self, tmp_path):
        units = Units("study", tmp_path)
        units.run("arm", TOLD, lambda: {"accuracy": 0.5})
        units.forget("arm")
        units.forget("arm")
        assert units.finished("arm", TOLD) is None

    def test_names_become_names_of_files(self, tmp_path):
        units = Units("study", tmp_path)
        units.run("SST-2, noise 0.1, PG + scale=row", {}, lambda: {})
        (path,) = (tmp_path / "study").iterdir()
        assert path.name == "SST-2_noise_0.1_PG_+_scale=row.json"
        assert json.loads(path.read_text())["name"] == "SST-2, noise 0.1, PG + scale=row"
