"""Models on other devices: what goes to the host, what comes back where, and what never leaves."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pgkmeans_sk import ProductQuantizer, nn  # noqa: E402
from pgkmeans_sk.engines import torch_device  # noqa: E402
from pgkmeans_sk.nn import devices, soft_kmeans  # noqa: E402
from pgkmeans_sk.nn.codebook_weight import CodebookWeight  # noqa: E402
from pgkmeans_sk.nn.devices import host_matrix, words_on  # noqa: E402
from pgkmeans_sk.nn.gmres import solved  # noqa: E402
from pgkmeans_sk.nn.noise_kinds import NearestWord  # noqa: E402
from pgkmeans_sk.nn.soft_kmeans import nearest  # noqa: E402
from pgkmeans_sk.quantization import torch_tensors  # noqa: E402
from pgkmeans_sk.spec import TensorSettings  # noqa: E402
from tests import far_device  # noqa: E402
from tests.far_device import dkm_weight  # noqa: E402
from tests.host_reads import HostReads, Waits  # noqa: E402
from tests.nn_models import small_model, state_bytes  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SPEC = {"defaults": {"block_size": 4, "n_codes": 8}}


def tensors_of(model):
    return [*model.parameters(), *model.buffers()]


# ------------------------------------------------------------------ to the host and back


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_a_matrix_on_the_host_has_the_same_values(device, dtype):
    matrix = torch.randn(5, 7, device=device).to(dtype).T
    rows = host_matrix(matrix)
    assert rows.flags.c_contiguous
    assert rows.dtype == np.dtype(str(torch.empty(0, dtype=dtype).float().dtype)[6:]) or (
        rows.dtype.itemsize == dtype.itemsize
    )
    assert torch.equal(words_on(rows, matrix.device, dtype), matrix)


def test_a_matrix_that_is_there_is_not_copied():
    matrix = torch.randn(5, 7, requires_grad=True)
    assert host_matrix(matrix).ctypes.data == matrix.data_ptr()


def in_sequence(model):
    return nn.compress_in_sequence(model, [torch.arange(30).reshape(2, 15)], SPEC)


WAYS = {
    "compress_model": lambda model: nn.compress_model(model, SPEC),
    "scalar_quantize": lambda model: nn.scalar_quantize(model, 3),
    "dkm": lambda model: nn.dkm(model, bits=2, block_size=2),
    "in sequence": in_sequence,
    "quant_noise": lambda model: nn.quant_noise(model, kind="pq", spec=SPEC),
}


@pytest.mark.parametrize("way", ["compress_model", "scalar_quantize", "dkm"])
def test_each_weight_goes_to_the_host_once(way):
    model = small_model()
    sizes = sorted(p.numel() for p in model.parameters() if p.ndim > 1)
    with HostReads() as reads:
        WAYS[way](model)
    copied = sorted(size for size in reads.sizes if size >= sizes[0])
    # Once to the kernels: by ``cpu`` and ``numpy``. All else is as small as codebooks, or codes.
    assert copied == sorted(2 * sizes)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_everything_ends_where_the_weight_is(device, way):
    here, there = small_model(), small_model().to(device)
    if way == "in sequence":
        in_sequence(here)
        nn.compress_in_sequence(there, [torch.arange(30, device=device).reshape(2, 15)], SPEC)
    else:
        WAYS[way](here)
        WAYS[way](there)
    assert {tensor.device.type for tensor in tensors_of(there)} == {device}
    tokens = torch.arange(12).reshape(3, 4)
    expected, found = here.eval()(tokens), there.eval()(tokens.to(device))
    assert found.device.type == device
    # Clusters that were found elsewhere may differ where rounding decides.
    n_far = int((~torch.isclose(found.cpu(), expected, rtol=1e-3, atol=1e-3)).sum())
    assert n_far <= (0 if device == "cpu" else found.numel() // 10)


@pytest.fixture
def elsewhere(monkeypatch):
    """Tensors in host memory count as elsewhere; gives the shapes of those trained on there."""
    trained = []

    def training(self, settings, original=torch_tensors.OnDevice.training):
        trained.append(self.shape)
        return original(self, settings)

    monkeypatch.setattr(torch_device, "USES_KERNELS", False)
    monkeypatch.setattr(torch_tensors.OnDevice, "training", training)
    return trained


def errors_of(report):
    return [tensor.relative_error for tensor in report.compressed]


CLUSTERED = {
    "shared": {"block_size": 4, "n_codes": 8},
    "one codebook for several": {"block_size": 4, "n_codes": 8, "group": "all"},
    "two bytes": {"block_size": 2, "n_codes": 300},
    "all": {
        "block_size": 4,
        "n_codes": 8,
        "codebook": "per_block",
        "n_stages": 2,
        "scale": "row",
        "rotation": "hadamard",
    },
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("defaults", CLUSTERED.values(), ids=CLUSTERED)
def test_weights_are_clustered_where_they_are(defaults, dtype, elsewhere):
    def model():
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32)
        return torch.nn.Sequential(*layers).to(dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_device, "USES_KERNELS", True)
        expected = nn.compress_model(here := model(), {"defaults": defaults})
    assert not elsewhere
    found = nn.compress_model(there := model(), {"defaults": defaults})
    assert len(elsewhere) == (1 if "group" in defaults else 2)
    np.testing.assert_allclose(errors_of(found), errors_of(expected), rtol=1e-6)
    assert found.n_bytes == expected.n_bytes
    for own, other in zip(tensors_of(there), tensors_of(here), strict=True):
        assert (own.dtype, own.shape) == (other.dtype, other.shape)


def test_what_the_device_cannot_do_is_done_on_the_host(elsewhere):
    model, other = small_model(), small_model()
    names = [name for name, p in model.named_parameters() if p.ndim > 1]
    report = nn.compress_model(model, SPEC)
    assert len(report.compressed) == len(names)
    assert len(elsewhere) == len(names) - 1  # all but the embedding with a padding row of zeros
    elsewhere.clear()
    found = nn.compress_model(other, SPEC, n_jobs=2)
    assert not elsewhere
    np.testing.assert_allclose(errors_of(found), errors_of(report), rtol=1e-6)


def test_a_device_without_float64_leaves_the_work_to_the_host(elsewhere, monkeypatch):
    monkeypatch.setattr(devices, "can_work_on", lambda device: False)
    layer = torch.nn.Linear(64, 48)
    nn.compress_model(layer, SPEC)
    (weight,) = layer.parametrizations.weight
    weight.reassign(layer.parametrizations.weight.original, torch.randn(48, 64))
    assert not elsewhere


@pytest.mark.parametrize("n_codes", [8, 300])
@pytest.mark.parametrize("scale", [None, "row"])
def test_codes_are_found_where_the_weight_is(n_codes, scale, elsewhere, monkeypatch):
    layer = torch.nn.Linear(64, 200)
    dense = torch.randn(200, 64)
    nn.compress_model(layer, {"defaults": {"block_size": 2, "n_codes": n_codes, "scale": scale}})
    (weight,) = layer.parametrizations.weight
    codebook = layer.parametrizations.weight.original
    weight.reassign(codebook, dense)
    there = weight.codes.clone(), weight.counts.clone(), weight.dense(codebook)
    monkeypatch.setattr(torch_device, "USES_KERNELS", True)
    weight.reassign(codebook, dense)
    for found, expected in zip(
        there, (weight.codes, weight.counts, weight.dense(codebook)), strict=True
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("n_codes", [8, 300])
def test_words_for_noise_are_found_where_the_weight_is(n_codes, elsewhere, monkeypatch):
    settings = TensorSettings(block_size=2, n_codes=n_codes)
    matrix = torch.randn(60, 32)
    there, here = NearestWord(settings, 0), NearestWord(settings, 0)
    there.refresh(matrix)
    assert elsewhere
    monkeypatch.setattr(torch_device, "USES_KERNELS", True)
    here.refresh(matrix)
    torch.testing.assert_close(there(matrix), here(matrix))
    assert there.codes.dtype == here.codes.dtype


@pytest.mark.parametrize("device", DEVICES)
def test_several_workers_do_not_depend_on_the_device(device):
    here, there = small_model(), small_model().to(device)
    nn.compress_model(here, SPEC)
    nn.compress_model(there, SPEC, n_jobs=2)  # in host memory
    assert state_bytes(there.cpu()) == state_bytes(here)


@pytest.mark.parametrize("device", DEVICES)
def test_files_are_loaded_to_where_the_model_is(device, tmp_path):
    model = small_model().to(device)
    nn.compress_model(model, SPEC)
    nn.save(model, tmp_path / "small")
    for other in (small_model().to(device), small_model().to("meta")):
        was_on_meta = next(other.parameters()).is_meta
        nn.load(other, tmp_path / "small", **({"device": device} if was_on_meta else {}))
        assert {tensor.device.type for tensor in tensors_of(other)} == {device}
        assert state_bytes(other.cpu()) == state_bytes(copy.deepcopy(model).cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_calibration_on_a_device(device):
    batches = [torch.arange(60).reshape(4, 15), torch.arange(30).reshape(2, 15)]
    expected = nn.calibrate(small_model(), batches)
    found = nn.calibrate(small_model().to(device), [batch.to(device) for batch in batches])
    for name, record in expected.items():
        if hasattr(record, "full"):
            np.testing.assert_allclose(found[name].full, record.full, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(found[name].counts, record.counts)


# ------------------------------------------------------------------ counting codes


@pytest.mark.parametrize(
    ("codebook", "n_codes", "n_stages"),
    [("shared", 8, 1), ("per_block", 8, 2), ("shared", 300, 2), ("per_block", 300, 1)],
)
def test_counts_are_those_of_the_codes(codebook, n_codes, n_stages, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
    quantizer = ProductQuantizer(
        4, n_codes, codebook=codebook, n_stages=n_stages, max_iter=2, random_state=0
    )
    matrix = quantizer.compress(rows)
    monkeypatch.setattr("pgkmeans_sk.nn.codebook_weight.CODES_AT_ONCE", 1000)  # in several parts
    weight = CodebookWeight.from_matrix(matrix, (400, 12), 0)
    codes = matrix.codes().reshape(400, n_stages, 3)
    expected = np.zeros((n_stages, 1 if codebook == "shared" else 3, n_codes), int)
    for stage in range(n_stages):
        for block in range(3):
            book = 0 if codebook == "shared" else block
            np.add.at(expected[stage, book], codes[:, stage, block], 1)
    np.testing.assert_array_equal(weight.counts[..., 0], expected)
    assert weight.counts.dtype == torch.int32


# ------------------------------------------------------------------ nothing leaves its device


@pytest.fixture(scope="module")
def far_outcomes():
    """What became of the checks of ``tests.far_device``, in a process of their own."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.far_device"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.mark.skipif(not far_device.is_possible(), reason="this PyTorch cannot make up a device")
@pytest.mark.parametrize("name", far_device.CHECKS)
def test_on_a_device_that_nothing_is_on_by_accident(name, far_outcomes):
    assert far_outcomes[name] == "", far_outcomes[name]


def test_nothing_waits_for_what_has_no_values():
    # On the meta device there is nothing to look at: who tries gets an error.
    found = far_device.arithmetic(torch.device("meta"))
    assert all(tensor.is_meta for tensor in found)


# ------------------------------------------------------------------ how often it is waited for


@pytest.mark.parametrize("tile", [8, 1 << 18])
@pytest.mark.parametrize(("backward", "forward_reads"), [("unrolled", 4), ("jfb", 3)])
def test_the_host_looks_once_an_iteration_and_never_at_a_tile(
    backward, forward_reads, tile, monkeypatch
):
    monkeypatch.setattr(soft_kmeans, "TILE_VALUES", {"cpu": tile})
    torch.manual_seed(0)
    weight = dkm_weight(4, max_iter=4, tol=0.0, backward=backward, zero_row=1)
    original = torch.randn(30, 12, requires_grad=True)
    with HostReads() as reads, Waits() as waits:
        used = weight.train()(original)
    # ``tol``: whether the centroids still move.
    assert reads.calls == {"__bool__": forward_reads}
    assert waits.calls == {"_local_scalar_dense": forward_reads}
    with HostReads() as reads, Waits() as waits:
        used.sum().backward()
    assert not reads.calls
    assert not waits.calls


@pytest.mark.parametrize("n_steps", [1, 4, 9])
def test_gmres_looks_once_a_step(n_steps):
    generator = torch.Generator().manual_seed(0)
    system = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    right = torch.randn(40, generator=generator, dtype=torch.float64)
    with HostReads() as reads:
        solved(lambda u: system @ u, right, right, tol=0.0, max_iter=n_steps)
    assert reads.calls == {"tolist": 1 + n_steps}


def test_a_mask_is_looked_at_once_a_batch():
    model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(5)))
    batches = [torch.randn(4, 9, 6) for _ in range(3)]
    mask = torch.rand(4, 9) > 0.3
    with Waits() as waits:
        masked = nn.calibrate(model, batches, mask=lambda batch: mask)
    assert waits.calls["nonzero"] == len(batches)
    assert masked["0.weight"].n_rows == 3 * int(mask.sum())
    rows = torch.cat([batch[mask] for batch in batches]).double()
    np.testing.assert_allclose(
        masked["0.weight"].full, (rows.T @ rows / len(rows)).numpy(), atol=1e-6
    )


# ------------------------------------------------------------------ the same codes by either way


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block_size", [1, 2, 8])
def test_the_nearest_centroids_are_those_of_the_kernels(block_size, dtype, device):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, block_size, generator=generator, dtype=dtype)
    words = torch.randn(64, block_size, generator=generator, dtype=dtype)
    words[7] = words[3]  # of equal ones the first
    rows[:64] = words
    found = nearest(rows.to(device), words.to(device)).cpu().numpy()
    exact = words.numpy().astype(np.float64)
    distances = np.square(rows.numpy().astype(np.float64)[:, None] - exact).sum(2)
    expected = distances.argmin(1)
    own, least = distances[np.arange(len(rows)), found], distances.min(1)
    np.testing.assert_allclose(own.sum(), least.sum(), rtol=1e-6)
    # Another code only where two words are as near, to within the rounding of float32.
    differs = found != expected
    assert np.all(own[differs] - least[differs] <= 1e-5 * (1.0 + least[differs]))
    assert differs.mean() < 0.001
    assert not (found == 7).any()
