"""All methods of ``pgkmeans_sk.nn`` on one network, with the same training: accuracy against bytes.

A small network for the digits of scikit-learn is trained in full precision; from there each method
goes on with the same number of epochs, at some sizes. Bytes are those of the stored weights, codes
and codebooks (or ranges and widths) alike, without the biases, which all have. A picture of it is
made by ``python -m benchmarks plot``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import digits_model
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_whole

if TYPE_CHECKING:
    from torch import nn

Result = dict[str, Any]

PICTURE = "methods.png"
FLOAT = "float"
NOISE_RATE = 0.1
DIFFQ_RATE = 3e-2
"""Of the logits: a network of some thousand steps has to learn in them what larger ones do in many
more with the 1e-3 of the paper."""


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    methods: Sequence[str] = ()  # all
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    epochs: int = 30  # in full precision
    epochs_after: int = 20
    quick: bool = False


@dataclass(frozen=True)
class Job:
    """A trained network, to be made small in place, and what training it may get."""

    model: nn.Module
    seed: int
    epochs: int

    def train(self, epochs: int | None = None, part: int = 0) -> None:
        """Train as all methods are trained."""
        epochs = self.epochs if epochs is None else epochs
        seed = self.seed + 1000 * (1 + part)
        digits_model.train(self.model, epochs, digits_model.RATE_AFTER, seed)


Method = Callable[[Job], None]


def scalar(job: Job, bits: int, scheme: str) -> None:
    """Codebooks of single values; they alone are trained."""
    from pgkmeans_sk import nn

    nn.scalar_quantize(job.model, bits, scheme=scheme)
    job.train()


def blocks(job: Job, block_size: int, n_codes: int) -> None:
    """Codebooks of blocks, all at once; they alone are trained."""
    from pgkmeans_sk import nn

    nn.compress_model(
        job.model, {"defaults": {"block_size": block_size, "n_codes": n_codes}}, random_state=0
    )
    job.train()


def in_stages(job: Job, block_size: int, n_codes: int, noise: float) -> None:
    """The iPQ schedule: a layer after the other, trained in between; with Quant-Noise before."""
    from pgkmeans_sk import nn

    spec = {"defaults": {"block_size": block_size, "n_codes": n_codes}}
    stages = 3
    n_parts = stages + (noise > 0.0)
    epochs = max(1, job.epochs // n_parts)
    if noise:
        nn.quant_noise(job.model, noise, "pq", spec=spec, seed=job.seed)
        job.train(epochs)
    groups = ["0.*", "2.*", "4.*"]
    for number, _ in enumerate(nn.IterativePQ(job.model, spec, groups=groups, random_state=0)):
        job.train(epochs, 1 + number)


def soft(job: Job, bits: int, block_size: int) -> None:
    """DKM: weights and centroids are trained together."""
    from pgkmeans_sk import nn

    nn.dkm(job.model, bits, block_size, backward="jfb")
    job.train()


def learned_bits(job: Job, penalty: float) -> None:
    """DiffQ: groups of weights learn their bits, at a price for each mebibyte."""
    from pgkmeans_sk import nn

    nn.diffq(job.model, init_bits=6, seed=job.seed)
    digits_model.train(
        job.model,
        job.epochs,
        digits_model.RATE_AFTER,
        job.seed + 1000,
        parameters=nn.diffq_parameter_groups(job.model, logit_lr=DIFFQ_RATE),
        penalty=lambda model: penalty * nn.penalty_mb(model),
    )


METHODS: dict[str, Mapping[str, Method]] = {
    "k-means of values": {
        f"{b} bits": partial(scalar, bits=b, scheme="kmeans") for b in (1, 2, 3, 4)
    },
    "linear": {f"{b} bits": partial(scalar, bits=b, scheme="linear") for b in (1, 2, 3, 4)},
    "blocks at once": {
        f"{b} x {k}": partial(blocks, block_size=b, n_codes=k)
        for b, k in ((8, 16), (4, 16), (4, 64), (2, 64))
    },
    "iPQ": {
        f"{b} x {k}": partial(in_stages, block_size=b, n_codes=k, noise=0.0)
        for b, k in ((8, 16), (4, 16), (4, 64), (2, 64))
    },
    "iPQ + Quant-Noise": {
        f"{b} x {k}": partial(in_stages, block_size=b, n_codes=k, noise=NOISE_RATE)
        for b, k in ((8, 16), (4, 16), (4, 64), (2, 64))
    },
    "DKM": {
        f"{b}/{size}": partial(soft, bits=b, block_size=size)
        for b, size in ((4, 8), (4, 4), (1, 1), (2, 1), (3, 1))
    },
    "DiffQ": {
        f"price {price:g}": partial(learned_bits, penalty=price) for price in (200, 30, 5, 1)
    },
}
"""Methods, each with its sizes."""


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    rows = []
    for seed in plan.seeds:
        with console.status(f"in full precision, seed {seed}"):
            model, accuracy = digits_model.trained(seed, plan.epochs)
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        n_values = sum(weight.numel() for weight in weights)
        rows.append(
            {"method": FLOAT, "size": "32 bits", "seed": seed, "accuracy": accuracy,
             "n_bytes": 4 * n_values, "bits_per_weight": 32.0}
        )  # fmt: skip
        for method in plan.methods or METHODS:
            for size, go in list(METHODS[method].items())[: 1 if plan.quick else None]:
                with console.status(f"{method}, {size}, seed {seed}"):
                    job = Job(copy.deepcopy(model), seed, plan.epochs_after)
                    go(job)
                    n_bytes = _stored_bytes(job.model)
                rows.append(
                    {"method": method, "size": size, "seed": seed,
                     "accuracy": digits_model.accuracy(job.model),
                     "n_bytes": n_bytes, "bits_per_weight": 8 * n_bytes / n_values}
                )  # fmt: skip
    return {
        "kind": "methods",
        "settings": {"epochs": plan.epochs, "epochs_after": plan.epochs_after},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }


def _stored_bytes(model: nn.Module) -> int:
    """Bytes of the weights as ``nn.save`` writes them; all weights must be quantized."""
    from pgkmeans_sk.nn.model_report import report_on

    report = report_on(model.eval())
    left = [tensor.name for tensor in report.tensors if "weight" in tensor.name
            and tensor not in report.compressed]  # fmt: skip
    if left:
        raise AssertionError(f"Got {left[0]!r} as it was, but expected all weights quantized.")
    return sum(tensor.stored_bytes for tensor in report.compressed)


def by_setting(result: Result) -> dict[tuple[str, str], list[Result]]:
    """The rows of each method and size, over all seeds."""
    found: dict[tuple[str, str], list[Result]] = {}
    for row in result["rows"]:
        found.setdefault((row["method"], row["size"]), []).append(row)
    return found


def sheets(result: Result) -> list[Sheet]:
    """Make one table of all methods."""
    whole = {row["seed"]: row["accuracy"] for row in result["rows"] if row["method"] == FLOAT}
    table = []
    for (method, size), rows in by_setting(result).items():
        accuracies = [100 * row["accuracy"] for row in rows]
        lost = [100 * (whole[row["seed"]] - row["accuracy"]) for row in rows]
        table.append(
            (
                method,
                size,
                as_number(mean(row["bits_per_weight"] for row in rows), 2),
                as_whole(round(mean(row["n_bytes"] for row in rows))),
                as_number(mean(accuracies), 2),
                f"{min(accuracies):.1f} - {max(accuracies):.1f}",
                as_number(mean(lost), 2),
            )
        )
    columns = ("method", "size", "bits per weight", "bytes", "accuracy %", "least - most", "lost")
    settings = result["settings"]
    caption = (
        f"{settings['epochs']} epochs in full precision, then {settings['epochs_after']} by each "
        "method (iPQ: divided among its stages, and Quant-Noise before them)."
    )
    title = f"Digits, mean of {len(whole)} seeds"
    return [Sheet(title, columns, table, caption, n_text=2, picture=PICTURE)]
