"""Checks on a device "nodouble" that has no float64, as Apple's "mps": made up, with values.

Its tensors hold tensors of the CPU, on which their operations are done; whatever would be float64
there is refused with a TypeError, and so is an operation that mixes it with the CPU. PyTorch has
one made-up device for a process: so this is run as a program, that prints what became of each check
as JSON.
"""

import json
import traceback
import warnings

import numpy as np
import pytest
import torch
import torch.utils.backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pgkmeans_sk import PGKMeans, pg_kmeans, pg_kmeans_batch

SHORT = "nodouble"
MIXING = ("copy_", "_to_copy")


def is_possible():
    """Whether this PyTorch can make a device up."""
    return hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")


class ShortTensor(torch.Tensor):
    """A tensor on the device."""

    @staticmethod
    def __new__(cls, held):
        if held.dtype == torch.float64:
            raise TypeError("the device has no float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=SHORT
        )
        made.held = held
        return made

    def __repr__(self):
        return f"ShortTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return done(func, args, kwargs or {})


def held(value):
    return value.held if isinstance(value, ShortTensor) else value


def done(func, args, kwargs):
    """What an operation gives, where it is to be."""
    there = [value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor)]
    are_short = [isinstance(value, ShortTensor) for value in there]
    name = func.overloadpacket.__name__
    if any(are_short) and not all(are_short) and name not in MIXING:
        assert all(short or value.ndim == 0 for value, short in zip(there, are_short, strict=True))
    place = kwargs.get("device")
    to_short = any(are_short) if place is None else torch.device(place).type == SHORT
    if place is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(held, args), **tree_map(held, kwargs))
    if found is held(args[0] if args else None):
        return args[0]  # done in place
    if not to_short or name == "_local_scalar_dense":
        return found
    return tree_map(
        lambda value: ShortTensor(value) if isinstance(value, torch.Tensor) else value, found
    )


class OnShort(TorchDispatchMode):
    """Inside, tensors can be brought to the device, and made there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return done(func, args, kwargs or {})


ROWS = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).uniform(size=400)


def there(array):
    return torch.from_numpy(np.array(array)).to(SHORT)


def is_there(tensor):
    assert isinstance(tensor, ShortTensor)
    return tensor.cpu().numpy()


def fits(dtype, weighted, **parameters):
    """A fit has the bytes of that of the array; all that it gives is on the device."""

    def check():
        X = there(ROWS).to(dtype)
        array = X.cpu().float().numpy()
        weights = there(WEIGHTS.astype(np.float32)) if weighted else None
        own = WEIGHTS.astype(np.float32) if weighted else None
        expected = PGKMeans(9, random_state=0, **parameters).fit(array, sample_weight=own)
        found = PGKMeans(9, random_state=0, **parameters).fit(X, sample_weight=weights)
        assert found.engine_.startswith("torch-cpu")
        np.testing.assert_array_equal(is_there(found.labels_), expected.labels_)
        np.testing.assert_array_equal(is_there(found.cluster_centers_), expected.cluster_centers_)
        assert found.inertia_ == expected.inertia_
        assert len(np.unique(is_there(found.labels_))) == 9
        np.testing.assert_array_equal(is_there(found.predict(X)), expected.labels_)
        np.testing.assert_array_equal(is_there(found.transform(X)), expected.transform(array))
        assert found.score(X, sample_weight=weights) == expected.score(array, sample_weight=own)

    return check


def integers():
    X = there(np.arange(60).reshape(20, 3) % 7)
    found = PGKMeans(4, random_state=0).fit(X)
    assert is_there(found.cluster_centers_).dtype == np.float32
    assert len(np.unique(is_there(found.labels_))) == 4


def other_ways_in():
    X = there(ROWS)
    centers, labels, _ = pg_kmeans(X, 5, random_state=0)
    assert len(np.unique(is_there(labels))) == 5
    first = PGKMeans(5, init=centers, max_iter=1, device=SHORT).fit(X, sample_weight=list(WEIGHTS))
    assert first.inertia_ > 0.0
    groups = X.view(4, 100, 3)
    together = pg_kmeans_batch(groups, 5, random_state=0)
    alone = pg_kmeans(groups[2], 5, random_state=0)
    np.testing.assert_array_equal(is_there(together[1])[2], is_there(alone[1]))
    streamed = PGKMeans(5, random_state=0)
    streamed.partial_fit(X).partial_fit(X)
    is_there(streamed.predict(X))


def refusals():
    with pytest.raises(ValueError, match="expected a device with float64"):
        PGKMeans(5, device=SHORT).fit(ROWS)
    with pytest.raises(ValueError, match="expected the name of a PyTorch device"):
        PGKMeans(5, device="nowhere").fit(there(ROWS))


def the_device_is_short():
    for make in (lambda: there(ROWS).to(torch.float64), lambda: there(WEIGHTS)):
        with pytest.raises(TypeError, match="no float64"):
            make()
    np.testing.assert_array_equal(is_there(there(ROWS) + 1), ROWS + 1)


CHECKS = {
    "the device": the_device_is_short,
    "float32": fits(torch.float32, False),
    "float16": fits(torch.float16, False),
    "bfloat16, weights": fits(torch.bfloat16, True),
    "weights": fits(torch.float32, True, init="k-means++"),
    "engine torch": fits(torch.float32, False, engine="torch"),
    "cosine": fits(torch.float32, False, metric="cosine"),
    "integers": integers,
    "other ways in": other_ways_in,
    "refusals": refusals,
}


def outcome(check):
    """Nothing, or what went wrong."""
    try:
        with OnShort():
            check()
    except Exception:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(SHORT)
    print(json.dumps({name: outcome(check) for name, check in CHECKS.items()}))
