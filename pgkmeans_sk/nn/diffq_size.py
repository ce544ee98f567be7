"""The size of a model's file as a term of the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgkmeans_sk.codes.size import file_bytes
from pgkmeans_sk.nn.diffq_weight import DiffQWeight
from pgkmeans_sk.nn.state import METADATA, carried_description, carried_state, compressed_state

MEBIBYTE = 2**20


def penalty_mb(model: nn.Module, *, rounded: bool = False) -> Tensor:
    """The size of the file that ``save`` writes, in MB of 2**20 bytes, with gradients for bits.

    All of the file counts: codes at the bits that their groups have now, which width each group
    has, ranges, all other tensors in their own dtypes, and the header. Codes alone have a gradient:
    that of a group's logit is its values times the slope of its bits.

    Add it to the loss, times a factor: what a MB less is worth.

    Parameters
    ----------
    model : Module
        After ``diffq``.
    rounded : bool, default=False
        Whether bits count as whole numbers, as they are stored: then the value is the size of the
        file, exactly. The gradient is the same.

    Returns
    -------
    penalty : tensor of shape (), float64
        In MB.

    Raises
    ------
    ValueError
        If no weight of the model has learned bits, or the model has a state that no file can hold.

    References
    ----------
    Défossez, Adi and Synnaeve 2021, arXiv:2104.09987; the side information is that of the format
    here.

    Examples
    --------
    >>> import torch
    >>> from pgkmeans_sk import nn
    >>> model = nn.diffq(torch.nn.Linear(256, 256), init_bits=4)
    >>> penalty = nn.penalty_mb(model)
    >>> round(penalty.item(), 3)  # 65 536 values of 4 bits, and 1.8 kB
    0.033
    >>> penalty.backward()
    >>> model.parametrizations.weight[0].logits.grad.shape
    torch.Size([8192])
    """
    states = compressed_state(model)
    carried = {found.name: carried_description(found) for found in carried_state(model)}
    compressed = {state.name: state.description() for state in states}
    n_bytes = float(sum(file_bytes(compressed, carried, METADATA).values()))
    learned = [state.weight for state in states if isinstance(state.weight, DiffQWeight)]
    if not learned:
        raise ValueError(
            f"Got a {type(model).__name__} without learned bits, but expected one after diffq."
        )
    total = torch.tensor(n_bytes, dtype=torch.float64, device=learned[0].logits.device)
    for weight in learned:
        # Only the difference from the stored bits is added, so that all else is exact.
        bits = weight.bits().double()
        base = bits.detach() if rounded else weight.widths()
        total = total + ((bits - base) * weight.group_counts()).sum().to(total.device) / 8
    return total / MEBIBYTE
