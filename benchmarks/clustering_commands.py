"""The commands that measure k-means itself."""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks import (
    cold,
    curves,
    data,
    distributed,
    efforts,
    empty_clusters,
    glue,
    gpu,
    growth,
    line,
    report,
    scaling,
    small,
    speed,
    stored,
)
from benchmarks.baseline_ipq import DEFAULT_ITERATIONS
from benchmarks.command_options import (
    Command,
    Parser,
    Save,
    add_choice,
    add_fields,
    add_limits,
    add_no_memory,
    add_rows,
    names_in,
    numbers,
    plan_of,
)
from benchmarks.gpu_peers import TENSOR_PEERS
from benchmarks.peers import PEERS


def _add_speed(parser: Parser) -> None:
    add_choice(parser, "--cases", list(data.CASES))
    add_choice(parser, "--modes", speed.MODES)
    add_choice(parser, "--libraries", list(PEERS))
    parser.add_argument("--seed", type=int, default=0)
    add_limits(parser, 3, 60.0, "do not repeat a peer that takes longer than this")
    add_rows(parser)
    add_no_memory(parser)


def _add_small(parser: Parser) -> None:
    for name in ("n_rows", "n_features", "n_clusters"):
        parser.add_argument("--" + name.replace("_", "-"), type=numbers,
                            default=list(getattr(small.Plan, name)))  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)


def _add_cold(parser: Parser) -> None:
    parser.add_argument("--repeats", type=int, default=3)


def _add_study(parser: Parser) -> None:
    parser.add_argument("--layers", type=names_in, help='comma-separated names, or "all"; default: '
                        f"{', '.join(empty_clusters.DEFAULT_LAYERS)}")  # fmt: skip
    parser.add_argument("--k", type=numbers, default=list(empty_clusters.DEFAULT_K))
    add_choice(parser, "--arms", list(empty_clusters.ARMS))
    parser.add_argument("--iterations", type=int, default=DEFAULT_ITERATIONS)
    parser.add_argument("--seeds", type=numbers, default=[0])


def _run_study(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    return empty_clusters.run(
        console,
        layer_names=arguments.layers,
        n_clusters=arguments.k,
        arms=arguments.arms,
        iterations=arguments.iterations,
        seeds=arguments.seeds,
    )


def _add_curves(parser: Parser) -> None:
    add_choice(parser, "--cases", list(data.CASES))
    add_choice(parser, "--libraries", list(efforts.LINES), dest="lines")
    parser.add_argument("--iterations", type=numbers, default=list(efforts.ITERATIONS))
    parser.add_argument("--seed", type=int, default=0)
    add_limits(parser, 3, 120.0, "give no greater effort to a line that took longer than this, "
                "and do not repeat the long run")  # fmt: skip
    add_rows(parser)
    glue.add_option(parser)


def _run_curves(arguments: argparse.Namespace, console: Console, save: Save) -> report.Result:
    glue.take_option(arguments)
    arguments.iterations.sort()
    return curves.run(plan_of(curves.Plan, arguments), console, save)


def _add_scaling(parser: Parser) -> None:
    add_choice(parser, "--series", list(growth.GROWS))
    add_choice(parser, "--libraries", scaling.LIBRARIES, scaling.DEFAULT_LIBRARIES)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--rows", dest="max_rows", type=int,
                        help="leave out sizes with more rows than this")  # fmt: skip
    add_limits(parser, 3, 120.0, "give no larger size to a library that took longer")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    add_no_memory(parser)


def _add_gpu(parser: Parser) -> None:
    add_choice(parser, "--cases", list(data.CASES), gpu.Plan.cases)
    add_choice(parser, "--modes", gpu.MODES)
    add_choice(parser, "--libraries", list(TENSOR_PEERS))
    parser.add_argument("--batches", type=names_in, default=(), metavar="SIZES",
                        help="problems x rows x features x clusters, comma-separated; default: "
                        "by the device")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--device", default="", help="default: a CUDA device, if there is one")
    parser.add_argument("--seed", type=int, default=0)
    add_limits(parser, 3, 60.0, "do not repeat a library that takes longer than this")
    add_rows(parser)


def _add_line(parser: Parser) -> None:
    parser.add_argument("--sizes", type=numbers, default=list(line.SIZES))
    parser.add_argument("--k", dest="n_clusters", type=numbers, default=list(line.N_CLUSTERS))
    add_limits(parser, 3, 300.0, "do not try a peer on more that took longer for less")


CLUSTERING = {
    "speed": Command(
        "time, SSE, empty clusters, memory against the peers",
        _add_speed,
        lambda arguments, console, save: speed.run(plan_of(speed.Plan, arguments), console),
    ),
    "small": Command(
        "small tables against scikit-learn's KMeans",
        _add_small,
        lambda arguments, console, save: small.run(plan_of(small.Plan, arguments), console),
    ),
    "cold": Command(
        "first fit in a fresh process, cold and warm cache",
        _add_cold,
        lambda arguments, console, save: cold.run(console, arguments.repeats),
    ),
    "empty-clusters": Command("the empty-cluster study on the real model", _add_study, _run_study),
    "curves": Command("time to quality: SSE against seconds", _add_curves, _run_curves),
    "scaling": Command(
        "seconds per iteration by n, K, d and threads",
        _add_scaling,
        lambda arguments, console, save: scaling.run(
            plan_of(scaling.Plan, arguments), console, save
        ),
    ),
    "gpu": Command(
        "tensors, on a GPU if there is one: ours, other libraries, the floor",
        _add_gpu,
        lambda arguments, console, save: gpu.run(plan_of(gpu.Plan, arguments), console),
    ),
    "line": Command(
        "one dimension: the exact optimum",
        _add_line,
        lambda arguments, console, save: line.run(plan_of(line.Plan, arguments), console),
    ),
    "stored": Command(
        "rows on disk: time and peak of memory",
        lambda parser: add_fields(parser, stored.Plan),
        lambda arguments, console, save: stored.run(plan_of(stored.Plan, arguments), console),
    ),
    "distributed": Command(
        "a dask array on two processes: time, bytes, killed workers",
        lambda parser: add_fields(parser, distributed.Plan),
        lambda arguments, console, save: distributed.run(
            plan_of(distributed.Plan, arguments), console
        ),
    ),
}
