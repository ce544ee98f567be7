"""The command line of the benchmarks: ``python -m benchmarks [speed|curves|scaling|line|...]``.

Without a subcommand it takes a short look: a subset of the real weight blocks and the digits, two
rounds, same start only, no file written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import curves_plot, document, methods_plot, report, scaling_plot, speed
from benchmarks.commands import MEASURING

PICTURES = Path(__file__).parents[1] / "docs" / "images"
PLOTS = {"curves": curves_plot.draw, "methods": methods_plot.draw, "scaling": scaling_plot.draw}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; its help is the manual of the harness."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    for name, command in MEASURING.items():
        measuring = commands.add_parser(name, help=command.about)
        command.add_options(measuring)
        measuring.add_argument("--json", type=Path, metavar="PATH", help="write the result here (a "
                               "bare name: in benchmarks/results)")  # fmt: skip

    table = commands.add_parser("report", help="a result file as a table")
    table.add_argument("result", type=Path)
    table.add_argument("--markdown", type=Path, nargs="?", const=Path("-"),
                       help="write Markdown to this file (or to the terminal)")  # fmt: skip

    plot = commands.add_parser("plot", help="the pictures of a curves, methods or scaling result")
    plot.add_argument("result", type=Path)
    plot.add_argument("--folder", type=Path, default=PICTURES)

    pages = commands.add_parser("document", help="the tables of a document, made anew from the "
                                "results that it names")  # fmt: skip
    pages.add_argument("path", type=Path)

    pair = commands.add_parser("compare", help="two result files side by side")
    pair.add_argument("before", type=Path, metavar="A.json")
    pair.add_argument("after", type=Path, metavar="B.json")
    return parser


def _run(arguments: argparse.Namespace, console: Console) -> report.Result:
    """Run the measuring command that the arguments name; without one, a short look."""

    def save(unfinished: report.Result) -> None:
        if arguments.json is not None:
            report.write(unfinished, arguments.json)

    if arguments.command is not None:
        return MEASURING[arguments.command].run(arguments, console, save)
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
    if arguments.command == "document":
        text = arguments.path.read_text("utf-8")
        arguments.path.write_text(document.refreshed(text), "utf-8")
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
