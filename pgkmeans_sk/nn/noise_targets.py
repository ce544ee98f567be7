"""Which weights of a module get Quant-Noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from pgkmeans_sk.nn.layers import ROWS, row_axis, type_names
from pgkmeans_sk.nn.selection import DTYPE_NAMES, FoundTensor, Place, find_tensors
from pgkmeans_sk.spec import Spec, TensorSettings
from pgkmeans_sk.weight_plan import reason_to_carry


@dataclass(frozen=True, eq=False, kw_only=True)
class NoiseTarget:
    """A weight that gets noise.

    Attributes
    ----------
    name : str
        Its first name.
    places : tuple of Place
        Once for each module that has it: tied weights have several.
    parameter : Parameter
        The weight.
    axis : int
        The axis that is the rows of its matrix.
    settings : TensorSettings
        Of the first name.
    padding_row : int or None
        The row of an embedding that stands for padding.
    """

    name: str
    places: tuple[Place, ...]
    parameter: nn.Parameter
    axis: int
    settings: TensorSettings
    padding_row: int | None


def noise_targets(module: nn.Module, spec: Spec, kind: str) -> list[NoiseTarget]:
    """The weights that a spec does not skip, in the order of the module.

    Raises
    ------
    ValueError
        If there are none, or one of them has a parametrization already.
    """
    targets = []
    reasons = {}
    for found in find_tensors(module):
        if _is_weight(found, spec):
            settings = _settings(found.places[0], spec)
            reason = _reason(found, settings, kind)
            if reason is None:
                targets.append(_target(found, settings))
            else:
                reasons[found.name] = reason
    if not targets:
        known = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ValueError(
            f"Got a {type(module).__name__} without weights for noise, but expected one of "
            f"{', '.join(ROWS)}, or a model with some of them{f' ({known})' if known else ''}."
        )
    for target in targets:
        _check_plain(target)
    return targets


def _is_weight(found: FoundTensor, spec: Spec) -> bool:
    """Whether a layer in the table has it as a weight, or the spec names it."""
    if not found.is_parameter or isinstance(found.places[0].module, nn.RNNBase):
        return False
    for place in found.places:
        types = type_names(place.module)
        known = next((ROWS[name] for name in types if name in ROWS), {})
        if place.tensor_name in known or spec.changes_for(place.name, types).get("skip") is False:
            return True
    return False


def _settings(place: Place, spec: Spec) -> TensorSettings:
    return spec.settings_for(place.name, type_names(place.module))


def _reason(found: FoundTensor, settings: TensorSettings, kind: str) -> str | None:
    """Why a weight is left alone; None if it is not."""
    if is_lazy(found.tensor):
        return "not initialised yet"
    if any(getattr(place.module, "max_norm", None) is not None for place in found.places):
        return "its rows are written when they are read (max_norm)"
    shape = tuple(found.tensor.shape)
    dtype = DTYPE_NAMES.get(found.tensor.dtype, str(found.tensor.dtype))
    reason = reason_to_carry(shape, dtype, settings)
    if reason is None and kind == "pq":
        n_rows = shape[_axis(found)]
        n_columns = found.tensor.numel() // n_rows
        n_blocks = n_rows * (n_columns // min(settings.block_size, n_columns))
        if n_blocks < settings.n_codes:
            return f"{n_blocks} blocks, fewer than n_codes={settings.n_codes}"
    return reason


def _axis(found: FoundTensor) -> int:
    return row_axis(found.places[0].module, found.places[0].tensor_name)


def _target(found: FoundTensor, settings: TensorSettings) -> NoiseTarget:
    places = found.unique_places()
    assert isinstance(found.tensor, nn.Parameter)
    paddings = [
        place.module.padding_idx
        for place in places
        if isinstance(place.module, nn.Embedding | nn.EmbeddingBag)
    ]
    return NoiseTarget(
        name=found.name,
        places=places,
        parameter=found.tensor,
        axis=_axis(found),
        settings=settings,
        padding_row=next((row for row in paddings if row is not None), None),
    )


def _check_plain(target: NoiseTarget) -> None:
    """Raise if a weight has a parametrization already."""
    for place in target.places:
        parametrizations = place.parametrizations
        if parametrizations is None:
            continue
        kinds = list(parametrizations.children())
        if getattr(kinds[0], "is_noise", False):
            raise ValueError(
                f"Got {place.name!r}, which has noise already, but expected a weight without: "
                "remove_quant_noise first, or change p with set_noise_rate."
            )
        raise ValueError(
            f"Got {place.name!r}, which is parametrized by "
            f"{', '.join(type(kind).__name__ for kind in kinds)}, but expected a plain weight."
        )
