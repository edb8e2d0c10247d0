"""Tables: files of columns in, the matrix a model reads and models that carry the schema."""

from plait.encoding import Baseline, Column, Schema, TableEncoder, TableInput, agree
from plait.tables.findings import Findings
from plait.tables.inference import doubts, infer
from plait.tables.matrix import matrix, target
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
from plait.tables.reading import read_batches
from plait.tables.table import Table, read

__all__ = [
    "Baseline",
    "Column",
    "Findings",
    "Schema",
    "Table",
    "TableEncoder",
    "TableInput",
    "TableModel",
    "agree",
    "as_table_model",
    "assemble",
    "check_output",
    "doubts",
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
