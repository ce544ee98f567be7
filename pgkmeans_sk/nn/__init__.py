"""Compressing PyTorch models: everything is a parametrization of weights (needs torch)."""

from pgkmeans_sk.nn.bake import bake
from pgkmeans_sk.nn.cached import cached
from pgkmeans_sk.nn.calibration import Calibration, calibrate
from pgkmeans_sk.nn.checkpoint import load, save
from pgkmeans_sk.nn.codebook_weight import CodebookWeight
from pgkmeans_sk.nn.compress import compress_model
from pgkmeans_sk.nn.compress_in_sequence import compress_in_sequence
from pgkmeans_sk.nn.diffq import diffq, diffq_bits, diffq_parameter_groups, remove_diffq
from pgkmeans_sk.nn.diffq_size import penalty_mb
from pgkmeans_sk.nn.diffq_weight import DiffQWeight
from pgkmeans_sk.nn.distillation import distillation_loss, teacher_of
from pgkmeans_sk.nn.dkm import dkm, remove_dkm
from pgkmeans_sk.nn.dkm_weight import DKMWeight
from pgkmeans_sk.nn.iterative_pq import IterativePQ
from pgkmeans_sk.nn.level_weight import LevelWeight
from pgkmeans_sk.nn.model_report import ModelReport
from pgkmeans_sk.nn.quant_noise import (
    noise_rates,
    quant_noise,
    refresh_codebooks,
    remove_quant_noise,
    set_noise_rate,
)
from pgkmeans_sk.nn.scalar_quantize import scalar_quantize
from pgkmeans_sk.nn.stage import Stage

__all__ = [
    "Calibration",
    "CodebookWeight",
    "DKMWeight",
    "DiffQWeight",
    "IterativePQ",
    "LevelWeight",
    "ModelReport",
    "Stage",
    "bake",
    "cached",
    "calibrate",
    "compress_in_sequence",
    "compress_model",
    "diffq",
    "diffq_bits",
    "diffq_parameter_groups",
    "distillation_loss",
    "dkm",
    "load",
    "noise_rates",
    "penalty_mb",
    "quant_noise",
    "refresh_codebooks",
    "remove_diffq",
    "remove_dkm",
    "remove_quant_noise",
    "save",
    "scalar_quantize",
    "set_noise_rate",
    "teacher_of",
]
