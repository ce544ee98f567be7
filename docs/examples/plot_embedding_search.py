"""
Search among compressed embeddings
==================================

Vectors are stored as a byte for some of their columns each, and searched without being decoded.
How many of the ten nearest rows are found, for how many bytes a vector?
"""

# %%
# Vectors as embeddings are: neighbours come in groups, and directions are not equally long. The
# queries are near to some of them.
import matplotlib.pyplot as plt
import numpy as np

from pgkmeans_sk import ProductQuantizer

rng = np.random.default_rng(0)
scales = np.linspace(2.0, 0.2, 32)
groups = rng.normal(size=(500, 32)) * scales
vectors = groups[rng.integers(500, size=8000)] + 0.5 * rng.normal(size=(8000, 32)) * scales
queries = vectors[:200] + 0.2 * rng.normal(size=(200, 32)) * scales
vectors, queries = vectors.astype(np.float32), queries.astype(np.float32)

sq_norms = (vectors**2).sum(axis=1)
nearest = np.argsort(sq_norms - 2 * queries @ vectors.T, axis=1)[:, :10]


# %%
# ``compress`` finds codebooks and packs the codes; ``topk`` compares queries, as they are, with
# codes.
def recall(found):
    return np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, nearest, strict=True)])


figure, ax = plt.subplots(layout="constrained")
for rotation, style in ((None, "o-"), ("opq", "s--")):
    n_bytes, recalls = [], []
    for block_size in (16, 8, 4):
        pq = ProductQuantizer(block_size, 256, rotation=rotation, random_state=0)
        small = pq.compress(vectors)
        _, rows = small.topk(queries, k=10)
        n_bytes.append(small.nbytes / len(vectors))
        recalls.append(recall(rows))
    ax.plot(n_bytes, recalls, style, label=f"rotation={rotation!r}")
ax.set_xlabel("bytes a vector, codebooks included (128 uncompressed)")
ax.set_ylabel("share of the ten nearest that is found")
ax.set_title("Search among codes")
ax.set_ylim(0, 1)
ax.legend(frameon=False)
plt.show()
