"""IterativePQ that is killed, and started again: the same result to the last bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch.nn import Embedding, Flatten, Linear, Sequential  # noqa: E402 - as above
from torch.nn.functional import cross_entropy  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.codes import atomic  # noqa: E402
from pgkmeans_sk.codes.tensor_file import TensorFile  # noqa: E402
from pgkmeans_sk.codes.tensor_writer import TensorEntry, write_tensors  # noqa: E402
from pgkmeans_sk.nn import iterative_pq, training_state  # noqa: E402
from pgkmeans_sk.nn.training_state import read_facts  # noqa: E402
from pgkmeans_sk.spec import Spec  # noqa: E402

SPEC = {"defaults": {"n_codes": 8, "block_size": 4}, "rules": [{"match": "4.*", "skip": True}]}
TOKENS = torch.arange(48).reshape(8, 6) % 40
LABELS = torch.arange(8) % 3
GROUPS = {"one": "1.weight", "two": ["0.weight", "2.weight"], "three": "3.1.weight"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads of torch that wait for each other take ten times as long for models as small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    layers = (Embedding(40, 16), Linear(16, 24), Linear(24, 16), Linear(96, 12), Linear(12, 3))
    embed, one, two, three, head = layers
    return Sequential(embed, one, two, Sequential(Flatten(), three), head).to(dtype)


class Killed(BaseException):
    """Not an Exception, so that nothing catches it by the way."""


def never(*where):
    """A run that goes through."""


def killed_at(*point):
    def check(*where):
        if where == point:
            raise Killed

    return check


def run(checkpoint, is_here=never, seed=0, prepare=lambda model: model):
    """A run of three stages with three steps each; ``is_here(stage, step)`` may end it."""
    model = prepare(build(seed))
    stages = []
    for stage in nn.IterativePQ(model, SPEC, groups=GROUPS, checkpoint=checkpoint):
        stages.append(stage.number)
        generator = torch.Generator().manual_seed(stage.number)
        optimizer = torch.optim.AdamW(stage.parameter_groups({"lr": 0.02}), lr=0.01)
        for step in range(3):
            is_here(stage.number, step)
            kept = torch.randperm(8, generator=generator)[:5]
            optimizer.zero_grad()
            cross_entropy(model(TOKENS[kept]), LABELS[kept]).backward()
            optimizer.step()
        is_here(stage.number, "trained")
    return model, stages


def bits(model):
    state = model.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    flat = {name: value.contiguous().reshape(-1) for name, value in state.items()}
    return {name: (value.dtype, value.view(torch.uint8).tolist()) for name, value in flat.items()}


@pytest.fixture(scope="module")
def expected():
    model, stages = run(None)
    assert stages == [1, 2, 3]
    return bits(model)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("step", [0, 2, "trained"])
def test_a_run_killed_in_training_goes_on(stage, step, expected, tmp_path):
    path = tmp_path / "stage.safetensors"
    with pytest.raises(Killed):
        run(path, killed_at(stage, step))
    assert read_facts(path)["finished"] == stage - 1
    # Even if the model starts otherwise: the file holds all of it.
    model, stages = run(path, seed=1)
    assert stages == list(range(stage, 4))
    assert bits(model) == expected


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_killed_while_it_compresses_goes_on(stage, moment, expected, tmp_path, monkeypatch):
    calls = []

    def compress(*args, **kwargs):
        calls.append(None)
        if len(calls) == stage and moment == "before":
            raise Killed
        report = iterative_pq_compress(*args, **kwargs)
        if len(calls) == stage:
            raise Killed
        return report

    iterative_pq_compress = iterative_pq.compress_model
    with monkeypatch.context() as patch:
        patch.setattr(iterative_pq, "compress_model", compress)
        with pytest.raises(Killed):
            run(tmp_path / "file")
    model, stages = run(tmp_path / "file")
    assert stages == list(range(stage, 4))
    assert bits(model) == expected


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("moment", ["written", "replaced"])
def test_a_run_killed_while_it_stores_goes_on(number, moment, expected, tmp_path, monkeypatch):
    calls = []
    replace = os.replace

    def killed(*args):
        calls.append(None)
        if len(calls) == number + 1:
            if moment == "replaced":
                replace(*args)
            raise Killed
        replace(*args)

    path = tmp_path / "stage.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", killed)
        with pytest.raises(Killed):
            run(path)
    n_finished = number if moment == "replaced" else number - 1
    assert [entry.name for entry in tmp_path.iterdir()] == ([path.name] if n_finished >= 0 else [])
    model, stages = run(path)
    assert stages == list(range(max(n_finished, 0) + 1, 4))
    assert bits(model) == expected


def test_a_run_that_is_done_is_only_read(expected, tmp_path):
    run(tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    model, stages = run(tmp_path / "file", seed=1)
    assert stages == []
    assert bits(model) == expected
    assert (tmp_path / "file").read_bytes() == content


def test_the_same_object_goes_on_after_an_interruption(expected, tmp_path):
    model = build()
    iterative = nn.IterativePQ(model, SPEC, groups=GROUPS, checkpoint=tmp_path / "file")
    for stage in iterative:
        with torch.no_grad():
            stage.codebooks[0].zero_()  # training that is not finished, and leaves no trace
        break
    assert [group.name for group in iterative.remaining] == ["one", "two", "three"]
    assert [stage.number for stage in iterative] == [1, 2, 3]
    untrained = build()
    nn.compress_model(untrained, Spec.of(SPEC).only(n for g in iterative.groups for n in g.tensors))
    assert bits(model) == bits(untrained)


@pytest.mark.parametrize("kind", ["proxy", "pq"])
def test_noise_goes_on_as_well(kind, expected, tmp_path):
    def noisy(model):
        every = 2 if kind == "pq" else None
        return nn.quant_noise(
            model, p=0.3, kind=kind, block_size=4, n_codes=8, seed=5, refresh_every=every
        )

    through, _ = run(None, prepare=noisy)
    assert bits(through) != expected
    with pytest.raises(Killed):
        run(tmp_path / "file", killed_at(2, 1), prepare=noisy)
    model, stages = run(tmp_path / "file", seed=1, prepare=noisy)
    assert stages == [2, 3]
    assert set(nn.noise_rates(model)) == {"4.weight"}
    assert bits(model) == bits(through)
    with pytest.raises(ValueError, match="not the state of this model as it was built"):
        run(tmp_path / "file")


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from test_iterative_resume import run
import torch
torch.set_num_threads(1)
def die(*where):
    if where == (2, 1):
        os.kill(os.getpid(), signal.SIGKILL)
run({path!r}, die)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills otherwise")
def test_a_process_that_was_killed_goes_on(expected, tmp_path):
    path = tmp_path / "file"
    program = PROGRAM.format(folder=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    model, stages = run(path)
    assert stages == [2, 3]
    assert bits(model) == expected


# ---------------------------------------------------------------- refusals


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "stage.safetensors"
    with pytest.raises(Killed):
        run(path, killed_at(2, 0))
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["*"]}, "got a run with groups"),
        ({"spec": {**SPEC, "defaults": {"n_codes": 4, "block_size": 4}}}, "got a run with spec"),
        ({"gradient": "sum"}, "got a run with gradient 'mean', but expected 'sum'"),
        ({"random_state": 1}, "got a run with random_state 0, but expected 1"),
        ({"model": build(dtype=torch.float64)}, "got a run with groups"),
    ],
)
def test_a_file_of_another_run_is_refused(options, message, stored):
    given = {"model": build(), "spec": SPEC, "groups": GROUPS, "checkpoint": stored, **options}
    content = stored.read_bytes()
    model = given.pop("model")
    before = bits(model)
    iterative = nn.IterativePQ(model, given.pop("spec"), **given)
    with pytest.raises(ValueError, match=f"stage.safetensors: {message}"):
        next(iter(iterative))
    assert bits(model) == before
    assert stored.read_bytes() == content


def test_a_model_with_other_tensors_is_refused(stored):
    model = build()
    model[4] = Linear(12, 4)  # in no group
    with pytest.raises(ValueError, match=r"stage.safetensors: not the state of this model.*4\.wei"):
        next(iter(nn.IterativePQ(model, SPEC, groups=GROUPS, checkpoint=stored)))
    model = build()
    model[4].double()
    with pytest.raises(ValueError, match=r"got '4\.weight' of dtype torch\.float32, but expected"):
        next(iter(nn.IterativePQ(model, SPEC, groups=GROUPS, checkpoint=stored)))


def with_content(path, **changes):
    """The file again, with other values in what its header says."""
    with TensorFile(path) as file:
        content = {**json.loads(file.metadata[training_state.FORMAT]), **changes}
        entries = [
            TensorEntry(n, file.dtype(n), file.shape(n), bytes(file.raw(n))) for n in file.names
        ]
    write_tensors(path, entries, {training_state.FORMAT: json.dumps(content)})


def test_files_that_are_no_stage_are_refused(stored):
    content = stored.read_bytes()

    def start():
        next(iter(nn.IterativePQ(build(), SPEC, groups=GROUPS, checkpoint=stored)))

    with_content(stored, version=2)
    with pytest.raises(ValueError, match=r"stage.safetensors: got version 2, but expected 1"):
        start()
    stored.write_bytes(content)
    with_content(stored, compressed=[{"names": ["9.weight"]}])
    with pytest.raises(ValueError, match=r"got codes for \['9.weight'\], but expected weights of"):
        start()
    for key in ("facts", "aliases", "compressed"):
        stored.write_bytes(content)
        with_content(stored, **{key: None})
        with pytest.raises(ValueError, match=r"stage.safetensors: damaged"):
            start()
    stored.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"stage.safetensors: not a valid safetensors file"):
        start()
    array = np.zeros(3, dtype=np.float32)
    write_tensors(stored, [TensorEntry("a", "F32", (3,), array)], {})
    with pytest.raises(ValueError, match=r"stage.safetensors: got a file that is no pgkmeans_sk"):
        start()
