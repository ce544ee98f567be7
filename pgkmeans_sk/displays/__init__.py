"""Pictures of clusterings and compressed weights, as scikit-learn's Displays (needs matplotlib)."""

from pgkmeans_sk.displays.cluster_sizes import ClusterSizeDisplay
from pgkmeans_sk.displays.codebook import CodebookDisplay
from pgkmeans_sk.displays.convergence import ConvergenceDisplay
from pgkmeans_sk.displays.elbow import ElbowDisplay
from pgkmeans_sk.displays.layer_report import LayerReportDisplay
from pgkmeans_sk.displays.rate_distortion import RateDistortionDisplay

__all__ = [
    "ClusterSizeDisplay",
    "CodebookDisplay",
    "ConvergenceDisplay",
    "ElbowDisplay",
    "LayerReportDisplay",
    "RateDistortionDisplay",
]
