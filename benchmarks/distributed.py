"""A fit of a dask array on a cluster of two processes, against the same rows in memory.

* Time: ``init="random"`` and a fixed number of iterations, rows loaded before the clock starts; the
  two alternate, and ratios are those of neighbours.
* Bytes: everything that any process of the cluster, scheduler and client included, writes to a
  connection while one iteration more is made: the difference of two fits, over the iterations
  between them. On one machine each byte between scheduler and client counts as well.
* Kills: a worker is killed at a random moment of each of some fits, each on a cluster of its own,
  and started again by its nanny; the result has to be the same.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_seconds, as_whole

Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    n_rows: int = 10_000_000
    n_features: int = 16
    n_clusters: int = 256
    iterations: int = 10
    n_workers: int = 2
    chunks_per_worker: int = 1
    rounds: int = 3
    n_kills: int = 20
    kill_rows: int = 400_000


def _rows(n_rows: int, n_features: int) -> Any:
    """The rows, made by the workers that are to have them: neighbours on the same one."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n_rows, n_features), dtype=np.float32)
    rows += 2.0 * rng.standard_normal((64, n_features), dtype=np.float32)[np.arange(n_rows) % 64]
    return rows


def _estimator(plan: Plan, iterations: int, n_rows: int) -> Any:
    from pgkmeans_sk import PGKMeans

    return PGKMeans(
        plan.n_clusters,
        init=_rows(n_rows, plan.n_features)[: plan.n_clusters].astype(np.float64),
        n_init=1,
        max_iter=iterations,
        tol=0.0,
        algorithm="lloyd",
        random_state=0,
    )


# ---------------------------------------------------------------- the cluster


def _count_written_bytes() -> None:
    """Count what this process writes to connections from now on."""
    from distributed.comm import tcp

    if hasattr(tcp, "pgkmeans_written"):
        return
    tcp.pgkmeans_written = 0
    write = tcp.TCP.write

    async def counting(self: Any, *arguments: Any, **options: Any) -> int:
        n_bytes: int = await write(self, *arguments, **options)
        tcp.pgkmeans_written += n_bytes
        return n_bytes

    tcp.TCP.write = counting


def _written_bytes() -> int:
    from distributed.comm import tcp

    return int(tcp.pgkmeans_written)


def _all_bytes(client: Any) -> tuple[int, int]:
    """Bytes written so far by all processes, and by workers alone."""
    of_workers = sum(client.run(_written_bytes).values())
    return of_workers + _written_bytes(), of_workers


def _persisted(client: Any, rows: Any, plan: Plan) -> Any:
    """The rows as a dask array whose chunks lie side by side on the same worker."""
    import dask.array as da
    from distributed import wait

    workers = sorted(client.scheduler_info()["workers"])
    parts = np.array_split(rows, plan.n_workers * plan.chunks_per_worker)
    owners = np.repeat(workers, plan.chunks_per_worker)
    futures = [
        client.scatter(part, workers=[owner], hash=False)
        for part, owner in zip(parts, owners, strict=True)
    ]
    stored = da.concatenate(
        [
            da.from_delayed(future, shape=part.shape, dtype=part.dtype)
            for future, part in zip(futures, parts, strict=True)
        ]
    ).persist()
    wait(stored)
    return stored


def _same(first: Any, second: Any) -> bool:
    return (
        first.cluster_centers_.tobytes() == second.cluster_centers_.tobytes()
        and first.inertia_ == second.inertia_
        and bool((np.asarray(first.labels_) == np.asarray(second.labels_)).all())
    )


# ---------------------------------------------------------------- what is measured


def _seconds_of(estimator: Any, rows: Any) -> float:
    begin = time.perf_counter()
    estimator.fit(rows)
    return time.perf_counter() - begin


def measure_time(client: Any, plan: Plan, console: Console) -> dict[str, Any]:
    """Medians of seconds, and of ratios of neighbours, for fits of all iterations."""
    rows = _rows(plan.n_rows, plan.n_features)
    stored = _persisted(client, rows, plan)
    ours, there = (_estimator(plan, plan.iterations, 10_000) for _ in range(2))
    _estimator(plan, 2, 10_000).fit(rows[:200_000])
    _estimator(plan, 2, 10_000).fit(stored)  # kernels are compiled, or loaded, by every worker
    seconds = []
    for number in range(plan.rounds):
        with console.status(f"time, round {number + 1} of {plan.rounds}"):
            seconds.append((_seconds_of(ours, rows), _seconds_of(there, stored)))
    n_before = _all_bytes(client)
    few = _estimator(plan, 2, 10_000)
    few.fit(stored)
    n_between = _all_bytes(client)
    there.fit(stored)
    n_after = _all_bytes(client)
    more = there.n_iter_ - few.n_iter_
    written = [
        ((after - between) - (between - before)) / more
        for before, between, after in zip(n_before, n_between, n_after, strict=True)
    ]
    unit = plan.n_clusters * (plan.n_features + 2) * 8 * plan.n_workers
    return {
        "part": "time",
        "n": plan.n_rows,
        "seconds_in_memory": median(pair[0] for pair in seconds),
        "seconds": median(pair[1] for pair in seconds),
        "ratio": median(pair[1] / pair[0] for pair in seconds),
        "all_seconds": seconds,
        "bytes_per_iteration": written[0],
        "bytes_of_workers_per_iteration": written[1],
        "bytes_over_unit": written[0] / unit,
        "same_result": _same(ours, there),
    }


def measure_kills(plan: Plan, console: Console) -> dict[str, Any]:
    """Kill a worker in the middle of fits; how many results are the same."""
    expected = _estimator(plan, plan.iterations, 10_000).fit(_rows(plan.kill_rows, plan.n_features))
    rng = np.random.default_rng(0)
    n_same, moments = 0, []
    for number in range(plan.n_kills):
        with (
            console.status(f"kill {number + 1} of {plan.n_kills}"),
            cluster(plan) as client,
        ):
            stored = _rows_of_tasks(plan)
            seconds = 0.0
            for _ in range(2):  # in the first, kernels are loaded
                seconds = _seconds_of(_estimator(plan, plan.iterations, 10_000), stored)
            moments.append(float(rng.uniform(0.0, 1.0)))
            victim = list(client.run(os.getpid).values())[int(rng.integers(plan.n_workers))]
            killer = threading.Timer(moments[-1] * seconds, os.kill, (victim, signal.SIGKILL))
            killer.start()
            found = _estimator(plan, plan.iterations, 10_000).fit(stored)
            killer.join()
            n_same += _same(found, expected)
    return {"part": "kills", "n": plan.kill_rows, "n_kills": plan.n_kills, "n_same": n_same,
            "moments": moments}  # fmt: skip


def _rows_of_tasks(plan: Plan) -> Any:
    """Rows that tasks have made, so that what a worker loses can be made again."""
    import dask.array as da
    from distributed import wait

    n_chunk = -(-plan.kill_rows // 8)
    lengths = [min(n_chunk, plan.kill_rows - at) for at in range(0, plan.kill_rows, n_chunk)]
    stored = da.map_blocks(
        _chunk_of_rows,
        plan.kill_rows,
        plan.n_features,
        n_chunk,
        chunks=(tuple(lengths), (plan.n_features,)),
        dtype=np.float32,
        meta=np.empty((0, 0), np.float32),
    ).persist()
    wait(stored)
    return stored


def _chunk_of_rows(n_rows: int, n_features: int, n_chunk: int, block_info: Any = None) -> Any:
    at = block_info[None]["chunk-location"][0] * n_chunk
    return _rows(n_rows, n_features)[at : at + n_chunk].copy()


@contextmanager
def cluster(plan: Plan) -> Iterator[Any]:
    """A client of a new cluster of processes on this machine, all of which count their bytes."""
    from distributed import Client, LocalCluster

    _count_written_bytes()
    local = LocalCluster(n_workers=plan.n_workers, threads_per_worker=1, dashboard_address=":0")
    with local, Client(local) as client:
        client.run(_count_written_bytes)
        yield client


def run(plan: Plan, console: Console) -> Result:
    """Measure on new clusters of processes on this machine."""
    with cluster(plan) as client:
        rows = [measure_time(client, plan, console)]
    if plan.n_kills:
        rows.append(measure_kills(plan, console))
    return {
        "kind": "distributed",
        "settings": asdict(plan),
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
        "skipped": [],
    }


def sheets(result: Result) -> list[Sheet]:
    """Make a table of times and bytes, and one of kills."""
    settings = result["settings"]
    found = []
    for row in result["rows"]:
        if row["part"] == "time":
            columns = ("n", "s in memory", "s on the cluster", "ratio", "kB per iteration",
                       "over K (d+2) 8 bytes x workers", "same bytes")  # fmt: skip
            table = [
                (
                    as_whole(row["n"]),
                    as_seconds(row["seconds_in_memory"]),
                    as_seconds(row["seconds"]),
                    as_number(row["ratio"]),
                    as_number(row["bytes_per_iteration"] / 1000),
                    as_number(row["bytes_over_unit"]),
                    "yes" if row["same_result"] else "no",
                )
            ]
            title = (
                f"d = {settings['n_features']}, K = {settings['n_clusters']}, "
                f"{settings['iterations']} iterations, {settings['n_workers']} workers of 1 thread"
            )
            found.append(Sheet(title, columns, table))
        else:
            table = [(as_whole(row["n_kills"]), as_whole(row["n_same"]))]
            found.append(Sheet("workers killed", ("kills", "same bytes"), table))
    return found
