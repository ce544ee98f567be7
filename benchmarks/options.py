"""What rotation, scales and stages gain on real matrices, at the same number of bytes.

Options cost bytes of their own. So plain product quantization is measured at several numbers of
codes, and an option is compared with what plain reaches at the option's bytes, codebooks and all:
between two sizes, the logarithm of the error is taken to be linear in the bits, as theory has it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import data
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_percent, as_seconds

Result = dict[str, Any]

# One of each kind of layer. Columns of embeddings mean something each: a codebook for each block.
MATRICES = {
    "word embeddings": ("embeddings.word_embeddings", "per_block"),
    "position embeddings": ("embeddings.position_embeddings", "shared"),
    "2.attention.query": ("encoder.layer.2.attention.self.query", "shared"),
    "2.attention.output": ("encoder.layer.2.attention.output.dense", "shared"),
    "2.ffn.in": ("encoder.layer.2.intermediate.dense", "shared"),
    "2.ffn.out": ("encoder.layer.2.output.dense", "shared"),
}
PLAIN_CODES = (128, 256, 512, 1024)
OPTIONS: dict[str, dict[str, Any]] = {
    "rotation='hadamard'": {"rotation": "hadamard"},
    "rotation='opq'": {"rotation": "opq"},
    "scale='row'": {"scale": "row"},
    "scale='block'": {"scale": "block"},
    "scale='row', rotation='hadamard'": {"scale": "row", "rotation": "hadamard"},
    "scale='row', rotation='opq'": {"scale": "row", "rotation": "opq"},
    "n_stages=2": {"n_stages": 2},
}


def run(names: Sequence[str], console: Console) -> Result:
    """Measure all options on the named matrices; return a JSON-ready dictionary."""
    rows: list[dict[str, Any]] = []
    for name in names:
        key, codebook = MATRICES[name]
        W = data.model_weights()[key]
        plain: dict[int, list[tuple[float, float]]] = {}
        for block_size in (8, 4):
            points = []
            for n_codes in PLAIN_CODES:
                setting = {"block_size": block_size, "n_codes": n_codes, "codebook": codebook}
                row = _measured(name, W, f"plain, blocks of {block_size}, {n_codes} codes", setting)
                points.append((row["bits_per_weight"], row["relative_error"]))
                row["plain_at_same_bits"] = row["relative_error"]
                rows.append(row)
            plain[block_size] = points
        for option, changes in OPTIONS.items():
            setting = {"block_size": 8, "n_codes": 256, "codebook": codebook, **changes}
            row = _measured(name, W, option, setting)
            # Two stages of blocks of 8 take the bits of one stage of blocks of 4.
            rival = plain[4 if "n_stages" in changes else 8]
            row["plain_at_same_bits"] = between(rival, row["bits_per_weight"])
            rows.append(row)
        console.print(f"  {name}: done")
    return {
        "kind": "options",
        "settings": {"block_size": 8, "n_codes": 256, "codebook_dtype": "float16"},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
        "skipped": [],
    }


def _measured(name: str, W: data.Points, option: str, setting: dict[str, Any]) -> dict[str, Any]:
    from pgkmeans_sk import ProductQuantizer

    begin = time.perf_counter()
    small = ProductQuantizer(codebook_dtype="float16", random_state=0, **setting).compress(W)
    return {
        "matrix": name,
        "shape": list(W.shape),
        "codebook": setting["codebook"],
        "option": option,
        "bits_per_weight": small.bits_per_weight,
        "relative_error": small.relative_error,
        "seconds": time.perf_counter() - begin,
    }


def between(points: Sequence[tuple[float, float]], bits: float) -> float | None:
    """The error at ``bits``, from (bits, error) at other sizes: its logarithm is interpolated.

    None beyond the largest size: a rotation of (d, d) numbers takes more room than small matrices.
    """
    points = sorted(points)
    known_bits, errors = zip(*points, strict=True)
    if not known_bits[0] <= bits <= known_bits[-1]:
        return None
    return float(np.exp(np.interp(bits, known_bits, np.log(errors))))


def _gain(row: dict[str, Any]) -> float | None:
    plain = row["plain_at_same_bits"]
    return None if plain is None else row["relative_error"] / plain - 1.0


def sheets(result: Result) -> list[Sheet]:
    """Make one table per matrix."""
    found = []
    columns = (
        "setting", "bits per weight", "rel. error", "plain at these bits",
        "error to plain at these bits", "seconds",
    )  # fmt: skip
    for matrix in dict.fromkeys(row["matrix"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["matrix"] == matrix]
        table = [
            (
                row["option"],
                f"{row['bits_per_weight']:.3f}",
                f"{row['relative_error']:.4f}",
                as_number(row["plain_at_same_bits"], 4),
                as_percent(_gain(row)),
                as_seconds(row["seconds"]),
            )
            for row in rows
        ]
        n_rows, n_columns = rows[0]["shape"]
        is_shared = rows[0]["codebook"] == "shared"
        books = "a shared codebook" if is_shared else "a codebook for each block"
        found.append(Sheet(f"{matrix} ({n_rows} x {n_columns}), {books}", columns, table))
    return found
