"""What ``verbose`` means: messages of the logger "pgkmeans_sk", shown for the time of one call."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

logger = logging.getLogger("pgkmeans_sk")


def silence(message: str) -> None:
    """Take a message to nobody; who is given this one need not compose it."""


@contextlib.contextmanager
def spoken(verbose: int) -> Iterator[Callable[[str], None]]:
    """Yield a function for messages: silent, unless ``verbose``.

    A program that has set up logging hears of fits there, at level INFO. Otherwise messages go to
    standard error, and the logger is left as it was found.
    """
    if not verbose:
        yield silence
        return
    handler, level = logging.StreamHandler(), logger.level
    needs_handler = not logger.hasHandlers()
    if needs_handler:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield logger.info
    finally:
        if needs_handler:
            logger.removeHandler(handler)
            logger.setLevel(level)
