"""
What empty clusters do
======================

Where do first centres come from? From a codebook that was found for other data, say, or from
numbers that were drawn at random. Some of them are nearest to no row: they own nothing, and
Lloyd's iteration has no mean to move them to. What becomes of them?
"""

# %%
# Forty blobs, and forty centres of data that spread wider.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from pgkmeans_sk import PGKMeans

X, _ = make_blobs(2000, centers=40, cluster_std=0.25, random_state=3)
first = np.random.default_rng(0).uniform(2.5 * X.min(axis=0), 2.5 * X.max(axis=0), size=(40, 2))


# %%
# Left alone, an empty cluster stays where it is.
def left_alone(X, centers, n_steps=100):
    for _ in range(n_steps):
        labels = ((X[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
        for cluster in np.unique(labels):
            centers[cluster] = X[labels == cluster].mean(axis=0)
    return centers


# %%
# scikit-learn puts the empty centres on the rows farthest from theirs. PG k-means partitions the
# clusters with the largest squared error instead: where rows are many and far, there centres are
# missed.
found = {
    "left alone": left_alone(X, first.copy()),
    "scikit-learn": KMeans(40, init=first, n_init=1).fit(X).cluster_centers_,
    "PGKMeans": PGKMeans(40, init=first).fit(X).cluster_centers_,
}

figure, axes = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained", sharey=True)
for ax, (name, centers) in zip(axes, found.items(), strict=True):
    sq_distances = ((X[:, None] - centers) ** 2).sum(axis=2)
    used = np.unique(sq_distances.argmin(axis=1))
    ax.scatter(*X.T, s=2, color="0.7")
    ax.set_xlim(ax.get_xlim())  # not as far as the centres that own nothing
    ax.set_ylim(ax.get_ylim())
    ax.scatter(*centers[used].T, marker="x", color="#0072B2", label="centres")
    ax.set_title(f"{name}\n{40 - len(used)} empty, inertia {sq_distances.min(axis=1).sum():.0f}")
    ax.set_axis_off()
plt.show()

# %%
# With starts of their own, both do better; the difference is smaller.
for kmeans in (KMeans(40, random_state=0), PGKMeans(40, random_state=0)):
    print(f"{type(kmeans).__name__}: inertia {kmeans.fit(X).inertia_:.0f}")
