"""Sentences of real tasks, as plain files: what the model is measured on.

``SST-2/{train,dev}.tsv`` (label, sentence), ``CoLA/{train,dev}.tsv`` (source, label, mark,
sentence), ``RTE/{train,dev}.tsv`` (index, two sentences, label; with a header) and
``STS-B/{train,dev}.csv`` (four columns, score, two sentences), all separated by tabs. They are not
part of this project: the folder is named by an option ``--glue`` or by the environment variable
PGKMEANS_GLUE, else it is ../shared/data/glue beside the checkout.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FOLDER_VARIABLE = "PGKMEANS_GLUE"
DEFAULT_FOLDER = Path(__file__).parents[2] / "shared" / "data" / "glue"  # beside the checkout


@dataclass(frozen=True)
class _Files:
    """How the files of a task are laid out."""

    pattern: str  # with a place for "train" or "dev"
    n_skipped: int  # lines before the first sentence
    sentences: tuple[int, ...]  # columns
    label: int  # column


_TASKS = {
    "SST-2": _Files("SST-2/{}.tsv", 0, (1,), 0),
    "CoLA": _Files("CoLA/{}.tsv", 0, (3,), 1),
    "RTE": _Files("RTE/{}.tsv", 1, (1, 2), 3),
    "STS-B": _Files("STS-B/{}.csv", 0, (5, 6), 4),
}


class Example(NamedTuple):
    """One line of a task: its sentence, or its two, and the label as it is written there."""

    sentences: tuple[str, ...]
    label: str


def folder() -> Path:
    """Return the folder of the sentences, or say how to name it."""
    found = Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
    if not found.is_dir():
        raise FileNotFoundError(
            f"no sentences in {found}: set {FOLDER_VARIABLE} to a folder with the GLUE tasks "
            f"{', '.join(_TASKS)}"
        )
    return found


def examples(task: str, part: str) -> list[Example]:
    """Return the examples of a task's ``"train"`` or ``"dev"`` part, in the order of the file."""
    files = _TASKS[task]
    path = folder() / files.pattern.format(part)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, which is needed for {task} {part}")
    return [
        Example(tuple(fields[column].strip() for column in files.sentences), fields[files.label])
        for fields in _lines(path, files.n_skipped)
    ]


def sentences() -> list[str]:
    """Return all distinct sentences of all tasks, in the order of the files."""
    found: dict[str, None] = {}
    for task in _TASKS:
        for part in ("train", "dev"):
            for example in examples(task, part):
                found.update((sentence, None) for sentence in example.sentences)
    found.pop("", None)
    return list(found)


def add_option(parser: ArgumentParser) -> None:
    """Let a command be told the folder."""
    parser.add_argument("--glue", type=Path, metavar="FOLDER", help="of the sentences (default: "
                        f"the environment's {FOLDER_VARIABLE})")  # fmt: skip


def take_option(arguments: Namespace) -> None:
    """Make the folder that a command was told the one of this process and its children."""
    if arguments.glue is not None:
        os.environ[FOLDER_VARIABLE] = str(arguments.glue)


def _lines(path: Path, n_skipped: int) -> Iterator[list[str]]:
    for line in path.read_text("utf-8").split("\n")[n_skipped:]:
        if line.strip():
            yield line.rstrip("\r").split("\t")
