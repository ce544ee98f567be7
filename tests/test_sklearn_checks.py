"""scikit-learn's own checks of estimators, in full, for several settings."""

import os
import subprocess
import sys

import pytest
import sklearn
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.fixes import parse_version

from pgkmeans_sk import PGKMeans, ProductQuantizer

SETTINGS = [
    {},
    {"algorithm": "lloyd"},
    {"algorithm": "elkan", "tol": 0.0},
    {"metric": "cosine"},
    {"consolidate": "exact"},
    {"consolidate": "auto"},
    {"init": "partition-ball"},
    {"init": "partition-principal", "n_init": 1},
    {"init": "k-means++", "random_state": 0},
    {"init": "random", "n_init": 2},
    {"size_min": 1},
]

# The default estimator passes these two, which scikit-learn's own KMeans does not.
DRAWN_BY_ROW_NUMBER = dict.fromkeys(
    (
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    ),
    "rows are drawn by their number, so that a row twice and a row of weight 2 draw another",
)


CALLS_PARTIAL_FIT = dict.fromkeys(
    (
        "check_fit_score_takes_y",
        "check_n_features_in_after_fitting",
        "check_estimators_partial_fit_n_features",
    ),
    "partial_fit refuses size limits",
)


def expected_failures(estimator):
    if estimator.size_min is not None:
        return CALLS_PARTIAL_FIT
    return DRAWN_BY_ROW_NUMBER if estimator.init in ("k-means++", "random") else {}


@parametrize_with_checks(
    [PGKMeans(n_clusters=3, max_iter=5, **setting) for setting in SETTINGS],
    expected_failed_checks=expected_failures,
)
def test_estimator(estimator, check):
    check(estimator)


QUANTIZERS = [
    {},
    {"codebook": "shared", "n_stages": 2},
    {"rotation": "hadamard", "scale": "row"},
    {"rotation": "opq", "codebook_dtype": "float32"},
    {"quantizer": PGKMeans(max_iter=3), "scale": "block"},
]


ROUNDING_DECIDES = {
    "check_sample_weight_equivalence_on_dense_data": "15 rows leave half of 30 directions without "
    "variance, where a learned rotation may be anything"
}


# Tables of five rows have no four distinct residuals.
@pytest.mark.filterwarnings("ignore:.*codebooks have fewer than n_codes")
@parametrize_with_checks(
    [ProductQuantizer(block_size=2, n_codes=4, **setting) for setting in QUANTIZERS],
    expected_failed_checks=lambda quantizer: (
        ROUNDING_DECIDES if quantizer.rotation == "opq" else {}
    ),
)
def test_quantizer(estimator, check):
    check(estimator)


def test_nothing_is_expected_to_fail_by_default():
    assert expected_failures(PGKMeans()) == {}


ARRAY_API_CHECK = """
import unittest
from pgkmeans_sk import PGKMeans
from sklearn.utils.estimator_checks import estimator_checks_generator
for estimator, check in estimator_checks_generator(PGKMeans(n_clusters=3, max_iter=5)):
    if "array_api" in check.func.__name__:
        others = check.keywords
        try:
            check(estimator)
        except unittest.SkipTest:  # a library or a device that is not here
            continue
        kinds = [others.get("array_namespace"), others.get("device_name")]
        kinds += [pair.xp for name, pair in others.items() if name.endswith("ns_and_device")]
        print(check.func.__name__, *[kind for kind in kinds if kind])
"""


@pytest.fixture(scope="module")
def array_api_checks():
    """The checks of scikit-learn that other arrays than NumPy's have passed."""
    # Skipped above unless SciPy was told before its import to let other arrays in.
    finished = subprocess.run(
        [sys.executable, "-c", ARRAY_API_CHECK],
        env={**os.environ, "SCIPY_ARRAY_API": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def test_arrays_of_the_array_api(array_api_checks):
    pytest.importorskip("array_api_strict", reason="the check brings its arrays from there")
    # Before 1.9, scikit-learn had this check alone.
    assert any(line.startswith("check_array_api_input") for line in array_api_checks)
    if parse_version(sklearn.__version__) >= parse_version("1.9"):
        assert any("array_api_strict" in line for line in array_api_checks)
        assert "check_array_api_same_namespace array_api_strict" in array_api_checks


def test_tensors_by_the_array_api(array_api_checks):
    pytest.importorskip("torch")
    if parse_version(sklearn.__version__) >= parse_version("1.9"):
        assert "check_array_api_input torch cpu" in array_api_checks
