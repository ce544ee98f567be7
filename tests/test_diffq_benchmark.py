"""The benchmark of DiffQ, on one setting; what its table says."""

import pytest

pytest.importorskip("rich")
pytest.importorskip("torch")
pytest.importorskip("safetensors")

from rich.console import Console

from benchmarks import diffq, report
from benchmarks.__main__ import build_parser
from benchmarks.command_options import plan_of


def row(arm, setting, seed, accuracy, n_bytes, bits, penalty=None):
    return {
        **{"arm": arm, "setting": setting, "seed": seed, "accuracy": accuracy, "bits": bits},
        **{"float_accuracy": 0.97, "n_bytes": n_bytes, "penalty": penalty, "seconds": 1.0},
    }


def test_table():
    rows = [
        row(diffq.FLOAT, 32, 0, 0.97, 100_000, 32.0),
        row(diffq.LINEAR, 4, 0, 0.90, 15_000, 4.0, 15_000),
        row(diffq.LEARNED, 1.5, 0, 0.96, 16_000, 4.1, 16_160),
        row(diffq.LEARNED, 1.5, 1, 0.98, 14_000, 3.9, 14_000),
    ]
    settings = {"epochs": 30, "group_size": 8, "noise": "uniform", "logit_rate": 0.05}
    result = {"kind": "diffq", "settings": settings, "rows": rows}
    (sheet,) = report.SHEETS["diffq"](result)
    assert [tuple(line) for line in sheet.rows] == [
        ("float", "32 bits", "32.00", "100 000", "97.00", "0.00", "0.00", "-"),
        ("linear", "4 bits", "4.00", "15 000", "90.00", "7.00", "7.00", "0.00"),
        ("DiffQ", "1.5 a MB", "4.00", "15 000", "97.00", "0.00", "1.00", "1.00"),
    ]


def test_a_short_run():
    arguments = build_parser().parse_args(["diffq", "--quick", "--bits", "5"])
    result = diffq.run(plan_of(diffq.Plan, arguments), Console(quiet=True))
    by_arm = {row["arm"]: row for row in result["rows"]}
    assert set(by_arm) == set(diffq.ARMS)
    for arm in (diffq.LINEAR, diffq.FIXED, diffq.LEARNED):
        assert by_arm[arm]["penalty"] == by_arm[arm]["n_bytes"]
        assert by_arm[arm]["n_bytes"] < 0.3 * by_arm[diffq.FLOAT]["n_bytes"]
    assert by_arm[diffq.LINEAR]["bits"] == by_arm[diffq.FIXED]["bits"] == 5.0
    assert 2 <= by_arm[diffq.LEARNED]["bits"] <= 8
