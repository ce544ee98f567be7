"""k-means whose clusters never end up empty, and what is built on it."""

from pgkmeans_sk.codes.matrix import CompressedMatrix
from pgkmeans_sk.functional import pg_kmeans
from pgkmeans_sk.kmeans import PGKMeans
from pgkmeans_sk.product_quantizer import ProductQuantizer
from pgkmeans_sk.results import RepairRecord
from pgkmeans_sk.spec import Spec
from pgkmeans_sk.weight_files import compress_file, decompress_file, describe_file

__version__ = "0.1.0.dev0"

__all__ = [
    "CompressedMatrix",
    "PGKMeans",
    "ProductQuantizer",
    "RepairRecord",
    "Spec",
    "__version__",
    "compress_file",
    "decompress_file",
    "describe_file",
    "pg_kmeans",
]
