"""Jobs that know nothing of one another, by joblib's workers: of its backends, that of the user.

What a worker gets is arrays and plain settings, made when it is the job's turn. The processors are
divided among the workers, so that their threads do not get in each other's way.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from numbers import Integral
from typing import Any, Generic, NamedTuple, TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from sklearn import config_context, get_config
from threadpoolctl import threadpool_limits

from pgkmeans_sk.threads import at_most, effective_n_threads
from pgkmeans_sk.validation import InvalidParameterError

Result = TypeVar("Result")

Tell = Callable[[str, int], None]
"""``(name, done)``: a job that is being done, and the size of those that are over."""


class Job(NamedTuple, Generic[Result]):
    """One of several jobs.

    Attributes
    ----------
    name : str
        What it is about.
    size : int
        By which progress is counted, and workers get the largest first.
    make : callable
        Makes what can be sent to a worker, and called there for the result.
    """

    name: str
    size: int
    make: Callable[[], Callable[[], Result]]


class Done(NamedTuple, Generic[Result]):
    """A job that is over, and the seconds that it took its worker."""

    name: str
    result: Result
    seconds: float


def check_n_jobs(n_jobs: Any) -> None:
    """Raise unless ``n_jobs`` is None, or an int that means a number of workers to joblib."""
    is_integer = isinstance(n_jobs, Integral) and not isinstance(n_jobs, bool)
    if n_jobs is not None and (not is_integer or n_jobs == 0):
        raise InvalidParameterError(
            f"Got n_jobs={n_jobs!r}, but expected None, the number of workers, or -1 for as many "
            "as there are processors."
        )


def n_workers_for(n_things: int, n_jobs: int | None) -> int:
    """How many workers ``done_jobs`` has for so many jobs; with one, they stay in this process."""
    return min(int(effective_n_jobs(n_jobs)), n_things)


def done_jobs(
    jobs: Sequence[Job[Result]], n_jobs: int | None, tell: Tell
) -> Generator[Done[Result], None, None]:
    """Do all jobs, and yield each when it is over.

    With one worker, they are done here, in order, each when it is asked for. With several, the
    largest come first, so that none of them is left for the end, when nobody else has work; at most
    twice as many as there are workers are made at a time.

    Parameters
    ----------
    jobs : sequence of Job
        What is to be done; names differ.
    n_jobs : int or None
        Workers, as joblib understands it: None is 1, unless ``joblib.parallel_config`` says more.
    tell : callable
        Is called here, in the caller's thread, when a job begins, or another is over.

    Raises
    ------
    Exception
        That of the job which failed; of several, of the one that began first. No job is running
        then, and none begins any more.
    """
    n_workers = n_workers_for(len(jobs), n_jobs)
    if n_workers > 1:
        # Of threads that each limit BLAS, only the first would be heard: the caller is, for all.
        with threadpool_limits(limits=1, user_api="blas"):
            yield from _by_workers(jobs, n_workers, tell)
        return
    n_done = 0
    for job in jobs:
        tell(job.name, n_done)
        begin = time.perf_counter()
        result = job.make()()
        n_done += job.size
        yield Done(job.name, result, time.perf_counter() - begin)


# ------------------------------------------------------------------ the caller's side


def _by_workers(jobs: Sequence[Job[Result]], n_workers: int, tell: Tell) -> Iterator[Done[Result]]:
    queue = _Queue(sorted(jobs, key=lambda job: -job.size))
    orders = _Orders(os.getpid(), _threads_of_each(n_workers), get_config())
    made = (delayed(_work)(number, run, orders) for number, run in queue.made())
    outcomes = iter(_parallel(n_workers)(made))
    try:
        tell(queue.current.name, 0)
        for number, outcome in outcomes:
            job = queue.finish(number, outcome.error)
            if not queue.errors:
                yield Done(job.name, outcome.result, outcome.seconds)
                if queue.pending:
                    tell(queue.current.name, queue.n_done)
    except BrokenExecutor as error:
        names = ", ".join(repr(queue.jobs[number].name) for number in sorted(queue.begun))
        raise RuntimeError(
            f"Got a worker that died, but expected it to go on with one of {names}."
        ) from error
    finally:
        queue.is_closed = True
        for _ in outcomes:  # nobody works on behind the caller's back
            pass
    if queue.errors:
        raise queue.errors[min(queue.errors)]


class _Queue:
    """Jobs by number, and what has become of them."""

    def __init__(self, jobs: Sequence[Job[Any]]) -> None:
        self.jobs = jobs
        self.pending = dict.fromkeys(range(len(jobs)))
        self.begun: set[int] = set()
        self.errors: dict[int, Exception] = {}
        self.n_done = 0
        self.is_closed = False

    @property
    def current(self) -> Job[Any]:
        """The first job that is not over."""
        return self.jobs[next(iter(self.pending))]

    def made(self) -> Iterator[tuple[int, Callable[[], Any]]]:
        """One job after the other, ready to be sent; asked for by threads of joblib."""
        for number, job in enumerate(self.jobs):
            if self.is_closed:
                return
            try:
                run = job.make()
            except Exception as error:
                self._fail(number, error)
                return
            self.begun.add(number)
            yield number, run

    def finish(self, number: int, error: Exception | None) -> Job[Any]:
        """Take down that a job is over."""
        self.begun.discard(number)
        del self.pending[number]
        job = self.jobs[number]
        self.n_done += job.size
        if error is not None:
            self._fail(number, error)
        return job

    def _fail(self, number: int, error: Exception) -> None:
        self.errors[number] = error
        self.is_closed = True


def _parallel(n_workers: int) -> Parallel:
    backend, _ = get_active_backend()
    has_generators = getattr(backend, "supports_return_generator", False)
    return Parallel(
        n_jobs=n_workers,
        batch_size=1,  # of several at once, joblib would have too many made
        pre_dispatch=n_workers + 1,
        max_nbytes=None,  # files of arrays for workers would all stay until the last job is over
        return_as="generator_unordered" if has_generators else "list",
    )


def _threads_of_each(n_workers: int) -> int:
    """Threads for a job: what the user says to joblib, or a fair share of what there is."""
    backend, _ = get_active_backend()
    told = getattr(backend, "inner_max_num_threads", None)
    return int(told or max(effective_n_threads() // n_workers, 1))


# ------------------------------------------------------------------ the worker's side


class _Orders(NamedTuple):
    """What a worker takes over from its caller."""

    process: int
    n_threads: int
    sklearn: dict[str, Any]


class _Outcome(NamedTuple):
    """What became of a job. An error is a value: joblib lets the other jobs come to their end."""

    result: Any
    seconds: float
    error: Exception | None


def _work(number: int, run: Callable[[], Any], orders: _Orders) -> tuple[int, _Outcome]:
    begin = time.perf_counter()
    with at_most(orders.n_threads), config_context(**orders.sklearn):
        try:
            return number, _Outcome(run(), time.perf_counter() - begin, None)
        except Exception as error:
            if os.getpid() != orders.process:  # a traceback does not travel
                error.add_note(f"In a worker:\n{traceback.format_exc()}")
            return number, _Outcome(None, 0.0, error)
