"""Layers that are compressed together, one group after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pgkmeans_sk.nn.layer_kinds import KINDS, kind_of
from pgkmeans_sk.nn.layers import type_names
from pgkmeans_sk.nn.selection import Place, Target
from pgkmeans_sk.spec import PATTERNS, Rule

ORDERS = ("ipq", "input_to_output")
OTHERS = "others"
"""The name of the group of all that no other group is for."""

Groups = str | Mapping[str, Any] | Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Weights that are compressed at the same time.

    Attributes
    ----------
    name : str
        What to call it.
    tensors : tuple of str
        The weights, by their first names, in the order of the model.
    """

    name: str
    tensors: tuple[str, ...]


def layer_groups(targets: Sequence[Target], groups: Groups) -> tuple[LayerGroup, ...]:
    """Put each weight that is to be compressed into one group, in the order of their turns.

    Parameters
    ----------
    targets : sequence of Target
        All tensors of a model. Those that are compressed already are in no group, but may be what
        a pattern is for.
    groups : str, list or dict
        As of ``IterativePQ``.

    Returns
    -------
    groups : tuple of LayerGroup
        None of them empty.

    Raises
    ------
    ValueError, TypeError
        If ``groups`` is none that is accepted, a group would be empty, or weights that are to share
        a codebook are in different groups.
    """
    chosen = [target for target in targets if target.layout is not None]
    if isinstance(groups, str):
        if groups not in ORDERS:
            raise ValueError(
                f"Got groups={groups!r}, but expected one of {', '.join(map(repr, ORDERS))}, or a "
                "list or dict of patterns."
            )
        if groups == "input_to_output" or _is_convolutional(targets):
            return _one_by_one(chosen)
        found = _by_kind(chosen)
    else:
        found = _by_pattern(targets, groups)
    _check_shared_codebooks(found)
    return tuple(
        LayerGroup(name=name, tensors=tuple(target.found.name for target in members))
        for name, members in found.items()
        if members
    )


def _is_convolutional(targets: Iterable[Target]) -> bool:
    """Whether there are convolutions, and no attention."""
    places = [place for target in targets for place in target.found.places]
    has_convolution = any(isinstance(place.module, nn.modules.conv._ConvNd) for place in places)
    return has_convolution and all(
        kind_of(target.found) != "attention"
        for target in targets
        if target.layout is not None or _is_compressed(target)
    )


def _is_compressed(target: Target) -> bool:
    return target.found.places[0].stored_weight is not None


def _one_by_one(chosen: Iterable[Target]) -> tuple[LayerGroup, ...]:
    """A group for each module; weights that share a codebook come with the first of them."""
    layers: dict[object, list[str]] = {}
    for target in chosen:
        key = target.settings.group or id(target.found.places[0].module)
        layers.setdefault(key, []).append(target.found.name)
    return tuple(
        LayerGroup(name=names[0].rpartition(".")[0] or names[0], tensors=tuple(names))
        for names in layers.values()
    )


def _by_kind(chosen: Iterable[Target]) -> dict[str, list[Target]]:
    found: dict[str, list[Target]] = {kind: [] for kind in (*KINDS, OTHERS)}
    for target in chosen:
        found[kind_of(target.found) or OTHERS].append(target)
    return found


def _by_pattern(targets: Sequence[Target], groups: Any) -> dict[str, list[Target]]:
    fits = {name: _fits(name, pattern) for name, pattern in _named(groups).items()}
    found: dict[str, list[Target]] = {name: [] for name in (*fits, OTHERS)}
    is_used = dict.fromkeys(fits, False)
    for target in targets:
        if target.layout is None and not _is_compressed(target):
            continue
        names = (n for n, fit in fits.items() if any(map(fit, target.found.places)))
        name = next(names, OTHERS)
        is_used[name] = True
        if target.layout is not None:
            found[name].append(target)
    for name in fits:
        if not is_used[name]:
            raise ValueError(
                f"Got the group {name!r}, but expected one that weights belong to: of those that "
                "the spec compresses none fits it that is not in a group before. Patterns are for "
                "whole names of tensors, as '*.fc1.weight'."
            )
    return found


def _named(groups: Any) -> dict[str, Any]:
    if not isinstance(groups, Mapping):
        if not isinstance(groups, Sequence) or isinstance(groups, str | bytes):
            raise TypeError(
                f"Got groups of type {type(groups).__name__}, but expected a string, a list or a "
                "dict."
            )
        groups = _with_names(groups)
    if not groups:
        raise ValueError("Got groups without any, but expected at least one.")
    for name in groups:
        if not isinstance(name, str) or not name or name == OTHERS:
            raise ValueError(
                f"Got a group called {name!r}, but expected a text other than {OTHERS!r}, which is "
                "the name of what no group is for."
            )
    return dict(groups)


def _with_names(patterns: Sequence[Any]) -> dict[str, Any]:
    """Patterns that are their own names."""
    found: dict[str, Any] = {}
    for pattern in patterns:
        name = _text(pattern)
        if name in found:
            raise ValueError(f"Got the group {name!r} twice, but expected it once.")
        found[name] = pattern
    return found


def _text(pattern: Any) -> str:
    if isinstance(pattern, re.Pattern):
        return str(pattern.pattern)
    if isinstance(pattern, type):
        return pattern.__name__
    if isinstance(pattern, list | tuple):
        return " | ".join(map(_text, pattern))
    if isinstance(pattern, Mapping):
        return " and ".join(f"{key} {value!r}" for key, value in pattern.items())
    return str(pattern)


def _fits(name: str, pattern: Any) -> Callable[[Place], bool]:
    """Whether a place is meant by what was given for the group ``name``."""
    if isinstance(pattern, list | tuple) and pattern:
        parts = [_fits(name, part) for part in pattern]
        return lambda place: any(part(place) for part in parts)
    if isinstance(pattern, re.Pattern) and isinstance(pattern.pattern, str):
        return lambda place: pattern.fullmatch(place.name) is not None
    if isinstance(pattern, type) and issubclass(pattern, nn.Module):
        return lambda place: isinstance(place.module, pattern)
    if isinstance(pattern, str) and pattern:
        rule = Rule(match=pattern)
    elif isinstance(pattern, Mapping) and pattern and set(pattern) <= set(PATTERNS):
        rule = Rule(**pattern)
    elif isinstance(pattern, Rule) and not pattern.settings:
        rule = pattern
    else:
        raise TypeError(
            f"Got {pattern!r} for the group {name!r}, but expected a glob, a compiled regular "
            "expression, a class of modules, a rule without settings, or a list of these."
        )
    return lambda place: rule.fits(place.name, type_names(place.module))


def _check_shared_codebooks(groups: Mapping[str, Sequence[Target]]) -> None:
    homes: dict[str, tuple[str, str]] = {}
    for name, members in groups.items():
        for target in members:
            shared = target.settings.group
            if shared is None:
                continue
            home, first = homes.setdefault(shared, (name, target.found.name))
            if home != name:
                raise ValueError(
                    f"Got {first!r} in the group {home!r} and {target.found.name!r} in {name!r}, "
                    f"but expected them in one: the spec lets them share a codebook ({shared!r})."
                )
