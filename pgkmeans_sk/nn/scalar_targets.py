"""Which weights ``scalar_quantize`` takes, and as which matrix each of them is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from os import PathLike
from typing import Any

from torch import nn

from pgkmeans_sk.nn.presets import resolved_spec
from pgkmeans_sk.nn.selection import DTYPE_NAMES, Target, find_targets
from pgkmeans_sk.spec import Rule, Spec, TensorSettings
from pgkmeans_sk.weight_plan import layout_for, layout_reason

GRANULARITIES = ("tensor", "row", "group")

SpecLike = Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None

KEPT = ("skip", "min_size", "codebook_dtype", "n_codes", "importance")
"""Settings that mean something where blocks are single values."""

REFUSED = {"n_stages": 1, "rotation": None, "scale": None, "feedback": False, "group": None}
"""Settings that would change what is stored, with the values that do not."""


def scalar_targets(
    model: nn.Module, spec: SpecLike, bits: int, granularity: str, group_size: int
) -> tuple[list[Target], Spec]:
    """Every tensor of a model with what is to become of it, and the spec that says so.

    ``settings.n_codes`` of a target is how many words a codebook has; ``layout`` and ``axis`` are
    those of the matrix that is stored.

    Raises
    ------
    ValueError
        If the spec says what single values cannot be, or a row is no whole number of groups.
    """
    scalar = scalar_spec(resolved_spec(spec, model, has_calibration=True), bits)
    targets = find_targets(model, scalar)
    if granularity != "tensor":
        size = group_size if granularity == "group" else None
        targets = [_by_line(target, size) for target in targets]
    return targets, scalar


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
    rules = tuple(
        replace(rule, settings={name: rule.settings[name] for name in KEPT if name in rule.settings})
        for rule in spec.rules
    )
    defaults = replace(spec.defaults, block_size=1, n_codes=n_codes, codebook="shared")
    return Spec(defaults, rules)


def _all_settings(spec: Spec) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "the defaults", {name: getattr(spec.defaults, name) for name in REFUSED}
    for rule in spec.rules:
        yield f"the rule for {rule}", rule.settings


def _by_line(target: Target, group_size: int | None) -> Target:
    """The target with a codebook for each row, or for each ``group_size`` values of a row.

    The values that share a codebook become a column of the matrix that is stored. Those of a row
    are one if the weight is turned: its rows are then along the axis of what a row is a sum over.
    """
    if target.layout is None:
        return target
    shape = tuple(target.found.tensor.shape)
    row_length = prod(shape) // shape[target.axis]
    axis = turned_axis(shape, target.axis)
    if group_size is not None or axis is None:
        raise NotImplementedError  # TODO
    settings = replace(target.settings, codebook="per_block")
    dtype = DTYPE_NAMES[target.found.tensor.dtype]
    layout = layout_for((row_length, shape[target.axis]), dtype, settings)
    reason = layout_reason(layout, target.found.tensor.nbytes)
    return replace(
        target,
        axis=axis,
        settings=settings,
        layout=layout if reason is None else None,
        reason=reason,
    )


def turned_axis(shape: tuple[int, ...], axis: int) -> int | None:
    """The axis along which a weight's rows are columns, if there is one.

    ``axis`` is that of the rows. Only one other axis may be longer than 1.
    """
    others = [i for i, size in enumerate(shape) if i != axis]
    longer = [i for i in others if shape[i] > 1]
    if len(longer) > 1:
        return None
    return (longer or others)[0]
