"""Ours, with its passes made to go one way; and what the two works of a pass take, each way.

A fit lets the clock choose between plain operations and kernels of Triton
(``engines/torch_choice.py``). Here nothing is chosen: what is measured is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from benchmarks.peers import PeerRefusedError, own_words

LABELS, SUMS = "nearest centres", "sums of clusters"
WAYS: dict[str, Sequence[str]] = {
    "operations": (),
    "Triton labels": (LABELS,),
    "Triton sums": (SUMS,),
    "Triton": (LABELS, SUMS),
}
"""Name -> the works that are done by kernels."""

Seconds = Callable[[Callable[[], Any], Any], float]


def forced(name: str) -> Any:
    """Within the block, passes on a device go one of the ``WAYS``."""
    from pgkmeans_sk.engines import torch_passes

    def by_name(kind: Any, by_operations: Any, by_kernel: Any) -> Any:
        return by_kernel() if kind.work in WAYS[name] else by_operations()

    return mock.patch.object(torch_passes, "by_quicker", by_name)


def fit_of(name: str, fit: Any) -> Any:
    """``fit``, forced to go one way; on the CPU in operations instead of kernels of Numba."""

    def forced_fit(X: Any, *rest: Any) -> Any:
        from pgkmeans_sk.engines import torch_device

        if X.device.type == "cpu" and WAYS[name]:
            raise PeerRefusedError("Triton's kernels are for GPUs")
        with mock.patch.object(torch_device, "USES_KERNELS", False), forced(name):
            return fit(X, *rest)

    return forced_fit


def measured_passes(
    case: str, X: Any, start: Any, seconds_of: Seconds, skipped: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """What labels take, and sums, of the rows ``X`` (n, d) for centres ``start`` (K, d)."""
    import torch

    from pgkmeans_sk.engines import torch_labels, torch_passes, torch_totals
    from pgkmeans_sk.engines.torch_rows import origin_of

    exact = start.to(torch.float64)
    packed = torch_labels.pack_centers(exact, origin_of(X[:256]))
    rows = torch_totals.LabelledRows(X, torch_labels.label_rows(X, packed), None)
    totals = torch_totals.new_totals(exact)
    works = {
        (LABELS, "operations"): lambda: torch_labels.label_rows(X, packed),
        (LABELS, "Triton"): lambda: torch_passes.label_by_kernel(X, exact, packed.origin),
        (SUMS, "operations"): lambda: torch_totals.added_by_operations(rows, exact, totals),
        (SUMS, "Triton"): lambda: torch_totals.added_by_kernels(rows, exact, totals),
    }
    found = []
    for (work, way), run in works.items():
        if way == "Triton" and X.device.type == "cpu":
            continue
        try:
            seconds = seconds_of(run, X.device)
        except Exception as error:  # a compiler may raise anything; the others are measured still
            skip = {"case": case, "mode": work, "library": way, "reason": own_words(error)}
            skipped.append(skip)
            continue
        n, d = X.shape
        shape = {"n": n, "d": d, "k": len(start)}
        found.append({"case": case, "work": work, "way": way, "seconds": seconds} | shape)
    return found
