"""Every Python example in README.md and docs/ runs, in order, and prints what it says it prints.

So do the commands of ```console blocks that call ``pgkmeans``, in the same folder; what they print
differs from machine to machine, and is not compared.

pytest's own ``--doctest-glob`` takes the closing fence of a Markdown block for expected output, and
leaves out the examples that are written without a prompt.
"""

import ast
import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("README.md"), *ROOT.glob("docs/**/*.md")])

# ```python blocks; a word after it, as in ```python not-run, leaves the block out.
EXAMPLE = re.compile(
    r"^```(?P<kind>python|pycon|console) *\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^\$ pgkmeans (?P<arguments>.*)$", re.MULTILINE)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def run_examples(text: str, name: str) -> int:
    """Run the blocks of one document in one namespace; returns how many there were."""
    namespace = {"__name__": "__main__"}
    n_blocks = 0
    for block in EXAMPLE.finditer(text):
        code, line = block["code"], text.count("\n", 0, block.start("code"))
        if block["kind"] == "console":
            for command in COMMAND.finditer(code):
                run_command(command["arguments"])
        elif ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line)
            report = []
            runner = doctest.DocTestRunner(optionflags=OPTIONS)
            result = runner.run(test, out=report.append, clear_globs=False)
            assert result.failed == 0, "".join(report)
            namespace = test.globs
        else:
            exec(compile("\n" * line + code, name, "exec"), namespace)
        n_blocks += 1
    return n_blocks


def run_command(arguments: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pgkmeans_sk", *shlex.split(arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, f"pgkmeans {arguments}: {finished.stderr}"


@pytest.fixture(autouse=True)
def _no_figures_are_left():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may save files
    run_examples(path.read_text("utf-8"), str(path))


# ------------------------------------------------------------------ files and functions named

PLACE = re.compile(r"`(?P<path>[\w/]+\.py)(?::(?P<name>\w+))?`")


def missing_places(text: str) -> list[str]:
    """Files that are not there, and functions or classes that they do not define."""
    missing = []
    for place in PLACE.finditer(text):
        paths = [ROOT / "pgkmeans_sk" / place["path"], ROOT / place["path"]]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            missing.append(place[0])
        elif place["name"]:
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            if place["name"] not in {getattr(node, "name", None) for node in nodes}:
                missing.append(place[0])
    return missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_named_places_exist(path):
    assert missing_places(path.read_text("utf-8")) == []


def test_missing_places_are_found():
    good = "`kmeans.py`, `kmeans.py:PGKMeans`, `tests/conftest.py:engine`, `PGKMeans.fit`"
    assert missing_places(good) == []
    assert missing_places("`k.py` and `kmeans.py:fits`") == ["`k.py`", "`kmeans.py:fits`"]


# ------------------------------------------------------------------ the examples of these tests


def test_blocks_share_names_and_are_counted():
    run = "Text\n```python\nx = 2\n```\nmore\n```pycon\n>>> x + 1\n3\n```\n"
    assert run_examples(run + "```python not-run\n1 / 0\n```\n", "fake.md") == 2


def test_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("a,b\n0,1\n0,2\n9,1\n")
    block = (
        "```console\n$ make no-such-thing\n$ pgkmeans cluster rows.csv -k {} -o labels.csv\n```\n"
    )
    assert run_examples(block.format(2), "fake.md") == 1
    assert Path("labels.csv").read_text().count("\n") == 4
    with pytest.raises(AssertionError, match=r"pgkmeans cluster rows\.csv -k 0"):
        run_examples(block.format(0), "fake.md")


@pytest.mark.parametrize(
    ("code", "error"), [(">>> 1 + 1\n3\n", AssertionError), ("1 / 0\n", ZeroDivisionError)]
)
def test_wrong_example_fails(code, error):
    with pytest.raises(error):
        run_examples(f"```python\n{code}```\n", "fake.md")
