"""Imports point downward only, and each optional library has one home (docs/architecture.md)."""

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pgkmeans_sk"

# Lowest first. A module may import what is lower than itself, or beside it in its own folder.
LEVELS = (
    ("array_kinds.py",),
    (
        "kernels/*.py",
        "results.py",
        "validation.py",
        "threads.py",
        "callbacks.py",
        "inertia_monitor.py",
        "jobs.py",
        "progress.py",
        "quiet.py",
        "verbosity.py",
    ),
    ("engines/protocol.py",),  # apart from the engines: it stands on results.py alone
    ("engines/*.py", "codes/*.py"),
    ("pipeline/*.py",),
    ("quantization/*.py",),
    (
        "arrays.py",
        "batch.py",
        "kmeans.py",
        "feedback.py",
        "fitted.py",
        "functional.py",
        "inputs.py",
        "parameters.py",
        "product_quantizer.py",
        "quantizer_fitted.py",
        "quantizer_inputs.py",
        "quantizer_parameters.py",
    ),
    ("spec.py", "spec_yaml.py"),
    (
        "weight_contents.py",
        "weight_files.py",
        "weight_jobs.py",
        "weight_plan.py",
        "weight_report.py",
    ),
    ("nn/*.py",),
    ("interop/*.py",),
    ("displays/*.py",),
    ("__init__.py",),
    ("cli/*.py",),  # a user of the package, as anybody outside it
    ("__main__.py",),
)

# Where a library may be imported, inside functions too. One that is not listed, nowhere.
HOMES = {
    **dict.fromkeys(("numpy", "scipy", "sklearn", "joblib", "threadpoolctl"), ("*",)),
    **dict.fromkeys(("numba", "llvmlite"), ("kernels/*.py",)),
    **dict.fromkeys(("dask", "distributed"), ("engines/dask_*.py",)),
    "typer": ("cli/*.py",),
    "rich": ("cli/*.py", "nn/model_report.py"),
    "pandas": ("cli/read_rows.py", "nn/model_report.py"),
    "polars": ("cli/read_rows.py",),
    "yaml": ("spec_yaml.py",),
    **dict.fromkeys(("faiss", "nanopq", "transformers"), ("interop/*.py",)),
    "torch": (
        "engines/torch_*.py",
        "engines/triton_*.py",
        "quantization/torch_*.py",
        "nn/*.py",
    ),
    "triton": ("engines/triton_*.py",),
    "safetensors": ("codes/tensor_file.py",),
    "matplotlib": ("displays/*.py",),
}


def level(path: str) -> int | None:
    matches = (row for row, names in enumerate(LEVELS) if any(fnmatch(path, n) for n in names))
    return next(matches, None)


def imported_names(source: str) -> Iterator[str]:
    """Dotted names; ``from a import b`` gives a.b, since b may be a module. Relative: a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def file_of(name: str, paths: set[str]) -> str:
    """The file that a dotted name of the package means: the longest part of it that is a module."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end])
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in paths:
                return path
    return "__init__.py"


def violations(sources: dict[str, str]) -> list[str]:
    """One line for each broken rule in a package given as path -> source."""
    found = []
    for path, source in sources.items():
        own_level = level(path)
        if own_level is None:
            found.append(f"{path} has no level: add it to LEVELS")
            continue
        for name in imported_names(source):
            library = name.split(".")[0]
            if not library:
                found.append(f"{path} has a relative import: {name}")
            elif library == "pgkmeans_sk":
                target = file_of(name, set(sources))
                target_level = level(target)
                same_folder = Path(target).parent == Path(path).parent
                if target_level is not None and (
                    target_level > own_level or (target_level == own_level and not same_folder)
                ):
                    found.append(f"{path} (level {own_level}) imports {target} ({target_level})")
            elif library not in sys.stdlib_module_names and not any(
                fnmatch(path, home) for home in HOMES.get(library, ())
            ):
                found.append(f"{path} imports {library}, which is allowed in {HOMES.get(library)}")
    return found


def test_package_keeps_the_rules():
    paths = PACKAGE.rglob("*.py")
    sources = {p.relative_to(PACKAGE).as_posix(): p.read_text("utf-8") for p in paths}
    assert "__init__.py" in sources
    assert violations(sources) == []


FAKE_PACKAGE = {
    "__init__.py": "from pgkmeans_sk.kmeans import PGKMeans",
    "validation.py": "import numpy as np",
    "results.py": "import pgkmeans_sk.validation\nfrom pathlib import Path",
    "kernels/nearest.py": "import numba.core.types",
    "engines/__init__.py": "from pgkmeans_sk.engines.numba_cpu import Engine",
    "engines/protocol.py": "from pgkmeans_sk.results import Cut",
    "engines/numba_cpu.py": "from pgkmeans_sk.kernels import nearest",
    "pipeline/lloyd.py": "from pgkmeans_sk.engines import protocol",
    "kmeans.py": "def fit():\n    from pgkmeans_sk.pipeline.lloyd import run",
}


def test_a_package_in_order_has_no_violations():
    assert violations(FAKE_PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("validation.py", "import pgkmeans_sk.kmeans", "imports kmeans.py"),
        ("validation.py", "from pgkmeans_sk import kmeans", "imports kmeans.py"),
        ("pipeline/lloyd.py", "def f():\n    import pgkmeans_sk.kmeans", "imports kmeans.py"),
        ("pipeline/lloyd.py", "import pgkmeans_sk as pg", "imports __init__.py"),
        ("pipeline/lloyd.py", "from pgkmeans_sk import __version__", "imports __init__.py"),
        ("engines/protocol.py", "import pgkmeans_sk.engines.numba_cpu", "imports engines/numba"),
        ("threads.py", "from pgkmeans_sk.kernels import nearest", "imports kernels/nearest.py"),
        ("kmeans.py", "from .validation import check", "relative import: .validation"),
        ("kmeans.py", "from . import validation", "relative import"),
        ("kmeans.py", "def f():\n    import torch.nn", "imports torch"),
        ("engines/numba_cpu.py", "from numba import njit", "imports numba"),
        ("kmeans.py", "import requests", "imports requests"),
        ("helpers.py", "", "helpers.py has no level"),
        ("helpers/text.py", "", "helpers/text.py has no level"),
    ],
)
def test_a_broken_rule_is_named(path, source, message):
    (found,) = violations({**FAKE_PACKAGE, path: source})
    assert message in found
