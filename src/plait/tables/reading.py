"""Batches of the rows of tables in files: CSV, JSON lines, Parquet and NPZ."""

import collections
import contextlib
import difflib
import gzip
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Generator, Sequence
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from plait.errors import message
from plait.tables.numbered import Numbered

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
_CELLS = 2**20  # of a batch, about: their texts need some 60 MB

ENDINGS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".npz", ".parquet", ".tsv", ".tsv.gz")


def read_batches(
    source: str | os.PathLike[str] | IO[bytes], texts: Sequence[str], rows: int = 8192
) -> Frames:
    """Reads a table once, in batches, so that memory does not grow with its length.

    Whether a column of CSV holds numbers is decided batch by batch; `Table` looks at all of it.

    Args:
        source: A path as in `Table` (an NPZ file is read whole), or a binary stream of CSV.
        texts: Columns to read as texts whatever they look like.
        rows: Rows per batch.

    Yields:
        Tables of at most `rows` rows; their index counts the rows of the whole table from 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the table is empty, or is not what its ending says.
    """
    for frame in raw_batches(source, rows):
        if holds_texts(source):
            numbers = Numbered(texts)
            numbers.add(frame)
            frame = numbers.typed(frame)
        yield frame


def raw_batches(source: str | os.PathLike[str] | IO[bytes], rows: int | None = None) -> Frames:
    """Yields a table in batches, the cells of CSV and JSON lines as texts.

    Args:
        source: As in `read_batches`.
        rows: Rows per batch; `None` for as many as make about a million cells.
    """
    if not isinstance(source, str | os.PathLike):
        name = "standard input"
        frames = _csv_batches(source, name, ",", rows)
    else:
        path = _checked(source)
        name, ending = str(path), _ending(path)
        if ending == ".parquet":
            frames = _parquet_batches(path, rows)
        elif ending == ".npz":
            frames = _npz_batches(path, rows)
        else:
            frames = _text_batches(path, ending, rows)
    some = False
    with contextlib.closing(frames):
        for frame in frames:
            if len(frame):
                some = True
                yield frame
    if not some:
        raise ValueError(_empty(name))


def holds_texts(source: str | os.PathLike[str] | IO[bytes]) -> bool:
    """Returns whether the cells of a table are texts that may be meant as numbers."""
    if not isinstance(source, str | os.PathLike):
        return True
    return _ending(pathlib.Path(source)) not in (".npz", ".parquet")


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


def _text_batches(path: pathlib.Path, ending: str, rows: int | None) -> Frames:
    name = str(path)
    with _open(path) as stream:
        try:
            if ending.startswith(".jsonl"):
                yield from _json_batches(stream, name, rows)
            else:
                yield from _csv_batches(stream, name, _SEPARATORS[ending[:4]], rows)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                message(f"{name} must be a whole gzip file", str(error), "Write it again")
            ) from error


def _csv_batches(stream: IO[bytes], name: str, separator: str, rows: int | None) -> Frames:
    """Yields tables of texts, empty cells as NaN."""
    pandas = need_pandas()
    remedy = "Save it as comma-separated text in UTF-8, with one header line"
    first = 0
    try:
        # The header is read as the first row: pandas would rename columns of one name.
        with pandas.read_csv(stream, sep=separator, iterator=True, **_CSV) as reader:
            names = _header(reader.get_chunk(1).iloc[0].tolist(), name)
            while (frame := _next(reader, rows or _rows(names))) is not None:
                frame.columns = names
                frame.index = range(first, first + len(frame))
                first += len(frame)
                yield frame.mask(frame.isin(_MISSING))
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


def _next(reader: Any, rows: int) -> "pd.DataFrame | None":
    """Returns the next rows of a reader of pandas, `None` if none is left."""
    try:
        return reader.get_chunk(rows)
    except StopIteration:
        return None


def _rows(names: Sequence[str]) -> int:
    """Returns the rows of a batch of so many columns."""
    return max(1, _CELLS // len(names))


# Numbers as they are written: `1.50` is no class label 1.5.
_JSON = json.JSONDecoder(object_pairs_hook=list, parse_float=str, parse_int=str, parse_constant=str)


def _json_batches(stream: IO[bytes], name: str, rows: int | None) -> Frames:
    """Yields tables of texts from lines of JSON, one object each; null as NaN."""
    pandas = need_pandas()
    lines = enumerate(stream, 1)
    records = (_record(line, number, name) for number, line in lines if line.strip())
    head = next(records, None)
    if head is None:
        return
    names = list(head[1])
    _different(names, name)
    if not names:
        raise ValueError(_bad_line(name, 1, "an object without keys"))
    first, every = 0, itertools.chain([head], records)
    while batch := list(itertools.islice(every, rows or _rows(names))):
        for number, record in batch:
            more = [key for key in record if key not in head[1]]
            if more:
                raise ValueError(
                    message(
                        f"Every line of {name} must have keys of its first",
                        f"{more[0]!r} in line {number}",
                        "Write null for it in the first line, if it is a column",
                    )
                )
        columns = {key: [record.get(key, "") for _, record in batch] for key in names}
        frame = pandas.DataFrame(columns, index=range(first, first + len(batch)), dtype=str)
        first += len(batch)
        yield frame.mask(frame.isin(_MISSING))


def _record(line: bytes, number: int, name: str) -> tuple[int, dict[str, str]]:
    """Returns the number of a line and its cells."""
    try:
        pairs = _JSON.decode(line.decode("utf-8-sig" if number == 1 else "utf-8").strip())
    except UnicodeDecodeError as error:
        raise ValueError(
            message(
                f"{name} must be text in UTF-8", f"{error.reason} in line {number}", "Write it so"
            )
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(_bad_line(name, number, str(error))) from error
    if not line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        raise ValueError(_bad_line(name, number, "another value"))
    _different([key for key, _ in pairs], f"line {number} of {name}")
    return number, {key: _cell(value, key, number, name) for key, value in pairs}


def _cell(value: Any, key: str, number: int, name: str) -> str:
    """Returns a value of JSON as the text of a cell."""
    if isinstance(value, list):
        raise ValueError(
            message(
                f"A cell of {name} is a number, a text, true, false or null",
                f"a list or an object in {key!r} of line {number}",
                "Give each of its values a key of its own, or leave it out",
            )
        )
    return "" if value is None else str(value)


def _bad_line(name: str, number: int, received: str) -> str:
    return message(
        f"Every line of {name} must be a JSON object",
        f"{received} in line {number}",
        "Write one object a line, without commas between them",
    )


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


def _parquet_files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.parquet") if path.is_file())


def _parquet_data(path: pathlib.Path) -> Any:
    """Returns a Parquet file, or a folder of them, as a pyarrow data set."""
    need_pandas()
    import pyarrow.dataset

    files = _parquet_files(path) if path.is_dir() else [str(path)]
    base = str(path if path.is_dir() else path.parent)
    options = {"format": "parquet", "partitioning": "hive", "partition_base_dir": base}
    data = pyarrow.dataset.dataset(files, **options)
    if len(files) > 1:  # pyarrow would take the columns of the first for those of all
        data = pyarrow.dataset.dataset(files, schema=_common_schema(data, path), **options)
    _different(data.schema.names, str(path))
    return data


def _common_schema(data: Any, path: pathlib.Path) -> Any:
    """Returns the columns of all files of a pyarrow data set, each of a type that holds them all.

    A column that a file lacks, or has nothing in, is empty there.
    """
    import pyarrow

    # That of the data set is the first file's, with what the names of folders say.
    schemas = [data.schema, *(part.physical_schema for part in data.get_fragments())]
    try:
        return pyarrow.unify_schemas(map(_decoded, schemas), promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise ValueError(
            message(
                f"A column must be of one type in all files of {path}",
                str(error),
                "Write the files again from one table",
            )
        ) from error


def _decoded(schema: Any) -> Any:
    """Returns a schema of pyarrow with the values of dictionaries in their place."""
    import pyarrow

    dictionary = pyarrow.types.is_dictionary
    return pyarrow.schema(
        [f.with_type(f.type.value_type) if dictionary(f.type) else f for f in schema]
    )


def _parquet_batches(path: pathlib.Path, rows: int | None) -> Frames:
    need_pandas()
    import pyarrow

    first = 0
    try:
        data = _parquet_data(path)
        size = rows or _rows(data.schema.names)
        # Without reading ahead, which holds many batches at once.
        for batch in data.to_batches(batch_size=size, batch_readahead=1, fragment_readahead=1):
            frame = batch.to_pandas()
            frame.index = range(first, first + len(frame))
            first += len(frame)
            yield frame
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(_not_what_it_says(path, "is damaged")) from error


def _npz_batches(path: pathlib.Path, rows: int | None) -> Frames:
    whole = _npz(path)
    size = rows or _rows(list(whole.columns))
    yield from (whole[i : i + size] for i in range(0, len(whole), size))


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


__all__ = [
    "ENDINGS",
    "Frames",
    "holds_texts",
    "nearest",
    "need_pandas",
    "raw_batches",
    "read_batches",
]
