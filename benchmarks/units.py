"""Long studies in small units: each writes its result at once, so that a killed study goes on.

A unit is one run of the study's grid, named by what it runs. Its file holds what it was told, what
came of it, and the machine and versions of that hour; a unit whose file is there, and was told the
same, is not run again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, package_versions

Row = dict[str, Any]

FOLDER = Path(__file__).parent / "results" / "scratch"  # git-ignored


class Units:
    """The finished units of one study, a JSON file each."""

    def __init__(self, study: str, folder: Path | None = None) -> None:
        self.folder = (folder or FOLDER) / study

    def path(self, name: str) -> Path:
        """Return the file of a unit; its name without what file systems do not like."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.+=-]+', '_', name).strip('_')}.json"

    def finished(self, name: str, told: Mapping[str, Any]) -> Row | None:
        """Return the result of a unit, if it ran and was told the same."""
        path = self.path(name)
        if not path.is_file():
            return None
        kept: Row = json.loads(path.read_text())
        # As it looks after a way through JSON: tuples are lists there.
        return kept if kept["told"] == json.loads(json.dumps(told)) else None

    def forget(self, name: str) -> None:
        """Let a unit run again, if what it left elsewhere is gone."""
        self.path(name).unlink(missing_ok=True)

    def run(self, name: str, told: Mapping[str, Any], work: Callable[[], Row]) -> Row:
        """Return the finished unit ``name``; run ``work`` and keep its result if there is none."""
        kept = self.finished(name, told)
        if kept is not None:
            return kept
        where = machine()  # before the work: the load of others, not its own
        kept = {
            "name": name,
            "told": dict(told),
            "result": work(),
            "machine": where,
            "versions": package_versions(),
        }
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        text = json.dumps(kept, indent=1)
        unfinished.write_text(text + "\n")
        unfinished.replace(path)
        kept = json.loads(text)  # the same whether it ran now or before
        return kept


class NotRunError(LookupError):
    """A unit that was not run; its name."""


class FinishedUnits(Units):
    """The finished units of a study that is not to go on now."""

    def run(self, name: str, told: Mapping[str, Any], work: Callable[[], Row]) -> Row:
        """Return the finished unit ``name``; raise ``NotRunError`` if there is none."""
        kept = self.finished(name, told)
        if kept is None:
            raise NotRunError(name)
        return kept


def run_all(jobs: Iterable[Callable[[], Any]], skipped: list[dict[str, str]]) -> list[Any]:
    """Return the results of the jobs; those that were not run, and are not to be, are skipped."""
    found = []
    for job in jobs:
        try:
            found.append(job())
        except NotRunError as missing:
            skipped.append({"run": str(missing), "reason": "not run yet"})
    return found
