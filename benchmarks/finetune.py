"""iPQ with training: a real encoder fine-tuned on SST-2 and RTE, compressed group by group.

The grid is task x seed x Quant-Noise x arm x sizes. First the uncompressed model is fine-tuned,
once for each task, seed and rate of noise, and kept (in benchmarks/cache); from there every arm
goes on. Each run is a unit (``units.py``), so a study that was killed goes on where it was, and
several machines can share the grid by ``--seeds`` or ``--arms``.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_seconds, as_whole
from benchmarks.units import Units

if TYPE_CHECKING:  # torch and transformers are imported when they are needed
    from torch import nn

    from benchmarks.classifier import Classifier, Encoded
    from benchmarks.training import Training

Result = dict[str, Any]

TASKS = ("SST-2", "RTE")
BASELINE = "iPQ baseline"
ARMS = (BASELINE, "PG", "compress_model + feedback + scaled words")
SIZES = ("blocks of 4", "paper", "3072 codes")
EPOCHS = {"SST-2": 2.0, "RTE": 4.0}  # of the uncompressed model
QUICK_EXAMPLES = 64
MODELS = Path(__file__).parent / "cache" / "finetuned"  # git-ignored


@dataclass(frozen=True)
class Plan:
    """What to run; every field can be set from the command line."""

    tasks: Sequence[str] = TASKS
    arms: Sequence[str] = ARMS
    sizes: Sequence[str] = ("blocks of 4",)
    noise: Sequence[float] = (0.0, 0.1, 0.2)
    noise_kind: str = "pq"
    noise_sizes: str = "paper"  # blocks and code words of the noise
    seeds: Sequence[int] = (0, 1, 2)
    stage_epochs: float = 1.0
    stage_rate: float = 5e-5  # learning rate between groups
    distil: bool = False
    n_calibration: int = 1000
    device: str = "cpu"
    quick: bool = False


def run(plan: Plan, console: Console, units: Units | None = None) -> Result:
    """Run a plan, or what is left of it; return a JSON-ready dictionary."""
    units = units or Units("finetune-quick" if plan.quick else "finetune")
    study = Study(plan, console, units, MODELS)
    tuned, rows = [], []
    for task in plan.tasks:
        for seed in plan.seeds:
            for noise in dict.fromkeys((0.0, *plan.noise)):  # without noise: the yardstick
                fresh = study.fine_tuned(task, seed, noise)
                tuned.append(fresh)
                if noise in plan.noise:
                    rows += [
                        study.compressed(fresh, sizes, arm)
                        for sizes in plan.sizes
                        for arm in plan.arms
                    ]
    return {
        "kind": "finetune",
        "settings": {
            key: getattr(plan, key)
            for key in ("stage_epochs", "stage_rate", "noise_kind", "noise_sizes", "distil",
                        "device", "quick")
        },
        "machine": machine(),
        "versions": package_versions(),
        "fine_tuned": tuned,
        "rows": rows,
        "skipped": [],
    }  # fmt: skip


class Study:
    """The runs of a grid, each kept as soon as it is done."""

    def __init__(self, plan: Plan, console: Console, units: Units, models: Path) -> None:
        self.plan, self.console, self.units, self.models = plan, console, units, models
        self._examples: dict[tuple[str, str], list[Encoded]] = {}

    # ---------------------------------------------------------------- the two kinds of units

    def fine_tuned(self, task: str, seed: int, noise: float) -> dict[str, Any]:
        """Fine-tune the uncompressed model; return what it reaches, and how to find it again."""
        training = self._training(EPOCHS[task])
        told = {"task": task, "seed": seed, "noise": noise, "training": asdict(training),
                "noise_kind": self.plan.noise_kind if noise else None,
                "noise_sizes": self.plan.noise_sizes if noise else None,
                "quick": self.plan.quick}  # fmt: skip
        name = f"{task}, noise {noise}, seed {seed}, fine-tuned"
        path = self.models / f"{_digest(told)}.safetensors"

        def work() -> dict[str, Any]:
            from pgkmeans_sk import nn as compressing

            model = self._fresh(task, seed)
            if noise:
                self._add_noise(model, noise, seed)
            begin = time.perf_counter()
            self.train(model, task, training, seed, name, noise=noise)
            seconds = time.perf_counter() - begin
            compressing.remove_quant_noise(model)
            _save(model, path)
            return {"accuracy": self.accuracy(model, task), "seconds": seconds}

        if not path.is_file():
            self.units.forget(name)
        result = self._unit(name, told, work)
        return {"task": task, "seed": seed, "noise": noise, "file": path.name, **result}

    def compressed(self, tuned: Mapping[str, Any], sizes: str, arm: str) -> dict[str, Any]:
        """Compress a fine-tuned model by iPQ; return what it reaches then."""
        plan, task, seed = self.plan, tuned["task"], tuned["seed"]
        training = replace(self._training(plan.stage_epochs), learning_rate=plan.stage_rate)
        told = {"task": task, "seed": seed, "noise": tuned["noise"], "arm": arm, "sizes": sizes,
                "distil": plan.distil, "training": asdict(training), "from": tuned["file"],
                "n_calibration": plan.n_calibration}  # fmt: skip
        name = f"{task}, noise {tuned['noise']}, seed {seed}, {sizes}, {arm}"
        name += ", distilled" if plan.distil else ""

        def work() -> dict[str, Any]:
            from benchmarks import ipq, weight_arms
            from pgkmeans_sk.nn import teacher_of

            model = self.loaded(task, seed, tuned["file"])
            teacher = teacher_of(model) if plan.distil else None
            weight_arms.warm_up(arm)
            return ipq.compressed_and_trained(
                model,
                weight_arms.ARMS[arm],
                ipq.SIZES[sizes],
                seed,
                calibrate=lambda model: self._calibrated(model, task),
                train=lambda model, number: self.train(
                    model, task, training, 1000 * (number + 1) + seed, name, teacher=teacher
                ),
                judge=lambda model: self.accuracy(model, task),
            )

        result = self._unit(name, told, work)
        keys = ("task", "seed", "noise", "arm", "sizes", "distil")
        return {**{key: told[key] for key in keys}, "uncompressed": tuned["accuracy"], **result}

    # ---------------------------------------------------------------- what they are made of

    def _unit(self, name: str, told: Mapping[str, Any], work: Callable[[], Any]) -> dict[str, Any]:
        kept = self.units.run(name, told, work)
        result: dict[str, Any] = kept["result"]
        self.console.print(f"  {name}: {result['accuracy']:.4f}")
        return {**result, "machine": kept["machine"]}

    def _training(self, epochs: float) -> Training:
        from benchmarks.training import Training

        return Training(epochs=epochs)

    def examples(self, task: str, part: str) -> list[Encoded]:
        """Return the examples of a task, read once."""
        from benchmarks import classifier

        if (task, part) not in self._examples:
            limit = QUICK_EXAMPLES if self.plan.quick else None
            self._examples[task, part] = classifier.load_task(task, part, limit)
        return self._examples[task, part]

    def _fresh(self, task: str, seed: int) -> Classifier:
        """Return the real encoder with a head that the seed draws."""
        import torch

        from benchmarks import classifier

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = classifier.Classifier(classifier.load_encoder(), len(classifier.TASKS[task]))
        return model.to(self.plan.device)

    def loaded(self, task: str, seed: int, file: str) -> Classifier:
        from safetensors.torch import load_file

        model = self._fresh(task, seed)
        model.load_state_dict(load_file(self.models / file, device=self.plan.device))
        return model

    def _add_noise(self, model: Classifier, noise: float, seed: int) -> None:
        """Noise on just the weights that will be compressed."""
        from benchmarks import ipq
        from pgkmeans_sk import nn as compressing

        sizes = ipq.SIZES[self.plan.noise_sizes]
        rules = [
            {"match": name, "skip": False, **asdict(sizes.of(group))}
            for group in ipq.GROUPS
            for name in ipq.names_of(model, group)
        ]
        spec = {"defaults": {"skip": True}, "rules": rules}
        compressing.quant_noise(model, noise, self.plan.noise_kind, spec=spec, seed=seed)

    def train(
        self,
        model: nn.Module,
        task: str,
        training: Training,
        seed: int,
        name: str,
        *,
        noise: float = 0.0,
        teacher: Classifier | None = None,
    ) -> None:
        from benchmarks.training import fine_tune
        from pgkmeans_sk import nn as compressing

        examples = self.examples(task, "train")
        per_epoch = -(-len(examples) // training.batch_size)
        refreshes = noise > 0.0 and self.plan.noise_kind == "pq"
        with self.console.status(name) as status:

            def each_step(step: int, n_steps: int) -> None:
                status.update(f"{name}: step {step} of {n_steps}")
                if refreshes and step % per_epoch == 0 and step < n_steps:
                    compressing.refresh_codebooks(model)

            fine_tune(model, examples, training, seed, teacher, each_step)

    def accuracy(self, model: nn.Module, task: str) -> float:
        from benchmarks.training import accuracy
        from pgkmeans_sk import nn as compressing

        model.eval()
        with compressing.cached(model):
            return accuracy(model, self.examples(task, "dev"))

    def _calibrated(self, model: nn.Module, task: str) -> Any:
        from benchmarks.classifier import calibrated

        return calibrated(model.eval(), self.examples(task, "train")[: self.plan.n_calibration])


def _digest(told: Mapping[str, Any]) -> str:
    """Name a fine-tuned model by all that it was told."""
    text = json.dumps(told, sort_keys=True)
    return f"{told['task']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _save(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, unfinished)
    unfinished.replace(path)


# ------------------------------------------------------------------ tables


def sheets(result: Result) -> list[Sheet]:
    """Make a table of the uncompressed models, and one per task and sizes."""
    whole = _by(result["fine_tuned"], "task", "noise")
    rows = [
        (task, f"{noise:g}", _accuracies(runs), as_whole(len(runs)), _mean_seconds(runs, "seconds"))
        for (task, noise), runs in whole.items()
    ]
    columns = ("task", "noise", "accuracy, mean (least - most)", "seeds", "seconds a seed")
    found = [Sheet("Fine-tuned, not compressed", columns, rows)]
    for (task, sizes), group in _by(result["rows"], "task", "sizes").items():
        found.append(_sheet(task, sizes, group, whole))
    return found


def _sheet(task: str, sizes: str, group: list[Result], whole: Mapping[Any, list[Result]]) -> Sheet:
    columns = (
        "arm", "noise", "accuracy, mean (least - most)", "points to uncompressed",
        "points to baseline", "bits per weight", "times smaller", "empty at first",
        "empty at the end", "passes", "gave up", "compressing s", "training s",
    )  # fmt: skip
    # The yardstick is the model fine-tuned without noise, where there is one.
    plain = {run["seed"]: run["accuracy"] for run in whole.get((task, 0.0), ())}
    baseline = {
        (run["seed"], run["noise"]): run["accuracy"] for run in group if run["arm"] == BASELINE
    }
    rows = []
    for (arm, noise), runs in _by(group, "arm", "noise").items():
        to_whole = [run["accuracy"] - plain.get(run["seed"], run["uncompressed"]) for run in runs]
        to_baseline = [
            run["accuracy"] - baseline[key]
            for run in runs
            if (key := (run["seed"], run["noise"])) in baseline
        ]
        rows.append(
            (
                arm,
                f"{noise:g}",
                _accuracies(runs),
                _points(to_whole),
                _points(to_baseline),
                f"{runs[0]['bits_per_weight']:.3f}",
                f"{runs[0]['ratio']:.1f}",
                *(_sums(runs, key) for key in ("n_empty_first", "n_empty_last", "n_passes")),
                _sums(runs, "n_gave_up"),
                _mean_seconds(runs, "seconds"),
                _mean_seconds(runs, "training_seconds"),
            )
        )
    seeds = sorted({run["seed"] for run in group})
    title = f"{task}, {sizes}: {group[0]['n_weights']} weights, {len(seeds)} seeds"
    caption = (
        "Counts are sums over weights and seeds, points are paired by seed, seconds are means. The "
        "uncompressed model is the one that was fine-tuned without noise."
    )
    return Sheet(title, columns, rows, caption)


def _by(rows: Sequence[Result], *keys: str) -> dict[Any, list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _accuracies(runs: Sequence[Result]) -> str:
    values = [100 * run["accuracy"] for run in runs]
    return f"{mean(values):.2f} % ({min(values):.2f} - {max(values):.2f})"


def _points(differences: Sequence[float]) -> str:
    return f"{100 * mean(differences):+.2f}" if differences else "-"


def _sums(runs: Sequence[Result], key: str) -> str:
    counts = [run[key] for run in runs]
    return as_whole(None if None in counts else sum(counts))


def _mean_seconds(runs: Sequence[Result], key: str) -> str:
    return as_seconds(mean(run[key] for run in runs))
