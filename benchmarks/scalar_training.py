"""Training codebooks alone: a classifier for SST-2, quantized to a few values per tensor.

As in arXiv:2010.07109, embeddings and all linear layers but the classifier's are quantized; then
the values of the codebooks are trained, with codes fixed. Unlike there, nothing else is trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import finetune
from benchmarks.sheets import Sheet, as_seconds
from benchmarks.units import Units

if TYPE_CHECKING:
    from benchmarks.scalar import Plan

Result = dict[str, Any]

TASK = "SST-2"
SPEC = {"rules": [{"match": "head.*", "skip": True}]}


def run(plan: Plan, console: Console, units: Units) -> list[Result]:
    """Train what each scheme, granularity, number of bits and seed leaves."""
    study = finetune.Study(
        finetune.Plan(tasks=(TASK,), noise=(0.0,), quick=plan.quick),
        console,
        Units("finetune-quick" if plan.quick else "finetune", units.folder.parent),
        finetune.MODELS,
    )
    rows = []
    for seed in plan.seeds:
        tuned = study.fine_tuned(TASK, seed, 0.0)
        for granularity in plan.granularities:
            for bits in plan.training_bits:
                for scheme in plan.schemes:
                    told = {"scheme": scheme, "granularity": granularity, "bits": bits,
                            "seed": seed}  # fmt: skip
                    rows.append(_trained(plan, study, tuned, units, told))
    return rows


def _trained(
    plan: Plan, study: finetune.Study, tuned: Result, units: Units, told: Result
) -> Result:
    from benchmarks.training import Training

    training = Training(epochs=plan.training_epochs, learning_rate=plan.training_rate)
    name = "trained, " + ", ".join(f"{key} {value}" for key, value in told.items())

    def work() -> Result:
        from pgkmeans_sk import nn

        model = study.loaded(TASK, told["seed"], tuned["file"])
        report = nn.scalar_quantize(
            model, told["bits"], scheme=told["scheme"], granularity=told["granularity"], spec=SPEC
        )
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 4)  # codebooks, and nothing else has
        before = study.accuracy(model, TASK)
        begin = time.perf_counter()
        study.train(model, TASK, training, 1000 + told["seed"], name)
        return {
            "accuracy_before": before,
            "accuracy": study.accuracy(model, TASK),
            "n_bytes": report.n_bytes,
            "original_bytes": report.original_bytes,
            "training_seconds": time.perf_counter() - begin,
        }

    everything = {**told, "training": asdict(training), "from": tuned["file"]}
    result = units.run(name, everything, work)["result"]
    study.console.print(f"  {name}: {result['accuracy_before']:.4f} -> {result['accuracy']:.4f}")
    return {**told, "uncompressed": tuned["accuracy"], **result}


def sheet(rows: Sequence[Result]) -> Sheet:
    """Make the table: accuracy before and behind the training of codebooks."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for row in rows:
        key = row["granularity"], row["bits"], row["scheme"]
        groups.setdefault(key, []).append(row)
    table = [
        (
            granularity,
            str(bits),
            scheme,
            _percent(runs, "uncompressed"),
            _percent(runs, "accuracy_before"),
            _percent(runs, "accuracy"),
            f"{runs[0]['original_bytes'] / runs[0]['n_bytes']:.1f}",
            as_seconds(sum(run["training_seconds"] for run in runs) / len(runs)),
        )
        for (granularity, bits, scheme), runs in groups.items()
    ]
    columns = ("granularity", "bits", "scheme", "uncompressed", "before training", "trained",
               "times smaller", "training s")  # fmt: skip
    n_seeds = len({row["seed"] for row in rows})
    seeds = f"means of {n_seeds} seeds" if n_seeds > 1 else "one seed"
    title = f"{TASK}: accuracy with codebooks trained, nothing else; {seeds}"
    return Sheet(title, columns, table, n_text=3)


def _percent(runs: Sequence[Result], key: str) -> str:
    return f"{100 * sum(run[key] for run in runs) / len(runs):.2f} %"
