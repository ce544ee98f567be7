"""Rows to cluster, from files of several kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgkmeans_sk.codes.tensor_file import naming

TEXT = {".csv": ",", ".tsv": "\t"}
"""Files of text, and what separates their columns."""
PARQUET = (".parquet", ".pq")


def read_rows(
    path: Path,
    *,
    dtype: str | None = None,
    columns: int | None = None,
    select: Sequence[str] = (),
    header: bool | None = None,
) -> NDArray[Any]:
    """Rows (n, d) of a file; those of .npy and raw files stay on disk until they are used.

    Parameters
    ----------
    path : Path
        A .npy, .csv, .tsv or .parquet file; with ``dtype``, any file of bare numbers.
    dtype : str or None
        Of the numbers of a raw file, as NumPy names it.
    columns : int or None
        Of a raw file.
    select : sequence of str
        Names of the columns of a table to take; none means all.
    header : bool or None
        Whether the first line of text names the columns. None: unless it consists of numbers.

    Raises
    ------
    ValueError
        If the file is none of these, or what it holds is no table of numbers.
    OSError
        If it cannot be read.
    ImportError
        If a table needs a library that is absent.
    """
    suffix = path.suffix.lower()
    is_table = dtype is None and (suffix in TEXT or suffix in PARQUET)
    if select and not is_table:
        raise ValueError(f"{path}: got names of columns, but expected them for tables only.")
    if columns is not None and dtype is None:
        raise ValueError(f"{path}: got --columns without --dtype, but expected both or neither.")
    with path.open("rb"), naming(path):  # what cannot be opened is an OSError of its name
        if dtype is not None:
            return _raw_rows(path, dtype, columns)
        if suffix == ".npy":
            return _array_rows(path)
        if is_table:
            return _table_rows(path, suffix, list(select), header)
    known = ", ".join([".npy", *TEXT, *PARQUET])
    raise ValueError(
        f"{path}: got a file of unknown kind, but expected one of {known}, or --dtype and "
        "--columns for bare numbers."
    )


def _raw_rows(path: Path, dtype: str, columns: int | None) -> NDArray[Any]:
    try:
        item = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"Got dtype {dtype!r}, but expected one of NumPy: {error}.") from error
    if item.kind not in "fiu":
        raise ValueError(f"Got dtype {dtype!r}, but expected one of numbers.")
    if columns is None or columns < 1:
        raise ValueError(f"Got --columns {columns}, but expected a number >= 1 beside --dtype.")
    n_bytes, row_bytes = path.stat().st_size, columns * item.itemsize
    if not n_bytes or n_bytes % row_bytes:
        raise ValueError(
            f"Got {n_bytes} bytes, but expected a multiple of {row_bytes}: rows of {columns} "
            f"numbers of {item.itemsize} bytes."
        )
    return np.memmap(path, dtype=item, mode="r", shape=(n_bytes // row_bytes, columns))


def _array_rows(path: Path) -> NDArray[Any]:
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.dtype.kind not in "fiub":
        raise ValueError(f"Got an array of dtype {rows.dtype}, but expected one of numbers.")
    if rows.ndim == 1:  # one value a row: the case that has an exact optimum
        rows = rows[:, np.newaxis]
    if rows.ndim != 2:
        raise ValueError(f"Got an array of shape {rows.shape}, but expected rows and columns.")
    return np.asarray(rows)


def _table_rows(path: Path, suffix: str, select: list[str], header: bool | None) -> NDArray[Any]:
    if suffix in TEXT and header is None:
        header = not _begins_with_numbers(path, TEXT[suffix])
    try:
        import pandas
    except ImportError:
        frame, wrong = _read_with_polars(path, suffix, header)
    else:
        if suffix in TEXT:
            frame = pandas.read_csv(path, sep=TEXT[suffix], header=0 if header else None)
        else:
            frame = pandas.read_parquet(path)
        frame.columns = frame.columns.map(str)
        wrong = list(frame.select_dtypes(exclude=["number", "bool"]).columns)
    names = list(frame.columns)
    for name in select:
        if name not in names:
            raise ValueError(f"Got the column {name!r}, but expected one of {', '.join(names)}.")
    taken = select or names
    wrong = [name for name in taken if name in wrong]
    if wrong:
        raise ValueError(
            f"Got the column {wrong[0]!r} with values that are not numbers, but expected numbers; "
            "--select takes some columns only."
        )
    return np.asarray(frame[taken].to_numpy())


def _read_with_polars(path: Path, suffix: str, header: bool | None) -> tuple[Any, list[str]]:
    """The table, and names of its columns that are not numbers."""
    try:
        import polars
    except ImportError as error:
        raise ImportError(
            f"{path}: tables need pandas or polars: pip install pandas pyarrow"
        ) from error
    if suffix in TEXT:
        frame = polars.read_csv(path, separator=TEXT[suffix], has_header=bool(header))
    else:
        frame = polars.read_parquet(path)
    is_number = {name: kind.is_numeric() for name, kind in frame.schema.items()}
    return frame, [name for name, fits in is_number.items() if not fits]


def _begins_with_numbers(path: Path, separator: str) -> bool:
    """Whether each field of the first line is a number: then it is no header."""
    with path.open("rb") as file:
        fields = file.readline().split(separator.encode())
    try:
        return all(float(field.strip(b' "\r\n')) is not None for field in fields)
    except ValueError:
        return False
