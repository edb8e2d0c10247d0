"""Tables: files of columns in, the matrix a model reads, and layers that carry the schema."""

from plait.tables.encoder import TableEncoder, TableInput
from plait.tables.matrix import infer, matrix, target
from plait.tables.model import (
    TableModel,
    as_table_model,
    assemble,
    finished,
    load,
    load_keras,
    save,
)
from plait.tables.output import check_output, replacing
from plait.tables.reading import read, read_batches
from plait.tables.schema import Baseline, Column, Schema, agree

__all__ = [
    "Baseline",
    "Column",
    "Schema",
    "TableEncoder",
    "TableInput",
    "TableModel",
    "agree",
    "as_table_model",
    "assemble",
    "check_output",
    "finished",
    "infer",
    "load",
    "load_keras",
    "matrix",
    "read",
    "read_batches",
    "replacing",
    "save",
    "target",
]
