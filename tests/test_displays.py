"""Displays draw what the data say; judged by artists, not by pixels."""

import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from pgkmeans_sk import PGKMeans, ProductQuantizer, RepairRecord
from pgkmeans_sk.displays import (
    ClusterSizeDisplay,
    CodebookDisplay,
    ConvergenceDisplay,
    ElbowDisplay,
    LayerReportDisplay,
    RateDistortionDisplay,
    canvas,
)
from pgkmeans_sk.inertia_monitor import IterationRecord
from pgkmeans_sk.weight_report import FileReport, TensorReport
from tests.problems import blobs, rows

matplotlib = pytest.importorskip("matplotlib")
X = rows("normal", 300, 3, seed=0)


@pytest.fixture(autouse=True)
def _no_windows():
    import matplotlib.pyplot as plt

    backend = matplotlib.get_backend()
    plt.switch_backend("Agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture
def two_axes():
    import matplotlib.pyplot as plt

    return plt.subplots(1, 2)[1]


def texts(display):
    """What the legend says."""
    ax = display.ax_[0] if isinstance(display.ax_, list) else display.ax_
    return [text.get_text() for text in ax.get_legend().get_texts()]


def drawn(figure):
    """Draw in earnest: some mistakes show only then."""
    figure.canvas.draw()
    return figure


# ------------------------------------------------------------------ what all have in common


def record(start, iteration, inertia, fit=0):
    return IterationRecord(fit, start, iteration, inertia, 0.1 * iteration)


RECORDS = [record(0, 1, 9.0), record(0, 2, 7.0), record(1, 1, 8.0), record(1, 2, 6.0)]


def tensor(name, n, stored, error, because=None):
    return TensorReport(
        name=name,
        aliases=(),
        shape=(n,),
        dtype="F32",
        original_bytes=4 * n,
        stored_bytes=stored,
        relative_error=error,
        carried_because=because,
    )


REPORT = FileReport(
    path="model",
    n_bytes=400,
    header_bytes=8,
    original_bytes=4000,
    tensors=(
        tensor("first", 100, 50, 0.3),
        tensor("bias", 10, 40, 0.0, "fewer than 2 axes"),
        tensor("second", 300, 100, 0.1),
    ),
)

DISPLAYS = {
    "sizes": lambda: ClusterSizeDisplay([3, 2, 0]),
    "convergence": lambda: ConvergenceDisplay(RECORDS),
    "elbow": lambda: ElbowDisplay([1, 2, 3], [9.0, 3.0, 2.0]),
    "rates": lambda: RateDistortionDisplay({"a": [(1.0, 0.5), (2.0, 0.2)]}),
    "codebook": lambda: CodebookDisplay(np.arange(8.0).reshape(2, 4)),
}


@pytest.mark.parametrize("name", DISPLAYS)
def test_draws_on_the_axes_it_is_given(name, two_axes):
    display = DISPLAYS[name]()
    assert display.plot(two_axes[1]) is display
    assert display.ax_ is two_axes[1]
    assert display.figure_ is two_axes[1].figure
    assert not two_axes[0].has_data()
    drawn(display.figure_)


@pytest.mark.parametrize("name", [*DISPLAYS, "layers"])
def test_makes_a_figure_each_time_it_is_given_none(name):
    display = DISPLAYS[name]() if name in DISPLAYS else LayerReportDisplay(REPORT)
    first = display.plot().figure_
    assert display.plot().figure_ is not first
    drawn(first)


def test_says_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install pgkmeans_sk\[plot\]"):
        ClusterSizeDisplay([1, 2]).plot()


def test_no_global_setting_is_changed():
    before = dict(matplotlib.rcParams)
    for make in DISPLAYS.values():
        make().plot()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("n", [1, 39, 40, 41, 60])
def test_names_are_cut_in_the_middle(n):
    name = "".join(chr(ord("a") + i % 26) for i in range(n))
    short = canvas.shortened(name, 40)
    assert len(short) == min(n, 40)
    if n > 40:
        head, tail = short.split("\N{HORIZONTAL ELLIPSIS}")
        assert name.startswith(head)
        assert name.endswith(tail)
    else:
        assert short == name


# ------------------------------------------------------------------ sizes


def test_sizes_are_those_of_the_labels():
    kmeans = PGKMeans(7, random_state=0).fit(X)
    display = ClusterSizeDisplay.from_estimator(kmeans)
    expected = np.bincount(kmeans.labels_)
    np.testing.assert_array_equal(display.sizes, expected)
    np.testing.assert_array_equal(display.bars_.get_data().values, np.sort(expected)[::-1])
    assert display.ax_.get_title(loc="left") == "7 clusters, none of them empty"


def test_empty_clusters_are_marked():
    # scikit-learn keeps a centre that no row is near to, if all rows lie on centres.
    with pytest.warns(match="distinct clusters"):
        kmeans = KMeans(4, n_init=1, random_state=0).fit(np.repeat([[0.0], [1.0]], 5, axis=0))
    display = ClusterSizeDisplay.from_estimator(kmeans)
    assert display.n_empty == 2
    assert "2 empty" in texts(display)
    assert display.sizes.sum() == 10
    drawn(display.figure_)


def test_other_rows_and_weights():
    kmeans = PGKMeans(3, random_state=0).fit(X)
    weights = np.linspace(0.5, 2.0, 50)
    display = ClusterSizeDisplay.from_estimator(kmeans, X[:50], sample_weight=weights)
    labels = kmeans.predict(X[:50])
    expected = [weights[labels == cluster].sum() for cluster in range(3)]
    np.testing.assert_allclose(display.sizes, expected)
    assert display.ax_.get_ylabel() == "weight"
    with pytest.raises(ValueError, match=r"Got sample_weight of shape \(50,\), but expected"):
        ClusterSizeDisplay.from_estimator(kmeans, X, sample_weight=weights)


def test_limits_are_drawn_for_the_rows_of_the_fit_alone():
    kmeans = PGKMeans(3, size_min=90, size_max=110, random_state=0).fit(X)
    assert texts(ClusterSizeDisplay.from_estimator(kmeans))[1:] == ["size_min, 90", "size_max, 110"]
    assert len(texts(ClusterSizeDisplay.from_estimator(kmeans, X[:20]))) == 1


@pytest.mark.parametrize(
    ("sizes", "scale"), [([500, 2, 0], "log"), ([5, 2, 0], "linear"), ([0], "linear")]
)
def test_scale_of_sizes(sizes, scale):
    display = ClusterSizeDisplay(sizes).plot()
    assert display.ax_.get_yscale() == scale
    drawn(display.figure_)
    assert ClusterSizeDisplay(sizes).plot(log=False).ax_.get_yscale() == "linear"
    drawn(ClusterSizeDisplay(sizes).plot(log=True).figure_)


@pytest.mark.parametrize("sizes", [[], [[1, 2]], [1, -1], [np.nan]])
def test_sizes_that_are_none(sizes):
    with pytest.raises(ValueError, match="Got sizes"):
        ClusterSizeDisplay(sizes)


def test_unfitted_estimators_are_refused():
    with pytest.raises(NotFittedError):
        ClusterSizeDisplay.from_estimator(PGKMeans(3))
    with pytest.raises(NotFittedError):
        CodebookDisplay.from_estimator(ProductQuantizer())


# ------------------------------------------------------------------ convergence


def test_a_line_for_each_start_and_the_best_is_named():
    display = ConvergenceDisplay(RECORDS).plot()
    assert display.best_start == 1
    np.testing.assert_array_equal(display.lines_[0].get_xydata(), [[1, 9], [2, 7]])
    np.testing.assert_array_equal(display.lines_[1].get_xydata(), [[1, 8], [2, 6]])
    assert texts(display) == ["start 1, the best of 2"]
    seconds = ConvergenceDisplay(RECORDS).plot(x="seconds")
    np.testing.assert_allclose(seconds.lines_[1].get_xdata(), [0.1, 0.2])


def test_repairs_are_marked_where_they_happened():
    repairs = [RepairRecord(0, 2, (1,), 20.0, 10.0), RepairRecord(2, 1, (), 7.0, 6.0)]
    repairs.append(RepairRecord(2, 1, (), 6.5, 6.0))
    display = ConvergenceDisplay(RECORDS, repairs).plot()
    np.testing.assert_array_equal(display.repairs_.get_offsets(), [[1, 8], [2, 6]])
    assert "empty clusters filled, 4 in all" in texts(display)
    assert ConvergenceDisplay(RECORDS).plot().repairs_ is None


def test_convergence_of_an_estimator():
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 brought callbacks")
    # Far more clusters than blobs, from random rows that are repeated: some begin empty.
    data = np.repeat(blobs(40, 2, 4, seed=0), 3, axis=0)
    estimator = PGKMeans(30, init=data[[0] * 10 + list(range(20))], random_state=0)
    display = ConvergenceDisplay.from_estimator(estimator, data)
    fitted = PGKMeans(30, init=estimator.init).fit(data)
    assert not hasattr(estimator, "labels_")
    assert display.lines_[0].get_ydata()[-1] == pytest.approx(fitted.inertia_, rel=1e-12)
    assert len(display.lines_[0].get_ydata()) == fitted.n_iter_
    assert display.repairs == tuple(fitted.repair_log_) != ()
    assert display.repairs_.get_offsets()[0][0] == 1


@pytest.mark.parametrize(
    ("records", "message"),
    [([], "Got no records"), ([record(0, 1, 1.0), record(0, 1, 1.0, fit=1)], "2 fits")],
)
def test_records_of_no_fit_or_of_two(records, message):
    with pytest.raises(ValueError, match=message):
        ConvergenceDisplay(records)


def test_convergence_without_callbacks():
    with pytest.raises(ImportError, match="Got KMeans without set_callbacks"):
        ConvergenceDisplay.from_estimator(KMeans(2), X)


def test_unknown_axis():
    with pytest.raises(ValueError, match="Got x='hours'"):
        ConvergenceDisplay(RECORDS).plot(x="hours")


# ------------------------------------------------------------------ elbow


@pytest.mark.parametrize("estimator", [PGKMeans(random_state=0), KMeans(n_init=1, random_state=0)])
def test_inertia_never_rises_along_the_path(estimator):
    display = ElbowDisplay.from_estimator(estimator, X, n_clusters=[20, 1, 2, 5, 20, 3])
    assert display.n_clusters.tolist() == [1, 2, 3, 5, 20]
    assert (np.diff(display.inertias) < 0).all()
    assert display.inertias[0] == pytest.approx(300 * X.var(axis=0).sum())
    np.testing.assert_array_equal(display.line_.get_ydata(), display.inertias)
    assert not hasattr(estimator, "labels_")


def test_path_is_about_as_good_as_single_fits():
    data = blobs(400, 3, 8, seed=1)
    warm = ElbowDisplay.from_estimator(PGKMeans(), data, n_clusters=range(1, 16))
    cold = ElbowDisplay.from_estimator(PGKMeans(), data, n_clusters=range(1, 16), warm_start=False)
    assert (warm.inertias <= 1.25 * cold.inertias).all()
    single = PGKMeans(7).fit(data)
    assert cold.inertias[6] == single.inertia_


def test_one_column_keeps_its_optimum():
    line = X[:, :1]
    display = ElbowDisplay.from_estimator(PGKMeans(), line, n_clusters=range(1, 9))
    assert display.inertias.tolist() == [PGKMeans(k).fit(line).inertia_ for k in range(1, 9)]


def test_weights_count():
    weights = np.arange(300.0)
    display = ElbowDisplay.from_estimator(PGKMeans(), X, n_clusters=[4], sample_weight=weights)
    assert display.inertias[0] == PGKMeans(4).fit(X, sample_weight=weights).inertia_
    assert display.elbow is None
    assert display.elbow_line_ is None


def test_elbow_is_where_the_curve_is_farthest_below_its_chord():
    # From (1, 10) to (5, 2) the chord falls by 2 each time.
    assert ElbowDisplay([1, 2, 3, 4, 5], [10.0, 7.0, 3.0, 2.5, 2.0]).elbow == 3
    assert ElbowDisplay([1, 2, 3], [3.0, 2.0, 1.0]).elbow is None
    assert ElbowDisplay([1, 2, 3], [1.0, 1.0, 1.0]).elbow is None
    display = ElbowDisplay([1, 2, 9], [8.0, 1.0, 0.0]).plot(log=False)
    assert display.elbow_line_.get_xdata()[0] == 2


@pytest.mark.parametrize(
    ("numbers", "inertias", "message"),
    [
        ([], [], "Got no n_clusters"),
        ([1, 2], [1.0], "Got 1 inertias, but expected 2"),
        ([2, 1], [1.0, 2.0], "expected ascending numbers"),
        ([1, 1], [1.0, 2.0], "expected ascending numbers"),
    ],
)
def test_paths_that_are_none(numbers, inertias, message):
    with pytest.raises(ValueError, match=message):
        ElbowDisplay(numbers, inertias)


def test_a_number_that_is_none_is_refused_before_any_fit():
    fits = []

    class Counting(PGKMeans):
        def fit(self, X, y=None, sample_weight=None):
            fits.append(self.n_clusters)
            return super().fit(X, y, sample_weight)

    with pytest.raises(ValueError, match=r"Got n_clusters=2\.5"):
        ElbowDisplay.from_estimator(Counting(), X, n_clusters=[1, 2.5])
    assert fits == []


# ------------------------------------------------------------------ rate and distortion


def test_curves_of_a_quantizer():
    settings = [{"block_size": b, "n_codes": k} for b in (3, 1) for k in (32, 8)]
    display = RateDistortionDisplay.from_estimator(
        ProductQuantizer(random_state=0), X, settings=settings
    )
    assert list(display.curves) == ["block_size=3", "block_size=1"]
    for block_size, line in zip((3, 1), display.lines_, strict=True):
        for n_codes, point in zip((8, 32), line.get_xydata(), strict=True):
            matrix = ProductQuantizer(block_size, n_codes, random_state=0).compress(X)
            np.testing.assert_allclose(point, [matrix.bits_per_weight, matrix.relative_error])


def test_a_setting_that_is_none_is_refused_before_any_work():
    with pytest.raises(ValueError, match="Invalid parameter 'colour'"):
        RateDistortionDisplay.from_estimator(
            ProductQuantizer(n_codes=8), None, settings=[{"n_codes": 4}, {"colour": 1}]
        )


def test_points_of_reports():
    display = RateDistortionDisplay.from_reports({"ours": [REPORT, REPORT]})
    bits, error = display.curves["ours"][0]
    assert bits == 8 * 150 / 400
    assert error == pytest.approx(np.sqrt((100 * 0.09 + 300 * 0.01) / 400))
    assert RateDistortionDisplay.from_reports([REPORT]).ax_.get_legend() is None
    assert RateDistortionDisplay.from_reports({"a": REPORT}).curves == {"a": [(bits, error)]}


def test_no_error_has_no_place_on_a_logarithmic_scale():
    display = RateDistortionDisplay({"a": [(1.0, 0.5), (2.0, 0.0)]}).plot()
    assert display.ax_.get_yscale() == "linear"
    assert RateDistortionDisplay({"a": [(1.0, 0.5)]}).plot().ax_.get_yscale() == "log"


def test_reports_without_errors():
    planned = FileReport(
        path="",
        n_bytes=1,
        header_bytes=0,
        original_bytes=1,
        tensors=(tensor("a", 1, 1, None),),
    )
    with pytest.raises(ValueError, match="Got a report of a plan without errors"):
        RateDistortionDisplay.from_reports([planned])
    with pytest.raises(ValueError, match="Got no points"):
        RateDistortionDisplay({})


# ------------------------------------------------------------------ codebooks


def test_table_of_code_words():
    pq = ProductQuantizer(2, 8, n_stages=2, random_state=0).fit(X)
    display = CodebookDisplay.from_estimator(pq, block=1, stage=1)
    np.testing.assert_array_equal(display.words, pq.codebooks_[1, 1])
    np.testing.assert_array_equal(display.image_.get_array(), display.words.T)
    low, high = display.image_.get_clim()
    assert low == -high == -np.abs(display.words).max()
    small = ProductQuantizer(2, 8, random_state=0).compress(X)
    np.testing.assert_array_equal(
        CodebookDisplay.from_estimator(small).words, small.decoder.codebooks[0, 0]
    )
    with pytest.raises(ValueError, match="Got block=2, but expected an int from 0 to 1"):
        CodebookDisplay.from_estimator(pq, block=2)
    with pytest.raises(ValueError, match="Got stage=-1"):
        CodebookDisplay.from_estimator(pq, stage=-1)


def test_centres_as_pictures():
    kmeans = PGKMeans(5, random_state=0).fit(load_digits().data[:200])
    display = CodebookDisplay.from_estimator(kmeans, shape=(8, 8))
    canvas_ = display.image_.get_array()
    # Three columns and two rows of 8 x 8, a pixel between them; one place is left blank.
    assert canvas_.shape == (17, 26)
    np.testing.assert_array_equal(canvas_[9:, 9:17].ravel(), kmeans.cluster_centers_[4])
    assert np.ma.getmaskarray(canvas_)[:, 8].all()
    assert np.ma.getmaskarray(canvas_)[9:, 18:].all()


def test_colours_as_pictures():
    display = CodebookDisplay([[0.0, 0.5, 2.0], [1.0, -1.0, 0.0]]).plot(shape=(1, 1, 3))
    np.testing.assert_array_equal(display.image_.get_array()[0, 0], [0.0, 0.5, 1.0])
    # Each colour is enlarged to 8 x 8 pixels, with a white one between them.
    assert display.image_.get_array().shape == (8, 17, 3)
    np.testing.assert_array_equal(display.image_.get_array()[7, 8:10], [[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 1, 4), (2, 2, 1)])
def test_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="Got shape="):
        CodebookDisplay(np.ones((3, 4))).plot(shape=shape)


def test_words_that_are_none():
    with pytest.raises(ValueError, match=r"Got words of shape \(4,\)"):
        CodebookDisplay(np.ones(4))
    drawn(CodebookDisplay(np.zeros((3, 1))).plot().figure_)


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("model", ["first", "second"]),
        ("bytes", ["second", "first"]),
        ("error", ["first", "second"]),
    ],
)
def test_layers(order, names):
    display = LayerReportDisplay.from_report(REPORT, order=order)
    assert display.names == names
    assert [label.get_text() for label in display.ax_[0].get_yticklabels()] == names
    stored = {"first": 50, "second": 100}
    np.testing.assert_array_equal(
        display.after_.get_offsets()[:, 0], [stored[name] for name in names]
    )
    widths = [bar.get_width() for bar in display.errors_]
    assert widths == [{"first": 0.3, "second": 0.1}[name] for name in names]
    assert display.ax_[1].get_title(loc="right").startswith("10.0 times smaller")


def test_layers_on_given_axes(two_axes):
    display = LayerReportDisplay.from_report(REPORT, ax=two_axes, color="k")
    assert display.ax_ == list(two_axes)
    with pytest.raises(ValueError, match="Got 1 axes, but expected two"):
        LayerReportDisplay.from_report(REPORT, ax=two_axes[:1])
    with pytest.raises(ValueError, match="Got order='size'"):
        LayerReportDisplay.from_report(REPORT, order="size")


def test_layers_of_a_report_without_any():
    with pytest.raises(ValueError, match="without compressed tensors"):
        LayerReportDisplay(
            FileReport(path="", n_bytes=1, header_bytes=0, original_bytes=1, tensors=())
        )
