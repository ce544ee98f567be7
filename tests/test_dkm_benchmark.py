"""The benchmark of DKM, on few weights; what a step may have in memory; digits."""

import numpy as np
import pytest

pytest.importorskip("rich")
torch = pytest.importorskip("torch")

from rich.console import Console  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from benchmarks import digits_model, dkm, report  # noqa: E402
from benchmarks.__main__ import build_parser  # noqa: E402
from benchmarks.command_options import plan_of  # noqa: E402
from pgkmeans_sk.nn import soft_kmeans  # noqa: E402
from pgkmeans_sk.nn.soft_gradients import BACKWARDS  # noqa: E402
from tests import reference_dkm as reference  # noqa: E402


def step_row(way, size="4/1", seconds=1.0, peak_bytes=2**20):
    return {
        **{"part": "steps", "way": way, "size": size, "dtype": "float32", "seed": 0},
        **{"n_weights": 1024, "iterations": 5, "seconds": seconds, "peak_bytes": peak_bytes},
    }


def digits_row(seed, accuracy):
    return {
        **{"part": "digits", "way": "jfb", "size": "2/1", "dtype": "float32", "seed": seed},
        **{"float_accuracy": 0.97, "codes": 0.9, "accuracy": accuracy, "seconds": 3.0},
        **{"n_bytes": 1000, "float_bytes": 8000},
    }


RESULT = {
    "kind": "dkm",
    "settings": {"iterations": 5, "torch_threads": 2},
    "machine": {},
    "versions": {},
    "rows": [
        step_row(dkm.PLAIN, seconds=2.0, peak_bytes=40 * 2**20),
        step_row("jfb"),
        step_row("implicit", peak_bytes=None),
        digits_row(0, 0.96),
        digits_row(1, 0.98),
    ],
}


def test_tables():
    steps, digits = report.SHEETS["dkm"](RESULT)
    assert steps.title == "A training step of 1 024 weights in float32"
    assert [tuple(row) for row in steps.rows] == [
        ("4/1", dkm.PLAIN, "2.000", "1.00", "40.0", "1.000"),
        ("4/1", "jfb", "1.000", "0.50", "1.0", "0.025"),
        ("4/1", "implicit", "1.000", "0.50", "-", "-"),
    ]
    # Lost: 1 and -1 points.
    assert [tuple(row) for row in digits.rows] == [
        ("2/1", "jfb", "97.0", "90.0", "97.0", "0.00", "1.00", "1 000")
    ]
    assert digits.title == "Digits: accuracy in percent, mean of 2 seeds"


def test_options_are_the_fields_of_a_plan():
    arguments = build_parser().parse_args(["dkm", "--sizes", "3/2", "--seeds", "4", "--no-memory"])
    plan = plan_of(dkm.Plan, arguments)
    assert plan.sizes == ["3/2"]
    assert plan.seeds == [4]
    assert not plan.with_memory
    assert dkm.sizes_of("3/2") == (3, 2)
    assert plan_of(dkm.Plan, build_parser().parse_args(["dkm"])).rounds == dkm.Plan.rounds


def test_a_short_run(monkeypatch):
    peaks = []
    monkeypatch.setattr(dkm, "_peak_in_child", lambda step: peaks.append(step) or 1000)
    plan = dkm.Plan(quick=True, sizes=("2/1", "2/4", "1/1"), ways=(dkm.PLAIN, "jfb"))
    result = dkm.run(plan, Console(quiet=True))
    found = [(row["part"], row["size"], row["way"]) for row in result["rows"]]
    assert found == [
        *[("steps", size, way) for size in ("2/1", "2/4") for way in (dkm.PLAIN, "jfb")],
        *[("digits", size, "jfb") for size in ("2/1", "2/4")],
    ]
    assert [(step.way, step.n_weights) for step in peaks] == 2 * [(dkm.PLAIN, 4096), ("jfb", 4096)]
    assert len(report.SHEETS["dkm"](result)) == 2
    assert "jfb" in "".join(report.compare(result, result).rows[1])


def test_the_reference_is_dkm():
    rng = np.random.default_rng(0)
    rows, centroids = rng.normal(size=(30, 2)), rng.normal(size=(4, 2))
    found = dkm.plain_soft_weight(torch.from_numpy(rows), torch.from_numpy(centroids), 0.5, 3)
    for _ in range(3):
        centroids = reference.moved(rows, centroids, 0.5)
    np.testing.assert_allclose(found, reference.softened(rows, centroids, 0.5), atol=1e-12)


@pytest.mark.parametrize("size", ["2/1", "4/4"])
def test_a_step_of_the_reference_is_a_step_of_ours(size):
    plain, ours = (
        dkm.prepared(dkm.Step(way, size, "float32", 2048, 4)) for way in (dkm.PLAIN, "unrolled")
    )
    expected, scale = plain(), plain().abs().max()
    torch.testing.assert_close(ours(), expected, rtol=0, atol=float(1e-4 * scale))
    torch.testing.assert_close(ours(), ours(), rtol=0, atol=0)  # each from the same start


class LargestTensor(TorchDispatchMode):
    """Notes the numbers of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return found


@pytest.mark.parametrize("way", [dkm.PLAIN, *BACKWARDS])
@pytest.mark.parametrize(("size", "n_blocks"), [("4/1", 4096), ("3/4", 1024)])
def test_the_attention_of_all_blocks_is_never_in_memory(way, size, n_blocks, monkeypatch):
    monkeypatch.setitem(soft_kmeans.TILE_VALUES, "cpu", 512)
    take = dkm.prepared(dkm.Step(way, size, "float32", 4096, 3))
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: (saved.append(t.untyped_storage()), t)[1], lambda t: t
        ),
        LargestTensor() as largest,
    ):
        take()
    n_codes = 2 ** dkm.sizes_of(size)[0]
    saved_bytes = sum({one.data_ptr(): one.nbytes() for one in saved}.values())
    if way == dkm.PLAIN:
        assert largest.numel == n_blocks * n_codes
        assert saved_bytes > 3 * 4 * n_blocks * n_codes
    else:
        assert largest.numel == 4096
        assert saved_bytes < 3 * 4 * 4096


def test_digits_get_back_what_codes_lose():
    model, accuracy = digits_model.trained(0, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = digits_model.after_dkm(model, 1, 1, "jfb", 0, 6)
    assert accuracy > 0.9
    assert found["codes"] < accuracy - 0.1
    assert found["accuracy"] > accuracy - 0.04
    assert found["n_bytes"] < found["float_bytes"] / 10
    assert found["tensors"] == ["0.weight", "2.weight", "4.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
