"""Compressed models in several processes, and compiled to machine code."""

import copy
import shutil

import pytest

torch = pytest.importorskip("torch")

from torch import distributed  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from pgkmeans_sk import nn  # noqa: E402
from tests.nn_models import Tied, small_model  # noqa: E402

N_STEPS = 3
SPEC = {
    "defaults": {"block_size": 4, "n_codes": 8, "codebook_dtype": "float32"},
    "rules": [{"match": "0.*", "scale": "row"}, {"match": "3.*", "n_codes": 300, "block_size": 2}],
}


def batches(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randint(1, 60, (4, 5), generator=generator) for _ in range(N_STEPS)]


def compressed(kind):
    torch.manual_seed(0)
    model = small_model() if kind == "small" else Tied()
    nn.compress_model(model, SPEC)
    return model


def train(model, wrapped, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for parts in steps:
        optimizer.zero_grad()
        for index in parts:
            (wrapped(index).square().mean() / len(parts)).backward()
        optimizer.step()
    return copy.deepcopy(model.state_dict())


def work(rank, kind, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    model = compressed(kind)
    if rank == 1:  # which the wrapper makes equal to the first process's, codes included
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.zero_()
    wrapped = DistributedDataParallel(model)
    state = train(model, wrapped, [[index] for index in batches(rank)])
    torch.save(state, f"{folder}/{rank}")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small", "tied"])
def test_replicas_stay_equal(kind, tmp_path):
    torch.multiprocessing.spawn(work, (kind, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    model = compressed(kind)
    alone = train(model, model, list(zip(batches(0), batches(1), strict=True)))
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("default::DeprecationWarning:torch")  # its own, on the way
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler of C++")
def test_compiled_to_machine_code():
    model = compressed("small")
    index = batches(0)[0]
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(index), model(index))
    gradients = []
    for run in (compiled, model):
        model.zero_grad()
        run(index).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
