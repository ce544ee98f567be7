"""Time, SSE, empty clusters and peak memory of ours against every installed peer, in one process.

Two questions, two modes:

* ``same start``: 25 iterations from the same starting centres, where the library takes any. This
  compares the arithmetic alone.
* ``default fit``: what a user gets from the library's own defaults, initialisation and stopping
  rule included.

Machines drift by tens of percent within minutes, so absolute times of different moments do not
compare. Each timing of a peer is therefore paired with one of ours taken right before it, the pairs
alternate over the peers for several rounds, and the reported ratio is the median over the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks import data, memory
from benchmarks.clock import timed_fit
from benchmarks.measure import available_memory, judge, machine, package_versions
from benchmarks.peers import OURS, PEERS, Fitted, Peer, own_words, why_missing, why_too_large
from benchmarks.warm_up import warm_up

SAME_START_ITERATIONS = 25
MODES = ("same start", "default fit")


@dataclass
class Plan:
    """What to measure; every field can be set from the command line."""

    cases: Sequence[str]
    modes: Sequence[str] = MODES
    libraries: Sequence[str] = tuple(PEERS)
    rounds: int = 3
    seed: int = 0
    max_rows: int | None = None
    long_run: float = 60.0  # seconds; a peer slower than this is not repeated
    with_memory: bool = True


@dataclass
class Timings:
    """All runs of one library on one case and mode."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)  # ours / this library, pair by pair
    fitted: Fitted | None = None  # of the first run; the seed is the same in all


def run(plan: Plan, console: Console) -> dict[str, Any]:
    """Run a plan and return the result as a JSON-ready dictionary."""
    chosen = [PEERS[name] for name in plan.libraries if name != OURS]
    skipped = [
        {"case": "all", "mode": "all", "library": peer.name, "reason": reason}
        for peer in chosen
        if (reason := why_missing(peer)) is not None
    ]
    absent = {skip["library"] for skip in skipped}
    result: dict[str, Any] = {
        "kind": "speed",
        "settings": {
            "same_start_iterations": SAME_START_ITERATIONS,
            "rounds": plan.rounds,
            "seed": plan.seed,
            "max_rows": plan.max_rows,
            "not_repeated_above_seconds": plan.long_run,
        },
        "machine": machine(),
        "versions": package_versions(),
        "notes": {peer.name: peer.note for peer in PEERS.values() if peer.note},
        "rows": [],
        "skipped": skipped,
    }
    present = [peer for peer in chosen if peer.name not in absent]
    for case in plan.cases:
        console.print(f"[bold]{case}[/bold]: loading")
        try:
            X = data.load_if_here(case, plan.max_rows)
        except data.NotHereError as error:
            skipped.append({"case": case, "mode": "all", "library": "all", "reason": str(error)})
            console.print(f"  [yellow]{case} skipped[/yellow]: {error}")
            continue
        for mode in plan.modes:
            for row in _run_case(plan, case, mode, X, present, skipped, console):
                result["rows"].append(row)
    return result


def _run_case(
    plan: Plan,
    case: str,
    mode: str,
    X: data.Points,
    peers: Sequence[Peer],
    skipped: list[dict[str, str]],
    console: Console,
) -> Iterator[dict[str, Any]]:
    """Measure all libraries on one case in one mode; yield one row per library, ours first."""
    same_start = mode == "same start"
    n_clusters = data.CASES[case].n_clusters
    start = data.sampled_start(X, n_clusters, plan.seed) if same_start else None
    iterations = SAME_START_ITERATIONS if same_start else None

    def skip(peer: Peer, reason: str) -> None:
        skipped.append({"case": case, "mode": mode, "library": peer.name, "reason": reason})
        console.print(f"  [yellow]{peer.name} skipped[/yellow]: {reason}")

    def timed(peer: Peer) -> tuple[float, Fitted]:
        return timed_fit(lambda: peer.fit(X, n_clusters, start, iterations, plan.seed))

    ours = PEERS[OURS]
    warm_up(OURS, X, n_clusters, same_start)
    timings = {OURS: Timings()}
    for peer in peers:
        if not (peer.same_start if same_start else peer.default_fit):
            continue
        reason = why_too_large(peer, len(X), n_clusters, available_memory())
        if reason is None:
            reason = _try_warm_up(peer, X, n_clusters, same_start)
        if reason is None:
            timings[peer.name] = Timings()
        else:
            skip(peer, reason)

    for round_number in range(plan.rounds):
        # Without any rival there is still ours to time.
        for name in [name for name in timings if name != OURS] or [OURS]:
            theirs = timings[name]
            if name != OURS and theirs.seconds and theirs.seconds[0] > plan.long_run:
                continue
            with console.status(f"{case}, {mode}, round {round_number + 1}: ours, then {name}"):
                our_seconds, our_fit = timed(ours)
                timings[OURS].seconds.append(our_seconds)
                timings[OURS].fitted = timings[OURS].fitted or our_fit
                if name == OURS:
                    continue
                try:
                    seconds, fitted = timed(PEERS[name])
                except Exception as error:  # as in the warm-up: only this peer is out
                    skip(PEERS[name], own_words(error))
                    del timings[name]
                    continue
            theirs.seconds.append(seconds)
            theirs.ratios.append(our_seconds / seconds)
            theirs.fitted = theirs.fitted or fitted
            console.print(f"  {mode}: ours {our_seconds:.3f} s, {name} {seconds:.3f} s")

    for name, runs in timings.items():
        peak = None
        if plan.with_memory:
            with console.status(f"{case}, {mode}: peak memory of {name} in a child process"):
                peak = memory.peak_in_child(case, name, iterations, plan.seed, plan.max_rows)
        with console.status(f"{case}, {mode}: judging {name}"):
            yield _row(case, mode, X, n_clusters, PEERS[name], runs, peak)


def _try_warm_up(peer: Peer, X: data.Points, n_clusters: int, same_start: bool) -> str | None:
    """Warm a peer up; return why it cannot run this case, in its own words, or None."""
    try:
        warm_up(peer.name, X, n_clusters, same_start)
    except Exception as error:  # a peer may raise anything; it must not end the others' run
        return own_words(error)
    return None


def _row(
    case: str,
    mode: str,
    X: data.Points,
    n_clusters: int,
    peer: Peer,
    runs: Timings,
    peak: int | None,
) -> dict[str, Any]:
    """Judge one library's centres on all points and put its numbers into one JSON row."""
    if runs.fitted is None:
        raise RuntimeError(f"{peer.name} was never run on {case!r}")
    verdict = judge(X, runs.fitted.centers)
    return {
        "case": case,
        "synthetic": data.CASES[case].synthetic,
        "mode": mode,
        "n": len(X),
        "d": X.shape[1],
        "k": n_clusters,
        "library": peer.name,
        "seconds": median(runs.seconds),
        "seconds_min": min(runs.seconds),
        "seconds_max": max(runs.seconds),
        "all_seconds": [round(seconds, 4) for seconds in runs.seconds],
        "ours_over_theirs": median(runs.ratios) if runs.ratios else None,
        "sse": verdict.sse,
        "n_empty": verdict.n_empty,
        "n_iter": runs.fitted.n_iter,
        "peak_bytes": peak,
        "shared_start": mode == "same start" and peer.takes_start,
    }
