"""Jobs by joblib's workers: each once, errors come back, nobody is left working, nothing stays."""

import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import joblib
import pytest
import sklearn
import threadpoolctl

from pgkmeans_sk import jobs as jobs_module
from pgkmeans_sk.jobs import Job, check_n_jobs, done_jobs
from pgkmeans_sk.threads import at_most, effective_n_threads, run_tasks
from pgkmeans_sk.validation import InvalidParameterError
from tests.joblib_workers import workers

PATIENCE = 30


BACKENDS = ("loky", "threading", "multiprocessing", "dask")


@pytest.fixture(params=BACKENDS)
def two_workers(request):
    with workers(request.param):
        yield request.param


def square(number):
    return number * number


def make_jobs(function, numbers):
    return [
        Job(f"job {i}", 1 + i, partial(partial, function, number))
        for i, number in enumerate(numbers)
    ]


def ignore(name, done):
    pass


# ------------------------------------------------------------------ each once


def test_every_job_is_done_once(two_workers):
    found = list(done_jobs(make_jobs(square, range(9)), None, ignore))
    assert sorted((job.name, job.result) for job in found) == [
        (f"job {i}", i * i) for i in range(9)
    ]
    assert all(job.seconds >= 0.0 for job in found)


def test_alone_they_are_done_in_order_each_when_it_is_asked_for():
    ran, told = [], []
    found = done_jobs(make_jobs(ran.append, range(3)), 1, lambda *now: told.append(now))
    assert ran == []
    assert next(found).name == "job 0"
    assert ran == [0]
    assert [job.name for job in found] == ["job 1", "job 2"]
    assert told == [("job 0", 0), ("job 1", 1), ("job 2", 3)]


def test_none_is_one_worker_here():
    places = [(os.getpid(), threading.get_ident())] * 2
    jobs = make_jobs(lambda _: (os.getpid(), threading.get_ident()), range(2))
    assert [job.result for job in done_jobs(jobs, None, ignore)] == places


def test_no_jobs(two_workers):
    assert list(done_jobs([], 2, ignore)) == []


def test_the_largest_come_first_and_progress_is_told_here(two_workers):
    told = []

    def tell(name, done):
        told.append((name, done, threading.get_ident()))

    list(done_jobs(make_jobs(square, range(6)), 2, tell))
    assert told[0][:2] == ("job 5", 0)
    assert len(told) == 6
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert {thread for *_, thread in told} == {threading.get_ident()}


def test_few_are_made_at_a_time():
    made, over, most = [0], [0], [0]
    lock = threading.Lock()

    def run():
        time.sleep(0.01)
        with lock:
            over[0] += 1

    def make():
        with lock:
            made[0] += 1
            most[0] = max(most[0], made[0] - over[0])
        return run

    jobs = [Job(str(i), 1, make) for i in range(20)]
    with joblib.parallel_config(backend="threading"):
        assert len(list(done_jobs(jobs, 2, ignore))) == 20
    assert made == over == [20]
    assert most[0] <= 4


# ------------------------------------------------------------------ errors


def fail_at(number, *, at):
    if number in at:
        raise ValueError(f"number {number}")
    return number


def test_an_error_comes_back_and_others_are_over(two_workers):
    jobs = make_jobs(partial(fail_at, at=(3, 5)), range(8))
    with pytest.raises(ValueError, match="number") as caught:
        list(done_jobs(jobs, 2, ignore))
    assert str(caught.value) == "number 5"  # the larger, which began first
    assert len(list(done_jobs(make_jobs(square, range(4)), 2, ignore))) == 4


def test_after_an_error_no_job_begins_and_none_is_running():
    began, ended = [], []

    def run(number):
        began.append(number)
        time.sleep(0.05)
        ended.append(number)
        fail_at(number, at=(38,))

    with joblib.parallel_config(backend="threading"), pytest.raises(ValueError, match="number 38"):
        list(done_jobs(make_jobs(run, range(40)), 2, ignore))
    n_began = len(began)
    assert sorted(began) == sorted(ended)
    assert n_began < 10
    time.sleep(0.1)
    assert len(began) == n_began


def test_an_error_of_making_a_job_comes_back(two_workers):
    def refuse():
        raise ValueError("cannot be made")

    jobs = make_jobs(square, range(4))
    jobs[1] = Job("job 1", 2, refuse)
    with pytest.raises(ValueError, match="cannot be made"):
        list(done_jobs(jobs, 2, ignore))


def test_a_worker_that_dies_is_told_of_with_its_jobs():
    jobs = make_jobs(os._exit, [1, 1])
    with (
        joblib.parallel_config(backend="loky"),
        pytest.raises(RuntimeError, match=r"worker that died.*'job [01]'"),
    ):
        list(done_jobs(jobs, 2, ignore))
    with joblib.parallel_config(backend="loky"):
        assert len(list(done_jobs(make_jobs(square, range(3)), 2, ignore))) == 3


def test_an_error_of_who_is_told_leaves_nobody_working():
    running = [0]
    lock = threading.Lock()

    def run(number):
        with lock:
            running[0] += 1
        time.sleep(0.03)
        with lock:
            running[0] -= 1

    def tell(name, done):
        if done:
            raise KeyError("told")

    with (
        joblib.parallel_config(backend="threading"),
        pytest.raises(KeyError, match="told"),
        closing(done_jobs(make_jobs(run, range(20)), 2, tell)) as found,
    ):
        list(found)
    assert running == [0]


@pytest.mark.parametrize("n_jobs", [0, 1.0, "2", True, [1]])
def test_what_is_no_number_of_workers(n_jobs):
    with pytest.raises(InvalidParameterError, match="Got n_jobs="):
        check_n_jobs(n_jobs)


@pytest.mark.parametrize("n_jobs", [None, 1, 7, -1, -2])
def test_what_is_one(n_jobs):
    check_n_jobs(n_jobs)


# ------------------------------------------------------------------ processors


def threads_here(_):
    return effective_n_threads()


def test_workers_share_the_processors(two_workers):
    share = max(effective_n_threads() // 2, 1)
    found = list(done_jobs(make_jobs(threads_here, range(4)), 2, ignore))
    assert [job.result for job in found] == [share] * 4


def test_threads_of_threads_keep_to_the_share(monkeypatch):
    monkeypatch.setattr("pgkmeans_sk.threads._allowed_by_the_process", lambda: 6)
    assert effective_n_threads() == 6
    seen = []

    def run(_):
        run_tasks(lambda i: seen.append(effective_n_threads()), 8, effective_n_threads())

    with joblib.parallel_config(backend="threading"):
        list(done_jobs(make_jobs(run, range(2)), 2, ignore))
    assert seen == [3] * 16
    assert effective_n_threads() == 6


def test_what_the_user_gives_to_a_worker_counts(monkeypatch):
    monkeypatch.setattr(jobs_module, "effective_n_threads", lambda: 8)
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        found = list(done_jobs(make_jobs(threads_here, range(2)), 2, ignore))
    assert [job.result for job in found] == [1, 1]


def test_the_smaller_of_two_limits_counts(monkeypatch):
    monkeypatch.setattr("pgkmeans_sk.threads._allowed_by_the_process", lambda: 6)
    with at_most(4):
        assert effective_n_threads() == 4
        with at_most(5):
            assert effective_n_threads() == 4
        with at_most(2):
            assert effective_n_threads() == 2
        assert effective_n_threads() == 4
    assert effective_n_threads() == 6


def test_a_limit_is_for_one_thread():
    def in_another_thread():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(effective_n_threads).result()

    before = in_another_thread()
    with at_most(1):
        assert effective_n_threads() == 1
        assert in_another_thread() == before


# ------------------------------------------------------------------ what is global


def assumes_finite(_):
    return sklearn.get_config()["assume_finite"]


def test_workers_know_the_callers_settings_of_scikit_learn(two_workers):
    with sklearn.config_context(assume_finite=True):
        found = list(done_jobs(make_jobs(assumes_finite, range(3)), 2, ignore))
    assert [job.result for job in found] == [True] * 3
    assert not sklearn.get_config()["assume_finite"]


def test_nothing_global_is_changed(two_workers):
    def everything():
        limits = {pool["filepath"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        return limits, dict(os.environ), list(warnings.filters), sklearn.get_config()

    list(done_jobs(make_jobs(square, range(2)), 2, ignore))  # what joblib does once
    before = everything()
    list(done_jobs(make_jobs(square, range(6)), 2, ignore))
    with pytest.raises(ValueError, match="number 2"):
        list(done_jobs(make_jobs(partial(fail_at, at=(2,)), range(3)), 2, ignore))
    assert everything() == before


def blas_threads(_):
    time.sleep(0.01)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        time.sleep(0.01)
        return {
            p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"
        }


def test_jobs_that_limit_blas_do_not_get_in_each_others_way(two_workers):
    found = list(done_jobs(make_jobs(blas_threads, range(10)), 2, ignore))
    assert [job.result for job in found] == [{1}] * 10
