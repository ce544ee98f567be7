"""
What empty clusters do
======================

K-means is begun from rows that are drawn with replacement, as the usual code for product
quantization of weights does. Where the same row is drawn twice, one of the two centres owns
nothing. What becomes of it?
"""

# %%
# Forty blobs, and forty first centres of which many are copies.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from pgkmeans_sk import PGKMeans

X, _ = make_blobs(2000, centers=40, cluster_std=0.25, random_state=3)
rng = np.random.default_rng(0)
first = X[rng.choice(rng.choice(len(X), 25), size=40)]
print(len(np.unique(first, axis=0)), "of 40 first centres are different")


# %%
# Left alone, an empty cluster stays empty: no row is ever nearer to its centre than to the other
# one.
def left_alone(X, centers, n_steps=100):
    for _ in range(n_steps):
        labels = ((X[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
        centers = np.array([X[labels == c].mean(axis=0) if c in labels else centers[c]
                            for c in range(len(centers))])  # fmt: skip
    return centers


# %%
# scikit-learn puts the empty centres on the rows farthest from theirs. PG k-means partitions the
# clusters with the largest squared error instead: where rows are many and far, there centres are
# missed.
found = {
    "left alone": left_alone(X, first),
    "scikit-learn": KMeans(40, init=first, n_init=1).fit(X).cluster_centers_,
    "PGKMeans": PGKMeans(40, init=first).fit(X).cluster_centers_,
}

figure, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained", sharey=True)
for ax, (name, centers) in zip(axes, found.items(), strict=True):
    sq_distances = ((X[:, None] - centers) ** 2).sum(axis=2)
    used = np.unique(sq_distances.argmin(axis=1))
    ax.scatter(*X.T, s=2, color="0.7")
    ax.scatter(*centers[used].T, marker="x", color="#0072B2", label="centres")
    ax.set_title(f"{name}\n{40 - len(used)} empty, inertia {sq_distances.min(axis=1).sum():.0f}")
    ax.set_axis_off()
plt.show()
