"""
How many clusters?
==================

The inertia falls with each further cluster, fast while clusters are missed and slowly when groups
are only cut up. ``ElbowDisplay`` fits a path: each fit begins with the centres of the one before,
and takes new ones from its worst clusters.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_blobs

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.displays import ElbowDisplay

corners = 4.0 * np.exp(2j * np.pi * np.arange(6) / 6)
X, _ = make_blobs(
    3000, centers=np.column_stack([corners.real, corners.imag]), cluster_std=0.6, random_state=0
)
display = ElbowDisplay.from_estimator(PGKMeans(random_state=0), X, n_clusters=range(2, 19))
plt.show()

# %%
# The elbow is where the curve is farthest below the straight line between its ends. It is a hint,
# not more: data without any clusters have one, too.
display.elbow

# %%
# The clusters at the elbow.
kmeans = PGKMeans(display.elbow, random_state=0).fit(X)
figure, ax = plt.subplots(layout="constrained")
ax.scatter(*X.T, c=kmeans.labels_, s=4, cmap="tab10")
ax.scatter(*kmeans.cluster_centers_.T, marker="x", color="black")
ax.set_title(f"{display.elbow} clusters")
ax.set_axis_off()
plt.show()
