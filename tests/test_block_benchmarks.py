"""The benchmarks of rows in blocks, at a size where they tell nothing but that they work."""

import io

import pytest
from rich.console import Console

from benchmarks import distributed, stored


@pytest.mark.slow
def test_stored_rows_are_compared_with_rows_in_memory(tmp_path):
    plan = stored.Plan(
        n_rows=3000, n_features=4, n_clusters=5, compared_rows=2000, folder=str(tmp_path)
    )
    result = stored.run(plan, Console(file=io.StringIO()))
    first, second, third = result["rows"]
    assert (first["way"], second["way"], third["n"]) == (stored.STORED, stored.IN_MEMORY, 3000)
    assert first["inertia"] == second["inertia"]
    assert third["bytes_of_rows"] == 3000 * 4 * 4
    assert third["peak_bytes"] > third["bytes_of_rows"]
    (sheet,) = stored.sheets(result)
    assert [row[1] for row in sheet.rows] == ["2 000", "2 000", "3 000"]
    assert not list(tmp_path.iterdir())  # the file of rows is gone


def test_sheets_of_a_cluster():
    rows = [
        {
            "part": "time",
            "n": 10**7,
            "seconds_in_memory": 4.0,
            "seconds": 5.0,
            "ratio": 1.25,
            "bytes_per_iteration": 2e5,
            "bytes_over_unit": 2.7,
            "same_result": True,
        },
        {"part": "kills", "n": 10, "n_kills": 3, "n_same": 3, "seconds": 1.0},
    ]
    settings = {"n_features": 16, "n_clusters": 256, "iterations": 10, "n_workers": 2}
    times, kills = distributed.sheets({"rows": rows, "settings": settings})
    assert "10 000 000" in times.rows[0]
    assert kills.rows == [("3", "3")]
