"""
Rows in the chunks of a dask array
==================================

A dask array may be larger than memory and lie on many machines. ``PGKMeans`` takes it as it is:
rows and labels stay where they are, centres and sums travel. The result has the same bytes as that
of the same rows in memory, however they are cut.
"""

# %%
# Points on two spirals, in memory here, so that results can be compared.
import dask.array as da
import matplotlib.pyplot as plt
import numpy as np

from pgkmeans_sk import PGKMeans

rng = np.random.default_rng(0)
angle = rng.uniform(0.5, 4 * np.pi, 60_000)
side = rng.choice([-1.0, 1.0], len(angle))
spirals = side * angle * np.stack([np.cos(angle), np.sin(angle)])
X = (spirals.T + rng.normal(scale=0.3, size=(len(angle), 2))).astype(np.float32)

# %%
# Two ways to cut the rows, one result. ``labels_`` is a dask array: it is computed when asked for.
in_memory = PGKMeans(60, random_state=0).fit(X)
for chunk_rows in (25_000, 7_777):
    rows = da.from_array(X, chunks=(chunk_rows, 2))
    spread = PGKMeans(60, random_state=0).fit(rows)
    assert spread.cluster_centers_.tobytes() == in_memory.cluster_centers_.tobytes()
    assert (spread.labels_.compute() == in_memory.labels_).all()
print(spread.labels_)

# %%
# The clusters of each chunk, computed chunk by chunk.
figure, axes = plt.subplots(2, 4, figsize=(8, 4.4), sharex=True, sharey=True, layout="constrained")
for number, ax in enumerate(axes.flat):
    ax.set_aspect("equal")
    ax.set_axis_off()
    if number < rows.numblocks[0]:
        points, labels = rows.blocks[number].compute(), spread.labels_.blocks[number].compute()
        ax.scatter(*points.T, c=labels, s=0.5, cmap="prism", rasterized=True)
        ax.set_title(f"chunk {number}", fontsize=9)
figure.suptitle("60 clusters of 60 000 rows in 8 chunks")
plt.show()
