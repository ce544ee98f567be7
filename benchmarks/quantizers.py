"""Product quantization: training, encoding and decoding, beside other libraries.

All split the same columns into the same blocks, with a codebook of 256 words for each; the error is
that of decoding what was encoded, over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import data
from benchmarks.clock import timed_fit
from benchmarks.measure import machine, package_versions
from benchmarks.peers import own_words
from benchmarks.sheets import Sheet, as_number, as_percent, as_seconds, as_whole

Points = NDArray[np.float32]
Result = dict[str, Any]

N_CODES = 256
ITERATIONS = 25  # of the peers: the default of both
OURS = "ProductQuantizer"
STEPS = ("train", "encode", "decode")
CASES = {"words": 8, "mixture": 8}  # case -> columns of a block


@dataclass(frozen=True)
class Peer:
    """One library: ``(rows, block_size) -> (train, encode, decode)``, called in this order."""

    name: str
    module: str  # that must be importable
    steps: Callable[[Points, int], tuple[Callable[[], Any], ...]]


def _ours(X: Points, block_size: int) -> tuple[Callable[[], Any], ...]:
    from pgkmeans_sk import ProductQuantizer

    pq = ProductQuantizer(block_size, N_CODES, random_state=0)
    codes: list[Any] = []

    def encode() -> None:
        codes[:] = [pq.transform(X)]

    return lambda: pq.fit(X), encode, lambda: pq.inverse_transform(codes[0])


def _faiss(X: Points, block_size: int) -> tuple[Callable[[], Any], ...]:
    import faiss

    pq = faiss.ProductQuantizer(X.shape[1], X.shape[1] // block_size, 8)
    pq.cp.niter = ITERATIONS
    codes: list[Any] = []

    def encode() -> None:
        codes[:] = [pq.compute_codes(X)]

    return lambda: pq.train(X), encode, lambda: pq.decode(codes[0])


def _nanopq(X: Points, block_size: int) -> tuple[Callable[[], Any], ...]:
    import nanopq

    pq = nanopq.PQ(X.shape[1] // block_size, N_CODES, verbose=False)
    codes: list[Any] = []

    def encode() -> None:
        codes[:] = [pq.encode(X)]

    # Its own default of 20, brought to what the others do.
    return lambda: pq.fit(X, iter=ITERATIONS, seed=0), encode, lambda: pq.decode(codes[0])


PEERS = (
    Peer(OURS, "pgkmeans_sk", _ours),
    Peer("faiss", "faiss", _faiss),
    Peer("nanopq", "nanopq", _nanopq),
)


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    cases: Sequence[str] = tuple(CASES)
    libraries: Sequence[str] = tuple(peer.name for peer in PEERS)
    rounds: int = 3
    max_rows: int | None = None
    long_run: float = 60.0  # seconds; a peer that trained this long is not timed again


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    wanted = [peer for peer in PEERS if peer.name in plan.libraries]
    here = [peer for peer in wanted if find_spec(peer.module) is not None]
    skipped = [
        {"library": peer.name, "reason": f"no module {peer.module}"}
        for peer in wanted
        if peer not in here
    ]
    rows: list[dict[str, Any]] = []
    for name in plan.cases:
        X = data.load(name, plan.max_rows)
        rows += _measure(name, X, CASES[name], here, plan, skipped, console)
    return {
        "kind": "quantizers",
        "settings": {
            "rounds": plan.rounds,
            "n_codes": N_CODES,
            "iterations_of_peers": ITERATIONS,
            "not_repeated_above_seconds": plan.long_run,
        },
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
        "skipped": skipped,
    }


def _measure(
    name: str,
    X: Points,
    block_size: int,
    peers: Sequence[Peer],
    plan: Plan,
    skipped: list[dict[str, str]],
    console: Console,
) -> list[dict[str, Any]]:
    """Let every library do the steps in turn, several rounds."""
    seconds: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, float] = {}
    for _ in range(plan.rounds):
        for peer in peers:
            before = seconds.get(peer.name)
            if before and before["train"][0] > plan.long_run:
                continue
            try:
                if before is None:  # imports and compilation
                    for step in peer.steps(X[: 4 * N_CODES], block_size):
                        step()
                with console.status(f"{name}: {peer.name}"):
                    spent, decoded = _timed_steps(peer.steps(X, block_size))
            except Exception as error:  # a peer may raise anything; it must not end the others' run
                skipped.append({"case": name, "library": peer.name, "reason": own_words(error)})
                continue
            kept = seconds.setdefault(peer.name, {step: [] for step in STEPS})
            for step in STEPS:
                kept[step].append(spent[step])
            errors.setdefault(peer.name, relative_error(X, decoded))
            console.print(
                f"  {name}: {peer.name} " + " ".join(f"{s} {spent[s]:.3f}" for s in STEPS)
            )
    return [
        {
            "case": name,
            "synthetic": data.case(name).synthetic,
            "n": len(X),
            "d": X.shape[1],
            "n_blocks": X.shape[1] // block_size,
            "library": library,
            "step": step,
            "relative_error": errors[library],
            "seconds": median(spent[step]),
            "all_seconds": [round(s, 5) for s in spent[step]],
            "ours_over_theirs": _paired_ratio(seconds.get(OURS, {}).get(step), spent[step]),
        }
        for library, spent in seconds.items()
        for step in STEPS
    ]


def _paired_ratio(ours: list[float] | None, theirs: list[float]) -> float | None:
    """Median of the ratios within rounds: what a drifting machine does to both drops out."""
    if not ours:
        return None
    return median(mine / other for mine, other in zip(ours, theirs, strict=False))


def _timed_steps(steps: Sequence[Callable[[], Any]]) -> tuple[dict[str, float], Points]:
    """Seconds of each step, and the decoded rows."""
    spent, result = {}, None
    for name, step in zip(STEPS, steps, strict=True):
        spent[name], result = timed_fit(step)
    assert result is not None
    return spent, result


def relative_error(X: Points, decoded: Points) -> float:
    """|X - decoded| / |X|, in float64, some rows at a time."""
    lost = total = 0.0
    for start in range(0, len(X), 16_384):
        rows = X[start : start + 16_384].astype(np.float64)
        lost += float(((rows - decoded[start : start + 16_384]) ** 2).sum())
        total += float((rows**2).sum())
    return float(np.sqrt(lost / total))


def sheets(result: Result) -> list[Sheet]:
    """Make one table per case."""
    found = []
    for case in dict.fromkeys(row["case"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["case"] == case]
        best = min(row["relative_error"] for row in rows)
        table = []
        for library in dict.fromkeys(row["library"] for row in rows):
            steps = [row for row in rows if row["library"] == library]
            cells = [library]
            for row in steps:
                cells += [as_seconds(row["seconds"]), as_number(row["ours_over_theirs"])]
            error = steps[0]["relative_error"]
            table.append((*cells, f"{error:.4f}", as_percent(error / best - 1.0)))
        columns = ["library"]
        for step in STEPS:
            columns += [f"{step}, s", f"{OURS} / this"]
        columns += ["rel. error", "to best"]
        first = rows[0]
        flag = "synthetic, " if first["synthetic"] else ""
        title = (
            f"{case} ({flag}{as_whole(first['n'])} x {first['d']}, {first['n_blocks']} blocks, "
            f"{result['settings']['n_codes']} codes)"
        )
        found.append(Sheet(title, columns, table))
    return found
