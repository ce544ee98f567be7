"""The study of all methods on one network: its table and its picture."""

import json

import pytest
from rich.console import Console

pytest.importorskip("torch")

from benchmarks import methods, methods_plot, report


@pytest.fixture(scope="module")
def result():
    plan = methods.Plan(seeds=(3,), epochs=1, epochs_after=1, quick=True)
    return methods.run(plan, Console(quiet=True))


def test_each_method_makes_the_network_small(result):
    json.dumps(result)
    rows = {row["method"]: row for row in result["rows"]}
    assert set(rows) == {methods.FLOAT, *methods.METHODS}
    n_values = 64 * 128 + 128 * 128 + 128 * 10
    assert rows[methods.FLOAT]["n_bytes"] == 4 * n_values
    for method in methods.METHODS:
        row = rows[method]
        assert row["bits_per_weight"] == 8 * row["n_bytes"] / n_values < 9.0
        assert 0.0 <= row["accuracy"] <= 1.0
    # One bit and two values for each of three weights.
    assert rows["k-means of values"]["n_bytes"] == n_values // 8 + 3 * 4
    assert rows["blocks at once"]["n_bytes"] == n_values // 8 * 4 // 8 + 3 * 16 * 8 * 2


def test_table(result):
    (sheet,) = report.SHEETS["methods"](result)
    assert [row[0] for row in sheet.rows] == [methods.FLOAT, *methods.METHODS]
    assert sheet.rows[0][2:4] == ("32.00", "103 424")
    assert sheet.rows[0][-1] == "0.00"


def test_picture(result, tmp_path):
    pytest.importorskip("matplotlib")
    (path,) = methods_plot.draw(result, tmp_path)
    assert path.name == methods.PICTURE
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_weight_that_is_left_is_no_result():
    from benchmarks import digits_model

    with pytest.raises(AssertionError, match=r"Got '0\.weight' as it was"):
        methods._stored_bytes(digits_model.network(0))
