"""Long commands show how far they are, on a terminal and nowhere else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("safetensors")
pty = pytest.importorskip("pty", reason="needs a POSIX terminal")

from tests.model_files import write_model  # noqa: E402
from tests.problems import rows  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def run_at_a_terminal(folder, *arguments):
    """Standard output as a pipe gets it, and what the terminal behind standard error was sent."""
    here, there = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "CI"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "pgkmeans_sk", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=there,
    )
    os.close(there)
    sent = b""
    while True:
        try:
            some = os.read(here, 2**16)
        except OSError:  # how Linux says that the other end was closed
            break
        if not some:
            break
        sent += some
    shown, _ = process.communicate(timeout=300)
    os.close(here)
    assert process.returncode == 0, sent
    return shown.decode(), sent.decode()


def test_compress_moves_a_bar(tmp_path):
    write_model(tmp_path / "model.safetensors")
    shown, sent = run_at_a_terminal(
        tmp_path, "compress", "model.safetensors", "-o", "small", "--codes", 16
    )
    assert "100%" in sent
    assert sent.endswith("\x1b[2K")  # the line is erased at the end
    assert "\x1b" not in shown
    assert "Written in" in shown


def test_cluster_tells_of_its_iterations(tmp_path):
    np.save(tmp_path / "rows.npy", rows("normal", 20_000, 8, seed=0))
    shown, sent = run_at_a_terminal(tmp_path, "cluster", "rows.npy", "-k", 50)
    assert re.search(r"iteration \d+: inertia|start 0: \d+ iterations", sent)
    assert "\x1b" not in shown
    assert "clusters" in shown
