"""The command line of the benchmarks: ``python -m benchmarks [speed|curves|scaling|line|...]``.

Without a subcommand it takes a short look: a subset of the real weight blocks and the digits, two
rounds, same start only, no file written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import (
    activations,
    cold,
    curves,
    curves_plot,
    data,
    efforts,
    empty_clusters,
    growth,
    line,
    packing,
    report,
    scaling,
    scaling_plot,
    speed,
)
from benchmarks.baseline_ipq import DEFAULT_ITERATIONS
from benchmarks.peers import PEERS

PICTURES = Path(__file__).parents[1] / "docs" / "images"
PLOTS = {"curves": curves_plot.draw, "scaling": scaling_plot.draw}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _one_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: a comma-separated list of some of ``known``, or "all"."""

    def parse(text: str) -> list[str]:
        names = list(known) if text == "all" else _names(text)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown) or 'nothing'}, but expected some of: {', '.join(known)}"
            )
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(part) for part in _names(text)]


def _add_curves(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser("curves", help="time to quality: SSE against seconds")
    cases = list(data.CASES)
    parser.add_argument("--cases", type=_one_of(cases), default=cases, help="comma-separated")
    lines = list(efforts.LINES)
    parser.add_argument("--libraries", type=_one_of(lines), default=lines,
                        help=f"comma-separated: {', '.join(lines)}")  # fmt: skip
    parser.add_argument("--iterations", type=_numbers, default=list(efforts.ITERATIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-rows", type=int, help="use at most this many rows of each case")
    parser.add_argument("--long-run", type=float, default=120.0, metavar="SECONDS",
                        help="give no greater effort to a line that took longer than this, and do "
                        "not repeat the long run")  # fmt: skip
    parser.add_argument("--glue", type=Path, metavar="FOLDER",
                        help="the sentences of the case activations (default: the environment's "
                        f"{activations.FOLDER_VARIABLE})")  # fmt: skip
    return parser


def _add_scaling(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser("scaling", help="seconds per iteration by n, K, d and threads")
    series = list(growth.GROWS)
    parser.add_argument("--series", type=_one_of(series), default=series)
    parser.add_argument("--libraries", type=_one_of(scaling.LIBRARIES),
                        default=list(scaling.DEFAULT_LIBRARIES),
                        help=f"comma-separated: {', '.join(scaling.LIBRARIES)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--max-rows", type=int, help="leave out sizes with more rows than this")
    parser.add_argument("--long-run", type=float, default=120.0, metavar="SECONDS",
                        help="give no larger size to a library that took longer")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--no-memory", action="store_true", help="skip the peak-memory children")
    return parser


def _add_line(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser("line", help="one dimension: the exact optimum")
    parser.add_argument("--sizes", type=_numbers, default=list(line.SIZES))
    parser.add_argument("--k", type=_numbers, default=list(line.N_CLUSTERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-run", type=float, default=300.0, metavar="SECONDS",
                        help="do not try a peer on more that took longer for less")  # fmt: skip
    return parser


def _add_packing(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser("packing", help="GB/s of packing and unpacking codes")
    parser.add_argument("--widths", type=_numbers, default=list(packing.WIDTHS))
    parser.add_argument("--codes", type=int, default=packing.N_CODES)
    parser.add_argument("--row-length", type=int, default=packing.ROW_LENGTH)
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; its help is the manual of the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command")

    fast = commands.add_parser("speed", help="time, SSE, empty clusters, memory against the peers")
    cases = _one_of(list(data.CASES))
    fast.add_argument("--cases", type=cases, default=list(data.CASES), help="comma-separated")
    fast.add_argument("--modes", type=_one_of(speed.MODES), default=list(speed.MODES))
    fast.add_argument("--libraries", type=_one_of(list(PEERS)), default=list(PEERS))
    fast.add_argument("--rounds", type=int, default=3)
    fast.add_argument("--seed", type=int, default=0)
    fast.add_argument("--rows", type=int, help="use at most this many rows of each case")
    fast.add_argument("--long-run", type=float, default=60.0, metavar="SECONDS",
                      help="do not repeat a peer that takes longer than this")  # fmt: skip
    fast.add_argument("--no-memory", action="store_true", help="skip the peak-memory children")

    first = commands.add_parser("cold", help="first fit in a fresh process, cold and warm cache")
    first.add_argument("--repeats", type=int, default=3)

    study = commands.add_parser("empty-clusters", help="the empty-cluster study on the real model")
    study.add_argument("--layers", type=_names, help=f'comma-separated names, or "all"; default: '
                       f"{', '.join(empty_clusters.DEFAULT_LAYERS)}")  # fmt: skip
    study.add_argument("--k", type=_numbers, default=list(empty_clusters.DEFAULT_K))
    study.add_argument("--arms", type=_one_of(list(empty_clusters.ARMS)),
                       default=list(empty_clusters.ARMS))  # fmt: skip
    study.add_argument("--iterations", type=int, default=DEFAULT_ITERATIONS)
    study.add_argument("--seeds", type=_numbers, default=[0])

    quality = _add_curves(commands)
    sizes = _add_scaling(commands)
    on_a_line = _add_line(commands)
    bits = _add_packing(commands)

    for command in (fast, first, study, quality, sizes, on_a_line, bits):
        where = "write the result here (a bare name: in benchmarks/results)"
        command.add_argument("--json", type=Path, metavar="PATH", help=where)

    table = commands.add_parser("report", help="a result file as a table")
    table.add_argument("result", type=Path)
    table.add_argument("--markdown", type=Path, nargs="?", const=Path("-"),
                       help="write Markdown to this file (or to the terminal)")  # fmt: skip

    plot = commands.add_parser("plot", help="the pictures of a curves or scaling result")
    plot.add_argument("result", type=Path)
    plot.add_argument("--folder", type=Path, default=PICTURES)

    pair = commands.add_parser("compare", help="two result files side by side")
    pair.add_argument("before", type=Path, metavar="A.json")
    pair.add_argument("after", type=Path, metavar="B.json")
    return parser


def _run_curves(
    arguments: argparse.Namespace, console: Console, save: Callable[[report.Result], None]
) -> report.Result:
    if arguments.glue is not None:
        os.environ[activations.FOLDER_VARIABLE] = str(arguments.glue)
    plan = curves.Plan(
        cases=arguments.cases,
        lines=arguments.libraries,
        iterations=sorted(arguments.iterations),
        rounds=arguments.rounds,
        seed=arguments.seed,
        max_rows=arguments.max_rows,
        long_run=arguments.long_run,
    )
    return curves.run(plan, console, save)


def _run_scaling(
    arguments: argparse.Namespace, console: Console, save: Callable[[report.Result], None]
) -> report.Result:
    plan = scaling.Plan(
        series=arguments.series,
        libraries=arguments.libraries,
        rounds=arguments.rounds,
        iterations=arguments.iterations,
        long_run=arguments.long_run,
        max_rows=arguments.max_rows,
        quick=arguments.quick,
        with_memory=not arguments.no_memory,
    )
    return scaling.run(plan, console, save)


def _run(arguments: argparse.Namespace, console: Console) -> report.Result:
    """Run the measuring command that the arguments name."""

    def save(unfinished: report.Result) -> None:
        # Long runs leave behind what they have, should they be cut off.
        if arguments.json is not None:
            report.write(unfinished, arguments.json)

    if arguments.command == "curves":
        return _run_curves(arguments, console, save)
    if arguments.command == "scaling":
        return _run_scaling(arguments, console, save)
    if arguments.command == "line":
        plan = line.Plan(
            sizes=arguments.sizes,
            n_clusters=arguments.k,
            rounds=arguments.rounds,
            long_run=arguments.long_run,
        )
        return line.run(plan, console)
    if arguments.command == "packing":
        plan = packing.Plan(
            widths=arguments.widths,
            n_codes=arguments.codes,
            row_length=arguments.row_length,
            rounds=arguments.rounds,
        )
        return packing.run(plan, console)
    if arguments.command == "speed":
        plan = speed.Plan(
            cases=arguments.cases,
            modes=arguments.modes,
            libraries=arguments.libraries,
            rounds=arguments.rounds,
            seed=arguments.seed,
            max_rows=arguments.rows,
            long_run=arguments.long_run,
            with_memory=not arguments.no_memory,
        )
        return speed.run(plan, console)
    if arguments.command == "cold":
        return cold.run(console, arguments.repeats)
    if arguments.command == "empty-clusters":
        return empty_clusters.run(
            console,
            layer_names=arguments.layers,
            n_clusters=arguments.k,
            arms=arguments.arms,
            iterations=arguments.iterations,
            seeds=arguments.seeds,
        )
    short = speed.Plan(
        cases=("blocks", "digits"),
        modes=("same start",),
        rounds=2,
        max_rows=100_000,
        with_memory=False,
    )
    return speed.run(short, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    arguments = build_parser().parse_args(argv)
    # A file or a pipe has no width of its own, and 80 columns would fold every table.
    console = Console(width=None if sys.stdout.isatty() else 150)
    if arguments.command == "report":
        result = report.read(arguments.result)
        if arguments.markdown is None:
            report.show(result, console)
            return 0
        text = report.to_markdown(result, _relative(arguments.result))
        if str(arguments.markdown) == "-":
            sys.stdout.write(text)
        else:
            arguments.markdown.write_text(text)
        return 0
    if arguments.command == "plot":
        result = report.read(arguments.result)
        if result["kind"] not in PLOTS:
            raise SystemExit(f"Got a result of kind {result['kind']!r}, but expected one of: "
                             f"{', '.join(PLOTS)}.")  # fmt: skip
        for path in PLOTS[result["kind"]](result, arguments.folder):
            console.print(f"Written: {_relative(path)}")
        return 0
    if arguments.command == "compare":
        sheet = report.compare(report.read(arguments.before), report.read(arguments.after))
        console.print(report.drawn(sheet))
        return 0
    result = _run(arguments, console)
    report.show(result, console)
    path = getattr(arguments, "json", None)
    if path is not None:
        console.print(f"Written: {report.write(result, path)}")
    return 0


def _relative(path: Path) -> str:
    """Name a result file from the root of the checkout, where it lies inside it."""
    root = report.RESULTS.parent.parent
    resolved = path.resolve()
    return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else path.name


if __name__ == "__main__":
    sys.exit(main())
