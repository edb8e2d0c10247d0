"""Tables from files: CSV, Parquet and NPZ, whole or in batches of constant memory."""

import collections
import contextlib
import difflib
import gzip
import os
import pathlib
import re
import zlib
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
    "na_filter": False,
    "skipinitialspace": True,
    "header": None,
    "index_col": False,
    "dtype": str,
}
_MAGIC = {".parquet": b"PAR1", ".npz": b"PK\x03\x04"}
_KINDS = {b"PAR1": "a Parquet file", b"PK\x03\x04": "a zip or NPZ file", b"\x1f\x8b": "gzip"}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
# Digits that a number would not print back: 007 becomes 7.
_PADDED = re.compile(r"[+-]?0\d+")
_EXACT = 2**53  # integers above it are not all different as floats

ENDINGS = (".csv", ".csv.gz", ".npz", ".parquet", ".tsv", ".tsv.gz")


def read(path: str | os.PathLike[str], texts: Sequence[str] = ()) -> "pd.DataFrame":
    r"""Reads a whole table.

    Columns of a CSV file that hold numbers in every row come back as numbers, all others as texts
    exactly as they stand in the file. Digits that would not print back the same stay texts: 007,
    and integers beyond 2^53. In an NPZ file each array with one axis is a column, and an
    array `x` of shape `(b, d)` gives the columns `x0`, `x1`, … A folder is read as the Parquet
    files in it; folders named `column=value` are a column.

    Args:
        path: A file that ends in one of `ENDINGS`, or a folder of Parquet files.
        texts: Columns to leave as texts even if every cell is a number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is empty, is not what its ending says, or has two columns of one
            name.

    Example:
    >>> import pathlib, tempfile
    >>> from plait.tables import read
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "t.csv"
    >>> _ = path.write_text("age,sex,code\n40,f,007\n50,m,010\n")
    >>> frame = read(path)
    >>> frame["age"].tolist(), frame["sex"].tolist(), frame["code"].tolist()
    ([40, 50], ['f', 'm'], ['007', '010'])
    """
    path = _checked(path)
    ending = _ending(path)
    if ending == ".parquet":
        frame = _parquet(path)
    elif ending == ".npz":
        frame = _npz(path)
    else:
        with _open(path) as stream:
            (frame,) = _csv_batches(stream, str(path), _SEPARATORS[ending[:4]], texts, None)
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
    if not isinstance(source, str | os.PathLike):
        name = "standard input"
        frames = _csv_batches(source, name, ",", texts, rows)
    else:
        path = _checked(source)
        name, ending = str(path), _ending(path)
        if ending == ".parquet":
            frames = _parquet_batches(path, rows)
        elif ending == ".npz":
            whole = _npz(path)
            frames = (whole[i : i + rows] for i in range(0, len(whole), rows))
        else:
            frames = _csv_file_batches(path, _SEPARATORS[ending[:4]], texts, rows)
    some = False
    with contextlib.closing(frames):
        for frame in frames:
            if len(frame):
                some = True
                yield frame
    if not some:
        raise ValueError(_empty(name))


def _ending(path: pathlib.Path) -> str:
    """Returns which of `ENDINGS` a path has; a folder is one of Parquet files."""
    if path.is_dir():
        return ".parquet"
    return next((end for end in sorted(ENDINGS, key=len)[::-1] if path.name.endswith(end)), "")


def _open(path: pathlib.Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _checked(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.is_dir():
        if not _parquet_files(path):
            raise ValueError(
                message(
                    "A folder that is a table holds .parquet files",
                    f"{str(path)!r}, which holds none",
                    "Check the path",
                )
            )
        return path
    ending = _ending(path)
    if not ending:
        raise ValueError(
            message(
                f"A table is a file that ends in {', '.join(ENDINGS)}, or a folder of .parquet "
                "files",
                repr(str(path)),
                "Convert or rename it",
            )
        )
    if not path.is_file():
        near = _near(path)
        raise FileNotFoundError(
            message(
                "A table must exist",
                f"{str(path)!r}, which is no file",
                f"Did you mean {near!r}" if near else "Check the path",
            )
        )
    if not path.stat().st_size:
        raise ValueError(_empty(str(path)))
    try:
        with _open(path) as stream:
            start = stream.read(1024)
    except (OSError, EOFError, zlib.error) as error:
        if path.suffix != ".gz" or isinstance(error, PermissionError):
            raise
        raise ValueError(_not_what_it_says(path, "is no whole gzip file")) from error
    magic = _MAGIC.get(ending)
    is_text = b"\x00" not in start and not any(start.startswith(kind) for kind in _KINDS)
    if not (start.startswith(magic) if magic else is_text):
        looks = next((_KINDS[kind] for kind in _KINDS if start.startswith(kind)), None)
        raise ValueError(_not_what_it_says(path, f"begins like {looks}" if looks else "does not"))
    return path


def _near(path: pathlib.Path) -> str | None:
    """Returns the name of a file beside a missing one that is spelled much like it."""
    with contextlib.suppress(OSError):
        names = [other.name for other in path.parent.iterdir() if _ending(other)]
        found = nearest(path.name, names)
        return None if found is None else str(path.with_name(found))
    return None


def _csv_file_batches(
    path: pathlib.Path, separator: str, texts: Sequence[str], rows: int
) -> Frames:
    with _open(path) as stream:
        yield from _csv_batches(stream, str(path), separator, texts, rows)


def _csv_batches(
    stream: IO[bytes], name: str, separator: str, texts: Sequence[str], rows: int | None
) -> Frames:
    """Yields tables, empty cells as NaN; all rows at once if `rows` is `None`."""
    pandas = need_pandas()
    remedy = "Save it as comma-separated text in UTF-8, with one header line"
    first = 0
    try:
        # The header is read as the first row: pandas would rename columns of one name.
        with pandas.read_csv(stream, sep=separator, iterator=True, **_CSV) as reader:
            header = reader.get_chunk(1)
            names = _header(header.iloc[0].tolist(), name)
            while (frame := _next(reader, rows)) is not None or first == 0:
                frame = header.iloc[1:] if frame is None else frame
                frame.columns = names
                frame.index = range(first, first + len(frame))
                yield _numbers(frame.mask(frame.isin(_MISSING)), texts)
                if rows is None or not len(frame):
                    break
                first += len(frame)
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
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            message(f"{name} must be a whole gzip file", str(error), "Write it again")
        ) from error


def _next(reader: Any, rows: int | None) -> "pd.DataFrame | None":
    """Returns the next rows of a reader of pandas, all that are left if `rows` is `None`."""
    try:
        return reader.read() if rows is None else reader.get_chunk(rows)
    except StopIteration:
        return None


def _header(cells: list[Any], name: str) -> list[str]:
    """Returns the columns' names; one without a name gets pandas' name for it."""
    names = [str(cell) if str(cell) else f"Unnamed: {i}" for i, cell in enumerate(cells)]
    _different(names, name)
    return names


def _different(names: Sequence[str], name: str) -> None:
    """Raises if two columns have one name."""
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            message(
                "Columns of a table must have different names",
                f"{', '.join(map(repr, twice[:8]))} more than once in {name}",
                "Rename or remove all but one",
            )
        )


def _numbers(frame: "pd.DataFrame", texts: Sequence[str]) -> "pd.DataFrame":
    """Turns columns of texts into numbers where every cell that is not empty is one."""
    pandas = need_pandas()
    types = pandas.api.types
    columns = {}
    for name in frame.columns:
        column = frame[name]
        columns[name] = column
        if name in texts or types.is_numeric_dtype(column.dtype):
            continue
        if types.infer_dtype(column, skipna=True) not in ("string", "empty"):
            continue
        try:
            numbers = pandas.to_numeric(column)
        except (ValueError, TypeError):
            continue
        whole = types.is_integer_dtype(numbers.dtype) or not types.is_float_dtype(numbers.dtype)
        if not any(map(_PADDED.fullmatch, column.dropna().unique())) and not (
            whole and (numbers.astype("float64").abs() > _EXACT).any()
        ):
            columns[name] = numbers
    return pandas.DataFrame(columns, index=frame.index)


def _parquet_files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.parquet") if path.is_file())


def _parquet_data(path: pathlib.Path) -> Any:
    """Returns a Parquet file, or a folder of them, as a pyarrow data set."""
    need_pandas()
    import pyarrow.dataset

    files = _parquet_files(path) if path.is_dir() else [str(path)]
    base = str(path if path.is_dir() else path.parent)
    data = pyarrow.dataset.dataset(
        files, format="parquet", partitioning="hive", partition_base_dir=base
    )
    _different(data.schema.names, str(path))
    return data


def _parquet(path: pathlib.Path) -> "pd.DataFrame":
    need_pandas()
    import pyarrow

    try:
        return _parquet_data(path).to_table().to_pandas().reset_index(drop=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(_not_what_it_says(path, "is damaged")) from error


def _parquet_batches(path: pathlib.Path, rows: int) -> Frames:
    need_pandas()
    import pyarrow

    first = 0
    try:
        for batch in _parquet_data(path).to_batches(batch_size=rows):
            frame = batch.to_pandas()
            frame.index = range(first, first + len(frame))
            first += len(frame)
            yield frame
    except (pyarrow.ArrowException, OSError) as error:
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
            parts = {f"{name}{j}": array[:, j] for j in range(array.shape[1])}
            _different([*columns, *parts], str(path))
            columns |= parts
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
    kind = _ending(path)
    return message(
        f"A file that ends in {kind} must hold {kind[1:].split('.')[0].upper()} data",
        f"{str(path)!r}, which {finding}",
        "Rename it to what it is, or write it again",
    )


def nearest(name: str, names: Sequence[str]) -> str | None:
    """Returns the name that is spelled most like another, if one is near.

    Example:
    >>> from plait.tables.reading import nearest
    >>> nearest("Age", ["age", "sex"]), nearest("colour", ["age", "sex"])
    ('age', None)
    """
    lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def need_pandas() -> Any:
    """Returns pandas, or says how to get it."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            message("Reading tables needs pandas", "no such package", "pip install plait[cli]")
        ) from error
    return pandas


__all__ = ["ENDINGS", "nearest", "need_pandas", "read", "read_batches"]
