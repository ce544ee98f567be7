"""The benchmark of compressed models in use, on a small model."""

import json

import pytest
from rich.console import Console

pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import classifier, clock, inference, report
from tests.study_models import small_encoder


@pytest.fixture
def result(monkeypatch):
    # Seconds mean nothing here.
    monkeypatch.setattr(clock, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(clock, "SHORTEST_TIMING", 1e-9)
    monkeypatch.setattr(classifier, "load_encoder", small_encoder)
    plan = inference.Plan(block_size=2, n_codes=8, rounds=2, quick=True)
    return inference.run(plan, Console(quiet=True))


def test_each_way_of_each_task_is_timed(result):
    json.dumps(result)
    found = [(row["task"], row["way"]) for row in result["rows"]]
    three = (inference.PLAIN, inference.COMPRESSED, inference.CACHED)
    assert found == [
        *(("forward", way) for way in three),
        *(("training step", way) for way in three[:2]),
        *(("embeddings", way) for way in (*three, inference.WHOLE_TABLE)),
    ]
    assert all(row["seconds"] > 0 and len(row["all_seconds"]) == 2 for row in result["rows"])
    plain = [row["time_to_plain"] for row in result["rows"] if row["way"] == inference.PLAIN]
    assert plain == [1.0] * 3


def test_tables(result):
    for row in result["rows"]:
        row["seconds"] = 0.002
    first, second, third = report.SHEETS["inference"](result)
    assert first.title == "forward, blocks of 2, 8 codes"
    assert first.rows[0][:4] == ("1 x 16", "2.00", "2.00", "2.00")
    assert len(second.rows[0]) == 1 + 2 + 1
    assert third.columns[-1] == "compressed, whole table / plain"
    assert len(third.rows[0]) == len(third.columns) == 1 + 4 + 3
