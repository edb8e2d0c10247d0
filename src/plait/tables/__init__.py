"""Tables: files of columns in, the matrix a model reads, and layers that carry the schema."""

from plait.tables.encoder import TableEncoder, TableInput
from plait.tables.matrix import infer, matrix, target
from plait.tables.output import check_output, replacing
from plait.tables.reading import read, read_batches
from plait.tables.schema import Baseline, Column, Schema, agree

__all__ = [
    "Baseline",
    "Column",
    "Schema",
    "TableEncoder",
    "TableInput",
    "agree",
    "check_output",
    "infer",
    "matrix",
    "read",
    "read_batches",
    "replacing",
    "target",
]
