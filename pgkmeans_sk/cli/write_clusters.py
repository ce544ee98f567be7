"""What a clustering found, as files of several kinds, each written wholly or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pgkmeans_sk.codes.atomic import replaced
from pgkmeans_sk.kmeans import PGKMeans

OF_LABELS = (".npz", ".npy", ".csv")
OF_CENTERS = (".npy", ".csv")


def check_kind(path: Path, kinds: tuple[str, ...]) -> None:
    """Raise unless the name ends in one of ``kinds``."""
    if path.suffix.lower() not in kinds:
        raise ValueError(
            f"{path}: got a name that ends in {path.suffix!r}, but expected one of "
            f"{', '.join(kinds)}."
        )


def write_clusters(path: Path, kmeans: PGKMeans) -> None:
    """Write labels and centres (.npz), or labels alone (.npy, .csv)."""
    kind = path.suffix.lower()
    with replaced(path) as file:
        if kind == ".npz":
            np.savez(
                file,
                labels=kmeans.labels_,
                centers=kmeans.cluster_centers_,
                inertia=np.float64(kmeans.inertia_),
            )
        elif kind == ".npy":
            np.save(file, kmeans.labels_)
        else:
            file.write("\n".join(["label", *map(str, kmeans.labels_.tolist()), ""]).encode())


def write_centers(path: Path, kmeans: PGKMeans) -> None:
    """Write centres, one a row."""
    centers = kmeans.cluster_centers_
    with replaced(path) as file:
        if path.suffix.lower() == ".npy":
            np.save(file, centers)
        else:
            names = getattr(kmeans, "feature_names_in_", range(centers.shape[1]))
            # As many digits as bring the same numbers back.
            digits = "%.9g" if centers.dtype == np.float32 else "%.17g"
            header = ",".join(map(str, names))
            np.savetxt(file, centers, digits, delimiter=",", header=header, comments="")
