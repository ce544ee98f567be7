"""The command line ``pgkmeans``; needs the extras ``cli`` and ``io``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

NEEDED = ("typer", "rich", "yaml", "safetensors")
"""Libraries of the two extras."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit with its status: 0 for success, 1 for errors, 2 for wrong usage.

    Parameters
    ----------
    arguments : sequence of str or None
        What stands behind the name of the program; None means those of this process.
    """
    try:
        from pgkmeans_sk.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        sys.exit(
            f"pgkmeans needs the library {error.name}, which is not installed: "
            "pip install pgkmeans_sk[cli,io]"
        )
    app(args=None if arguments is None else list(arguments), prog_name="pgkmeans")
