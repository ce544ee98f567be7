"""SSE against seconds: every library with every setting of its effort knob, in one process.

All settings take their turn in each round, ours spread evenly among the peers', so that a machine
that drifts does so for all of them alike. The first round judges the centres; the seed is the same
in all rounds, so later ones only take the time again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks import data
from benchmarks.clock import timed_fit
from benchmarks.efforts import ITERATIONS, LINES, Line, Setting
from benchmarks.measure import Verdict, available_memory, judge, machine, package_versions
from benchmarks.peers import own_words, why_missing, why_too_large
from benchmarks.warm_up import compile_for_long_fits

Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    cases: Sequence[str]
    lines: Sequence[str] = tuple(LINES)
    iterations: Sequence[int] = ITERATIONS
    rounds: int = 3
    seed: int = 0
    max_rows: int | None = None
    long_run: float = 120.0  # seconds; see _CaseRun._is_due


@dataclass
class _Point:
    """One setting with all its timings."""

    setting: Setting
    seconds: list[float] = field(default_factory=list)
    verdict: Verdict | None = None
    n_iter: int | None = None
    failed: bool = False


def run(plan: Plan, console: Console, save: Callable[[Result], None] = lambda _: None) -> Result:
    """Run a plan; ``save`` is given the unfinished result after each case."""
    chosen = [LINES[name] for name in plan.lines]
    reasons = {line.name: why_missing(line.peer) for line in chosen}
    result: Result = {
        "kind": "curves",
        "settings": {
            "iterations": list(plan.iterations),
            "rounds": plan.rounds,
            "seed": plan.seed,
            "max_rows": plan.max_rows,
            "no_more_effort_above_seconds": plan.long_run,
        },
        "machine": machine(),
        "versions": package_versions(),
        "notes": {"lines": "; ".join(f"{line.name}: {line.about}" for line in chosen) + "."},
        "rows": [],
        "skipped": [
            {"case": "all", "library": name, "reason": reason}
            for name, reason in reasons.items()
            if reason is not None
        ],
    }
    present = [line for line in chosen if reasons[line.name] is None]
    for case in plan.cases:
        console.print(f"[bold]{case}[/bold]: loading")
        try:
            X = data.load_if_here(case, plan.max_rows)
        except data.NotHereError as error:
            result["skipped"].append({"case": case, "library": "all", "reason": str(error)})
            console.print(f"  [yellow]{case} skipped[/yellow]: {error}")
            continue
        result["rows"] += _CaseRun(plan, case, X, present, result["skipped"], console).rows()
        save(result)
    return result


def alternating(ours: Sequence[Setting], theirs: Sequence[Setting]) -> list[Setting]:
    """Spread the shorter list evenly over the longer one; each keeps its order."""

    def placed(settings: Sequence[Setting]) -> list[tuple[float, Setting]]:
        return [((i + 0.5) / len(settings), setting) for i, setting in enumerate(settings)]

    both = sorted([*placed(ours), *placed(theirs)], key=lambda pair: pair[0])
    return [setting for _, setting in both]


def by_rising_effort(lines: Sequence[Sequence[Setting]]) -> list[Setting]:
    """Take the settings of several lines in turn, each line's least effort first."""
    ranked = [
        (rank, setting)
        for settings in lines
        for rank, setting in enumerate(sorted(settings, key=lambda setting: setting.effort))
    ]
    return [setting for _, setting in sorted(ranked, key=lambda pair: pair[0])]


class _CaseRun:
    """All rounds on one case."""

    def __init__(
        self,
        plan: Plan,
        case: str,
        X: data.Points,
        lines: Sequence[Line],
        skipped: list[dict[str, str]],
        console: Console,
    ) -> None:
        self.plan, self.case, self.X, self.console = plan, case, X, console
        self.n_clusters = data.CASES[case].n_clusters
        self.skipped = skipped
        self.over: dict[str, float] = {}  # line -> the effort that took too long
        self.failed: dict[tuple[str, str], list[str]] = {}  # (line, reason) -> settings
        self.ours = [line.name for line in lines if line.is_ours]
        self.settings = {line.name: self._settings(line) for line in lines}

    def _settings(self, line: Line) -> list[Setting]:
        """Return a line's settings if they fit into memory; warm it up on a few rows."""
        reason = why_too_large(line.peer, len(self.X), self.n_clusters, available_memory())
        if reason is not None:
            self._skip(line.name, reason)
            return []
        settings = line.settings(line.name, len(self.X), self.plan.iterations)
        # Imports, compilation and thread pools are then paid for. Of ours, the default too: it runs
        # kernels that a single iteration does not need.
        if line.is_ours:
            compile_for_long_fits(self.X.dtype)
        least = min(settings, key=lambda setting: setting.effort)
        for setting in settings:
            if setting is least or (line.is_ours and setting.is_default):
                # A peer that fails on so few rows may still do all; if not, it says so then.
                with suppress(Exception):
                    small = data.draw_rows(self.X, 8 * self.n_clusters)
                    setting.fit(small, self.n_clusters, self.plan.seed)
        return settings

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append({"case": self.case, "library": name, "reason": reason})
        self.console.print(f"  [yellow]{name} skipped[/yellow]: {reason}")

    def rows(self) -> list[dict[str, Any]]:
        ours = by_rising_effort([self.settings[name] for name in self.ours])
        theirs = by_rising_effort(
            [settings for name, settings in self.settings.items() if name not in self.ours]
        )
        points = [_Point(setting) for setting in alternating(ours, theirs)]
        for number in range(self.plan.rounds):
            for point in points:
                if self._is_due(point):
                    self._measure(point, number)
        self._name_what_is_missing(points)
        # By library, then by effort: the order in which a result is read.
        order = list(self.settings)
        points.sort(key=lambda point: (order.index(point.setting.line), point.setting.effort))
        return [self._row(point) for point in points if point.verdict is not None]

    def _is_due(self, point: _Point) -> bool:
        """Whether to run a point once more.

        A line that took longer than ``long_run`` gets no greater effort, and the long run itself
        is not repeated.
        """
        line = point.setting.line
        if point.setting.effort > self.over.get(line, float("inf")) or point.failed:
            return False
        return not point.seconds or point.seconds[0] <= self.plan.long_run

    def _measure(self, point: _Point, number: int) -> None:
        setting = point.setting
        label = f"{self.case}, round {number + 1}: {setting.line}, {setting.words}"
        with self.console.status(label):
            try:
                seconds, fitted = timed_fit(
                    lambda: setting.fit(self.X, self.n_clusters, self.plan.seed)
                )
            except Exception as error:  # a peer may raise anything; it must not end the others' run
                point.failed = True
                self.failed.setdefault((setting.line, own_words(error)), []).append(setting.words)
                return
            point.seconds.append(seconds)
            if point.verdict is None:
                point.verdict, point.n_iter = judge(self.X, fitted.centers), fitted.n_iter
        if seconds > self.plan.long_run:
            least = min(self.over.get(setting.line, float("inf")), setting.effort)
            self.over[setting.line] = least
        self.console.print(f"  {label}: {seconds:.3f} s, SSE {point.verdict.sse:.6g}")

    def _name_what_is_missing(self, points: Sequence[_Point]) -> None:
        for (line, reason), words in self.failed.items():
            everything = len(words) == len(self.settings[line])
            self._skip(line, reason if everything else f"{', '.join(words)}: {reason}")
        for line in self.over:
            own = [point for point in points if point.setting.line == line]
            cut = [point.setting.words for point in own if not (point.seconds or point.failed)]
            if cut:
                reason = f"less effort took over {self.plan.long_run:g} s already"
                self._skip(line, f"{', '.join(cut)}: {reason}")

    def _row(self, point: _Point) -> dict[str, Any]:
        setting, verdict = point.setting, point.verdict
        return {
            "case": self.case,
            "synthetic": data.CASES[self.case].synthetic,
            "n": len(self.X),
            "d": self.X.shape[1],
            "k": self.n_clusters,
            "library": setting.line,
            "ours": setting.line in self.ours,
            "setting": setting.words,
            "effort": setting.effort,
            "is_default": setting.is_default,
            "seconds": median(point.seconds),
            "all_seconds": [round(seconds, 5) for seconds in point.seconds],
            "sse": verdict.sse,
            "n_empty": verdict.n_empty,
            "n_iter": point.n_iter,
        }
