"""
A codebook of digits
====================

The centres of clusters of pictures are pictures. With 40 of them for the 1797 digits of
scikit-learn, each stands for a way to write one; none is left without a digit of its own.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.displays import ClusterSizeDisplay, CodebookDisplay

digits = load_digits()
kmeans = PGKMeans(n_clusters=40, random_state=0).fit(digits.data)
CodebookDisplay.from_estimator(kmeans, shape=(8, 8), cmap="gray_r")
plt.show()

# %%
# How many digits each of them stands for.
ClusterSizeDisplay.from_estimator(kmeans)
plt.show()

# %%
# Without having seen a label, most clusters hold one digit only.
commonest = [np.bincount(digits.target[kmeans.labels_ == c]).max() for c in range(40)]
print(f"{100 * np.sum(commonest) / len(digits.data):.1f} % are like most of their cluster")
