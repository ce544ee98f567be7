"""Which weights ``scalar_quantize`` takes, and as which matrix each of them is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from torch import nn

from pgkmeans_sk.nn.selection import DTYPE_NAMES, Target, find_targets
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.weight_plan import layout_for, layout_reason

GRANULARITIES = ("tensor", "row", "group")

KEPT = ("skip", "min_size", "codebook_dtype", "n_codes", "importance")
"""Settings that mean something where blocks are single values."""

REFUSED = {"n_stages": 1, "rotation": None, "scale": None, "feedback": False, "group": None}
"""Settings that would change what is stored, with the values that do not."""


def scalar_targets(model: nn.Module, spec: Spec, granularity: str, group_size: int) -> list[Target]:
    """Every tensor of a model with what is to become of it, by what ``scalar_spec`` returned.

    ``settings.n_codes`` of a target is how many words a codebook has. Values that share one are the
    whole weight (``is_shared``), or a column of its matrix.

    Raises
    ------
    ValueError
        If rows do not lie together, or are no whole number of groups.
    """
    targets = find_targets(model, spec)
    if granularity == "row":
        return [_by_row(target) for target in targets]
    if granularity == "group":
        return [_by_group(target, group_size) for target in targets]
    return targets


def is_shared(target: Target) -> bool:
    """Whether there is one codebook for all values of a tensor."""
    return target.settings.codebook == "shared"


def scalar_spec(spec: Spec, bits: int) -> Spec:
    """The spec with blocks of single values, and ``2**bits`` words unless a rule says otherwise.

    Raises
    ------
    ValueError
        If it asks for what there is not: the message says where.
    """
    n_codes = 2**bits
    for place, settings in _all_settings(spec):
        for name, value in REFUSED.items():
            if settings.get(name, value) != value:
                raise ValueError(
                    f"Got {name}={settings[name]!r} in {place} of the spec, but expected {value!r}:"
                    " a scalar codebook is for plain values."
                )
    given = spec.defaults.n_codes
    if given not in (TensorSettings.n_codes, n_codes):
        raise ValueError(
            f"Got n_codes={given} in the defaults of the spec with bits={bits}, but expected it in "
            "rules only."
        )
    for rule in spec.rules:
        n = rule.settings.get("n_codes", n_codes)
        if n & (n - 1) or n > 256:
            raise ValueError(
                f"Got n_codes={n} in the rule for {rule} of the spec, but expected a power of two "
                "up to 256."
            )
    rules = tuple(replace(rule, settings=_kept(rule.settings)) for rule in spec.rules)
    defaults = replace(spec.defaults, block_size=1, n_codes=n_codes, codebook="shared")
    return Spec(defaults, rules)


def _kept(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in KEPT}


def _all_settings(spec: Spec) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "the defaults", {name: getattr(spec.defaults, name) for name in REFUSED}
    for rule in spec.rules:
        yield f"the rule for {rule}", rule.settings


def _by_row(target: Target) -> Target:
    """The target with a codebook for each row."""
    if target.layout is None:
        return target
    shape = tuple(target.found.tensor.shape)
    axis = turned_axis(shape, target.axis)
    if axis is not None:
        return _with_columns(target, shape[axis], axis, None)
    if target.axis:
        kind = type(target.found.places[0].module).__name__
        raise ValueError(
            f"Got granularity='row' for {target.found.name!r}, the weight of a {kind}, whose rows "
            "do not lie together, but expected 'tensor' or 'group', or a spec that skips it."
        )
    row_length = prod(shape[1:])
    return _with_columns(target, row_length, 0, row_length)


def _by_group(target: Target, group_size: int) -> Target:
    """The target with a codebook for each ``group_size`` values that lie together."""
    if target.layout is None:
        return target
    row_length = prod(target.found.tensor.shape[1:])
    if row_length % group_size:
        raise ValueError(
            f"Got group_size={group_size} for {target.found.name!r}, whose rows have {row_length} "
            "values, but expected a divisor of that, or a spec that skips it."
        )
    return _with_columns(target, group_size, 0, group_size)


def _with_columns(target: Target, n_rows: int, axis: int, group_size: int | None) -> Target:
    """The target as a matrix of ``n_rows``, of which each column has its own codebook."""
    tensor = target.found.tensor
    settings = replace(target.settings, codebook="per_block")
    shape = n_rows, tensor.numel() // n_rows
    layout = layout_for(shape, DTYPE_NAMES[tensor.dtype], settings)
    reason = layout_reason(layout, tensor.nbytes)
    return replace(
        target,
        axis=axis,
        group_size=group_size,
        settings=settings,
        layout=layout if reason is None else None,
        reason=reason,
    )


def turned_axis(shape: tuple[int, ...], axis: int) -> int | None:
    """The axis along which a weight's rows are columns, if there is one.

    ``axis`` is that of the rows. The weight is a matrix if only one other axis is longer than 1.
    """
    others = [i for i, size in enumerate(shape) if i != axis]
    longer = [i for i in others if shape[i] > 1]
    if len(longer) > 1:
        return None
    return (longer or others)[0]
