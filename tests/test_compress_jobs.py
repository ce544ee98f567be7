"""Weights by several workers: the same bits as by one, whatever the backend, and errors alike."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from pgkmeans_sk import compress_file, nn  # noqa: E402
from pgkmeans_sk.codes.tensor_file import TensorFile  # noqa: E402
from pgkmeans_sk.nn.selection import find_targets  # noqa: E402
from pgkmeans_sk.nn.weight_matrices import weight_job  # noqa: E402
from pgkmeans_sk.spec import Spec, TensorSettings  # noqa: E402
from pgkmeans_sk.threads import effective_n_threads  # noqa: E402
from pgkmeans_sk.validation import InvalidParameterError  # noqa: E402
from pgkmeans_sk.weight_jobs import WeightJob  # noqa: E402
from tests.joblib_workers import workers  # noqa: E402
from tests.model_files import write_model  # noqa: E402
from tests.nn_models import Tied, state_bytes  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("loky", "threading", "dask")


@pytest.fixture(params=BACKENDS)
def backend(request):
    with workers(request.param, n_jobs=None):
        yield request.param


def layers(dtype=torch.float32):
    """Layers of several sizes and kinds, in an order that is not that of their sizes."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(24, 40),
        torch.nn.Linear(40, 96),
        torch.nn.Linear(96, 33),
        torch.nn.Linear(33, 64, bias=False),
        torch.nn.Embedding(70, 16, padding_idx=3),
        torch.nn.Conv2d(8, 20, 3),
    ).to(dtype)


def spec(*rules, **settings):
    return {"defaults": {"block_size": 4, "n_codes": 16, **settings}, "rules": list(rules)}


SPECS = {
    "plain": spec(),
    "a codebook for each block": spec(codebook="per_block", n_stages=2),
    "hadamard, row": spec(rotation="hadamard", scale="row", n_stages=2),
    "opq": spec(rotation="opq", codebook="per_block"),
    "block": spec(scale="block", codebook_dtype="float32"),
    "groups": spec(
        {"match": "0.*", "group": "a"},
        {"match": "3.*", "group": "a"},
        {"match": "1.*", "skip": True},
    ),
}


def compressed(model, given, **options):
    """The model's bytes, and the report without its times."""
    report = nn.compress_model(model, given, **options)
    tensors = [replace(tensor, seconds=None) for tensor in report.tensors]
    assert all(tensor.seconds > 0.0 for tensor in report.compressed)
    return state_bytes(model), tensors


# ------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("kind", SPECS)
def test_same_bits_and_report(kind, backend):
    expected = compressed(layers(), SPECS[kind])
    assert compressed(layers(), SPECS[kind], n_jobs=2) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_same_bits_for_every_dtype(dtype, backend):
    expected = compressed(layers(dtype), spec())
    assert compressed(layers(dtype), spec(), n_jobs=2) == expected


@pytest.mark.parametrize("n_jobs", [2, 3, -1])
def test_same_bits_for_any_number_of_workers(n_jobs):
    assert compressed(layers(), spec(), n_jobs=n_jobs) == compressed(layers(), spec(), n_jobs=1)


@settings(max_examples=20)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 24)), min_size=1, max_size=6),
    n_jobs=st.integers(2, 5),
    block_size=st.integers(1, 8),
    n_distinct=st.sampled_from([1, 3, 1000]),
)
def test_same_bits_for_any_layers(shapes, n_jobs, block_size, n_distinct):
    def model():
        generator = torch.Generator().manual_seed(0)
        net = torch.nn.ModuleList([torch.nn.Linear(d, n, bias=False) for n, d in shapes])
        for layer in net:
            numbers = torch.randint(n_distinct, layer.weight.shape, generator=generator)
            layer.weight.data = numbers.float()
        return net

    few = spec(block_size=block_size, n_codes=4)
    expected = compressed(model(), few)
    with joblib.parallel_config(backend="threading"):
        assert compressed(model(), few, n_jobs=n_jobs) == expected


def test_parallel_config_alone_is_enough():
    expected = compressed(layers(), spec())
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert compressed(layers(), spec()) == expected


def test_rows_that_travel_as_a_file():
    # joblib maps arrays of more than a megabyte into workers, read-only.
    def wide():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(640, 512), torch.nn.Linear(512, 640))

    given = spec(n_codes=16, block_size=8, max_iter=3)
    assert wide()[0].weight.nbytes > 2**20
    assert compressed(wide(), given, n_jobs=2) == compressed(wide(), given)


@pytest.mark.parametrize("feedback", [False, True])
def test_same_bits_with_a_calibration(feedback, backend):
    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Embedding(60, 24), torch.nn.Linear(24, 32), torch.nn.Linear(32, 48)
        )

    batches = [torch.arange(60).reshape(4, 15)]
    options = {"importance": nn.calibrate(model(), batches), "feedback": feedback}
    expected = compressed(model(), spec(), **options)
    assert compressed(model(), spec(), n_jobs=2, **options) == expected


def test_tied_weights_stay_tied(backend):
    def model():
        torch.manual_seed(0)
        return Tied()

    tied = model()
    assert compressed(tied, spec(), n_jobs=2) == compressed(model(), spec())
    assert tied.out.parametrizations.weight[0] is tied.words.parametrizations.weight[0]


def test_fewer_blocks_than_words(backend, recwarn):
    def model():
        torch.manual_seed(0)
        net = layers()
        with torch.no_grad():
            for weight in net.parameters():
                weight.copy_(weight.sign())
        return net

    expected = compressed(model(), spec(block_size=2))
    assert compressed(model(), spec(block_size=2), n_jobs=2) == expected
    assert not [w for w in recwarn if w.category.__name__ == "ConvergenceWarning"]


def test_random_state_none_is_numpys_own_for_any_number_of_workers():
    given = SPECS["hadamard, row"]
    state = np.random.get_state()  # noqa: NPY002  (it is about that one)
    try:
        found = []
        for n_jobs in (1, 2):
            np.random.seed(5)  # noqa: NPY002
            found.append(compressed(layers(), given, random_state=None, n_jobs=n_jobs))
        assert found[0] == found[1]
        assert compressed(layers(), given, random_state=None) != found[0]
    finally:
        np.random.set_state(state)  # noqa: NPY002


def test_iterative_pq_with_the_workers_of_the_context():
    def trained():
        model = layers()[:4]
        for stage in nn.IterativePQ(model, spec(), groups=["[01].*", "[23].*"]):
            with torch.no_grad():
                for parameter in stage.parameters():
                    parameter.mul_(0.99)
        return state_bytes(model)

    expected = trained()
    with joblib.parallel_config(backend="threading", n_jobs=2):
        assert trained() == expected


# ------------------------------------------------------------------ errors


def test_a_failing_layer_leaves_the_model_alone(backend):
    model = layers()
    with torch.no_grad():
        model[2].weight.fill_(1e6)  # more than a codebook of float16 can hold
    before, parameters = state_bytes(model), dict(model.named_parameters())
    for n_jobs in (1, 2):
        with pytest.raises(ValueError, match=r"weight '2\.weight'.*float16"):
            nn.compress_model(model, spec(), n_jobs=n_jobs)
        assert state_bytes(model) == before
        assert dict(model.named_parameters()) == parameters
        assert not any(hasattr(module, "parametrizations") for module in model)


@pytest.mark.parametrize("n_jobs", [0, "2", 1.5, True])
def test_what_is_no_number_of_workers(n_jobs, tmp_path):
    model = layers()
    before = state_bytes(model)
    with pytest.raises(InvalidParameterError, match="Got n_jobs="):
        nn.compress_model(model, spec(), n_jobs=n_jobs)
    assert state_bytes(model) == before
    source = write_model(tmp_path / "model.safetensors")
    with pytest.raises(InvalidParameterError, match="Got n_jobs="):
        compress_file(source, tmp_path / "small", n_jobs=n_jobs)
    assert not (tmp_path / "small").exists()


def test_an_error_of_the_progress_leaves_the_model_alone():
    model = layers()
    before = state_bytes(model)

    def progress(name, done, total):
        if done:
            raise KeyError("enough")

    with joblib.parallel_config(backend="threading"), pytest.raises(KeyError, match="enough"):
        nn.compress_model(model, spec(), n_jobs=2, progress=progress)
    assert state_bytes(model) == before


# ------------------------------------------------------------------ on the way


def test_progress(backend):
    told = []
    report = nn.compress_model(layers(), spec(), n_jobs=2, progress=lambda *news: told.append(news))
    total = sum(tensor.n_values for tensor in report.compressed)
    assert told[0] == ("1.weight", 0, total)  # the largest
    assert told[-1] == ("", total, total)
    assert len(told) == len(report.compressed) + 1
    assert {name for name, *_ in told} <= {tensor.name for tensor in report.compressed} | {""}
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_the_number_of_threads_is_what_it_was(backend):
    before = effective_n_threads(), torch.get_num_threads(), joblib.effective_n_jobs(-1)
    nn.compress_model(layers(), spec(), n_jobs=2)
    assert (effective_n_threads(), torch.get_num_threads(), joblib.effective_n_jobs(-1)) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_job_is_arrays_and_settings(dtype):
    model = layers(dtype)
    targets = [t for t in find_targets(model, Spec.of(spec())) if t.layout is not None]
    job = weight_job(targets[0], None, 0)
    text = pickle.dumps(job)
    assert b"torch" not in text
    assert b"pgkmeans_sk.nn" not in text
    again = pickle.loads(text)()["0.weight"]
    assert again.packed.tobytes() == job()["0.weight"].packed.tobytes()


def test_dask_hands_weights_over_past_its_scheduler(recwarn):
    # It warns of tasks of more than 10 MB.
    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.Linear(1024, 2600, bias=False) for _ in range(2)])
    with workers("dask", n_jobs=None):
        nn.compress_model(model, spec(max_iter=1), n_jobs=2)
    assert not [w for w in recwarn if "large graph" in str(w.message)]


def test_workers_need_no_torch():
    code = (
        "import sys, pgkmeans_sk.weight_jobs, pgkmeans_sk.jobs; "
        "print('torch' in sys.modules, 'pgkmeans_sk.nn' in sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["False", "False"]


def test_weights_are_not_copied_to_be_looked_at():
    model = layers()
    targets = [t for t in find_targets(model, Spec.of(spec())) if t.layout is not None]
    job = weight_job(targets[0], None, 0)
    assert isinstance(job, WeightJob)
    assert job.rows.ctypes.data == model[0].weight.data_ptr()


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("settings", [{"n_stages": 2}, {"codebook": "per_block", "scale": "row"}])
def test_files_have_the_same_bytes(settings, backend, tmp_path):
    source = write_model(tmp_path / "model.safetensors")
    given = TensorSettings(block_size=4, n_codes=16, **settings)
    one = compress_file(source, tmp_path / "one", given)
    told = []
    two = compress_file(
        source, tmp_path / "two", given, n_jobs=2, progress=lambda *news: told.append(news)
    )
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert [replace(t, seconds=None) for t in two.tensors] == [
        replace(t, seconds=None) for t in one.tensors
    ]
    assert all(tensor.seconds > 0.0 for tensor in two.compressed)
    assert told[-1][0] == ""
    assert len(told) == len(two.compressed) + 1


def test_a_failing_tensor_writes_nothing(backend, tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {str(i): rng.normal(size=(64 + i, 16)).astype(np.float32) for i in range(6)}
    tensors["3"] *= 1e6
    save_file(tensors, tmp_path / "model")
    given = TensorSettings(block_size=4, n_codes=16)
    with pytest.raises(ValueError, match=r"tensor '3'.*float16"):
        compress_file(tmp_path / "model", tmp_path / "small", given, n_jobs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with TensorFile(tmp_path / "model") as file:
        assert len(file.names) == 6
