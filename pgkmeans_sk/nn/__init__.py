"""Compressing PyTorch models: everything is a parametrization of weights (needs torch)."""

from pgkmeans_sk.nn.bake import bake
from pgkmeans_sk.nn.cached import cached
from pgkmeans_sk.nn.checkpoint import load, save
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.compress import compress_model
from pgkmeans_sk.nn.model_report import ModelReport

__all__ = ["CodebookWeight", "ModelReport", "bake", "cached", "compress_model", "load", "save"]
