"""K-means on tensors: ours on a GPU, or on the CPU where there is none, against other libraries.

Two questions, two modes, as in ``speed.py``: ``iteration`` is what one iteration costs, from a
fixed number of them after the same start; ``default fit`` is what a user gets. Beside them stands
the floor of an iteration on this device: its multiplications at the speed of the best matrix
product that was measured here, or its rows at the speed of the best copy, whatever takes longer.
Beside whole fits, the two works of a pass of ours are timed alone, by plain operations and by
Triton's kernels (``gpu_ways.py``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import data
from benchmarks.clock import timed_fit
from benchmarks.gpu_batches import Batch, batches_for
from benchmarks.gpu_peers import (
    BATCH_PEERS,
    ONE_BY_ONE,
    OURS,
    TENSOR_PEERS,
    TensorPeer,
    why_missing,
)
from benchmarks.gpu_ways import LABELS, measured_passes
from benchmarks.measure import available_memory, judge, machine, package_versions
from benchmarks.peers import own_words
from benchmarks.sheets import Sheet, as_number, as_percent, as_seconds, as_sse, as_whole

MODES = ("iteration", "default fit")
ITERATIONS = 10
WARM_UP_ITERATIONS = 2
PRODUCT_SIZES = {"cuda": 8192, "cpu": 2048}
COPIED_BYTES = {"cuda": 2**32, "cpu": 2**29}
TRIALS = 5
TF32_PRODUCTS = 3
QUICK_ROWS = 2000

Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    cases: Sequence[str] = ("blocks", "words", "mixture")
    batches: Sequence[str] = ()  # problems x rows x features x clusters; none: by the device
    modes: Sequence[str] = MODES
    libraries: Sequence[str] = tuple(TENSOR_PEERS)
    rounds: int = 3
    seed: int = 0
    max_rows: int | None = None
    quick: bool = False
    device: str = ""  # a CUDA device, if there is one
    long_run: float = 60.0  # seconds; a library slower than this is not repeated


@dataclass
class Timings:
    """All runs of one library on one case and mode."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # ours / this one, run by run
    centers: Any = None


def device_of(plan: Plan) -> Any:
    """The device that a plan is for."""
    import torch

    return torch.device(plan.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _wait(device: Any) -> None:
    """Return when the device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best_seconds(work: Any, device: Any) -> float:
    """The shortest of a few runs, after one that does not count."""
    spent = []
    for _ in range(TRIALS + 1):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        spent.append(time.perf_counter() - begin)
    return min(spent[1:])


def measured_peaks(device: Any) -> dict[str, float]:
    """Multiplications and additions per second in float32, and bytes per second, at best.

    A product that is exact to float32 may also be made of three in TF32.
    """
    import torch

    size = PRODUCT_SIZES.get(device.type, 2048)
    first, second, product = (torch.ones((size, size), device=device) for _ in range(3))

    def products_per_second() -> float:
        seconds = _best_seconds(lambda: torch.mm(first, second, out=product), device)
        return 2.0 * size**3 / seconds

    n_bytes = COPIED_BYTES.get(device.type, 2**29)
    source, target = (torch.zeros(n_bytes // 4, dtype=torch.int32, device=device) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        whole = products_per_second()
        torch.set_float32_matmul_precision("high")
        in_parts = products_per_second() / TF32_PRODUCTS if device.type == "cuda" else 0.0
    finally:
        torch.set_float32_matmul_precision(before)
    return {
        "operations_per_second": max(whole, in_parts),
        "float32_operations_per_second": whole,
        "bytes_per_second": 2.0 * n_bytes / _best_seconds(lambda: target.copy_(source), device),
    }


def floor_seconds(n: int, d: int, k: int, peaks: dict[str, float]) -> float:
    """What an iteration with all distances takes at least: for products, or to read the rows."""
    products = 2.0 * n * d * k / peaks["operations_per_second"]
    return max(products, 4.0 * n * d / peaks["bytes_per_second"])


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    import torch

    device = device_of(plan)
    chosen = [TENSOR_PEERS[name] for name in dict.fromkeys((OURS, *plan.libraries))]
    skipped = [
        {"case": "all", "mode": "all", "library": peer.name, "reason": reason}
        for peer in chosen
        if (reason := why_missing(peer)) is not None
    ]
    absent = {skip["library"] for skip in skipped}
    peaks = measured_peaks(device)
    result: Result = {
        "kind": "gpu",
        "settings": {
            "iterations": ITERATIONS,
            "rounds": plan.rounds,
            "seed": plan.seed,
            "max_rows": plan.max_rows,
            "not_repeated_above_seconds": plan.long_run,
        },
        "machine": machine(),
        "device": {
            "name": str(device),
            "model": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
            "threads": torch.get_num_threads(),
            **peaks,
        },
        "versions": package_versions() | _versions(chosen),
        "notes": {peer.name: f"{peer.name}: {peer.note}." for peer in chosen if peer.note},
        "rows": [],
        "passes": [],
        "skipped": skipped,
    }
    present = [peer for peer in chosen if peer.name not in absent]
    names = {OURS, ONE_BY_ONE, *plan.libraries} - absent
    several = [peer for peer in BATCH_PEERS.values() if peer.name in names]
    for batch in batches_for(plan.batches, plan.quick, device):
        for mode in plan.modes:
            result["rows"] += _run_batch(plan, batch, mode, several, device, skipped, console)
    for case in plan.cases:
        try:
            X = data.load_if_here(case, QUICK_ROWS if plan.quick else plan.max_rows)
        except data.NotHereError as error:
            skipped.append({"case": case, "mode": "all", "library": "all", "reason": str(error)})
            continue
        rows = torch.from_numpy(X).to(device)
        start = data.sampled_start(X, data.case(case).n_clusters, plan.seed)
        start = torch.from_numpy(start).to(device)
        result["passes"] += measured_passes(case, rows, start, _best_seconds, skipped)
        for mode in plan.modes:
            result["rows"] += _run_case(plan, case, mode, X, present, device, skipped, console)
    for row in result["rows"]:
        n_rows = row["n"] * row.get("problems", 1)
        row["floor_seconds"] = floor_seconds(n_rows, row["d"], row["k"], peaks)
    for row in result["passes"]:
        k = row["k"] if row["work"] == LABELS else 0  # sums are a matter of reading
        row["floor_seconds"] = floor_seconds(row["n"], row["d"], k, peaks)
    return result


def _versions(peers: Sequence[TensorPeer]) -> dict[str, str]:
    found = {}
    for name in ("torch", "triton", *(peer.distribution for peer in peers)):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed" if name != "pgkmeans-sk" else "checkout"
    return found


def _run_case(
    plan: Plan,
    case: str,
    mode: str,
    X: data.Points,
    peers: Sequence[TensorPeer],
    device: Any,
    skipped: list[dict[str, str]],
    console: Console,
) -> list[dict[str, Any]]:
    """Measure all libraries on one case in one mode, in turns; one row each, ours first."""
    import torch

    k = data.case(case).n_clusters
    rows = torch.from_numpy(X).to(device)
    start = None
    if mode == "iteration":
        start = torch.from_numpy(data.sampled_start(X, k, plan.seed)).to(device)
    timings = _time_all(plan, case, mode, rows, k, start, peers, skipped, console)
    return [_row(case, mode, X, k, name, runs) for name, runs in timings.items()]


def _run_batch(
    plan: Plan,
    batch: Batch,
    mode: str,
    peers: Sequence[TensorPeer],
    device: Any,
    skipped: list[dict[str, str]],
    console: Console,
) -> list[dict[str, Any]]:
    """The same on many problems at once."""
    X = batch.rows(plan.seed, device)
    start = X[:, : batch.k].clone() if mode == "iteration" else None
    timings = _time_all(plan, batch.name, mode, X, batch.k, start, peers, skipped, console)
    found = []
    for name, runs in timings.items():
        centers = runs.centers.cpu().numpy()
        of_each = [
            _row(batch.name, mode, own, batch.k, name, replace(runs, centers=center))
            for own, center in zip(X.cpu().numpy(), centers, strict=True)
        ]
        together = {key: sum(row[key] for row in of_each) for key in ("sse", "n_empty")}
        found.append(of_each[0] | together | {"problems": batch.problems, "synthetic": True})
    return found


def _time_all(
    plan: Plan,
    case: str,
    mode: str,
    rows: Any,
    k: int,
    start: Any,
    peers: Sequence[TensorPeer],
    skipped: list[dict[str, str]],
    console: Console,
) -> dict[str, Timings]:
    """All runs of all libraries, by their names."""
    device = rows.device
    iterations = ITERATIONS if mode == "iteration" else None
    timings: dict[str, Timings] = {}

    def fit(peer: TensorPeer, iterations: int | None = iterations) -> Any:
        centers = peer.fit(rows, k, start if peer.takes_start else None, iterations, plan.seed)
        _wait(device)
        return centers

    def skip(peer: TensorPeer, reason: str) -> None:
        skipped.append({"case": case, "mode": mode, "library": peer.name, "reason": reason})
        timings.pop(peer.name, None)
        console.print(f"  [yellow]{peer.name} skipped[/yellow]: {reason}")

    for peer in peers:
        reason = _why_too_large(peer, rows[..., 0].numel(), k, device)
        if reason is None:
            try:
                fit(peer, WARM_UP_ITERATIONS)
            except Exception as error:  # a peer may raise anything; it must not end the others' run
                reason = own_words(error)
        if reason is None:
            timings[peer.name] = Timings()
        else:
            skip(peer, reason)

    for _ in range(plan.rounds):
        ours = float("nan")
        for peer in [peer for peer in peers if peer.name in timings]:
            runs = timings[peer.name]
            if runs.seconds and runs.seconds[0] > plan.long_run:
                continue
            try:
                seconds, centers = timed_fit(lambda peer=peer: fit(peer))
            except Exception as error:
                skip(peer, own_words(error))
                continue
            ours = seconds if peer.name == OURS else ours
            runs.seconds.append(seconds)
            runs.ratios.append(ours / seconds)
            runs.centers = centers if runs.centers is None else runs.centers
            console.print(f"  {case}, {mode}: {peer.name} {seconds:.3f} s")
    return timings


def _why_too_large(peer: TensorPeer, n: int, k: int, device: Any) -> str | None:
    """Return why a case does not fit into memory for this peer, or None if it does."""
    import torch

    available = available_memory()
    if device.type == "cuda":
        available, _ = torch.cuda.mem_get_info(device)
    needed = peer.bytes_per_score * n * k
    if needed <= 0.6 * available:
        return None
    return f"would hold {needed / 2**30:.0f} GiB of distances at once"


def _row(case: str, mode: str, X: data.Points, k: int, name: str, runs: Timings) -> dict[str, Any]:
    """Judge one library's centres on all points and put its numbers into one JSON row."""
    centers = runs.centers.cpu().numpy() if hasattr(runs.centers, "cpu") else runs.centers
    verdict = judge(X, np.asarray(centers))
    per = ITERATIONS if mode == "iteration" else 1
    return {
        "case": case,
        "synthetic": case not in data.CASES or data.case(case).synthetic,
        "mode": mode,
        "n": len(X),
        "d": X.shape[1],
        "k": k,
        "library": name,
        "seconds": median(runs.seconds) / per,
        "all_seconds": [round(seconds / per, 5) for seconds in runs.seconds],
        "ours_over_theirs": median(runs.ratios),
        "sse": verdict.sse,
        "n_empty": verdict.n_empty,
    }


def sheets(result: Result) -> list[Sheet]:
    """Make one table per case and mode."""
    found = []
    device = result["device"]
    where = f"{device['name']} {device['model']}".strip()
    for case, mode in dict.fromkeys((row["case"], row["mode"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["case"], row["mode"]) == (case, mode)]
        best = min(row["sse"] for row in rows)
        table = [
            (
                row["library"],
                as_seconds(row["seconds"]),
                as_number(row["ours_over_theirs"]),
                as_number(row["seconds"] / row["floor_seconds"], 1) if mode == "iteration" else "-",
                as_sse(row["sse"]),
                as_percent(row["sse"] / best - 1.0),
                str(row["n_empty"]),
            )
            for row in rows
        ]
        columns = ("library", "seconds", "ours / this", "to floor", "SSE", "SSE to best", "empty")
        flag = "synthetic, " if rows[0]["synthetic"] else ""
        size = f"{as_whole(rows[0]['n'])} x {rows[0]['d']}, K={rows[0]['k']}"
        if "problems" in rows[0]:
            size += " each"
        title = f"{case}, {mode} ({flag}{size}; {where})"
        caption = (
            f"Floor of an iteration: {1000 * rows[0]['floor_seconds']:.2f} ms, at "
            f"{device['operations_per_second'] / 1e9:.0f} GFLOP/s and "
            f"{device['bytes_per_second'] / 1e9:.0f} GB/s measured."
        )
        found.append(Sheet(title, columns, table, caption))
    for case in dict.fromkeys(row["case"] for row in result["passes"]):
        rows = [row for row in result["passes"] if row["case"] == case]
        table = [
            (
                row["work"],
                row["way"],
                as_seconds(row["seconds"]),
                as_number(row["seconds"] / row["floor_seconds"], 1),
            )
            for row in rows
        ]
        size = f"{as_whole(rows[0]['n'])} x {rows[0]['d']}, K={rows[0]['k']}"
        title = f"{case}, one pass ({size}; {where})"
        found.append(Sheet(title, ("work", "way", "seconds", "to floor"), table, n_text=2))
    return found
