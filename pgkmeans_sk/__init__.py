"""k-means whose clusters never end up empty, and what is built on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pgkmeans_sk.engines.row_source import RowBlocks
from pgkmeans_sk.functional import pg_kmeans, pg_kmeans_batch
from pgkmeans_sk.kmeans import PGKMeans
from pgkmeans_sk.results import RepairRecord

if TYPE_CHECKING:
    from pgkmeans_sk.codes.matrix import CompressedMatrix
    from pgkmeans_sk.inertia_monitor import InertiaMonitor
    from pgkmeans_sk.product_quantizer import ProductQuantizer
    from pgkmeans_sk.spec import Spec
    from pgkmeans_sk.weight_files import compress_file, decompress_file, describe_file

__version__ = "0.1.0.dev0"

__all__ = [
    "CompressedMatrix",
    "InertiaMonitor",
    "PGKMeans",
    "ProductQuantizer",
    "RepairRecord",
    "RowBlocks",
    "Spec",
    "__version__",
    "compress_file",
    "decompress_file",
    "describe_file",
    "pg_kmeans",
    "pg_kmeans_batch",
]

# Who only clusters need not wait for these.
_LOADED_WHEN_ASKED_FOR = {
    "CompressedMatrix": "pgkmeans_sk.codes.matrix",
    "InertiaMonitor": "pgkmeans_sk.inertia_monitor",
    "ProductQuantizer": "pgkmeans_sk.product_quantizer",
    "Spec": "pgkmeans_sk.spec",
    "compress_file": "pgkmeans_sk.weight_files",
    "decompress_file": "pgkmeans_sk.weight_files",
    "describe_file": "pgkmeans_sk.weight_files",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name not in _LOADED_WHEN_ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LOADED_WHEN_ASKED_FOR[name]), name)


def __dir__() -> list[str]:
    """All public names."""
    return __all__
