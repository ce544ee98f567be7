"""Layers with ``nn.dkm``, and what is in them."""

import torch

from pgkmeans_sk import nn


def weight_of(module, name="weight"):
    return module.parametrizations[name][0]


def original_of(module, name="weight"):
    return module.parametrizations[name].original


def layer_of(n_rows=24, n_columns=20, dtype=torch.float64, **options):
    torch.manual_seed(0)
    layer = torch.nn.Linear(n_columns, n_rows, dtype=dtype)
    nn.dkm(layer, **{"bits": 2, **options})
    return layer
