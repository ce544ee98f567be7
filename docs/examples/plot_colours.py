"""
Colours of a photo
==================

A photo has some hundred thousand pixels, and 96 615 different colours. How does it look in 16 of
them? The colours are the centres of k-means on the pixels, and each pixel gets the nearest.
"""

# %%
# Pixels are rows with three columns.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

from pgkmeans_sk import PGKMeans
from pgkmeans_sk.displays import CodebookDisplay

photo = load_sample_image("china.jpg").astype(np.float32) / 255
pixels = photo.reshape(-1, 3)
print(f"{len(pixels):,} pixels, {len(np.unique(pixels, axis=0)):,} colours")

# %%
# Clusters have labels; the centres of the labels are the picture again.
kmeans = PGKMeans(n_clusters=16, random_state=0).fit(pixels)
reduced = kmeans.cluster_centers_[kmeans.labels_].reshape(photo.shape)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
for ax, picture, title in zip(axes, (photo, reduced), ("the photo", "16 colours"), strict=True):
    ax.imshow(picture)
    ax.set_title(title)
    ax.set_axis_off()
plt.show()

# %%
# The palette. Four bits name a colour, so that the picture takes a sixth of its 24 bits a pixel.
CodebookDisplay.from_estimator(kmeans, shape=(1, 1, 3))
plt.show()
