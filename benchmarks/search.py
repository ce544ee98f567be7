"""Search among product-quantization codes, and decoding them: ours against faiss, on faiss's codes.

Both sides get the codebooks and codes that ``faiss.ProductQuantizer`` made, so that they have the
same thing to find. faiss is asked as its users ask it (``IndexPQ.search``), with as many threads as
it takes by itself. Queries are rows of the data; recall counts how many of the k nearest rows, by
exact distances, are among the k found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import data
from benchmarks.clock import timed_fit
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_percent, as_seconds, as_whole

Result = dict[str, Any]
Floats = NDArray[np.float32]
Found = NDArray[np.int64]  # (q, k) row numbers

OURS, THEIRS = "pgkmeans-sk", "faiss"
N_BLOCKS = {"words": 48, "mixture": 16}
ITERATIONS = 10  # of k-means in each block; how good the codebooks are does not matter here


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    cases: Sequence[str] = tuple(N_BLOCKS)
    bits: Sequence[int] = (8, 4, 6, 10)  # all but the first for the first case only
    n_queries: Sequence[int] = (1, 10, 1000)
    k: int = 10
    rounds: int = 5
    max_rows: int | None = None


@dataclass(frozen=True)
class Problem:
    """Codes and codebooks of some rows, as faiss has them and as we take them."""

    X: Floats  # (n, d)
    index: Any  # faiss.IndexPQ that holds all rows
    packed: NDArray[np.uint8]  # (n, bytes of a row), codes as faiss stores them
    codes: NDArray[Any]  # (n, n_blocks) uint8 or uint16
    codebooks: Floats  # (1, n_blocks, n_codes, block_size)


def prepare(X: Floats, n_blocks: int, n_bits: int) -> Problem:
    """Train codebooks and encode all rows, with faiss."""
    import faiss

    index = faiss.IndexPQ(X.shape[1], n_blocks, n_bits)
    index.pq.cp.niter = ITERATIONS
    index.pq.cp.min_points_per_centroid = 1  # no warning for each block
    index.train(X)
    index.add(X)
    packed = faiss.vector_to_array(index.codes).reshape(len(X), -1)
    codebooks = faiss.vector_to_array(index.pq.centroids).reshape(1, n_blocks, 1 << n_bits, -1)
    return Problem(X, index, packed, unpacked(packed, n_blocks, n_bits), codebooks)


def unpacked(packed: NDArray[np.uint8], n_blocks: int, n_bits: int) -> NDArray[Any]:
    """Codes (n, n_blocks) of ``n_bits`` each from bytes without gaps, lowest bits first."""
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : n_blocks * n_bits]
    values = bits.reshape(len(packed), n_blocks, n_bits) @ (1 << np.arange(n_bits))
    return values.astype(np.uint8 if n_bits <= 8 else np.uint16)


def our_search(problem: Problem, k: int, queries: Floats) -> Found:
    """Tables for some queries at a time, and the rows with the least sums."""
    from pgkmeans_sk.codes.lookup import distance_tables, queries_at_once, scan_topk

    _, n_blocks, n_codes, _ = problem.codebooks.shape
    step = queries_at_once(n_blocks, n_codes, queries.dtype)
    room = np.empty((min(step, len(queries)), n_blocks, n_codes), dtype=queries.dtype)
    found = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        tables = distance_tables(some, problem.codebooks, "sqeuclidean", out=room[: len(some)])
        found[start : start + step] = scan_topk(tables, problem.codes, k)[1]
    return found


def their_search(problem: Problem, k: int, queries: Floats) -> Found:
    found: Found = problem.index.search(queries, k)[1]
    return found


def our_rows(problem: Problem, out: Floats | None = None) -> Floats:
    from pgkmeans_sk.codes.lookup import decode_blocks

    return decode_blocks(problem.codes, problem.codebooks, problem.X.shape[1], out=out)


def their_rows(problem: Problem, out: Floats | None = None) -> Floats:
    import faiss

    if out is None:
        decoded: Floats = problem.index.pq.decode(problem.packed)
        return decoded
    problem.index.pq.decode_c(faiss.swig_ptr(problem.packed), faiss.swig_ptr(out), len(out))
    return out


def true_neighbours(X: Floats, queries: Floats, k: int) -> Found:
    """The k nearest rows of each query by exact distances."""
    import faiss

    exact = faiss.IndexFlatL2(X.shape[1])
    exact.add(X)
    found: Found = exact.search(queries, k)[1]
    return found


def share_found(found: Found, wanted: Found) -> float:
    """The share of the wanted rows that are among those found, query by query."""
    return float(np.mean([np.isin(w, f) for f, w in zip(found, wanted, strict=True)]))


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    result: Result = {
        "kind": "search",
        "settings": {"rounds": plan.rounds, "k": plan.k, "iterations": ITERATIONS},
        "machine": machine(),
        "versions": package_versions(),
        "rows": [],
        "skipped": [],
    }
    if find_spec("faiss") is None:
        skip = {"library": THEIRS, "reason": "no module faiss, which makes the codes"}
        result["skipped"].append(skip)
        return result
    for name in plan.cases:
        try:
            X = data.load_if_here(name, plan.max_rows)
        except data.NotHereError as error:
            result["skipped"].append({"case": name, "reason": str(error)})
            continue
        for n_bits in plan.bits if name == plan.cases[0] else plan.bits[:1]:
            with console.status(f"{name}: codes of {n_bits} bits"):
                problem = prepare(X, N_BLOCKS[name], n_bits)
            head = {
                "case": name,
                "synthetic": data.case(name).synthetic,
                "n": len(X),
                "d": X.shape[1],
                "blocks": N_BLOCKS[name],
                "bits": n_bits,
            }
            for row in _measure(plan, problem, console):
                result["rows"].append(head | row)
    return result


def _measure(plan: Plan, problem: Problem, console: Console) -> Iterator[dict[str, Any]]:
    """Searches with each number of queries, then decoding: two rows for each, ours first."""
    drawn = data.draw_rows(problem.X, max(plan.n_queries))
    for n_queries in plan.n_queries:
        queries = drawn[:n_queries]
        wanted = true_neighbours(problem.X, queries, plan.k)
        ours = partial(our_search, problem, plan.k, queries)
        theirs = partial(their_search, problem, plan.k, queries)
        for row, found in _in_turn(plan, ours, theirs):
            same = share_found(found, theirs())
            row |= {"task": "search", "queries": len(queries), "same": same}
            yield row | {"recall": share_found(found, wanted)}
            console.print(f"  {len(queries)} queries: {row['library']} {row['seconds']:.4f} s")
    expected = their_rows(problem)
    for task, room in (("decode", None), ("decode in place", np.empty_like(problem.X))):
        ours, theirs = partial(our_rows, problem, room), partial(their_rows, problem, room)
        for row, decoded in _in_turn(plan, ours, theirs):
            same = float(np.mean(decoded == expected))
            yield row | {"task": task, "queries": None, "same": same, "recall": None}
            console.print(f"  {task}: {row['library']} {row['seconds']:.4f} s")


def _in_turn(
    plan: Plan, ours: Callable[[], Any], theirs: Callable[[], Any]
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Time both once per round and yield a row for each, with what it returned."""
    calls = {OURS: ours, THEIRS: theirs}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compilation, threads
    for _ in range(plan.rounds):
        for name, call in calls.items():
            seconds[name].append(timed_fit(call)[0])
    ratios = {
        name: median(a / b for a, b in zip(seconds[OURS], seconds[name], strict=True))
        for name in calls
    }
    for name, call in calls.items():
        row = {
            "library": name,
            "seconds": median(seconds[name]),
            "all_seconds": [round(spent, 6) for spent in seconds[name]],
            "ours_over_theirs": ratios[name],
        }
        yield row, call()


def sheets(result: Result) -> list[Sheet]:
    """Make one table per case and number of bits."""
    found = []
    keys = ("case", "n", "d", "blocks", "bits")
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in result["rows"]):
        rows = [row for row in result["rows"] if tuple(row[name] for name in keys) == key]
        table = [
            (
                row["task"] if row["queries"] is None else f"{as_whole(row['queries'])} queries",
                row["library"],
                as_seconds(row["seconds"]) if row["seconds"] >= 1.0 else f"{row['seconds']:.5f}",
                str(len(row["all_seconds"])),
                as_number(row["ours_over_theirs"]),
                as_percent(row["same"] - 1.0),
                as_number(row["recall"]),
            )
            for row in rows
        ]
        k = result["settings"]["k"]
        columns = ("task", "library", "seconds", "runs", f"{OURS} / this", "same as faiss",
                   f"recall@{k}")  # fmt: skip
        case, n, d, blocks, bits = key
        flag = "synthetic, " if rows[0]["synthetic"] else ""
        title = f"{case} ({flag}{as_whole(n)} x {d}), {blocks} codes of {bits} bits a row"
        found.append(Sheet(title, columns, table, n_text=2))
    return found
