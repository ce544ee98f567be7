"""The commands that measure something, by their names on the command line."""

from __future__ import annotations

from benchmarks.clustering_commands import CLUSTERING
from benchmarks.code_commands import CODES

MEASURING = CLUSTERING | CODES
"""Name -> command. To add a benchmark, add a row to one of the two, and one in ``report.py``."""
