"""Calls that stop in the middle, and go on."""

import contextlib
import threading

import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk.nn.paused_run import PausedRun  # noqa: E402


def counting(n, log=None):
    def call(run):
        try:
            for number in range(n):
                run.pause(number)
        finally:
            if log is not None:
                log.append("closed")

    return PausedRun(call)


def test_values_come_one_by_one_and_then_none():
    run = counting(3)
    assert [run.resume() for _ in range(5)] == [0, 1, 2, None, None]


def test_calls_take_turns():
    log = []

    def call(name):
        def go(run):
            for step in range(2):
                log.append((name, step))
                run.pause(step)

        return PausedRun(go)

    first, second = call("a"), call("b")
    for _ in range(2):
        first.resume()
        second.resume()
    assert log == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    first.close()
    second.close()


def test_an_error_is_raised_where_it_is_waited_for():
    def call(run):
        run.pause(1)
        raise OSError("disk")

    run = PausedRun(call)
    assert run.resume() == 1
    with pytest.raises(OSError, match="disk"):
        run.resume()
    assert run.resume() is None


@pytest.mark.parametrize("n_resumed", [0, 1, 2, 3])
def test_closing_unwinds_the_call_and_leaves_no_thread(n_resumed):
    before, log = threading.active_count(), []
    with counting(2, log) as run:
        for _ in range(n_resumed):
            run.resume()
    assert threading.active_count() == before
    assert log == ["closed"] * (n_resumed > 0)
    assert run.resume() is None


def test_except_exception_does_not_keep_a_call_alive():
    def call(run):
        while True:
            with contextlib.suppress(Exception):
                run.pause(0)

    with PausedRun(call) as run:
        run.resume()
    assert run.resume() is None


def test_modes_that_a_call_leaves_open_are_its_own():
    def call(run):
        with torch.inference_mode():
            run.pause(torch.is_inference_mode_enabled())

    with PausedRun(call) as run:
        assert run.resume() is True
        assert not torch.is_inference_mode_enabled()
