"""Where the torch engine gets its rows from: the device's memory, or the host's, chunk by chunk.

Rows that would fill the device stay where they are, in an array, a file that is mapped into memory
or a tensor on the CPU. Chunks of them come to the device by way of two page-locked buffers and a
stream of their own, so that the next one is on its way while one is worked on. Chunks end where
blocks of sums do, so the results have the same bits as if all rows were there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from pgkmeans_sk.engines.torch_memory import free_bytes
from pgkmeans_sk.engines.torch_rows import to_directions

RESIDENT_SHARE = 0.5
"""Rows that take more of the device's free memory than this are left on the host."""
CHUNK_BYTES = 2**28
"""Size of a chunk, about: there are up to four on the device, and two in page-locked memory."""


class RowSource(Protocol):
    """Rows (n, d) of which tensors on ``device`` can be had."""

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device

    def chunks(self, multiple: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """First and last of a chunk, and its rows; each but the last has a multiple of rows."""

    def take(self, numbers: torch.Tensor) -> torch.Tensor:
        """The rows of these ``numbers`` (m,)."""

    def followed_by(self, rows: torch.Tensor) -> RowSource:
        """These rows and then ``rows`` (m, d), which are on the device."""


class ResidentRows:
    """Rows on the device: one chunk."""

    def __init__(self, X: torch.Tensor) -> None:
        self.X, self.dtype, self.device = X, X.dtype, X.device
        self.shape = (X.shape[0], X.shape[1])

    def chunks(self, multiple: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        yield 0, self.shape[0], self.X

    def take(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.X[numbers]

    def followed_by(self, rows: torch.Tensor) -> ResidentRows:
        return ResidentRows(torch.cat([self.X.to(rows.dtype), rows]))


class StreamedRows:
    """Rows of the tensor ``X`` on the CPU, for work on ``device``.

    With ``directions`` they are divided by their lengths when they have come there.
    """

    def __init__(self, X: torch.Tensor, device: torch.device, directions: bool = False) -> None:
        self._host, self.device, self._directions = X, device, directions
        self.shape = (X.shape[0], X.shape[1])
        self.dtype = to_directions(X[:0]).dtype if directions else X.dtype

    def _arrived(self, rows: torch.Tensor) -> torch.Tensor:
        return to_directions(rows) if self._directions else rows

    def take(self, numbers: torch.Tensor) -> torch.Tensor:
        return self._arrived(self._host[numbers.cpu()].to(self.device))

    def followed_by(self, rows: torch.Tensor) -> StreamedRows:
        together = torch.cat([self._host.to(rows.dtype), rows.cpu()])
        return StreamedRows(together, self.device, self._directions)

    def chunks(self, multiple: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        n_rows, n_features = self.shape
        row_bytes = n_features * self._host.element_size()
        size = max(1, CHUNK_BYTES // (row_bytes * multiple)) * multiple
        bounds = [(start, min(n_rows, start + size)) for start in range(0, n_rows, size)]
        loader = self._copied_ahead if self.device.type == "cuda" else self._copied
        for (start, stop), rows in zip(bounds, loader(bounds), strict=True):
            yield start, stop, self._arrived(rows)

    def _copied(self, bounds: list[tuple[int, int]]) -> Iterator[torch.Tensor]:
        for start, stop in bounds:
            yield self._host[start:stop].to(self.device, copy=True)

    def _copied_ahead(self, bounds: list[tuple[int, int]]) -> Iterator[torch.Tensor]:
        """Each chunk as it arrives, with the next one under way."""
        longest = bounds[0][1] - bounds[0][0]
        buffers = [
            torch.empty(
                (longest, self.shape[1]), dtype=self._host.dtype, device="cpu", pin_memory=True
            )
            for _ in range(2)
        ]
        cuda: Any = torch.cuda
        current, copying = cuda.current_stream(self.device), cuda.Stream(self.device)
        arrivals: list[Any] = [None, None]

        def send(number: int) -> tuple[torch.Tensor, Any]:
            start, stop = bounds[number]
            earlier = arrivals[number % 2]
            if earlier is not None:
                earlier.synchronize()  # until then the buffer is being read
            buffer = buffers[number % 2][: stop - start]
            buffer.copy_(self._host[start:stop])
            with cuda.stream(copying):
                rows = buffer.to(self.device, non_blocking=True)
                arrived = cuda.Event()
                arrived.record(copying)
            arrivals[number % 2] = arrived
            return rows, arrived

        under_way = send(0)
        for number in range(len(bounds)):
            rows, arrived = under_way
            current.wait_event(arrived)
            rows.record_stream(current)  # its memory belongs to the other stream
            if number + 1 < len(bounds):
                under_way = send(number + 1)
            yield rows
        for event in arrivals:  # before the buffers go
            if event is not None:
                event.synchronize()


def open_source(X: torch.Tensor, device: torch.device, directions: bool = False) -> RowSource:
    """The rows ``X`` for work on ``device``: brought there, if they leave it enough room."""
    if X.device.type == "cpu" and device.type != "cpu":
        free = free_bytes(device)
        if free is not None and X.numel() * X.element_size() > RESIDENT_SHARE * free:
            return StreamedRows(X, device, directions)
    rows = X.to(device)
    return ResidentRows(to_directions(rows) if directions else rows)
