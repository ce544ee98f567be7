"""What a GPU would be waited for: tensors that the host looks at. Counted on any device."""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    getattr(torch.Tensor, name): name
    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
}
WAITING = ("nonzero", "masked_select", "_unique2", "unique_dim", "_local_scalar_dense")
"""Operations whose result has a size that only the device knows, and the one behind ``item``."""


class HostReads(TorchFunctionMode):
    """Counts, inside, what is read: by the name of the method, and by how many numbers.

    Attributes
    ----------
    calls : Counter of str
        Methods.
    sizes : list of int
        Numbers of each tensor of floats that was read or copied to the host.
    """

    def __init__(self):
        super().__init__()
        self.calls = Counter()
        self.sizes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = READS.get(func)
        if name is not None:
            self.calls[name] += 1
            if args[0].is_floating_point():
                self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Counts, inside, operations that a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
