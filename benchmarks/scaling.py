"""Seconds per iteration against the number of rows, clusters, features and threads.

Every library does the same Lloyd iterations from the same start, on Gaussian mixtures, which exist
in any size. Ours and the peers alternate, as everywhere here. Peak memory is taken in child
processes (``memory``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks import data, growth, memory
from benchmarks.clock import timed_fit
from benchmarks.measure import available_memory, machine, package_versions, usable_cores
from benchmarks.peers import OURS, PEERS, own_words, why_missing, why_too_large
from benchmarks.warm_up import warm_up

DEFAULT_LIBRARIES = (OURS, "scikit-learn", "faiss")
LIBRARIES = tuple(peer.name for peer in PEERS.values() if peer.same_start and peer.takes_start)

Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """One problem and the threads that work on it."""

    n: int
    d: int
    k: int
    threads: int

    @property
    def name(self) -> str:
        return data.sized_name(self.n, self.d, self.k)


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    series: Sequence[str] = tuple(growth.GROWS)
    libraries: Sequence[str] = DEFAULT_LIBRARIES
    rounds: int = 3
    iterations: int = 10
    long_run: float = 120.0  # seconds; a library slower than this gets no larger size
    max_rows: int | None = None  # leave out sizes with more rows than this
    quick: bool = False
    with_memory: bool = True


def sizes(series: str, quick: bool) -> list[Size]:
    """Return the sizes of a series, growing."""
    cores = usable_cores()
    if series == "rows":
        counts = (1_000, 2_000, 4_000) if quick else (10**4, 10**5, 10**6, 10**7)
        return [Size(n, 8, 16 if quick else 256, cores) for n in counts]
    if series == "clusters":
        counts = (4, 16, 64) if quick else tuple(4**power for power in range(2, 8))
        return [Size(2_000 if quick else 200_000, 8, k, cores) for k in counts]
    if series == "features":
        counts = (2, 8, 32) if quick else tuple(2**power for power in range(1, 10))
        return [Size(1_000 if quick else 50_000, d, 16 if quick else 256, cores) for d in counts]
    powers = [2**power for power in range(cores.bit_length())]
    threads = sorted({count for count in (*powers, cores) if count <= cores})
    n, k = (10_000, 16) if quick else (1_000_000, 256)
    return [Size(n, 8, k, count) for count in threads]


def run(plan: Plan, console: Console, save: Callable[[Result], None] = lambda _: None) -> Result:
    """Run a plan; ``save`` is given the unfinished result after each series."""
    skipped = [
        {"series": "all", "library": name, "reason": reason}
        for name in plan.libraries
        if (reason := why_missing(PEERS[name])) is not None
    ]
    absent = {skip["library"] for skip in skipped}
    result: Result = {
        "kind": "scaling",
        "settings": {
            "iterations": plan.iterations,
            "rounds": plan.rounds,
            "no_larger_size_above_seconds": plan.long_run,
            "quick": plan.quick,
            "max_rows": plan.max_rows,
        },
        "machine": machine(),
        "versions": package_versions(),
        "rows": [],
        "exponents": [],
        "skipped": skipped,
    }
    # Ours is what the others are compared with, whether it was named or not.
    present = [OURS, *(name for name in plan.libraries if name not in {OURS, *absent})]
    for series in plan.series:
        result["rows"] += _run_series(plan, series, present, skipped, console)
        result["exponents"] = growth.exponents(result["rows"])
        save(result)
    return result


def _run_series(
    plan: Plan,
    series: str,
    libraries: Sequence[str],
    skipped: list[dict[str, str]],
    console: Console,
) -> Iterator[dict[str, Any]]:
    """Measure all libraries at all sizes of a series; yield a row per library and size."""
    going = list(libraries)
    slow: list[str] = []  # took too long at the size before

    def skip(name: str, size: Size, reason: str) -> None:
        where = f"{series}, from {growth.GROWS[series]}={getattr(size, growth.GROWS[series])} on"
        skipped.append({"series": where, "library": name, "reason": reason})
        console.print(f"  [yellow]{name} skipped[/yellow] ({where}): {reason}")
        going.remove(name)

    for size in sizes(series, plan.quick):
        if plan.max_rows is not None and size.n > plan.max_rows:
            reason = f"more than {plan.max_rows} rows"
            for name in going[:]:
                skip(name, size, reason)
            return
        for name in slow:
            skip(name, size, f"took over {plan.long_run:g} s at the size before")
        slow = []
        X = data.load(size.name)
        for name in going[:]:
            reason = why_too_large(PEERS[name], size.n, size.k, available_memory())
            try:
                if reason is None:
                    warm_up(name, X, size.k, same_start=True)
            except Exception as error:  # a peer may raise anything; it must not end the others' run
                reason = own_words(error)
            if reason is not None:
                skip(name, size, reason)
        rows = _time_in_turn(plan, series, size, X, going, console)
        for row in rows:
            if plan.with_memory and series != "threads":
                with console.status(
                    f"{series}: peak memory of {row['library']} in a child process"
                ):
                    row["peak_bytes"] = memory.peak_in_child(
                        size.name, row["library"], plan.iterations, 0, None
                    )
            yield row
        slow = [row["library"] for row in rows if row["seconds"] > plan.long_run]


def _time_in_turn(
    plan: Plan,
    series: str,
    size: Size,
    X: data.Points,
    libraries: Sequence[str],
    console: Console,
) -> list[dict[str, Any]]:
    """Time each library once per round; return the rows of one size, without memory."""
    start = data.sampled_start(X, size.k, 0)
    seconds: dict[str, list[float]] = {name: [] for name in libraries}
    done: dict[str, int] = {}
    for _ in range(plan.rounds):
        for name in libraries:
            fit = PEERS[name].fit
            with console.status(f"{series}: {name} on {size.name}"), _threads(size.threads):
                spent, fitted = timed_fit(lambda fit=fit: fit(X, size.k, start, plan.iterations, 0))
            seconds[name].append(spent)
            done[name] = fitted.n_iter or plan.iterations
    rows = []
    for name in libraries:
        middle = median(seconds[name])
        console.print(f"  {series}: {size.name}, {size.threads} threads: {name} {middle:.4f} s")
        ratios = [
            (ours / done[OURS]) / (theirs / done[name])
            for ours, theirs in zip(seconds.get(OURS, ()), seconds[name], strict=False)
        ]
        rows.append(
            {
                "series": series,
                "library": name,
                "n": size.n,
                "d": size.d,
                "k": size.k,
                "threads": size.threads,
                "synthetic": True,
                "seconds": middle,
                "all_seconds": [round(spent, 5) for spent in seconds[name]],
                "n_iter": done[name],
                "seconds_per_iteration": middle / done[name],
                "ours_over_theirs": median(ratios) if ratios and name != OURS else None,
                "peak_bytes": None,
            }
        )
    return rows


def _threads(count: int) -> threadpool_limits:
    """Limit the thread pools of all libraries: ours and scikit-learn ask it, faiss is OpenMP's."""
    return threadpool_limits(limits=count)
