"""`plait predict`: labels and probabilities, or values, in batches of constant memory."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

import keras
import numpy as np

from plait.cli.console import remarks
from plait.cli.options import check_not_input
from plait.errors import message
from plait.tables import Findings, Schema, check_output, load, matrix, read_batches, replacing

_ROWS = 8192


def run(
    model_path: pathlib.Path, data: str, output: pathlib.Path | None, strict: bool = False
) -> None:
    """Reads, predicts and writes batch by batch.

    Args:
        model_path: A file of plait fit or plait blend.
        data: A table, or `-` for CSV on standard input.
        output: A `.csv` or `.parquet` file; standard output if `None`.
        strict: Whether to refuse categories and empty cells that training has not seen.
    """
    if output is not None:
        _check(output, model_path, data)
    model = load(model_path)
    schema = model.schema
    source: str | IO[bytes] = sys.stdin.buffer if data == "-" else data
    findings = Findings(strict)
    frames = contextlib.closing(read_batches(source, schema.texts, _ROWS))
    with frames as batches, _writer(output) as write:
        for frame in batches:
            x = matrix(frame, schema, findings)
            if findings.faulty:  # read on only to count
                continue
            write(columns(keras.ops.convert_to_numpy(model.model.predict_on_batch(x)), schema))
        findings.check()
    for remark in findings.remarks():
        remarks.print(remark)


def columns(predictions: np.ndarray, schema: Schema) -> dict[str, Any]:
    """Returns the columns of the output for predictions `(b, u)`.

    Example:
    >>> import numpy as np
    >>> from plait.cli.predict import columns
    >>> from plait.tables import Column, Schema
    >>> schema = Schema((Column("age"),), "sex", "classification", classes=("f", "m"))
    >>> {n: np.array(c).tolist() for n, c in columns(np.array([[0.25, 0.75]]), schema).items()}
    {'sex': ['m'], 'p_f': [0.25], 'p_m': [0.75]}
    """
    if schema.task == "regression":
        return {schema.target: predictions[:, 0]}
    labels = np.array(schema.classes, dtype=object)[np.argmax(predictions, axis=1)]
    found = {f"p_{label}": predictions[:, i] for i, label in enumerate(schema.classes)}
    return {schema.target: labels, **found}


def _check(output: pathlib.Path, model: pathlib.Path, data: str) -> None:
    if output.suffix not in (".csv", ".parquet"):
        raise ValueError(
            message(
                "Predictions are written to a .csv or .parquet file",
                repr(str(output)),
                f"Write {output.stem}.csv",
            )
        )
    check_output(output)
    for given in (model, pathlib.Path(data)):
        check_not_input(output, given)


@contextlib.contextmanager
def _writer(output: pathlib.Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives a function that appends columns to the output."""
    if output is None:
        yield _csv_writer(sys.stdout)
        sys.stdout.flush()
        return
    with replacing(output) as beside:
        if output.suffix == ".parquet":
            with _parquet_writer(beside) as write:
                yield write
        else:
            with beside.open("w", encoding="utf-8", newline="") as stream:
                yield _csv_writer(stream)


def _csv_writer(stream: IO[str]) -> Callable[[dict[str, Any]], None]:
    import pandas

    head = True

    def write(columns: dict[str, Any]) -> None:
        nonlocal head
        pandas.DataFrame(columns).to_csv(stream, index=False, header=head, float_format="%.7g")
        head = False

    return write


@contextlib.contextmanager
def _parquet_writer(path: pathlib.Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as stack:
        writer: Any = None

        def write(columns: dict[str, Any]) -> None:
            nonlocal writer
            table = pyarrow.table({name: list(values) for name, values in columns.items()})
            if writer is None:
                writer = stack.enter_context(pyarrow.parquet.ParquetWriter(path, table.schema))
            writer.write_table(table)

        yield write


__all__ = ["columns", "run"]
