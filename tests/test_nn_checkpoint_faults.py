"""Damaged and made-up files: a model is loaded, or one error says why, and it is as it was."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from pgkmeans_sk import nn  # noqa: E402
from pgkmeans_sk.nn.level_weight import LevelWeight  # noqa: E402
from tests.mutations import DAMAGE, FORGERY  # noqa: E402
from tests.nn_models import everything, state_bytes  # noqa: E402

N_FILES = 80
"""Of each of 13 kinds: 1 040 in all."""


class Everything(torch.nn.Module):
    """Ties, a group, scales, stages, levels, a buffer: something of all that a file can say."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(12, 8)
        self.a = torch.nn.Linear(8, 8)
        self.b = torch.nn.Linear(8, 8)
        self.c = torch.nn.Linear(8, 8)
        self.out = torch.nn.Linear(8, 12, bias=False)
        self.out.weight = self.words.weight
        self.norm = torch.nn.BatchNorm1d(12)


DEFAULTS = {"block_size": 2, "n_codes": 3}
RULES = [
    {"match": "[ab].weight", "group": "one"},
    {"match": "c.weight", "skip": True},
    {"regex": "(words|out).weight", "scale": "row", "n_stages": 2, "codebook_dtype": None},
]


def outcome(model, path):
    """The text of the error; None if the file is loaded, and the model then works."""
    try:
        nn.load(model, path)
    except ValueError as error:
        return str(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.words(torch.arange(12))
        model.out(model.c(model.b(model.a(torch.ones(2, 8)))))
    return None


@pytest.mark.parametrize("kind", [*DAMAGE, *FORGERY], ids=lambda kind: kind.__name__)
def test_mutated_files(kind, tmp_path):
    path = tmp_path / "some file"
    rng = np.random.default_rng([*DAMAGE, *FORGERY].index(kind))
    source, model = Everything(), Everything()
    nn.compress_model(source, {"defaults": DEFAULTS, "rules": RULES})
    assert len(list(source.parameters())) == 8
    nn.diffq(source.c)
    with torch.no_grad():
        logits = source.c.parametrizations.weight[0].logits
        logits.copy_(torch.linspace(-6, 6, 8))
    nn.save(source, path)
    source = nn.load(Everything(), path)
    assert isinstance(source.c.parametrizations.weight[0], LevelWeight)
    nn.compress_model(model, {"defaults": DEFAULTS})
    with torch.no_grad():
        model.norm.bias.add_(1.0)
    nn.save(source, path)
    content, expected = path.read_bytes(), state_bytes(source)
    plain = Everything()
    n_refused = 0
    for number in range(N_FILES):
        target = plain if number % 2 else model
        before = everything(target)
        path.write_bytes(kind(content, rng))
        message = outcome(target, path)
        if message is None:
            plain = Everything()
            assert kind in FORGERY or state_bytes(target) == expected
        else:
            n_refused += 1
            assert message.startswith(f"{path}: ")
            assert len(message) < 4000
            assert everything(target) == before
    assert n_refused > 0
