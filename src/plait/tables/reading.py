"""Tables from files: CSV, Parquet and NPZ, whole or in batches of constant memory."""

import contextlib
import os
import pathlib
from collections.abc import Generator, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from plait.errors import message

if TYPE_CHECKING:
    import pandas as pd

Frames = Generator["pd.DataFrame", None, None]

# What an empty cell may look like. pandas' own list has "None" too, which is a fair category.
_MISSING = ["", "NaN", "nan", "NA", "N/A", "NULL", "null"]
_CSV: dict[str, Any] = {
    "encoding": "utf-8-sig",
    "keep_default_na": False,
    "na_values": _MISSING,
    "skipinitialspace": True,
}
_MAGIC = {".parquet": b"PAR1", ".npz": b"PK\x03\x04"}
_KINDS = {b"PAR1": "a Parquet file", b"PK\x03\x04": "a zip or NPZ file", b"\x1f\x8b": "gzip"}

ENDINGS = (".csv", ".parquet", ".npz")


def read(path: str | os.PathLike[str], texts: Sequence[str] = ()) -> "pd.DataFrame":
    r"""Reads a whole table.

    Columns of a CSV file that hold numbers in every row come back as numbers, all others as texts
    exactly as they stand in the file. In an NPZ file each array with one axis is a column, and an
    array `x` of shape `(b, d)` gives the columns `x0`, `x1`, …

    Args:
        path: A file that ends in `.csv`, `.parquet` or `.npz`.
        texts: Columns to leave as texts even if every cell is a number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, or is not what its ending says.

    Example:
    >>> import pathlib, tempfile
    >>> from plait.tables import read
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "t.csv"
    >>> _ = path.write_text("age,sex\n40,f\n50,m\n")
    >>> frame = read(path)
    >>> list(frame.columns), frame["age"].tolist(), frame["sex"].tolist()
    (['age', 'sex'], [40, 50], ['f', 'm'])
    """
    path = _checked(path)
    if path.suffix == ".parquet":
        frame = _parquet(path)
    elif path.suffix == ".npz":
        frame = _npz(path)
    else:
        with path.open("rb") as stream:
            (frame,) = _csv_batches(stream, str(path), {"dtype": str})
        frame = _numbers(frame, texts)
    if not len(frame):
        raise ValueError(_empty(str(path)))
    return frame


def read_batches(
    source: str | os.PathLike[str] | IO[bytes], texts: Sequence[str], rows: int = 8192
) -> Frames:
    """Reads a table in batches, so that memory does not grow with its length.

    Args:
        source: A path as in `read` (an NPZ file is read whole), or a binary stream of CSV.
        texts: Columns to read as texts whatever they look like.
        rows: Rows per batch.

    Yields:
        Tables of at most `rows` rows; their index counts the rows of the whole table from 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the table is empty, or is not what its ending says.
    """
    options = {"dtype": dict.fromkeys(texts, str), "chunksize": rows}
    if not isinstance(source, str | os.PathLike):
        frames = _csv_batches(source, "standard input", options)
        name = "standard input"
    else:
        path = _checked(source)
        name = str(path)
        if path.suffix == ".csv":
            frames = _csv_file_batches(path, options)
        elif path.suffix == ".parquet":
            frames = _parquet_batches(path, rows)
        else:
            whole = _npz(path)
            frames = (whole[i : i + rows] for i in range(0, len(whole), rows))
    some = False
    with contextlib.closing(frames):
        for frame in frames:
            if len(frame):
                some = True
                yield frame
    if not some:
        raise ValueError(_empty(name))


def _checked(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(
            message(
                f"A table is a file that ends in {', '.join(ENDINGS)}",
                repr(str(path)),
                "Convert or rename it",
            )
        )
    if not path.is_file():
        raise FileNotFoundError(
            message("A table must exist", f"{str(path)!r}, which is no file", "Check the path")
        )
    with path.open("rb") as stream:
        start = stream.read(1024)
    if not start:
        raise ValueError(_empty(str(path)))
    magic = _MAGIC.get(path.suffix)
    is_text = b"\x00" not in start and not any(start.startswith(kind) for kind in _KINDS)
    if not (start.startswith(magic) if magic else is_text):
        looks = next((_KINDS[kind] for kind in _KINDS if start.startswith(kind)), None)
        raise ValueError(_not_what_it_says(path, f"begins like {looks}" if looks else "does not"))
    return path


def _csv_file_batches(path: pathlib.Path, options: dict[str, Any]) -> Frames:
    with path.open("rb") as stream:
        yield from _csv_batches(stream, str(path), options)


def _csv_batches(stream: IO[bytes], name: str, options: dict[str, Any]) -> Frames:
    pandas = need_pandas()
    remedy = "Save it as comma-separated text in UTF-8, with one header line"
    try:
        found = pandas.read_csv(stream, low_memory=False, **_CSV, **options)
        with contextlib.nullcontext([found]) if "chunksize" not in options else found as frames:
            for frame in frames:
                # A longer first row makes pandas take its first cells for row labels.
                if not isinstance(frame.index, pandas.RangeIndex):
                    raise ValueError(
                        message(
                            f"Every row of {name} must have as many cells as the header",
                            f"rows with more than {frame.shape[1]}",
                            "Name all columns, or remove trailing commas",
                        )
                    )
                yield frame
    except pandas.errors.EmptyDataError as error:
        raise ValueError(_empty(name)) from error
    except pandas.errors.ParserError as error:
        detail = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise ValueError(
            message(f"Every row of {name} must have as many cells as the header", detail, remedy)
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            message(f"{name} must be text in UTF-8", f"{error.reason}", remedy)
        ) from error


def _numbers(frame: "pd.DataFrame", texts: Sequence[str]) -> "pd.DataFrame":
    """Turns columns of texts into numbers where every cell that is not empty is one."""
    pandas = need_pandas()
    columns = {}
    for i, name in enumerate(frame.columns):
        column = frame.iloc[:, i]
        try:
            columns[name] = column if name in texts else pandas.to_numeric(column)
        except (ValueError, TypeError):
            columns[name] = column
    return pandas.DataFrame(columns, index=frame.index)


def _parquet(path: pathlib.Path) -> "pd.DataFrame":
    pandas = need_pandas()
    import pyarrow

    try:
        return pandas.read_parquet(path, engine="pyarrow").reset_index(drop=True)
    except pyarrow.ArrowException as error:
        raise ValueError(_not_what_it_says(path, "is damaged")) from error


def _parquet_batches(path: pathlib.Path, rows: int) -> Frames:
    need_pandas()
    import pyarrow
    import pyarrow.parquet

    first = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(rows):
            frame = batch.to_pandas()
            frame.index = range(first, first + len(frame))
            first += len(frame)
            yield frame
    except pyarrow.ArrowException as error:
        raise ValueError(_not_what_it_says(path, "is damaged")) from error


def _npz(path: pathlib.Path) -> "pd.DataFrame":
    pandas = need_pandas()
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own for a bad archive
        raise ValueError(_not_what_it_says(path, "is damaged, or holds Python objects")) from error
    columns: dict[str, np.ndarray] = {}
    for name, array in found.items():
        if array.ndim == 1:
            columns[name] = array
        elif array.ndim == 2:
            columns |= {f"{name}{j}": array[:, j] for j in range(array.shape[1])}
        else:
            raise ValueError(
                message(
                    "Arrays of an NPZ table have one axis or two",
                    f"{name!r} of shape {array.shape} in {path}",
                    "Flatten it or leave it out",
                )
            )
    lengths = {name: len(array) for name, array in found.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            message(
                "Arrays of an NPZ table must have one number of rows",
                f"{lengths} in {path}",
                "Save training and test data in files of their own",
            )
        )
    return pandas.DataFrame(columns)


def _empty(name: str) -> str:
    return message(
        "A table needs a header and at least one row",
        f"{name}, which has no rows",
        "Check how it was written",
    )


def _not_what_it_says(path: pathlib.Path, finding: str) -> str:
    return message(
        f"A file that ends in {path.suffix} must hold {path.suffix[1:].upper()} data",
        f"{str(path)!r}, which {finding}",
        "Rename it to what it is, or write it again",
    )


def need_pandas() -> Any:
    """Returns pandas, or says how to get it."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            message("Reading tables needs pandas", "no such package", "pip install plait[cli]")
        ) from error
    return pandas


__all__ = ["ENDINGS", "need_pandas", "read", "read_batches"]
