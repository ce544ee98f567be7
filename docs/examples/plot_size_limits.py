"""
Clusters of limited size
========================

Districts, shards and batches should be about equally large. With ``size_min`` and ``size_max``
clusters stay within limits, at the least inertia that such an assignment can have for its
centres.
"""

# %%
# A town with a crowded centre.
import matplotlib.pyplot as plt
import numpy as np

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.displays import ClusterSizeDisplay

rng = np.random.default_rng(0)
homes = np.concatenate([rng.normal(size=(2000, 2)), rng.uniform(-5, 5, size=(1000, 2))])
free = PGKMeans(12, random_state=0).fit(homes)
limited = PGKMeans(12, size_min=240, size_max=260, random_state=0).fit(homes)

# %%
figure, axes = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
for column, (kmeans, title) in enumerate(((free, "without limits"), (limited, "240 to 260"))):
    axes[0, column].scatter(*homes.T, c=kmeans.labels_, s=4, cmap="tab20")
    axes[0, column].set_title(f"{title}: inertia {kmeans.inertia_:.0f}")
    axes[0, column].set_axis_off()
    ClusterSizeDisplay.from_estimator(kmeans, ax=axes[1, column])
plt.show()
