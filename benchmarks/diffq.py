"""DiffQ: accuracy against the size of the file, at several prices of a MB and several fixed widths.

A small network learns the digits of scikit-learn in full precision. Then copies of it become small:

- "linear": rounded to evenly spaced levels, so many bits for all weights, without any training;
- "fixed": trained on with noise of so many bits, the same for all weights, then rounded;
- "DiffQ": trained on with bits that are learned, the size of the file being a part of the loss.

Sizes are those of files, header and unquantized biases included. ``penalty`` is what ``penalty_mb``
said of a file before it was written.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import digits_model
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_whole

if TYPE_CHECKING:
    from torch import nn

Result = dict[str, Any]

FLOAT, LINEAR, FIXED, LEARNED = "float", "linear", "fixed", "DiffQ"
ARMS = (FLOAT, LINEAR, FIXED, LEARNED)
RATE = 1e-3


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    arms: Sequence[str] = ARMS
    penalties: Sequence[float] = (0.3, 1.0, 1.5, 5.0, 25.0)  # of the loss, for each MB
    bits: Sequence[int] = (2, 3, 4, 5, 6, 7, 8)
    group_size: int = 8
    noise: str = "uniform"
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    epochs: int = 30  # in full precision; training on takes two thirds of it
    logit_rate: float = 0.05  # few steps, so more than the 1e-3 of long trainings
    quick: bool = False


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    if plan.quick:
        plan = replace(
            plan, penalties=plan.penalties[:1], bits=plan.bits[:1], seeds=plan.seeds[:1], epochs=2
        )
    rows: list[Result] = []
    for seed in plan.seeds:
        with console.status(f"digits, seed {seed}"):
            rows += _rows_of(plan, seed)
    return {
        "kind": "diffq",
        "settings": {
            "epochs": plan.epochs,
            "group_size": plan.group_size,
            "noise": plan.noise,
            "logit_rate": plan.logit_rate,
        },
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }


def _rows_of(plan: Plan, seed: int) -> list[Result]:
    trained, accuracy = digits_model.trained(seed, plan.epochs)
    known = {"seed": seed, "float_accuracy": accuracy}
    found = []
    if FLOAT in plan.arms:
        row = {"arm": FLOAT, "setting": 32, "bits": 32.0, "penalty": None, "seconds": 0.0}
        found.append({**row, **_sizes(trained), "accuracy": accuracy, **known})
    for arm in [arm for arm in (LINEAR, FIXED) if arm in plan.arms]:
        for bits in plan.bits:
            found.append({**known, **_small(trained, plan, arm, bits, seed)})
    if LEARNED in plan.arms:
        for price in plan.penalties:
            found.append({**known, **_small(trained, plan, LEARNED, price, seed)})
    return found


def _small(trained: nn.Module, plan: Plan, arm: str, setting: float, seed: int) -> Result:
    """What becomes of a copy of a network."""
    from pgkmeans_sk import nn as pgk_nn

    model = copy.deepcopy(trained)
    given = {"group_size": plan.group_size, "noise": plan.noise, "seed": seed}
    if arm == LEARNED:
        pgk_nn.diffq(model, **given)
    else:
        pgk_nn.diffq(model, **given, min_bits=1, max_bits=16, init_bits=setting)
    groups = pgk_nn.diffq_parameter_groups(model, logit_lr=plan.logit_rate)
    begin = time.perf_counter()
    if arm == LEARNED:
        digits_model.train(
            model,
            max(1, plan.epochs * 2 // 3),
            RATE,
            seed + 1000,
            parameters=groups,
            penalty=lambda trained: setting * pgk_nn.penalty_mb(trained),
        )
    elif arm == FIXED:
        weights = groups[:1]
        digits_model.train(
            model, max(1, plan.epochs * 2 // 3), RATE, seed + 1000, parameters=weights
        )
    seconds = time.perf_counter() - begin
    return {
        "arm": arm,
        "setting": setting,
        "accuracy": digits_model.accuracy(model),
        "bits": _mean_bits(model),
        "penalty": pgk_nn.penalty_mb(model).item() * 2**20,
        "seconds": seconds,
        **_sizes(model),
    }


def _mean_bits(model: nn.Module) -> float:
    """Bits of a quantized weight, side information left out."""
    from pgkmeans_sk import nn as pgk_nn

    bits: dict[str, float] = pgk_nn.diffq_bits(model)
    counts = {name: prod(model.get_parameter(_original(name)).shape) for name in bits}
    return sum(bits[name] * counts[name] for name in bits) / sum(counts.values())


def _original(name: str) -> str:
    module, tensor = name.rsplit(".", 1)
    return f"{module}.parametrizations.{tensor}.original"


def _sizes(model: nn.Module) -> Result:
    """Bytes of the file that is written for it."""
    from pgkmeans_sk import nn as pgk_nn

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        pgk_nn.save(model, path)
        return {"n_bytes": path.stat().st_size}


def sheets(result: Result) -> list[Sheet]:
    """Make one table: means over seeds, a row for each setting of each arm."""
    rows = result["rows"]
    table = []
    for arm, setting in dict.fromkeys((row["arm"], row["setting"]) for row in rows):
        same = [row for row in rows if (row["arm"], row["setting"]) == (arm, setting)]
        lost = [row["float_accuracy"] - row["accuracy"] for row in same]
        off = [
            abs(row["penalty"] / row["n_bytes"] - 1.0) for row in same if row["penalty"] is not None
        ]
        table.append(
            (
                arm,
                _setting_text(arm, setting),
                as_number(mean(row["bits"] for row in same), 2),
                as_whole(round(mean(row["n_bytes"] for row in same))),
                as_number(100 * mean(row["accuracy"] for row in same), 2),
                as_number(round(100 * mean(lost), 4), 2),
                as_number(100 * max(lost), 2),
                as_number(100 * max(off), 2) if off else "-",
            )
        )
    settings, n_seeds = result["settings"], len({row["seed"] for row in rows})
    return [
        Sheet(
            f"Digits: accuracy in percent against the size of the file, mean of {n_seeds} seeds",
            (
                *("arm", "setting", "bits", "bytes", "accuracy", "lost", "lost at most"),
                "penalty off by at most, %",
            ),
            table,
            f"Groups of {settings['group_size']} weights, {settings['noise']} noise; "
            f"{settings['epochs']} epochs in full precision, two thirds of it to train on. "
            "Bits without side information, bytes with all.",
            2,
        )
    ]


def _setting_text(arm: str, setting: float) -> str:
    return f"{setting:g} a MB" if arm == LEARNED else f"{setting:g} bits"
