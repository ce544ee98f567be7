"""Errors and warnings as single lines on standard error, and the exit status that they mean."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

from pgkmeans_sk.cli.console import error_console, printable

FAILED = 1
INTERRUPTED = 130
"""128 and the number of the signal: what shells report after Ctrl-C."""

EXPECTED = (OSError, ValueError, ImportError, MemoryError)
"""What wrong input, full disks and missing libraries raise. Others are faults of ours."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its errors and warnings told in one line each, unless ``debug`` is set."""

    @wraps(command)
    def run(**options: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", UserWarning)
                warnings.showwarning = _show_warning
                command(**options)
        except KeyboardInterrupt as error:
            say("Interrupted; nothing was written.", "yellow")
            raise typer.Exit(INTERRUPTED) from error
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if options.get("debug") or _is_usage_error(error):
                raise
            say(f"Error: {message_of(error)}", "red")
            raise typer.Exit(FAILED) from error

    return run


def message_of(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return text or "not enough memory"
    if isinstance(error, EXPECTED):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def say(message: str, style: str = "yellow") -> None:
    """Print one line to standard error."""
    error_console().print(
        printable(message), style=style, markup=False, highlight=False, soft_wrap=True
    )


def _is_usage_error(error: Exception) -> bool:
    """Whether it is one that typer reports by itself: of wrong options, with exit status 2."""
    return isinstance(error, typer.BadParameter)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"Warning: {' '.join(str(message).split())}")
