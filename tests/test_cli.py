"""The command line: what it prints where, exit codes, and errors in one line."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")

from typer.testing import CliRunner

from pgkmeans_sk import PGKMeans, __version__
from pgkmeans_sk.cli.app import app
from pgkmeans_sk.cli.console import printable, shortened, size_text
from pgkmeans_sk.cli.errors import message_of
from pgkmeans_sk.spec import TensorSettings
from pgkmeans_sk.weight_files import compress_file
from pgkmeans_sk.weight_plan import plan_file
from tests.model_files import entry, normal, write_model
from tests.problems import blobs

ROOT = Path(__file__).resolve().parents[1]
ROWS = blobs(200, 3, 5, seed=0).astype(np.float32)
NARROW = ("--block-size", "4", "--codes", "16")

needs_pandas = pytest.mark.skipif(not find_spec("pandas"), reason="pandas is not installed")
needs_pyarrow = pytest.mark.skipif(
    not find_spec("pandas") or not find_spec("pyarrow"), reason="pyarrow is not installed"
)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """The same width and no colours, wherever the tests run."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(here):
    return write_model(here / "model.safetensors").name


def run(*arguments, status=0):
    """What a command printed: standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.exit_code, result.output, result.exception)
    return result.stdout, result.stderr


def run_process(*arguments, status=0, **options):
    """The same by a real process."""
    finished = subprocess.run(
        [sys.executable, "-m", "pgkmeans_sk", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
    assert finished.returncode == status, finished.stderr
    return finished.stdout, finished.stderr


# ---------------------------------------------------------------- help, version, usage


def test_version():
    assert run("--version") == (f"pgkmeans {__version__}\n", "")


@pytest.mark.parametrize("command", ["cluster", "compress", "decompress", "info"])
def test_help(command):
    shown, _ = run(command, "--help")
    assert shown.startswith(f"Usage: pgkmeans {command} [OPTIONS]") or "Usage:" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert command in run("--help")[0]


def test_defaults_in_the_help_are_true():
    shown = run("compress", "--help")[0]
    defaults = TensorSettings()
    for flag, name in (("block-size", "block_size"), ("codes", "n_codes"), ("stages", "n_stages")):
        (found,) = re.findall(rf"--{flag} .*?\[default: (\w+)\]", shown, re.DOTALL)
        assert found == str(getattr(defaults, name))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("compress", "model.safetensors"),  # neither -o nor --dry-run
        ("compress", "model.safetensors", "-o", "small", "--blok-size", "4"),
        ("compress", "model.safetensors", "-o", "small", "--codes", "many"),
        ("compress", "model.safetensors", "-o", "small", "--random-state", "-1"),
        ("cluster", "rows.npy"),
        ("decompress", "small"),
    ],
)
def test_wrong_usage(here, arguments):
    shown, errors = run(*arguments, status=2)
    assert shown == ""
    assert errors.startswith("Usage: ")
    assert "Traceback" not in errors
    assert list(here.iterdir()) == []


# ---------------------------------------------------------------- compress and back


def test_compress_with_several_workers(here, model):
    run("compress", model, "-o", "one.safetensors", *NARROW)
    run("compress", model, "-o", "two.safetensors", *NARROW, "--jobs", 2)
    assert (here / "two.safetensors").read_bytes() == (here / "one.safetensors").read_bytes()
    _, errors = run("compress", model, "-o", "none.safetensors", "-j", 0, status=1)
    assert "n_jobs=0" in errors
    assert not (here / "none.safetensors").exists()


def test_compress_info_decompress(here, model):
    shown, errors = run("compress", model, "-o", "small.safetensors", *NARROW)
    assert errors == ""
    settings = TensorSettings(block_size=4, n_codes=16)
    compress_file(model, "expected.safetensors", settings)
    content = (here / "small.safetensors").read_bytes()
    assert content == (here / "expected.safetensors").read_bytes()
    assert f"{len(content):,} bytes".replace(",", " ") in shown
    assert "0 code words unused" in " ".join(shown.split())
    assert "Written in" in shown
    assert max(map(len, shown.splitlines())) <= 80

    described, errors = run("info", "small.safetensors")
    assert errors == ""
    assert "layer.0.weight" in described
    assert "16/16" in described
    assert "layer.0.bias" not in described
    assert "layer.0.bias" in run("info", "--all", "small.safetensors")[0]

    shown, errors = run("decompress", "small.safetensors", "-o", "restored.safetensors")
    assert errors == ""
    assert "9 tensors decoded. 9 carried bit for bit." in shown
    assert (here / "restored.safetensors").stat().st_size == (here / model).stat().st_size


def test_settings_reach_the_file(here, model):
    shown, _ = run(
        "compress", model, "-o", "small", "--json", "--block-size", 3, "--codes", 11,
        "--codebook", "per_block", "--stages", 2, "--rotation", "hadamard", "--scale", "row",
        "--codebook-dtype", "float32", "--min-size", 1000, "--random-state", 3, "--max-iter", 3,
    )  # fmt: skip
    settings = TensorSettings(
        block_size=3, n_codes=11, codebook="per_block", n_stages=2, rotation="hadamard",
        scale="row", codebook_dtype="float32", min_size=1000, max_iter=3,
    )  # fmt: skip
    assert json.loads(shown)["n_compressed"] > 3
    compress_file(model, "expected", settings, random_state=3)
    assert (here / "small").read_bytes() == (here / "expected").read_bytes()


SPEC = """
defaults: {block_size: 4, n_codes: 8, rotation: hadamard}
rules:
  - {match: "layer.*", n_codes: 16}
  - {match: "nothing", skip: true}
"""


def test_config_options_and_patterns(here, model):
    pytest.importorskip("yaml")
    (here / "spec.yaml").write_text(SPEC, "utf-8")
    shown, errors = run(
        "compress", model, "-o", "small", "--json", "--config", "spec.yaml",
        "--codes", 4, "--rotation", "none",
        "--match", "layer.*", "--match", "conv*", "--skip", "layer.3*",
    )  # fmt: skip
    assert errors == "Warning: no tensor fits the rule match 'nothing' of spec.yaml.\n"
    words = {t["name"]: t["n_code_words"] for t in json.loads(shown)["tensors"]}
    compressed = {name: n for name, n in words.items() if n}
    assert compressed == {**{f"layer.{i}.weight": 16 for i in range(3)}, "conv.weight": 4}


def test_dry_run(here, model):
    shown, _ = run("compress", model, "--dry-run", *NARROW)
    predicted = sum(
        plan_file(model, TensorSettings(block_size=4, n_codes=16)).predicted_bytes().values()
    )
    assert f"{predicted:,} bytes".replace(",", " ") in shown
    assert "error" not in shown
    content = json.loads(run("compress", model, "--dry-run", "--json", "-o", "small", *NARROW)[0])
    assert (content["dry_run"], content["n_bytes"]) == (True, predicted)
    assert "unused" not in shown
    assert {t["relative_error"] for t in content["tensors"]} == {0.0, None}
    assert [path.name for path in here.iterdir()] == [model]


def test_json(model):
    for command in (
        ("compress", model, "-o", "small", *NARROW),
        ("info", "small"),
        ("info", model),
        ("decompress", "small", "-o", "restored"),
    ):
        shown, errors = run(*command, "--json")
        content = json.loads(shown)
        assert errors == ""
        assert len(content["tensors"]) == content["n_compressed"] + content["n_carried"]
        assert content["n_bytes"] == content["header_bytes"] + sum(
            tensor["stored_bytes"] for tensor in content["tensors"]
        )


def test_info_of_a_plain_file(model):
    shown, _ = run("info", model)
    assert "not a compressed file" in shown
    assert "F8_E4M3" in shown


def test_names_of_any_kind_are_shown_safely(model):
    run("compress", model, "-o", "small", *NARROW)
    shown, _ = run("info", "small")
    (line,) = (line for line in shown.splitlines() if "odd" in line)
    assert "\x1b" not in shown
    assert r"\n[red]name\x1b[31m" in line
    assert "embedding.weight = head.weight" in shown


# ---------------------------------------------------------------- cluster


def expected(**parameters):
    return PGKMeans(5, random_state=0, **parameters).fit(ROWS)


def test_cluster_npy_to_npz(here):
    np.save("rows.npy", ROWS)
    shown, errors = run("cluster", "rows.npy", "-k", 5, "-o", "out.npz")
    assert errors == ""
    assert "200 x 3" in shown
    assert "Written: out.npz" in shown
    assert max(map(len, shown.splitlines())) <= 80
    with np.load("out.npz") as found:
        np.testing.assert_array_equal(found["labels"], expected().labels_)
        np.testing.assert_array_equal(found["centers"], expected().cluster_centers_)
        assert found["centers"].dtype == np.float32
        assert float(found["inertia"]) == expected().inertia_


def test_cluster_to_json_and_text(here):
    np.save("rows.npy", ROWS)
    shown, errors = run(
        "cluster", "rows.npy", "-k", 5, "--json", "-o", "labels.csv", "--centers", "centers.csv"
    )
    assert errors == ""
    content = json.loads(shown)
    assert content["inertia"] == expected().inertia_
    assert sum(content["sizes"]) == content["n_rows"] == 200
    assert (content["n_empty"], content["written"]) == (0, ["labels.csv", "centers.csv"])
    labels = np.loadtxt("labels.csv", skiprows=1, dtype=int)
    np.testing.assert_array_equal(labels, expected().labels_)
    centers = np.loadtxt("centers.csv", skiprows=1, delimiter=",", dtype=np.float32)
    np.testing.assert_array_equal(centers, expected().cluster_centers_)


def test_parameters_reach_the_estimator(here):
    np.save("rows.npy", ROWS)
    run(
        "cluster", "rows.npy", "-k", 5, "-o", "labels.npy", "--centers", "centers.npy",
        "--init", "k-means++", "--n-init", 2, "--max-iter", 7, "--tol", 0.01, "--random-state", 3,
        "--algorithm", "lloyd", "--metric", "cosine", "--refine", 1,
        "--size-min", 20, "--size-max", 60,
    )  # fmt: skip
    kmeans = PGKMeans(
        5, init="k-means++", n_init=2, max_iter=7, tol=0.01, random_state=3, algorithm="lloyd",
        metric="cosine", refine=1, size_min=20, size_max=60,
    ).fit(ROWS)  # fmt: skip
    np.testing.assert_array_equal(np.load("labels.npy"), kmeans.labels_)
    np.testing.assert_array_equal(np.load("centers.npy"), kmeans.cluster_centers_)


def test_cluster_raw_numbers_and_one_column(here):
    ROWS.tofile("rows.bin")
    arguments = ("cluster", "rows.bin", "-k", 5, "--dtype", "float32", "--json")
    content = json.loads(run(*arguments, "--columns", 3)[0])
    assert content["inertia"] == expected().inertia_
    assert json.loads(run(*arguments, "--columns", 1)[0])["n_rows"] == 600
    np.save("line.npy", ROWS[:, 0])
    content = json.loads(run("cluster", "line.npy", "-k", 5, "--json")[0])
    assert (content["n_rows"], content["n_columns"]) == (200, 1)


TEXTS = {
    "header.csv": ("a,b,c", ",", ()),
    "none.csv": (None, ",", ()),
    "tabs.tsv": ("a\tb\tc", "\t", ()),
    "forced.csv": ("1,2,3", ",", ("--header",)),
}


@needs_pandas
@pytest.mark.parametrize("name", TEXTS)
def test_cluster_text(here, name):
    header, separator, options = TEXTS[name]
    lines = [separator.join(map(str, row)) for row in ROWS.tolist()]
    (here / name).write_text("\n".join([header, *lines] if header else lines), "utf-8")
    content = json.loads(run("cluster", name, "-k", 5, "--json", *options)[0])
    assert (content["n_rows"], content["n_columns"]) == (200, 3)
    assert content["inertia"] == PGKMeans(5, random_state=0).fit(ROWS.astype(float)).inertia_


@needs_pyarrow
def test_cluster_some_columns_of_a_table(here):
    import pandas

    frame = pandas.DataFrame(ROWS, columns=["a", "b", "c"]).assign(name="x")
    frame.to_parquet("rows.parquet")
    _, errors = run("cluster", "rows.parquet", "-k", 5, status=1)
    assert "the column 'name' with values that are not numbers" in errors
    chosen = ("--select", "a", "--select", "b", "--select", "c")
    content = json.loads(run("cluster", "rows.parquet", "-k", 5, "--json", *chosen)[0])
    assert content["inertia"] == expected().inertia_
    _, errors = run("cluster", "rows.parquet", "-k", 5, "--select", "z", status=1)
    assert "Got the column 'z', but expected one of a, b, c, name" in errors


@pytest.mark.skipif(not find_spec("polars"), reason="polars is not installed")
def test_polars_where_pandas_is_absent(here, monkeypatch):
    lines = [",".join(map(str, row)) for row in ROWS.tolist()]
    (here / "rows.csv").write_text("\n".join(["a,b,c", *lines]), "utf-8")
    monkeypatch.setitem(sys.modules, "pandas", None)
    content = json.loads(run("cluster", "rows.csv", "-k", 5, "--json")[0])
    assert content["n_columns"] == 3
    monkeypatch.setitem(sys.modules, "polars", None)
    _, errors = run("cluster", "rows.csv", "-k", 5, status=1)
    assert "tables need pandas or polars: pip install pandas pyarrow" in errors


def test_warnings_are_lines(here):
    np.save("rows.npy", np.repeat(ROWS[:3], 4, axis=0))
    shown, errors = run("cluster", "rows.npy", "-k", 5, "--json")
    assert errors.startswith("Warning: Number of distinct clusters (3) found smaller")
    assert errors.count("\n") == 1
    assert json.loads(shown)["n_empty"] == 2


# ---------------------------------------------------------------- errors


def wrong_inputs(here):
    """Commands that must fail, and what they say."""
    np.save("rows.npy", ROWS)
    np.save("cube.npy", np.zeros((2, 2, 2)))
    np.save("objects.npy", np.array([None]), allow_pickle=True)
    np.save("texts.npy", np.array(["a"]))
    np.save("nan.npy", np.full((9, 2), np.nan))
    (here / "garbage").write_bytes(b"no tensors")
    (here / "spec.yaml").write_text("defaults: {blocksize: 4}", "utf-8")
    return [
        (("info", "missing"), "missing: No such file or directory"),
        (("info", "garbage"), "garbage: not a valid safetensors file"),
        (("compress", "garbage", "-o", "x"), "garbage: not a valid safetensors file"),
        (("compress", "model.safetensors", "-o", "no/x"), "no/x: got a folder that is not there"),
        (("compress", "model.safetensors", "-o", "."), ".: got a folder, but expected the name"),
        (("compress", "model.safetensors", "-o", "model.safetensors", "--force"), "the source as"),
        (("compress", "model.safetensors", "-o", "x", "--match", "nope*"), "pattern 'nope*'"),
        (("compress", "model.safetensors", "-o", "x", "--skip", "nope*"), "pattern 'nope*'"),
        (("compress", "model.safetensors", "-o", "x", "--codes", 1), "Got n_codes=1"),
        (("compress", "model.safetensors", "-o", "x", "--rotation", "up"), "Got rotation='up'"),
        (("compress", "model.safetensors", "-o", "x", "--config", "missing"), "missing: No such"),
        (("compress", "model.safetensors", "-o", "x", "--config", "spec.yaml"), "spec.yaml: Got"),
        (("decompress", "model.safetensors", "-o", "x"), "model.safetensors: "),
        (("cluster", "missing.npy", "-k", 3), "missing.npy: No such file"),
        (("cluster", "garbage", "-k", 3), "garbage: got a file of unknown kind"),
        (("cluster", "rows.npy", "-k", 0), "Got n_clusters=0"),
        (("cluster", "rows.npy", "-k", 999), "n_samples=200 should be >= n_clusters=999"),
        (("cluster", "rows.npy", "-k", 3, "--metric", "x"), "Got metric='x'"),
        (("cluster", "rows.npy", "-k", 3, "-o", "x.txt"), "x.txt: got a name that ends in '.txt'"),
        (("cluster", "rows.npy", "-k", 3, "--centers", "x.npz"), "x.npz: got a name"),
        (("cluster", "rows.npy", "-k", 3, "--columns", 3), "--columns without --dtype"),
        (("cluster", "rows.npy", "-k", 3, "--select", "a"), "names of columns, but expected them"),
        (("cluster", "garbage", "-k", 3, "--dtype", "f4"), "Got --columns None"),
        (("cluster", "garbage", "-k", 3, "--dtype", "zz", "--columns", 3), "Got dtype 'zz'"),
        (("cluster", "garbage", "-k", 3, "--dtype", "U4", "--columns", 3), "one of numbers"),
        (("cluster", "garbage", "-k", 3, "--dtype", "f4", "--columns", 3), "a multiple of 12"),
        (("cluster", "cube.npy", "-k", 3), "cube.npy: Got an array of shape (2, 2, 2)"),
        (("cluster", "objects.npy", "-k", 3), "objects.npy: "),
        (("cluster", "texts.npy", "-k", 3), "texts.npy: Got an array of dtype <U1"),
        (("cluster", "nan.npy", "-k", 3), "contains NaN"),
    ]


def test_errors_are_one_line(here, model):
    for arguments, message in wrong_inputs(here):
        before = sorted(here.iterdir())
        shown, errors = run(*arguments, status=1)
        assert shown == "", arguments
        assert errors.startswith("Error: "), (arguments, errors)
        assert message in errors, (arguments, errors)
        assert errors.count("\n") == 1, (arguments, errors)
        assert sorted(here.iterdir()) == before, arguments


def test_debug_shows_where(here):
    result = CliRunner().invoke(app, ["info", "missing", "--debug"])
    assert isinstance(result.exception, FileNotFoundError)


def test_unexpected_errors_are_one_line_too(model, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("pgkmeans_sk.cli.info.describe_file", broken)
    _, errors = run("info", model, status=1)
    assert errors == "Error: ZeroDivisionError: division by zero (--debug shows where)\n"


def test_interruption(model, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pgkmeans_sk.cli.info.describe_file", interrupted)
    shown, errors = run("info", model, status=130)
    assert (shown, errors) == ("", "Interrupted; nothing was written.\n")


def test_force(here, model):
    target = here / "small"
    target.write_bytes(b"before")
    _, errors = run("compress", model, "-o", "small", *NARROW, status=1)
    assert errors == "Error: small: there is such a file already; --force overwrites it.\n"
    assert target.read_bytes() == b"before"
    run("compress", model, "-o", "small", *NARROW, "--force")
    assert target.read_bytes() != b"before"
    run("decompress", "small", "-o", model, status=1)
    run("decompress", "small", "-o", model, "-f")
    np.save("rows.npy", ROWS)
    (here / "out.npz").write_bytes(b"before")
    _, errors = run("cluster", "rows.npy", "-k", 3, "-o", "out.npz", status=1)
    assert "out.npz: there is such a file already" in errors
    run("cluster", "rows.npy", "-k", 3, "-o", "out.npz", "--force")


# ---------------------------------------------------------------- real processes


def test_a_process_without_a_terminal(here, model):
    shown, errors = run_process("compress", model, "-o", "small", *NARROW, "--json")
    assert errors == ""
    assert json.loads(shown)["n_compressed"] == 9
    shown, errors = run_process("info", "missing", status=1)
    assert (shown, errors) == ("", "Error: missing: No such file or directory\n")
    shown, errors = run_process("info", "missing", "--debug", status=1)
    assert "Traceback" in errors
    assert "Usage: pgkmeans info" in "".join(run_process("info", status=2))
    shown, errors = run_process("--nonsense", status=2)
    assert (shown, errors[:15]) == ("", "Usage: pgkmeans")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_pipe_that_closes(here, model):
    command = f"{sys.executable} -m pgkmeans_sk info {model} | head -n 1"
    finished = subprocess.run(
        ["sh", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.stderr == ""
    assert finished.stdout.startswith("tensor")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_leaves_nothing(here):
    layers = [entry(f"{i}", "F32", normal(i, 2048, 512)) for i in range(40)]
    write_model(here / "model", layers)
    process = subprocess.Popen(
        [sys.executable, "-m", "pgkmeans_sk", "compress", "model", "-o", "small"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(list(here.iterdir())) == 1:
        pass  # until the temporary file is there: the work has begun
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=300)
    assert (process.returncode, shown) == (130, "")
    assert errors == "Interrupted; nothing was written.\n"
    assert [path.name for path in here.iterdir()] == ["model"]


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from pgkmeans_sk.cli import main
main({arguments!r})
"""


@pytest.mark.parametrize("absent", ["typer", "rich", "yaml", "safetensors"])
def test_without_the_extras(here, absent):
    (here / "spec.yaml").write_text("{}", "utf-8")
    (here / "model").write_bytes(b"never looked at")
    arguments = ["compress", "model", "-o", "x", "--config", "spec.yaml"]
    finished = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=absent, arguments=arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1
    assert "pip install pgkmeans_sk[" in finished.stderr


# ---------------------------------------------------------------- the manual

MANUAL = (ROOT / "docs" / "command_line.md").read_text("utf-8")


def test_the_manual_names_options_that_exist():
    commands = re.findall(r"^\$ pgkmeans (\w+) ([^|\n]*)", MANUAL, re.MULTILINE)
    assert {name for name, _ in commands} == {"cluster", "compress", "decompress", "info"}
    for name, arguments in commands:
        shown = run(name, "--help")[0]
        for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", arguments):
            assert re.search(rf"(?<!\S){option}[ ,\n]", shown), (name, option)
    every_help = "".join(run(name, "--help")[0] for name, _ in commands)
    for option in re.findall(r"`(--[\w-]+)", MANUAL):
        assert option in every_help, option


def test_the_rules_of_the_manual_are_read():
    pytest.importorskip("yaml")
    from pgkmeans_sk.spec_yaml import spec_from_yaml

    (text,) = re.findall(r"```yaml\n(.*?)```", MANUAL, re.DOTALL)
    spec = spec_from_yaml(text)
    assert spec.settings_for("encoder.layer.1.output.dense.weight").n_stages == 2
    assert spec.settings_for("encoder.layer.3.output.dense.weight").n_stages == 1


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("short", 5, "short"),
        ("encoder.layer.10.weight", 11, "encod\N{HORIZONTAL ELLIPSIS}eight"),
        ("abcdef", 4, "ab\N{HORIZONTAL ELLIPSIS}f"),
        ("\N{CJK UNIFIED IDEOGRAPH-4E00}" * 6, 7, None),
        ("a\x1b[31m", 80, r"a\x1b[31m"),
        ("two\nlines", 80, r"two\nlines"),
    ],
)
def test_shortened(text, width, short):
    from rich.cells import cell_len

    found = shortened(text, width)
    assert short is None or found == short
    assert cell_len(found) <= width


def test_sizes():
    texts = [size_text(n) for n in (0, 999, 1000, 28672, 123_456, 90_868_376, 10**13)]
    assert texts == ["0 B", "999 B", "1 kB", "28.7 kB", "123 kB", "90.9 MB", "10000 GB"]


def test_messages():
    assert printable("a\tb") == r"a\tb"
    assert message_of(MemoryError()) == "not enough memory"
    assert message_of(OSError(28, "No space left on device", "x")) == "x: No space left on device"
    assert message_of(OSError("odd")) == "odd"
