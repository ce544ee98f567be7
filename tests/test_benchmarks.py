"""The benchmarks' arithmetic and tables, on results made by hand; nothing is measured here."""

import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks import (
    activations,
    clock,
    curves,
    data,
    efforts,
    glue,
    gpu,
    gpu_ways,
    growth,
    jobs,
    line,
    options,
    packing,
    plotting,
    quality,
    quantizers,
    report,
    scaling,
    search,
    speed,
)
from benchmarks.__main__ import build_parser
from benchmarks.command_options import plan_of
from benchmarks.commands import MEASURING
from benchmarks.wordpiece import WordPiece
from pgkmeans_sk import ProductQuantizer
from tests import reference

MACHINE = {"cpu": "a processor", "cores": 2, "date": "2026-01-02T03:04:05+00:00", "python": "3.11"}
HEAD = {"machine": MACHINE, "versions": {"numpy": "2.0", "faiss-cpu": "not installed"}}


def point(library, setting, seconds, sse, is_default=False):
    """A row of a curves result; ``seconds`` are those of each round."""
    return {
        "case": "toy",
        "synthetic": True,
        "n": 1000,
        "d": 2,
        "k": 3,
        "library": library,
        "ours": library.startswith("pgkmeans-sk"),
        "setting": setting,
        "effort": 1,
        "is_default": is_default,
        "seconds": float(np.median(seconds)),
        "all_seconds": seconds,
        "sse": sse,
        "n_empty": 0,
        "n_iter": 1,
    }


CURVES = HEAD | {
    "kind": "curves",
    "settings": {},
    "notes": {"lines": "faiss: all points."},
    "rows": [
        point("pgkmeans-sk", "1 iteration", [1.0, 2.0, 1.5], 120.0),
        point("pgkmeans-sk", "default", [4.0, 4.0, 4.0], 100.0, is_default=True),
        point("pgkmeans-sk random", "4 iterations", [2.0, 2.5, 2.0], 110.0),
        point("scikit-learn", "default", [8.0, 10.0], 110.0, is_default=True),
        point("faiss", "default", [0.5, 0.5, 0.5], 130.0, is_default=True),
        point("superkmeans flat", "default", [9.0], 99.0, is_default=True),
    ],
    "skipped": [{"case": "toy", "library": "fast", "reason": "not installed"}],
}


def timing(series, library, size, seconds_per_iteration, ratio=None, peak_bytes=None):
    """A row of a scaling result: all sizes are 1000 x 8, K=4, but for the one that grows."""
    row = {"n": 1000, "d": 8, "k": 4, "threads": 2} | {growth.GROWS[series]: size}
    return row | {
        "series": series,
        "library": library,
        "synthetic": True,
        "seconds": 10 * seconds_per_iteration,
        "seconds_per_iteration": seconds_per_iteration,
        "ours_over_theirs": ratio,
        "peak_bytes": peak_bytes,
    }


SCALING = HEAD | {
    "kind": "scaling",
    "settings": {"iterations": 10},
    "rows": [
        timing("rows", "pgkmeans-sk", 1000, 0.001, peak_bytes=40_000),
        timing("rows", "faiss", 1000, 0.002, ratio=0.5),
        timing("rows", "pgkmeans-sk", 10_000, 0.010, peak_bytes=400_000),
        timing("threads", "pgkmeans-sk", 1, 0.008),
        timing("threads", "pgkmeans-sk", 2, 0.004),
    ],
    "skipped": [{"series": "rows, from n=10000 on", "library": "faiss", "reason": "slow"}],
}

LINE = HEAD | {
    "kind": "line",
    "settings": {},
    "rows": [
        {
            "data": "encoder weights",
            "synthetic": False,
            "n": 1000,
            "k": 16,
            "library": library,
            "seconds": seconds,
            "all_seconds": [seconds],
            "ours_over_theirs": ratio,
            "sse": sse,
        }
        for library, seconds, ratio, sse in (
            ("PGKMeans", 0.5, 1.0, 8.0),
            ("kmeans1d", 2.0, 0.25, 8.0),
            ("other", 1.0, 0.5, 10.0),
        )
    ],
    "skipped": [],
}

GPU = HEAD | {
    "kind": "gpu",
    "settings": {},
    "device": {
        "name": "cuda:0",
        "model": "a GPU",
        "threads": 2,
        "operations_per_second": 4e12,
        "bytes_per_second": 1e12,
    },
    "rows": [
        {
            "case": "blocks",
            "synthetic": False,
            "mode": mode,
            "n": 1_000_000,
            "d": 8,
            "k": 256,
            "library": library,
            "seconds": seconds,
            "all_seconds": [seconds],
            "ours_over_theirs": ratio,
            "sse": sse,
            "n_empty": n_empty,
            "floor_seconds": 0.001,
        }
        for mode in gpu.MODES
        for library, seconds, ratio, sse, n_empty in (
            ("pgkmeans-sk", 0.002, 1.0, 8.0, 0),
            ("another", 0.004, 0.5, 10.0, 3),
        )
    ],
    "passes": [
        {
            "case": "blocks",
            "work": "sums of clusters",
            "way": way,
            "n": 1_000_000,
            "d": 8,
            "k": 256,
            "seconds": seconds,
            "floor_seconds": 0.0005,
        }
        for way, seconds in (("operations", 0.004), ("Triton", 0.001))
    ],
    "skipped": [{"case": "all", "mode": "all", "library": "a third", "reason": "not installed"}],
}

PACKING = HEAD | {
    "kind": "packing",
    "settings": {"rounds": 1},
    "rows": [
        {
            "task": "unpack",
            "n_bits": 12,
            "n": 960,
            "row_length": 96,
            "library": library,
            "seconds": seconds,
            "all_seconds": [seconds],
            "gigabytes_per_second": 2 * 960 / seconds / 1e9,
            "speed_to_copy": 1e-6 / seconds,
        }
        for library, seconds in (
            (packing.OURS, 0.5e-6),
            (packing.ONE_THREAD, 2e-6),
            (packing.COPY, 1e-6),
        )
    ],
}


def searched(task, library, seconds, queries=None, recall=None):
    """A row of a search result; ratios are to 2 s."""
    return {
        "case": "toy",
        "synthetic": True,
        "n": 1000,
        "d": 8,
        "blocks": 2,
        "bits": 8,
        "task": task,
        "queries": queries,
        "library": library,
        "seconds": seconds,
        "all_seconds": [seconds],
        "ours_over_theirs": 2.0 / seconds,
        "same": 1.0 if library == "faiss" else 0.995,
        "recall": recall,
    }


SEARCH = HEAD | {
    "kind": "search",
    "settings": {"k": 10, "rounds": 1},
    "rows": [
        searched("search", "pgkmeans-sk", 2.0, 1000, 0.8),
        searched("search", "faiss", 8.0, 1000, 0.75),
        searched("decode", "pgkmeans-sk", 2.0),
    ],
    "skipped": [],
}

QUANTIZERS = HEAD | {
    "kind": "quantizers",
    "settings": {"n_codes": 256},
    "rows": [
        {
            "case": "words",
            "synthetic": False,
            "n": 1000,
            "d": 384,
            "n_blocks": 48,
            "library": library,
            "step": step,
            "relative_error": error,
            "seconds": seconds,
            "all_seconds": [seconds],
            "ours_over_theirs": 0.5 / seconds,
        }
        for library, seconds, error in (("ProductQuantizer", 0.5, 0.3), ("faiss", 2.0, 0.33))
        for step in quantizers.STEPS
    ],
    "skipped": [{"library": "nanopq", "reason": "no module nanopq"}],
}

OPTIONS = HEAD | {
    "kind": "options",
    "settings": {},
    "rows": [
        {
            "matrix": "0.ffn.in",
            "shape": [1536, 384],
            "codebook": "shared",
            "option": option,
            "bits_per_weight": 1.1,
            "relative_error": error,
            "plain_at_same_bits": 0.5,
            "seconds": 1.0,
        }
        for option, error in (("plain, 256 codes", 0.5), ("rotation='opq'", 0.4))
    ],
    "skipped": [],
}


def table_of(sheet):
    """A sheet as a dictionary: first cell of a row -> column -> cell."""
    return {row[0]: dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows}


class TestTimeToQuality:
    ours = tuple(row for row in CURVES["rows"] if row["ours"])

    @pytest.mark.parametrize(
        ("sse", "setting"),
        [
            (130.0, "1 iteration"),
            (120.0, "1 iteration"),
            (119.0, "4 iterations"),
            (110.0, "4 iterations"),
            (100.0, "default"),
            (100.0 * (1 - 1e-12), "default"),  # rounding is no difference
        ],
    )
    def test_least_seconds_at_an_sse(self, sse, setting):
        assert quality.least_seconds(self.ours, sse)["setting"] == setting

    def test_an_sse_that_nobody_reaches(self):
        assert quality.least_seconds(self.ours, 99.0) is None
        assert quality.least_seconds([], 99.0) is None

    def test_ratio_pairs_rounds_that_both_ran(self):
        ours, theirs = CURVES["rows"][2], CURVES["rows"][3]
        # Rounds: 2 / 8 and 2.5 / 10; the third round has no partner.
        assert quality.paired_ratio(ours, theirs) == 0.25

    def test_front_keeps_what_is_not_beaten(self):
        rows = [
            point("a", name, [seconds], sse)
            for name, seconds, sse in (
                ("slow and bad", 3.0, 9.0),
                ("fast", 1.0, 8.0),
                ("as good, but slower", 2.0, 8.0),
                ("best", 4.0, 5.0),
            )
        ]
        assert [row["setting"] for row in quality.front(rows)] == ["fast", "best"]

    def test_table_at_the_defaults(self):
        at_defaults, _ = quality.sheets(CURVES)
        table = table_of(at_defaults)
        assert set(table) == {"pgkmeans-sk", "scikit-learn", "faiss", "superkmeans flat"}
        sklearn = table["scikit-learn"]
        assert sklearn["seconds"] == "9.000"
        assert sklearn["runs"] == "2"
        assert sklearn["our least seconds at that SSE"] == "2.000"
        assert sklearn["ours / theirs"] == "0.250"
        assert sklearn["our setting"] == "pgkmeans-sk random, 4 iterations"
        assert sklearn["SSE to best"] == "+11.11 %"
        assert table["faiss"]["ours / theirs"] == "3.000"
        assert table["superkmeans flat"]["our least seconds at that SSE"] == "not reached"
        assert "synthetic" in at_defaults.title

    def test_table_near_the_best(self):
        _, near = quality.sheets(CURVES)
        table = table_of(near)
        assert table["pgkmeans-sk"]["2.0%"] == "4.000"
        assert table["pgkmeans-sk"]["0.5%"] == "-"
        assert table["superkmeans flat"]["0.2%"] == "9.000"
        assert table["faiss"]["its best SSE to best"] == "+31.31 %"


class TestGrowth:
    def test_exponent_of_a_power(self):
        assert growth.exponent([1, 10, 100], [3.0, 300.0, 30_000.0]) == pytest.approx(2.0)
        assert growth.exponent([1, 2, 4], [8.0, 4.0, 2.0]) == pytest.approx(-1.0)

    def test_exponent_is_the_least_squares_slope(self):
        # In powers of ten: x = 0, 1, 2 and y = 0, 0, 3. The means are 1 and 1, so the slope is
        # ((-1)(-1) + 0 + 1 * 2) / (1 + 0 + 1) = 1.5.
        assert growth.exponent([1, 10, 100], [1.0, 1.0, 1000.0]) == pytest.approx(1.5)

    def test_one_size_has_no_exponent(self):
        assert growth.exponent([5], [1.0]) is None
        assert growth.exponent([5, 5], [1.0, 2.0]) is None

    @pytest.mark.parametrize(("n", "kept"), [(2, [0, 1]), (3, [1, 2]), (4, [2, 3]), (5, [2, 3, 4])])
    def test_larger_half(self, n, kept):
        rows = [{"n": size} for size in range(n)]
        assert [row["n"] for row in growth.larger_half(rows[::-1], "n")] == kept

    def test_table(self):
        rows, threads = growth.sheets(SCALING)
        table = table_of(rows)
        assert table["1 000"]["pgkmeans-sk ms"] == "1.000"
        assert table["1 000"]["ours / faiss"] == "0.500"
        assert table["1 000"]["pgkmeans-sk bytes"] == "40.0"
        assert table["10 000"]["faiss ms"] == "-"
        assert table["exponent"]["pgkmeans-sk ms"] == "1.00"
        assert table["exponent"]["faiss ms"] == "-"
        assert table_of(threads)["exponent"]["pgkmeans-sk ms"] == "-1.00"
        assert "synthetic" in rows.title

    def test_sizes_change_in_one_number_only(self):
        for series, column in growth.GROWS.items():
            sizes = scaling.sizes(series, quick=False)
            values = [getattr(size, column) for size in sizes]
            assert values == sorted(set(values))
            for other in {"n", "d", "k", "threads"} - {column}:
                assert len({getattr(size, other) for size in sizes}) == 1


RESULTS = (CURVES, SCALING, LINE, GPU, PACKING, SEARCH, QUANTIZERS, OPTIONS)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result["kind"])
class TestReport:
    def test_markdown_has_rectangular_tables_and_says_where(self, result):
        text = report.to_markdown(result, "somewhere.json")
        for table in text.split("\n\n"):
            lines = [line for line in table.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) <= 1
        assert "a processor, 2 cores, 2026-01-02" in text
        assert "Source: `somewhere.json`." in text
        for skip in result.get("skipped", ()):
            assert skip["reason"] in text

    def test_terminal_and_file(self, result, tmp_path):
        path = report.write(result, tmp_path / "result.json")
        console = Console(record=True, width=200, quiet=False)
        report.show(report.read(path), console)
        assert "a processor" in console.export_text()

    def test_compares_with_itself(self, result):
        sheet = report.compare(result, result)
        assert len(sheet.rows) == len(result["rows"])
        assert {dict(zip(sheet.columns, row, strict=True))["B / A"] for row in sheet.rows} == {
            "1.00"
        }


def test_line_table():
    (sheet,) = report.SHEETS["line"](LINE)
    table = table_of(sheet)
    assert table["kmeans1d"]["PGKMeans / this"] == "0.250"
    assert table["other"]["SSE to best"] == "+25.00 %"
    assert sheet.title == "encoder weights (1 000 values, K=16)"


def test_gpu_tables():
    iteration, whole, one_pass = report.SHEETS["gpu"](GPU)
    assert iteration.title == "blocks, iteration (1 000 000 x 8, K=256; cuda:0 a GPU)"
    assert table_of(iteration)["another"]["to floor"] == "4.0"
    assert table_of(iteration)["another"]["SSE to best"] == "+25.00 %"
    assert table_of(whole)["another"]["to floor"] == "-"
    assert "4000 GFLOP/s" in iteration.caption
    assert one_pass.title == "blocks, one pass (1 000 000 x 8, K=256; cuda:0 a GPU)"
    assert [row[1:] for row in one_pass.rows] == [
        ("operations", "0.004", "8.0"),
        ("Triton", "0.001", "2.0"),
    ]


def test_gpu_runs_on_the_cpu(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(gpu.PRODUCT_SIZES, "cpu", 64)
    monkeypatch.setitem(gpu.COPIED_BYTES, "cpu", 2**16)
    plan = gpu.Plan(cases=("mixture",), modes=("iteration",), rounds=1, quick=True, device="cpu")
    result = gpu.run(plan, Console(quiet=True))
    json.dumps(result)
    rows = {row["library"]: row for row in result["rows"] if row["case"] == "mixture"}
    ours = rows["pgkmeans-sk"]
    assert rows["pgkmeans-sk (operations)"]["sse"] == pytest.approx(ours["sse"], rel=1e-6)
    assert rows["pgkmeans-sk (numba)"]["sse"] == ours["sse"]
    assert ours["n_empty"] == 0
    assert all(row["seconds"] > 0.0 and row["floor_seconds"] > 0.0 for row in result["rows"])
    works = {(row["work"], row["way"]) for row in result["passes"]}
    assert works == {("nearest centres", "operations"), ("sums of clusters", "operations")}
    # What there is for GPUs alone says so.
    reasons = {skip["library"]: skip["reason"] for skip in result["skipped"]}
    for way in ("Triton", "Triton labels", "Triton sums"):
        assert reasons[f"pgkmeans-sk ({way})"] == "Triton's kernels are for GPUs"
    assert len(gpu.sheets(result)) == 3


def test_ours_can_be_made_to_go_one_way():
    torch = pytest.importorskip("torch")
    from pgkmeans_sk.engines import torch_passes
    from pgkmeans_sk.engines.torch_choice import kind_of

    ways = {}
    for name in gpu_ways.WAYS:
        with gpu_ways.forced(name):
            ways[name] = [
                torch_passes.by_quicker(kind_of(work, torch.zeros((2, 2)), 2), lambda: 0, lambda: 1)
                for work in (gpu_ways.LABELS, gpu_ways.SUMS)
            ]
    assert ways == {
        "operations": [0, 0],
        "Triton labels": [1, 0],
        "Triton sums": [0, 1],
        "Triton": [1, 1],
    }


def test_gpu_floor():
    peaks = {"operations_per_second": 1e12, "bytes_per_second": 1e9}
    assert gpu.floor_seconds(1000, 10, 100_000, peaks) == 2e9 / 1e12  # products
    assert gpu.floor_seconds(1000, 10, 1, peaks) == 40_000 / 1e9  # reading


class TestPacking:
    def test_table(self):
        (sheet,) = report.SHEETS["packing"](PACKING)
        row = table_of(sheet)["12"]
        assert row["pgkmeans-sk GB/s"] == "3.84"
        assert row["copy GB/s"] == "1.92"
        assert row["pgkmeans-sk: speed to copy"] == "2.00"
        assert row["pgkmeans-sk, 1 thread: speed to copy"] == "0.50"
        assert sheet.title == "unpack (960 codes, rows of 96)"

    @pytest.mark.parametrize("n_bits", range(1, 17))
    def test_numpys_way(self, n_bits, monkeypatch):
        monkeypatch.setattr(packing, "_NUMPY_CHUNK", 64)
        dtype = np.uint8 if n_bits <= 8 else np.uint16
        codes = np.random.default_rng(0).integers(0, 2**n_bits, 200, dtype=dtype)
        packed = packing.pack_by_numpy(codes, n_bits)
        np.testing.assert_array_equal(packed, reference.packed(codes, n_bits))
        np.testing.assert_array_equal(packing.unpack_by_numpy(packed, n_bits, 200), codes)

    def test_run_on_few_codes(self, monkeypatch):
        # Seconds mean nothing here.
        monkeypatch.setattr(clock, "SETTLE_SECONDS", 0.0)
        monkeypatch.setattr(clock, "SHORTEST_TIMING", 1e-9)
        plan = packing.Plan(widths=[3, 8, 12], n_codes=240, row_length=8, rounds=2)
        result = packing.run(plan, Console(quiet=True))
        assert [sheet.title for sheet in report.SHEETS["packing"](result)] == [
            f"{task} (240 codes, rows of 8)" for task in ("pack", "unpack", "rows in any order")
        ]
        assert len(result["rows"]) == 3 * 3 * 5
        assert all(row["seconds"] > 0 and len(row["all_seconds"]) == 2 for row in result["rows"])

    def test_rows_that_are_no_whole_bytes(self):
        with pytest.raises(ValueError, match="Got row_length=12, but expected a multiple of 8"):
            packing.run(packing.Plan(row_length=12), Console(quiet=True))


class TestJobs:
    def test_run_on_few_layers(self, monkeypatch):
        pytest.importorskip("torch")
        monkeypatch.setattr(clock, "SETTLE_SECONDS", 0.0)
        plan = jobs.Plan(models=["small layers"], n_codes=8, rounds=2, n_small=3)
        result = jobs.run(plan, Console(quiet=True))
        assert [row["way"] for row in result["rows"]] == list(jobs.WAYS)
        assert {row["n_weights"] for row in result["rows"]} == {3}
        assert all(len(row["all_seconds"]) == 2 for row in result["rows"])
        alone = result["rows"][0]
        assert alone["to_alone"] == [1.0, 1.0]
        (sheet,) = report.SHEETS["jobs"](result)
        assert sheet.rows[0][5] == "1.00 - 1.00"

    def test_another_result_is_an_error(self, monkeypatch):
        errors = iter(range(100))
        monkeypatch.setattr(clock, "SETTLE_SECONDS", 0.0)
        monkeypatch.setattr(jobs, "compressed", lambda *_: (1.0, [next(errors)]))
        with pytest.raises(AssertionError, match="Got another result"):
            jobs.run(jobs.Plan(models=["small layers"]), Console(quiet=True))


class TestSearch:
    def test_table(self):
        (sheet,) = report.SHEETS["search"](SEARCH)
        assert sheet.title == "toy (synthetic, 1 000 x 8), 2 codes of 8 bits a row"
        assert [row[:2] for row in sheet.rows] == [
            ("1 000 queries", "pgkmeans-sk"),
            ("1 000 queries", "faiss"),
            ("decode", "pgkmeans-sk"),
        ]
        ours, theirs = (dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows[:2])
        assert ours["same as faiss"] == "-0.50 %"
        assert theirs["pgkmeans-sk / this"] == "0.250"
        assert theirs["recall@10"] == "0.750"

    def test_share_found_does_not_look_at_the_order(self):
        found, wanted = np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 5]])
        assert search.share_found(found, wanted) == 0.75

    @pytest.mark.parametrize("n_bits", [1, 4, 6, 8, 10, 16])
    def test_unpacking(self, n_bits):
        codes = np.random.default_rng(n_bits).integers(0, 1 << n_bits, (20, 5))
        bits = codes[:, :, np.newaxis] >> np.arange(n_bits) & 1
        packed = np.packbits(bits.reshape(20, -1), axis=1, bitorder="little")
        np.testing.assert_array_equal(search.unpacked(packed, 5, n_bits), codes)

    def test_run_on_a_small_table(self, monkeypatch):
        pytest.importorskip("faiss", reason="faiss makes the codes")
        X = np.random.default_rng(0).random((700, 6), dtype=np.float32)
        toy = data.Case("toy", "700 points", 4, lambda: X, synthetic=True)
        monkeypatch.setitem(data.CASES, "toy", toy)
        monkeypatch.setitem(search.N_BLOCKS, "toy", 3)
        monkeypatch.setattr(clock, "SETTLE_SECONDS", 0.0)
        monkeypatch.setattr(clock, "SHORTEST_TIMING", 1e-9)
        plan = search.Plan(cases=["toy"], bits=[4, 3], n_queries=[1, 20], k=5, rounds=1)
        result = search.run(plan, Console(quiet=True))
        assert [(row["bits"], row["task"], row["queries"]) for row in result["rows"][::2]] == [
            (bits, *task)
            for bits in (4, 3)
            for task in (("search", 1), ("search", 20), ("decode", None), ("decode in place", None))
        ]
        for row in result["rows"]:
            # Rows with the same codes are equally near, and each library picks its own.
            assert row["same"] == 1.0 or row["task"] == "search"
            assert row["recall"] is None or 0.0 < row["recall"] <= 1.0
        json.dumps(result)

    def test_without_faiss_it_says_so(self, monkeypatch):
        monkeypatch.setattr(search, "find_spec", lambda name: None)
        result = search.run(search.Plan(), Console(quiet=True))
        assert result["rows"] == []
        assert "faiss" in result["skipped"][0]["reason"]


def test_quantizers_table():
    (sheet,) = report.SHEETS["quantizers"](QUANTIZERS)
    table = table_of(sheet)
    assert table["faiss"]["train, s"] == "2.000"
    assert table["faiss"]["to best"] == "+10.00 %"
    assert sheet.title == "words (1 000 x 384, 48 blocks, 256 codes)"


def test_options_table():
    (sheet,) = report.SHEETS["options"](OPTIONS)
    table = table_of(sheet)
    assert table["rotation='opq'"]["error to plain at these bits"] == "-20.00 %"
    assert sheet.title == "0.ffn.in (1536 x 384), a shared codebook"


def test_error_of_plain_between_two_sizes():
    """Half-way between two sizes the error is their geometric mean."""
    assert options.between([(1.0, 0.4), (2.0, 0.1)], 1.5) == pytest.approx(0.2)
    assert options.between([(2.0, 0.1), (1.0, 0.4)], 1.0) == pytest.approx(0.4)
    assert options.between([(1.0, 0.4), (2.0, 0.1)], 2.5) is None


def test_quantizers_agree_on_what_they_measure():
    X = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    plan = quantizers.Plan(rounds=1)
    ours = [peer for peer in quantizers.PEERS if peer.name == quantizers.OURS]
    rows = quantizers._measure("words", X, 8, ours, plan, [], Console(quiet=True))
    assert [row["step"] for row in rows] == list(quantizers.STEPS)
    pq = ProductQuantizer(8, 256, random_state=0).fit(X)
    expected = np.sqrt(-pq.score(X) * X.size / (X.astype(float) ** 2).sum())
    assert rows[0]["relative_error"] == pytest.approx(expected)
    assert rows[0]["ours_over_theirs"] == 1.0


class TestCurvesPlan:
    def test_ours_alternate_with_the_peers(self):
        def some(name, count):
            return [efforts.Setting(name, str(i), i, lambda X, k, seed: None) for i in range(count)]

        order = [setting.line for setting in curves.alternating(some("a", 2), some("b", 4))]
        assert order == ["b", "a", "b", "b", "a", "b"]

    @pytest.mark.parametrize("iterations", [efforts.ITERATIONS, (1, 4), (3,)])
    @pytest.mark.parametrize("n_rows", [1_000, 1_000_000])
    def test_each_library_has_a_default_and_no_setting_twice(self, n_rows, iterations):
        settings = [
            setting
            for line in efforts.LINES.values()
            for setting in line.settings(line.name, n_rows, iterations)
        ]
        names = [(setting.line, setting.words) for setting in settings]
        assert len(names) == len(set(names))
        defaults = {setting.line for setting in settings if setting.is_default}
        missing = set(efforts.LINES) - defaults
        # superkmeans chooses between the two by the number of rows.
        assert missing == {f"superkmeans {'hierarchical' if n_rows < 10**5 else 'flat sampled'}"}

    def test_a_case_without_its_data_is_skipped_and_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv(glue.FOLDER_VARIABLE, str(tmp_path / "nowhere"))
        monkeypatch.setattr(activations, "CACHE", tmp_path)
        plan = curves.Plan(cases=["activations"], lines=["pgkmeans-sk"])
        result = curves.run(plan, Console(quiet=True))
        assert result["rows"] == []
        (skip,) = result["skipped"]
        assert glue.FOLDER_VARIABLE in skip["reason"]

    def test_run_on_a_small_table(self, monkeypatch):
        X = np.random.default_rng(0).random((300, 2), dtype=np.float32)
        toy = data.Case("toy", "300 points", 4, lambda: X, synthetic=True)
        monkeypatch.setitem(data.CASES, "toy", toy)
        # Seconds mean nothing here.
        monkeypatch.setattr(clock, "SETTLE_SECONDS", 0.0)
        monkeypatch.setattr(clock, "SHORTEST_TIMING", 1e-9)
        plan = curves.Plan(
            cases=["toy"], lines=["pgkmeans-sk", "scikit-learn"], iterations=[1], rounds=1
        )
        saved = []
        result = curves.run(plan, Console(quiet=True), saved.append)
        assert saved == [result]
        assert [(row["library"], row["setting"]) for row in result["rows"]] == [
            ("pgkmeans-sk", "1 iteration"),
            ("pgkmeans-sk", "tol=0.01"),
            ("pgkmeans-sk", "tol=0.001"),
            ("pgkmeans-sk", "default"),
            ("pgkmeans-sk", "tol=1e-05"),
            ("scikit-learn", "1 iteration"),
            ("scikit-learn", "default"),
        ]
        assert result["skipped"] == []
        assert all(row["sse"] > 0 and len(row["all_seconds"]) == 1 for row in result["rows"])


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the pictures need matplotlib")
    from benchmarks import curves_plot, scaling_plot

    (curve,) = curves_plot.draw(CURVES, tmp_path)
    (growing,) = scaling_plot.draw(SCALING, tmp_path / "new folder")
    assert curve.name == "curves-toy.png"
    for path in (curve, growing):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("line", list(efforts.LINES))
def test_each_line_has_a_colour_of_its_library(line):
    assert plotting.style(line)["color"].startswith("#")


def test_no_two_lines_look_the_same():
    looks = [
        tuple(plotting.style(line)[key] for key in ("color", "marker")) for line in efforts.LINES
    ]
    assert len(set(looks)) == len(looks)


def test_sized_cases():
    case = data.case(data.sized_name(50, 3, 7))
    assert case.synthetic
    assert case.n_clusters == 7
    assert case.load().shape == (50, 3)
    with pytest.raises(ValueError, match="Got case 'nothing'"):
        data.case("nothing")


def test_wordpiece_takes_the_longest_pieces(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    pieces = "[UNK] [CLS] [SEP] un ##aff ##able ##a cafe , !"
    vocabulary.write_text("\n".join(pieces.split()) + "\n")
    tokenizer = WordPiece(vocabulary)
    assert tokenizer.encode("Unaffable, CAFÉ!") == [1, 3, 4, 5, 8, 7, 9, 2]
    assert tokenizer.encode("unab " + "a" * 101) == [1, 0, 0, 2]
    assert tokenizer.encode("cafe cafe cafe cafe", longest=4) == [1, 7, 7, 2]


COMMANDS = (*MEASURING, "plot", "report", "compare")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


PLANNED = (speed, curves, scaling, gpu, line, quantizers, search, packing, jobs)


@pytest.mark.parametrize("module", PLANNED, ids=lambda module: module.__name__)
def test_options_are_the_fields_of_a_plan(module):
    name = module.__name__.split(".")[1]
    plan = plan_of(module.Plan, build_parser().parse_args([name, "--rounds", "7"]))
    assert plan.rounds == 7
    defaults = plan_of(module.Plan, build_parser().parse_args([name]))
    assert defaults.rounds == module.Plan.rounds
