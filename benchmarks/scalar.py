"""Scalar quantization: the optimum of k-means against equal steps, at 1 to 8 bits.

Three parts. *Peers*: words for every weight matrix of the real model, and for the rows of its
encoder, beside other libraries (``scalar_peers.py``). *Schemes*: the whole model quantized by
``nn.scalar_quantize``, without training, and Spearman's correlation on STS-B's dev set. *Training*:
a classifier for SST-2, quantized, and then its codebooks alone are trained (``scalar_training.py``;
hours, so only if asked for). Each run is a unit (``units.py``): a study that was killed goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Any

from rich.console import Console

from benchmarks import data, scalar_peers, sentences
from benchmarks.measure import machine, package_versions
from benchmarks.scalar_peers import LIBRARIES, OURS
from benchmarks.sheets import Sheet, as_percent, as_seconds, as_whole
from benchmarks.units import FinishedUnits, Units, run_all

Result = dict[str, Any]

PARTS = ("peers", "rows", "schemes", "training")
SCHEMES = ("kmeans", "linear", "linear-minmax")
GRANULARITIES = ("tensor", "row")
LOWER = 1e-9
"""By how much an error must be below ours, relative to it, to be so for more than rounding."""


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    parts: Sequence[str] = PARTS[:3]
    peer_bits: Sequence[int] = (2, 3, 4)
    restart_bits: Sequence[int] = (4,)  # of those that restart: minutes for each
    row_bits: Sequence[int] = (4,)
    bits: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8)
    schemes: Sequence[str] = SCHEMES
    granularities: Sequence[str] = GRANULARITIES
    training_bits: Sequence[int] = (1, 2, 3, 4)
    training_epochs: float = 1.0
    training_rate: float = 5e-5
    seeds: Sequence[int] = (0,)
    quick: bool = False
    finished: bool = False  # show what is finished, and run nothing


def run(plan: Plan, console: Console, units: Units | None = None) -> Result:
    """Run a plan, or what is left of it; return a JSON-ready dictionary."""
    if units is None:
        kind = FinishedUnits if plan.finished else Units
        units = kind("scalar-quick" if plan.quick else "scalar")
    skipped: list[dict[str, str]] = []
    result: Result = {
        "kind": "scalar",
        "settings": {"training_epochs": plan.training_epochs, "training_rate": plan.training_rate,
                     "quick": plan.quick},
        "machine": machine(),
        "versions": package_versions(),
        "notes": NOTES,
        "peers": run_all(_peers(plan, console, units), skipped) if "peers" in plan.parts else [],
        "by_row": run_all(_rows(plan, console, units), skipped) if "rows" in plan.parts else [],
        "rows": [],
        "training": [],
        "skipped": skipped,
    }  # fmt: skip
    skipped += [
        {"matrix": f"{matrix}, {unit['bits']} bits", "library": unit["library"], "reason": reason}
        for unit in result["peers"]
        for matrix, reason in unit["skipped"].items()
    ]
    if "schemes" in plan.parts:
        study = sentences.Study(sentences.Plan(quick=plan.quick), console, units)
        whole = study.unit("uncompressed", {}, lambda: {"spearman": study.spearman(study.encoder)})
        result["settings"]["uncompressed"] = whole["spearman"]
        result["settings"]["n_pairs"] = len(study.pairs.scores)
        jobs = [
            partial(_scheme, study, scheme, granularity, bits)
            for granularity in plan.granularities
            for bits in plan.bits
            for scheme in plan.schemes
        ]
        result["rows"] = run_all(jobs, skipped)
    if "training" in plan.parts:
        from benchmarks import scalar_training

        result["training"] = scalar_training.run(plan, console, units)
    return result


# ------------------------------------------------------------------ peers


def _matrices(quick: bool) -> dict[str, Any]:
    found = data.model_weights()
    return {name: found[name] for name in list(found)[:2]} if quick else found


def _peers(plan: Plan, console: Console, units: Units) -> list[Callable[[], Result]]:
    matrices = _matrices(plan.quick)
    all_bits = dict.fromkeys((*plan.peer_bits, *plan.restart_bits))
    return [
        partial(
            _peer_unit, console, units, "every matrix", library.name, bits,
            partial(scalar_peers.on_each_matrix, library, bits, matrices),
        )
        for library in LIBRARIES
        for bits in (all_bits if library.is_exact else plan.restart_bits)
    ]  # fmt: skip


def _rows(plan: Plan, console: Console, units: Units) -> list[Callable[[], Result]]:
    matrices = {
        name: weight
        for name, weight in data.model_weights().items()
        if name.startswith(scalar_peers.BY_ROW)
    }
    if plan.quick:
        matrices = {name: matrices[name][:8] for name in list(matrices)[:2]}
    return [
        partial(
            _peer_unit, console, units, "rows", library.name, bits,
            partial(scalar_peers.by_row, library, bits, matrices),
        )
        for bits in plan.row_bits
        for library in LIBRARIES
        if library.is_exact and library.why_not(1, 2) is None
    ]  # fmt: skip


def _peer_unit(
    console: Console,
    units: Units,
    what: str,
    library: str,
    bits: int,
    work: Callable[[], Result],
) -> Result:
    def measure() -> Result:
        scalar_peers.compile_kernels(bits)
        return work()

    told = {"library": library, "bits": bits}
    name = f"{what}, {library}, {bits} bits"
    with console.status(name):
        kept = units.run(name, told, measure)
    console.print(f"  {name}")
    return {**told, **kept["result"], "load_average": kept["machine"]["load_average"]}


# ------------------------------------------------------------------ schemes


def _scheme(study: sentences.Study, scheme: str, granularity: str, bits: int) -> Result:
    told = {"scheme": scheme, "granularity": granularity, "bits": bits}

    def measure() -> Result:
        from pgkmeans_sk import nn

        scalar_peers.compile_kernels(bits)
        model = deepcopy(study.encoder)
        squares = _squares(model)
        cpu = time.process_time()
        report = nn.scalar_quantize(model, bits, scheme=scheme, granularity=granularity)
        cpu_seconds = time.process_time() - cpu
        return {
            "spearman": study.spearman(model),
            "cpu_seconds": cpu_seconds,
            **totals(report, squares),
        }

    result = study.unit(f"{scheme}, {granularity}, {bits} bits", told, measure)
    study.console.print(f"  {scheme}, {granularity}, {bits} bits: {result['spearman']:.4f}")
    return {**told, **result}


def _squares(model: Any) -> dict[str, float]:
    return {name: float(p.detach().double().square().sum()) for name, p in model.named_parameters()}


def totals(report: Any, squares: dict[str, float]) -> Result:
    """Sum up a report of ``nn.scalar_quantize``; ``squares`` are those of the weights before."""
    tensors = report.compressed
    lost = sum(t.relative_error**2 * squares[t.name] for t in tensors)
    n_bytes = sum(t.stored_bytes for t in tensors)
    return {
        "n_weights": len(tensors),
        "bits_per_weight": 8 * n_bytes / sum(t.n_values for t in tensors),
        "relative_error": sqrt(lost / sum(squares[t.name] for t in tensors)),
        "n_bytes": report.n_bytes,
        "original_bytes": report.original_bytes,
        "seconds": report.seconds,
    }


NOTES = {
    "which": "Schemes take all weights that nn.compress_model takes: the linear layers, the pooler "
    "(which a sentence's embedding does not use) and the three embeddings.",
    "schemes": "kmeans is the optimum, linear has the mean of each of 2^bits equal bins, "
    "linear-minmax equal steps from the least to the greatest value.",
}


# ------------------------------------------------------------------ tables


def sheets(result: Result) -> list[Sheet]:
    """Make the tables of all parts that were run."""
    found = [
        make(bits, units)
        for part, make in (("peers", _peer_sheet), ("by_row", _row_sheet))
        for bits, units in sorted(_by(result[part], "bits").items())
        if any(unit["library"] == OURS for unit in units)
    ]
    found += [
        _scheme_sheet(granularity, rows, result["settings"]["uncompressed"])
        for granularity, rows in _by(result["rows"], "granularity").items()
    ]
    if result["training"]:
        from benchmarks.scalar_training import sheet

        found.append(sheet(result["training"]))
    return found


def _by(rows: Sequence[Result], key: str) -> dict[Any, list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _peer_sheet(bits: int, units: Sequence[Result]) -> Sheet:
    columns = ("library", "matrices", "SSE to ours, least", "mean", "most", "less than ours",
               "seconds", "CPU seconds")  # fmt: skip
    ours = next(unit for unit in units if unit["library"] == OURS)["matrices"]
    table = []
    for unit in units:
        matrices = unit["matrices"]
        if not matrices:
            continue
        ratios = [m["sq_error"] / ours[name]["sq_error"] - 1.0 for name, m in matrices.items()]
        table.append(
            (
                unit["library"],
                as_whole(len(matrices)),
                f"{min(ratios):+.1e}",
                as_percent(sum(ratios) / len(ratios)),
                as_percent(max(ratios)),
                as_whole(sum(ratio < -LOWER for ratio in ratios)),
                as_seconds(sum(m["seconds"] for m in matrices.values())),
                as_seconds(sum(m["cpu_seconds"] for m in matrices.values())),
            )
        )
    n_values = sum(m["n"] for m in ours.values())
    title = f"Every weight matrix, one codebook of {2**bits} values ({as_whole(n_values)} values)"
    caption = f"Less than ours: matrices whose error is, by more than {LOWER:g} of it."
    return Sheet(title, columns, table, caption)


def _row_sheet(bits: int, units: Sequence[Result]) -> Sheet:
    columns = ("library", "seconds", "CPU seconds", "SSE to ours")
    ours = next(unit for unit in units if unit["library"] == OURS)
    table = [
        (
            unit["library"],
            as_seconds(unit["seconds"]),
            as_seconds(unit["cpu_seconds"]),
            f"{unit['sq_error'] / ours['sq_error'] - 1.0:+.1e}",
        )
        for unit in units
    ]
    title = (
        f"The rows of the encoder's matrices, {2**bits} values for each "
        f"({as_whole(ours['n_lines'])} rows, {as_whole(ours['n_values'])} values)"
    )
    caption = (
        "The others are called row by row, in one thread. Load of the machine before our run: "
        f"{ours['load_average'][0]:g}."
    )
    return Sheet(title, columns, table, caption)


def _scheme_sheet(granularity: str, rows: Sequence[Result], whole: float) -> Sheet:
    schemes = list(dict.fromkeys(row["scheme"] for row in rows))
    columns = (
        "bits", "bits per weight",
        *schemes,
        *(f"{scheme}: error" for scheme in schemes),
        *(f"{scheme}: s" for scheme in schemes),
    )  # fmt: skip
    table = []
    for bits, group in _by(rows, "bits").items():
        by_scheme = {row["scheme"]: row for row in group}
        table.append(
            (
                str(bits),
                f"{group[0]['bits_per_weight']:.3f}",
                *_cells(by_scheme, schemes, "spearman", "{:.4f}".format),
                *_cells(by_scheme, schemes, "relative_error", "{:.4f}".format),
                *_cells(by_scheme, schemes, "seconds", as_seconds),
            )
        )
    title = (
        f"A codebook for each {granularity}: {rows[0]['n_weights']} weights, without training; "
        f"uncompressed {whole:.4f}"
    )
    caption = "Spearman on STS-B dev; error: |W - decoded| / |W| of all weights together."
    return Sheet(title, columns, table, caption)


def _cells(
    by_scheme: Mapping[str, Result], schemes: Sequence[str], key: str, form: Callable[[Any], str]
) -> list[str]:
    return [form(by_scheme[name][key]) if name in by_scheme else "-" for name in schemes]
