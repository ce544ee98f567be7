"""Specs that have names."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from os import PathLike, fspath
from typing import Any

from torch import nn

from pgkmeans_sk.nn.selection import find_tensors
from pgkmeans_sk.spec import Rule, Spec, TensorSettings
from pgkmeans_sk.spec_yaml import read_spec

PRESETS = ("auto", "ipq")


def resolved_spec(
    given: Spec | TensorSettings | Mapping[str, Any] | str | PathLike[str] | None,
    model: nn.Module,
    *,
    has_calibration: bool,
) -> Spec:
    """The spec that is meant: a preset for this model, the content of a YAML file, or itself.

    Raises
    ------
    ValueError, TypeError
        If it is something else.
    OSError
        If the file cannot be read.
    """
    if given == "ipq":
        return ipq_spec(model)
    if given == "auto":
        return auto_spec(has_calibration)
    if isinstance(given, str | PathLike):
        path = fspath(given)
        if not path.endswith((".yaml", ".yml")):
            raise ValueError(
                f"Got spec={path!r}, but expected the path of a YAML file (.yaml, .yml) or one of "
                f"{', '.join(map(repr, PRESETS))}."
            )
        return read_spec(path)
    return Spec.of(given)


def auto_spec(has_calibration: bool) -> Spec:
    """The settings that kept most of a model's quality at about two bits a weight.

    Raises
    ------
    ValueError
        Without a calibration.
    """
    if not has_calibration:
        raise ValueError(
            'Got spec="auto" without importance, but expected what calibrate returns: it is by '
            "error feedback that so few bits are enough."
        )
    embeddings = {"block_size": 6, "scale": "row", "feedback": False}
    return Spec(
        TensorSettings(block_size=3, feedback=True),
        tuple(Rule(type=kind, settings=embeddings) for kind in ("Embedding", "EmbeddingBag")),
    )


def ipq_spec(model: nn.Module) -> Spec:
    """The block sizes of iPQ: 8 for linear layers and embeddings, 4 in attention; kernels whole.

    Convolutions of 3 x 3 have blocks of 9, those of 1 x 1 of 4 (Fan et al. 2020, section 7.7;
    Stock et al. 2019, section 4.1).
    """
    rules = [Rule(regex=r"(?i).*(attention|attn)[^.]*\..*", settings={"block_size": 4})]
    for found in find_tensors(model):  # weights with Quant-Noise too, which modules do not list
        for place in found.places:
            is_convolution = isinstance(place.module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            if not is_convolution or place.tensor_name != "weight":
                continue
            if place.stored_weight is not None:
                continue
            kernel = prod(found.tensor.shape[2:])
            settings = {"block_size": 4 if kernel == 1 else kernel}
            rules.append(Rule(regex=_literal(place.name), settings=settings))
    return Spec(rules=tuple(rules))


def _literal(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else f"\\{c}" for c in name)
