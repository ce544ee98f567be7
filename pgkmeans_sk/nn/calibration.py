"""Stands in until the real one is merged."""

from __future__ import annotations

from typing import Any


class Calibration:
    """What is known of a model's inputs."""

    def get(self, name: str) -> Any:
        """The record of a tensor."""
        raise NotImplementedError

    def row_weights(self, name: str) -> Any:
        """Weights of rows."""
        raise NotImplementedError

    def block_metric(self, name: str, block_size: int) -> Any:
        """Metric of a block."""
        raise NotImplementedError

    def column_importance(self, name: str) -> Any:
        """Weights of columns."""
        raise NotImplementedError
