"""Packing codes into bits and unpacking them, against NumPy's bits and against a plain copy.

All of them move the same codes, so speed is given in bytes of unpacked codes a second: one byte
for up to 8 bits, two beyond. A copy goes to memory that is ready. Packing, unpacking and a new copy
make their result anew each time, and pay for the first touch of its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from threadpoolctl import threadpool_limits

from benchmarks.clock import timed_fit
from benchmarks.measure import machine, package_versions
from benchmarks.sheets import Sheet, as_number, as_whole

Codes = NDArray[Any]  # (n, row_length) uint8 or uint16
Bytes = NDArray[np.uint8]
Result = dict[str, Any]

WIDTHS = (1, 4, 6, 8, 12, 16)
N_CODES = 2**24
ROW_LENGTH = 96
OURS, ONE_THREAD, BY_NUMPY = "pgkmeans-sk", "pgkmeans-sk, 1 thread", "NumPy bits"
NEW_COPY, COPY = "new copy", "copy"
_NUMPY_CHUNK = 2**16  # codes; their bits stay in the cache


@dataclass(frozen=True)
class Plan:
    """What to measure; every field can be set from the command line."""

    widths: Sequence[int] = WIDTHS
    n_codes: int = N_CODES
    row_length: int = ROW_LENGTH  # a multiple of 8: NumPy's way needs rows of whole bytes
    rounds: int = 5


def pack_by_numpy(codes: Codes, n_bits: int) -> Bytes:
    """Pack by way of one byte a bit."""
    flat = codes.reshape(-1)
    return np.concatenate(
        [
            np.packbits(
                np.unpackbits(
                    flat[start : start + _NUMPY_CHUNK].view(np.uint8).reshape(-1, codes.itemsize),
                    axis=1,
                    count=n_bits,
                    bitorder="little",
                ),
                bitorder="little",
            )
            for start in range(0, flat.size, _NUMPY_CHUNK)
        ]
    )


def unpack_by_numpy(packed: Bytes, n_bits: int, count: int) -> Codes:
    """Unpack by way of one byte a bit."""
    dtype = np.dtype(np.uint8 if n_bits <= 8 else np.uint16)
    codes = np.empty(count, dtype=dtype)
    for start in range(0, count, _NUMPY_CHUNK):
        part = codes[start : start + _NUMPY_CHUNK]
        first_byte = start * n_bits // 8
        bits = np.unpackbits(
            packed[first_byte : first_byte + -(-part.size * n_bits // 8)],
            count=part.size * n_bits,
            bitorder="little",
        )
        spread = np.zeros((part.size, 8 * dtype.itemsize), dtype=np.uint8)
        spread[:, :n_bits] = bits.reshape(-1, n_bits)
        part[:] = np.packbits(spread, axis=1, bitorder="little").view(dtype)[:, 0]
    return codes


def _ways(codes: Codes, n_bits: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Task -> library -> what it does; for each task all give the same."""
    from pgkmeans_sk.codes.packing import pack, unpack, unpack_rows

    n_rows, length = codes.shape
    packed = pack(codes, n_bits)
    row_bytes = length * n_bits // 8
    table = packed.reshape(n_rows, row_bytes)
    rows = np.random.default_rng(1).permutation(n_rows)
    copied = np.empty_like(codes)

    def copy() -> Codes:
        np.copyto(copied, codes)
        return copied

    def copy_rows() -> Codes:
        return np.take(codes, rows, axis=0, out=copied, mode="clip")

    ours: dict[str, Callable[[], Codes | Bytes]] = {
        "pack": lambda: pack(codes, n_bits),
        "unpack": lambda: unpack(packed, n_bits, codes.size).reshape(codes.shape),
        "rows in any order": lambda: unpack_rows(packed, n_bits, length, rows),
    }
    others: dict[str, dict[str, Callable[[], Codes | Bytes]]] = {
        "pack": {
            BY_NUMPY: lambda: pack_by_numpy(codes, n_bits),
            NEW_COPY: codes.copy,
            COPY: copy,
        },
        "unpack": {
            BY_NUMPY: lambda: unpack_by_numpy(packed, n_bits, codes.size).reshape(codes.shape),
            NEW_COPY: codes.copy,
            COPY: copy,
        },
        "rows in any order": {
            BY_NUMPY: lambda: unpack_by_numpy(table[rows].ravel(), n_bits, codes.size).reshape(
                codes.shape
            ),
            NEW_COPY: lambda: codes[rows],
            COPY: copy_rows,
        },
    }
    return {task: {OURS: work, ONE_THREAD: work, **others[task]} for task, work in ours.items()}


def run(plan: Plan, console: Console) -> Result:
    """Run a plan and return the result as a JSON-ready dictionary."""
    if plan.row_length % 8:
        raise ValueError(f"Got row_length={plan.row_length}, but expected a multiple of 8.")
    result: Result = {
        "kind": "packing",
        "settings": {"rounds": plan.rounds},
        "machine": machine(),
        "versions": package_versions(),
        "rows": [],
    }
    rng = np.random.default_rng(0)
    n_rows = max(1, plan.n_codes // plan.row_length)
    for n_bits in plan.widths:
        dtype = np.uint8 if n_bits <= 8 else np.uint16
        codes = rng.integers(0, 2**n_bits, (n_rows, plan.row_length), dtype=dtype)
        for task, by_library in _ways(codes, n_bits).items():
            with console.status(f"{task}, {n_bits} bits"):
                seconds = _in_turn(by_library, plan.rounds)
            result["rows"] += [
                {
                    "task": task,
                    "n_bits": n_bits,
                    "n": codes.size,
                    "row_length": plan.row_length,
                    "library": library,
                    "seconds": median(spent),
                    "all_seconds": [round(one, 6) for one in spent],
                    "gigabytes_per_second": codes.nbytes / median(spent) / 1e9,
                    "speed_to_copy": median(
                        copy / this for copy, this in zip(seconds[COPY], spent, strict=True)
                    ),
                }
                for library, spent in seconds.items()
            ]
    return result


def _in_turn(by_library: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each library in each round; the first call, which may compile, is not timed."""
    expected = by_library[OURS]()
    for library, work in by_library.items():
        found = work()
        if library in (ONE_THREAD, BY_NUMPY) and not np.array_equal(found, expected):
            raise AssertionError(f"Got other codes from {library} than from {OURS}.")
    seconds: dict[str, list[float]] = {library: [] for library in by_library}
    for _ in range(rounds):
        for library, work in by_library.items():
            with threadpool_limits(1 if library == ONE_THREAD else None):
                seconds[library].append(timed_fit(work)[0])
    return seconds


def sheets(result: Result) -> list[Sheet]:
    """Make one table per task."""
    found = []
    for task in dict.fromkeys(row["task"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["task"] == task]
        libraries = list(dict.fromkeys(row["library"] for row in rows))
        table = []
        for n_bits in dict.fromkeys(row["n_bits"] for row in rows):
            by_library = {row["library"]: row for row in rows if row["n_bits"] == n_bits}
            speeds = [as_number(by_library[name]["gigabytes_per_second"], 2) for name in libraries]
            ratios = [
                as_number(by_library[name]["speed_to_copy"], 2) for name in (OURS, ONE_THREAD)
            ]
            table.append((str(n_bits), *speeds, *ratios))
        columns = (
            "bits",
            *(f"{name} GB/s" for name in libraries),
            *(f"{name}: speed to copy" for name in (OURS, ONE_THREAD)),
        )
        title = f"{task} ({as_whole(rows[0]['n'])} codes, rows of {rows[0]['row_length']})"
        caption = "Bytes of unpacked codes, synthetic ones; more is better."
        found.append(Sheet(title, columns, table, caption))
    return found
