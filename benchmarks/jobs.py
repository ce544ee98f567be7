"""Weights of a model compressed one after the other, or by two workers of joblib.

A single weight is compressed by all cores, so workers gain where that has its limits: in what is
not divided among threads, and in small weights. Models are compressed in turn, from plain weights
each time, and a ratio compares runs side by side. Processes are started before.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import joblib
from rich.console import Console

from benchmarks import clock, data
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_seconds, as_whole

Result = dict[str, Any]

ALONE = "one after the other"
WAYS = {ALONE: ("loky", 1), "2 processes": ("loky", 2), "2 threads": ("threading", 2)}
N_SMALL, SMALL_WIDTH = 200, 64
MODELS = ("all-MiniLM-L6-v2", "small layers")


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    models: Sequence[str] = MODELS
    n_codes: int = 256
    rounds: int = 5
    n_small: int = N_SMALL


def model_of(name: str, n_small: int = N_SMALL) -> Any:
    """A model that holds the weights; it is not for running."""
    import torch
    from safetensors.torch import load_file

    if name == "small layers":
        torch.manual_seed(0)
        layers = [torch.nn.Linear(SMALL_WIDTH, SMALL_WIDTH, bias=False) for _ in range(n_small)]
        return torch.nn.ModuleList(layers)
    model = torch.nn.ModuleList()
    for tensor in load_file(data.model_file()).values():
        if tensor.ndim == 2 and tensor.is_floating_point():
            layer = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, device="meta")
            layer.weight = torch.nn.Parameter(tensor)
            model.append(layer)
    return model


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    rows: list[dict[str, Any]] = []
    result: Result = {
        "kind": "jobs",
        "settings": {"rounds": plan.rounds, "n_codes": plan.n_codes},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    for name in plan.models:
        with console.status(name):
            rows += _in_turn(name, plan)
    return result


def _in_turn(name: str, plan: Plan) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    compressed(name, plan, *WAYS["2 processes"])  # starts them
    _, expected = compressed(name, plan, *WAYS[ALONE])
    for _ in range(plan.rounds):
        for way, (backend, n_jobs) in WAYS.items():
            gc.collect()
            time.sleep(clock.SETTLE_SECONDS)
            spent, found = compressed(name, plan, backend, n_jobs)
            if found != expected:
                raise AssertionError(f"Got another result from {way} than from {ALONE}.")
            seconds[way].append(spent)
    return [
        {
            "model": name,
            "n_weights": len(expected),
            "way": way,
            "seconds": median(spent),
            "all_seconds": [round(one, 4) for one in spent],
            "to_alone": sorted(
                round(this / alone, 3) for this, alone in zip(spent, seconds[ALONE], strict=True)
            ),
        }
        for way, spent in seconds.items()
    ]


def compressed(name: str, plan: Plan, backend: str, n_jobs: int) -> tuple[float, list[float]]:
    """Seconds, those of reading the model not among them, and the error of each weight."""
    from pgkmeans_sk import nn

    model = model_of(name, plan.n_small)
    spec = {"defaults": {"n_codes": plan.n_codes}}
    with joblib.parallel_config(backend=backend):
        report = nn.compress_model(model, spec, n_jobs=n_jobs)
    return float(report.seconds or 0.0), [
        tensor.relative_error or 0.0 for tensor in report.compressed
    ]


def sheets(result: Result) -> list[Sheet]:
    """Make one table for all models."""
    table = [
        (
            row["model"],
            row["way"],
            as_whole(row["n_weights"]),
            as_seconds(row["seconds"]),
            as_number(median(row["to_alone"]), 2),
            f"{as_number(row['to_alone'][0], 2)} - {as_number(row['to_alone'][-1], 2)}",
        )
        for row in result["rows"]
    ]
    columns = ("model", "weights by", "weights", "seconds", f"to {ALONE}", "min - max")
    caption = "Medians; ratios are of runs side by side, less is better."
    return [Sheet("Several weights at a time", columns, table, caption, n_text=2)]
