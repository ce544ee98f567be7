"""Files that are written wholly or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO


@contextmanager
def replaced(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of ``path`` when the block ends.

    It is written beside ``path`` under a name of its own. If the block raises anything, it is
    removed, and what was at ``path`` stays as it was. A link is followed: the file that it points
    to is replaced. Permissions are those of the old file, or what the umask leaves to a new one.

    Raises
    ------
    ValueError
        If ``path`` is something other than a file: a device, a pipe.
    OSError
        If the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path}: got a directory, but expected the name of a file")
    if target.exists() and not target.is_file():
        raise ValueError(f"{path}: got a device or pipe, but expected the name of a file")
    temporary = target.with_name(f".pgkmeans-{token_hex(8)}.tmp")
    try:
        # "x" as in exclusive: a file that is there already would be somebody else's.
        with temporary.open("xb") as file:
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)  # noqa: PTH105 - tests make it fail under this name
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
