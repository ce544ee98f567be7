"""The benchmark of small tables: both libraries in turns, and what its tables say."""

import pytest
from rich.console import Console

from benchmarks import report, small


@pytest.fixture
def result(monkeypatch):
    monkeypatch.setattr(small, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(small, "REAL", ("iris",))
    monkeypatch.setattr(small, "COMPILING_FITS", 0)
    return small.run(small.Plan((40,), (2,), (3, 9)), Console(quiet=True))


def test_each_table_is_measured_in_both_modes(result):
    # 40 rows are too few for 9 clusters.
    found = [(row["case"], row["n"], row["d"], row["k"], row["mode"]) for row in result["rows"]]
    cases = [("iris", 150, 4, 3), ("iris", 150, 4, 9), ("mixture (synthetic)", 40, 2, 3)]
    assert found == [(*case, mode) for case in cases for mode in small.MODES]
    assert all(row["n_pairs"] == small.FEWEST_PAIRS for row in result["rows"])
    assert all(row["sse"] > 0 and row["seconds"] > 0 for row in result["rows"])


def test_the_better_clustering_has_the_lower_sse(result):
    iris = next(row for row in result["rows"] if row["case"] == "iris" and row["k"] == 3)
    assert iris["sse"] == pytest.approx(78.85, abs=0.01)


def test_tables_tell_ratios(result):
    for row in result["rows"]:
        row |= {"seconds": 0.002, "their_seconds": 0.001, "ours_over_theirs": 2.0}
        row |= {"sse": 90.0, "their_sse": 100.0}
    text = report.to_markdown(result, "small.json")
    assert "| iris | 150 | 4 | 3 | 2.00 | 1.00 | 2.00 | -10.00 % |" in text
    assert "geometric mean 2.00, largest 2.00; 3 of 3 above 1." in text


def test_fits_take_turns():
    calls = []
    ours, theirs = small.in_turns(lambda: calls.append("ours"), lambda: calls.append("theirs"))
    assert calls == ["ours", "theirs"] * len(ours)
    assert len(ours) == len(theirs) <= small.MOST_PAIRS
