"""What documents say was measured is what the committed results say."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the tables are drawn with it")
pytest.importorskip("torch", reason="some tables are of models")

from benchmarks import document, report

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d ]*(?:\.\d+)?(?!\w)")
FEWEST_DIGITS = 3
"""Shorter numbers are found in any table."""


def numbers(line):
    return [number.strip().replace(" ", "") for number in NUMBER.findall(line)]


def test_tables_are_those_of_the_results():
    assert document.refreshed(BENCHMARKS) == BENCHMARKS


def test_every_result_has_its_tables():
    named = {source["name"] for source in document.SOURCE.finditer(BENCHMARKS)}
    results = {
        path.name
        for path in report.RESULTS.glob("*.json")
        if json.loads(path.read_text())["kind"] in report.SHEETS
    }
    assert results - named == set()


def test_no_table_is_from_elsewhere():
    rows = document.all_rows()
    tables = [line for line in BENCHMARKS.splitlines() if line.startswith("|")]
    assert tables
    assert [line for line in tables if line not in rows] == []


def test_a_changed_number_is_noticed():
    changed = re.sub(r"\| \d+\.\d+ \|", "| 0.12345 |", BENCHMARKS, count=1)
    assert changed != BENCHMARKS
    assert document.refreshed(changed) == BENCHMARKS


def test_tables_need_a_title():
    with pytest.raises(ValueError, match=r"no title before the tables of cold\.json"):
        document.refreshed("text\n\nSource: `benchmarks/results/cold.json`.\n")


def test_headline_of_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "\n".join(document.headline_rows()) in readme


def test_methods_on_digits():
    text = (ROOT / "docs" / "methods.md").read_text("utf-8")
    result = report.read(report.RESULTS / "methods.json")
    tables = report.to_markdown(result, "").splitlines()
    rows = [line for line in tables if line.startswith("|")]
    assert "\n".join(rows) in text


@pytest.mark.parametrize("name", ["README.md", "docs/methods.md", "docs/model_compression.md"])
def test_numbers_in_other_tables_are_found_in_results(name):
    measured = {abs(float(number)) for row in document.all_rows() for number in numbers(row)}
    measured |= {100.0 * value for value in measured}  # per cent
    missing = []
    for line in (ROOT / name).read_text("utf-8").splitlines():
        for number in numbers(line) if line.startswith("|") else ():
            digits = number.lstrip("+-0.").replace(".", "")
            half = 0.5000001 * 10.0 ** -len(number.partition(".")[2])
            is_known = any(abs(value - abs(float(number))) <= half for value in measured)
            if len(digits) >= FEWEST_DIGITS and not is_known:
                missing.append((number, line))
    assert missing == []
