"""What commands have in common: how options are read, and become the plan of a benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from rich.console import Console

from benchmarks import report

P = TypeVar("P")
Parser = argparse.ArgumentParser
Save = Callable[[report.Result], None]
"""Keeps an unfinished result: long runs leave behind what they have, should they be cut off."""


@dataclass(frozen=True)
class Command:
    """One command: its line in the manual, its options, and the benchmark behind it."""

    about: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace, Console, Save], report.Result]


def names_in(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def one_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: a comma-separated list of some of ``known``, "all" or "none"."""

    def parse(text: str) -> list[str]:
        if text == "none":
            return []
        names = list(known) if text == "all" else names_in(text)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"got {', '.join(unknown) or 'nothing'}, but expected some of: {', '.join(known)}"
            )
        return names

    return parse


def numbers(text: str) -> list[int]:
    return [int(part) for part in names_in(text)]


def reals(text: str) -> list[float]:
    return [float(part) for part in names_in(text)]


def plan_of(kind: type[P], arguments: argparse.Namespace) -> P:
    """The plan of a benchmark: options have the names of its fields."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(arguments, name) for name in known})


def add_choice(
    parser: Parser, option: str, known: Sequence[str], default: Sequence[str] = (), **more: Any
) -> None:
    """An option that takes some of the known names; by default all."""
    parser.add_argument(option, type=one_of(known), default=list(default or known),
                        help=f"comma-separated: {', '.join(known)}", **more)  # fmt: skip


def add_limits(parser: Parser, rounds: int, long_run: float | None = None, about: str = "") -> None:
    """Options that bound how long a run takes."""
    parser.add_argument("--rounds", type=int, default=rounds)
    if long_run is not None:
        parser.add_argument("--long-run", type=float, default=long_run, metavar="SECONDS",
                            help=about)  # fmt: skip


def add_rows(parser: Parser) -> None:
    parser.add_argument("--rows", dest="max_rows", type=int,
                        help="use at most this many rows of each case")  # fmt: skip


def add_no_memory(parser: Parser) -> None:
    parser.add_argument("--no-memory", dest="with_memory", action="store_false",
                        help="skip the peak-memory children")  # fmt: skip


def add_fields(parser: Parser, plan: Any) -> None:
    """An option for each number of a plan."""
    for field in fields(plan):
        kind = str if isinstance(field.default, str) else int
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)
