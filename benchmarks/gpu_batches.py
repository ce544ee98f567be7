"""Batches of small problems of one shape, as k-means over heads, blocks or layers has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BATCHES = {"cuda": ("64x16384x64x256",), "cpu": ("16x4096x16x64",)}
QUICK_BATCHES = ("8x300x4x16",)
BLOBS_PER_CLUSTER = 0.5


@dataclass(frozen=True)
class Batch:
    """Problems, rows and features of each, and clusters."""

    problems: int
    n: int
    d: int
    k: int

    @property
    def name(self) -> str:
        """What its tables are called."""
        return f"{self.problems} problems"

    def rows(self, seed: int, device: Any) -> Any:
        """Rows (B, n, d) in float32: overlapping blobs, half as many as clusters."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        n_blobs = max(1, int(BLOBS_PER_CLUSTER * self.k))
        centers = 2.0 * torch.randn(self.problems, n_blobs, self.d, generator=generator)
        labels = torch.randint(n_blobs, (self.problems, self.n), generator=generator)
        noise = torch.randn(self.problems, self.n, self.d, generator=generator)
        own = centers.gather(1, labels[..., None].expand(-1, -1, self.d))
        return (own + noise).to(device)


def batch_of(text: str) -> Batch:
    """From "64x16384x64x256": problems, rows, features, clusters."""
    try:
        sizes = [int(part) for part in text.split("x")]
        problems, n, d, k = sizes
    except ValueError:
        raise ValueError(
            f"Got {text!r}, but expected problems x rows x features x clusters, as in "
            "64x16384x64x256."
        ) from None
    return Batch(problems, n, d, k)


def batches_for(asked: Sequence[str], is_quick: bool, device: Any) -> list[Batch]:
    """Those that are asked for, or what the device can do in little time."""
    default = QUICK_BATCHES if is_quick else BATCHES.get(device.type, BATCHES["cpu"])
    return [batch_of(text) for text in asked or default]
