"""The tasks of one pass over the chunks of a collection, in a flat graph.

``dask.delayed`` copies the graph of all that a task needs each time that it makes one: a chain
through thousands of chunks would take longer to write down than to work off. Here a task is one
entry of a dict.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

# dask's documents describe these classes ("Specification"), and only this module has them.
from dask._task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from pgkmeans_sk.engines.dask_rows import compute


class Tasks:
    """Tasks that take chunks, shared values and the results of one another.

    Parameters
    ----------
    chunks : list of Delayed
        What tasks may refer to by ``TaskRef(chunk.key)``.
    """

    def __init__(self, chunks: Sequence[Delayed]) -> None:
        self._chunks = chunks
        self._name = uuid.uuid4().hex
        self._tasks: dict[Any, GraphNode] = {}
        self._workers: dict[Any, list[str]] = {}

    def share(self, value: Any) -> TaskRef:
        """A value for many tasks, which each worker gets once."""
        key = self._new_key(type(value).__name__)
        self._tasks[key] = DataNode(key, value)
        return TaskRef(key)

    def add(self, work: Callable[..., Any], *arguments: Any, worker: str | None = None) -> TaskRef:
        """``work(*arguments)``, where references, also in lists and steps, stand for results.

        It runs on ``worker`` if that is there and not too busy. Otherwise dask may take chunks to
        an idle worker, which then are sent in each pass. A task that prefers a worker has to need
        something of another: dask never runs one that does not, should all workers be gone for a
        moment.
        """
        key = self._new_key(work.__name__.strip("_"))
        task = Task(key, work, *(List(*a) if isinstance(a, list) else a for a in arguments))
        self._tasks[key] = task
        if worker is not None and task.dependencies:
            self._workers[key] = [worker]
        return TaskRef(key)

    @staticmethod
    def step(work: Callable[..., Any], *arguments: Any) -> Task:
        """``work(*arguments)`` as a part of the task that takes it for an argument."""
        return Task(None, work, *arguments)

    def results(self, wanted: Sequence[TaskRef]) -> list[Any]:
        """Run what is needed for ``wanted``, and return their results."""
        preferences = {"workers": self._workers.get, "allow_other_workers": True}
        layer = MaterializedLayer(self._tasks, annotations=preferences if self._workers else None)
        graph = HighLevelGraph.from_collections(self._name, layer, dependencies=self._chunks)
        return list(compute([Delayed(ref.key, graph, layer=self._name) for ref in wanted]))

    def _new_key(self, what: str) -> tuple[str, int]:
        """A name of which the dashboard shows what comes before the first digits."""
        return f"{what}-{self._name}", len(self._tasks)
