"""DKM: what a training step costs by each backward pass, and what a model is worth afterwards.

The reference is DKM as it is usually written: a few lines of torch, unrolled, with the attention of
all blocks in memory for each iteration; distances in the form that needs least (x.c and |c|^2).
All begin at the same centroids and take the same number of iterations. Peak memory is that of one
step beyond the weight, its gradient included, in a child process of its own (``memory``).

Accuracy is that of a small network on the digits of scikit-learn: in full precision, with weights
just replaced by codes, and after DKM, always as it would be stored.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import digits_model, memory
from benchmarks.clock import timed_fit
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_mebibytes, as_number, as_seconds, as_whole

if TYPE_CHECKING:
    from torch import Tensor

Result = dict[str, Any]

PLAIN = "plain torch"
BACKWARDS = ("unrolled", "implicit", "jfb")
WAYS = (PLAIN, *BACKWARDS)
SIZES = ("1/1", "2/1", "4/1", "8/8")
DTYPES = ("float32", "bfloat16")
PARTS = ("steps", "digits")


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    parts: Sequence[str] = PARTS
    sizes: Sequence[str] = SIZES  # bits of a code / values of a block
    ways: Sequence[str] = WAYS
    dtypes: Sequence[str] = DTYPES
    n_weights: int = 2**20
    iterations: int = 5
    rounds: int = 5
    with_memory: bool = True
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    epochs: int = 30  # in full precision; DKM takes two thirds of it
    quick: bool = False


@dataclass(frozen=True)
class Step:
    """One training step of one weight."""

    way: str
    size: str
    dtype: str
    n_weights: int
    iterations: int


def sizes_of(text: str) -> tuple[int, int]:
    """Bits of a code and values of a block, of "bits/block"."""
    bits, block_size = text.split("/")
    return int(bits), int(block_size)


# ------------------------------------------------------------------ steps


def plain_soft_weight(rows: Tensor, centroids: Tensor, tau: float, iterations: int) -> Tensor:
    """Soft rows (m, b) by unrolled soft k-means, as a few lines of torch."""
    import torch

    def attention(words: Tensor) -> Tensor:
        return torch.softmax((2.0 * rows @ words.T - words.square().sum(1)) / tau, 1)

    for _ in range(iterations):
        shares = attention(centroids)
        centroids = (shares.T @ rows) / shares.sum(0).unsqueeze(1)
    return attention(centroids) @ centroids


def prepared(step: Step) -> Callable[[], Tensor]:
    """A function that takes the step, always from the same start; it returns the gradient."""
    import torch

    from pgkmeans_sk import nn

    torch.manual_seed(0)
    bits, block_size = sizes_of(step.size)
    width = 1 << (step.n_weights.bit_length() // 2)
    layer = torch.nn.Linear(width, step.n_weights // width, bias=False)
    with torch.no_grad():
        layer.weight.normal_(0.0, 0.02)
    layer.to(getattr(torch, step.dtype))
    weight = layer.weight
    pull = torch.randn_like(weight)
    backward = "unrolled" if step.way == PLAIN else step.way
    # Fewer rounds of the start: it is not what is measured.
    nn.dkm(
        layer,
        bits,
        block_size,
        max_iter=step.iterations,
        tol=0.0,
        backward=backward,
        spec={"defaults": {"max_iter": 5}},
    )
    lists: Any = layer.parametrizations
    dkm = lists.weight[0]
    start, tau = dkm.centroids.clone(), dkm.tau

    def soft_weight() -> Tensor:
        if step.way != PLAIN:
            dkm.centroids.copy_(start)
            used: Tensor = layer.weight
            return used
        rows = weight.float().reshape(-1, block_size)
        return plain_soft_weight(rows, start, tau, step.iterations).reshape(weight.shape)

    def take() -> Tensor:
        weight.grad = None
        (soft_weight() * pull).sum().backward()
        assert weight.grad is not None
        return weight.grad

    return take


def peak_of_step(step: Step) -> int:
    """Peak bytes of one step beyond what was there before, in this process."""
    take = prepared(step)
    take().zero_()  # libraries load what they need
    return memory.peak_of(take)


def _peak_in_child(step: Step) -> int:
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.dkm", json.dumps(asdict(step))],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise RuntimeError(f"The step {step} ended with {child.returncode}:\n{child.stderr}")
    return int(child.stdout.strip().splitlines()[-1])


def _step_rows(plan: Plan, console: Console) -> list[Result]:
    found = []
    for dtype in plan.dtypes:
        for size in plan.sizes:
            steps = [Step(way, size, dtype, plan.n_weights, plan.iterations) for way in plan.ways]
            with console.status(f"a step with {size}, {dtype}"):
                takers = {step.way: prepared(step) for step in steps}
                spent: dict[str, list[float]] = {step.way: [] for step in steps}
                for _ in range(plan.rounds):
                    for way, take in takers.items():
                        spent[way].append(timed_fit(take)[0])
                for step in steps:
                    peak = _peak_in_child(step) if plan.with_memory else None
                    found.append(
                        {
                            "part": "steps",
                            **asdict(step),
                            "seed": 0,
                            "seconds": median(spent[step.way]),
                            "all_seconds": [round(one, 5) for one in spent[step.way]],
                            "peak_bytes": peak,
                        }
                    )
    return found


# ------------------------------------------------------------------ digits


def _digits_rows(plan: Plan, console: Console) -> list[Result]:
    found = []
    for seed in plan.seeds:
        with console.status(f"digits, seed {seed}"):
            trained, accuracy = digits_model.trained(seed, plan.epochs)
            for size in plan.sizes:
                for backward in [way for way in plan.ways if way != PLAIN]:
                    row = digits_model.after_dkm(
                        trained, *sizes_of(size), backward, seed, max(1, plan.epochs * 2 // 3)
                    )
                    found.append(
                        {
                            "part": "digits",
                            "size": size,
                            "way": backward,
                            "dtype": "float32",
                            "seed": seed,
                            "float_accuracy": accuracy,
                            **row,
                        }
                    )
    return found


# ------------------------------------------------------------------ the command


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    if plan.quick:
        plan = replace(
            plan,
            sizes=plan.sizes[:2],
            dtypes=plan.dtypes[:1],
            n_weights=4096,
            rounds=1,
            seeds=plan.seeds[:1],
            epochs=2,
        )
    parts = {"steps": partial(_step_rows, plan), "digits": partial(_digits_rows, plan)}
    import torch

    settings = {
        "n_weights": plan.n_weights,
        "iterations": plan.iterations,
        "epochs": plan.epochs,
        "torch_threads": torch.get_num_threads(),
    }
    return {
        "kind": "dkm",
        "settings": settings,
        "machine": machine(),
        "versions": package_versions(),
        "rows": [row for part in plan.parts for row in parts[part](console)],
    }


def sheets(result: Result) -> list[Sheet]:
    """Make one table of steps for each dtype, and one of accuracies."""
    steps = [row for row in result["rows"] if row["part"] == "steps"]
    digits = [row for row in result["rows"] if row["part"] == "digits"]
    threads = result["settings"]["torch_threads"]
    found = [
        _sheet_of_steps([row for row in steps if row["dtype"] == dtype], threads)
        for dtype in dict.fromkeys(row["dtype"] for row in steps)
    ]
    return [*found, _sheet_of_digits(digits)] if digits else found


def _sheet_of_steps(rows: list[Result], threads: int) -> Sheet:
    table = []
    for row in rows:
        plain = [one for one in rows if one["size"] == row["size"] and one["way"] == PLAIN]
        times, peaks = "-", "-"
        if plain:
            times = as_number(row["seconds"] / plain[0]["seconds"], 2)
            if row["peak_bytes"] and plain[0]["peak_bytes"]:
                peaks = as_number(row["peak_bytes"] / plain[0]["peak_bytes"], 3)
        seconds, peak = as_seconds(row["seconds"]), as_mebibytes(row["peak_bytes"])
        table.append((row["size"], row["way"], seconds, times, peak, peaks))
    first = rows[0]
    return Sheet(
        f"A training step of {as_whole(first['n_weights'])} weights in {first['dtype']}",
        ("bits/block", "backward", "s", "to plain", "peak MiB", "to plain"),
        table,
        f"{first['iterations']} iterations from one start; the weight's gradient is in the peak. "
        f"Threads of torch: {threads}.",
        2,
    )


def _sheet_of_digits(rows: list[Result]) -> Sheet:
    table = []
    for size, way in dict.fromkeys((row["size"], row["way"]) for row in rows):
        same = [row for row in rows if (row["size"], row["way"]) == (size, way)]
        lost = [row["float_accuracy"] - row["accuracy"] for row in same]
        numbers = [mean(r[key] for r in same) for key in ("float_accuracy", "codes", "accuracy")]
        table.append(
            (
                size,
                way,
                *(as_number(100 * number, 1) for number in numbers),
                as_number(100 * mean(lost), 2),
                as_number(100 * max(lost), 2),
                as_whole(round(mean(row["n_bytes"] for row in same))),
            )
        )
    n_seeds = len({row["seed"] for row in rows})
    return Sheet(
        f"Digits: accuracy in percent, mean of {n_seeds} seeds",
        ("bits/block", "backward", "float", "codes only", "DKM", "lost", "lost at most", "bytes"),
        table,
        f"In full precision it takes {as_whole(rows[0]['float_bytes'])} bytes.",
        2,
    )


if __name__ == "__main__":
    sys.stdout.write(f"\n{peak_of_step(Step(**json.loads(sys.argv[1])))}\n")
