"""Nobody is warned while anybody wants that, and filters are as before when nobody does."""

import threading
import warnings
from contextlib import ExitStack

import pytest
from sklearn.exceptions import ConvergenceWarning

from pgkmeans_sk.quiet import no_convergence_warnings


@pytest.fixture(autouse=True)
def all_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


def is_silent(category=ConvergenceWarning):
    """Whether a warning would be ignored; nothing is changed by looking."""
    action = next(f[0] for f in warnings.filters if issubclass(category, f[2]))
    return action == "ignore"


def test_nobody_is_warned_and_then_as_before():
    before = list(warnings.filters)
    assert not is_silent()
    with no_convergence_warnings():
        assert is_silent()
        assert not is_silent(RuntimeWarning)
        with no_convergence_warnings():
            assert is_silent()
        assert is_silent()
    assert list(warnings.filters) == before


def test_who_comes_first_may_leave_first():
    # Each on its own would restore what the other has set, and the last leave it so for good.
    before = list(warnings.filters)
    first, second = ExitStack(), ExitStack()
    first.enter_context(no_convergence_warnings())
    second.enter_context(no_convergence_warnings())
    first.close()
    assert is_silent()
    second.close()
    assert list(warnings.filters) == before


def test_threads_that_come_and_go():
    before = list(warnings.filters)
    silent = []
    start = threading.Barrier(6)

    def work():
        start.wait(30)
        for _ in range(200):
            with no_convergence_warnings():
                silent.append(is_silent())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert silent == [True] * 1200
    assert list(warnings.filters) == before


def test_an_error_restores():
    before = list(warnings.filters)
    with pytest.raises(ValueError, match="within"), no_convergence_warnings():
        raise ValueError("within")
    assert list(warnings.filters) == before
