"""Which way passes on a device go: a clock that the test sets, and kernels that fail."""

import warnings

import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk.engines import torch_choice  # noqa: E402
from pgkmeans_sk.engines.torch_choice import TURNS, by_quicker, kind_of, launching_on  # noqa: E402

CPU = torch.device("cpu")
KIND = kind_of("work", torch.zeros((100, 3)), 7)


class Way:
    """One of two ways to a result, that takes so many seconds of a made-up clock."""

    def __init__(self, clock, name, seconds):
        self.clock, self.name, self.seconds, self.n_calls = clock, name, seconds, 0

    def __call__(self):
        self.n_calls += 1
        self.clock.now += self.seconds
        return self.name


class Clock:
    """What ``perf_counter`` is replaced by."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A made-up clock, and a process that knows nothing, on a device with kernels."""
    monkeypatch.setattr(
        torch_choice, "has_kernels", lambda device: device not in torch_choice._given_up
    )
    for name in ("_trials", "_is_quicker", "_waited", "_given_up"):
        monkeypatch.setattr(torch_choice, name, type(getattr(torch_choice, name))())
    monkeypatch.setattr(torch_choice, "_trials", torch_choice.defaultdict(torch_choice._Trial))
    monkeypatch.setattr(torch_choice, "_waited", torch_choice.defaultdict(float))
    clock = Clock()
    monkeypatch.setattr(torch_choice, "perf_counter", clock)
    return clock


def taken(operations, kernel, n_passes, kind=KIND):
    return [by_quicker(kind, operations, kernel) for _ in range(n_passes)]


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, "kernel"), (0.9, "operations")])
def test_the_quicker_way_stays(clock, seconds, expected):
    operations, kernel = Way(clock, "operations", 0.5), Way(clock, "kernel", seconds)
    names = taken(operations, kernel, 40)
    assert names[:2] == ["operations"] * 2  # until they have taken a second
    turns = names[2 : 2 * TURNS]
    assert turns == ["kernel", "operations"] * (TURNS - 1)
    assert set(names[2 * TURNS + 1 :]) == {expected}


def test_compiling_does_not_count(clock):
    operations, kernel = Way(clock, "operations", 0.5), Way(clock, "kernel", 30.0)

    def compiled_at_first():
        found = kernel()
        kernel.seconds = 0.1
        return found

    assert taken(operations, compiled_at_first, 40)[-1] == "kernel"
    assert taken(operations, compiled_at_first, 10) == ["kernel"] * 10


def test_short_work_compiles_nothing(clock):
    operations, kernel = Way(clock, "operations", 0.001), Way(clock, "kernel", 0.0001)
    taken(operations, kernel, 900)
    assert kernel.n_calls == 0


def test_kinds_are_apart(clock):
    few, many = (kind_of("work", torch.zeros((n, 3)), 7) for n in (100, 1000))
    assert few != many
    assert few == kind_of("work", torch.zeros((101, 3)), 6)
    assert few != kind_of("work", torch.zeros((100, 3), dtype=torch.float16), 7)
    assert few != kind_of("other work", torch.zeros((100, 3)), 7)
    operations, kernel = Way(clock, "operations", 0.5), Way(clock, "kernel", 0.1)
    assert taken(operations, kernel, 30, few)[-1] == "kernel"
    kernel.seconds = 0.9  # where there are more rows
    assert taken(operations, kernel, 30, many)[-1] == "operations"
    assert by_quicker(few, operations, kernel) == "kernel"


def test_times_that_are_not_known_yet_are_waited_for(clock, monkeypatch):
    known = []
    seconds = torch_choice.Lap.seconds
    monkeypatch.setattr(torch_choice.Lap, "seconds", lambda lap: seconds(lap) if known else None)
    operations, kernel = Way(clock, "operations", 5.0), Way(clock, "kernel", 0.1)
    assert set(taken(operations, kernel, 20)) == {"operations"}
    known.append(True)
    assert taken(operations, kernel, 2 * TURNS + 2)[-1] == "kernel"


@pytest.mark.parametrize("n_good_passes", [0, 1, 20])
def test_a_kernel_that_fails_is_given_up_with_one_warning(clock, n_good_passes):
    operations, kernel = Way(clock, "operations", 5.0), Way(clock, "kernel", 0.1)

    def failing():
        if kernel.n_calls == n_good_passes:
            raise OSError("no compiler here\nbut a long story")
        return kernel()

    with pytest.warns(RuntimeWarning, match=r"cpu \(for the work: no compiler here\)") as caught:
        names = taken(operations, failing, 60)
    assert len(caught) == 1
    assert names.count("kernel") == n_good_passes
    assert names[-1] == "operations"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = kind_of("other work", torch.zeros((100, 3)), 7)
        assert set(taken(operations, failing, 20, other)) == {"operations"}


def test_too_little_memory_is_no_fault_of_a_kernel(clock):
    operations = Way(clock, "operations", 5.0)

    def exhausted():
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        taken(operations, exhausted, 5)
    assert not torch_choice._given_up


def test_there_are_no_kernels_for_the_cpu():
    assert not torch_choice.has_kernels(CPU)
    assert by_quicker(KIND, lambda: "operations", lambda: 1 / 0) == "operations"


def test_laps_on_a_device_wait_for_nobody(monkeypatch):
    class Event:
        """An event that the device comes to when it is told so."""

        is_done = False

        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == "the stream of cuda:1"

        def query(self):
            return Event.is_done

        def elapsed_time(self, end):
            assert Event.is_done
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    lap = torch_choice.Lap(torch.device("cuda", 1))
    lap.end()
    assert lap.seconds() is None
    Event.is_done = True
    assert lap.seconds() == 0.25


def test_kernels_are_launched_where_the_rows_are():
    there = launching_on(torch.device("cuda", 3))
    assert isinstance(there, torch.cuda.device)
    assert there.idx == 3
    with launching_on(CPU):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_laps_on_a_device():
    lap = torch_choice.Lap(torch.device("cuda", 0))
    torch.zeros(10, device="cuda").add_(1)
    lap.end()
    torch.cuda.synchronize()
    assert lap.seconds() >= 0.0
