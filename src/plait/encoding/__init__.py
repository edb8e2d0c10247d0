"""Encoding: what the columns of a table mean, and layers that carry it inside a `.keras` file."""

from plait.encoding.encoder import TableEncoder, TableInput
from plait.encoding.schema import Baseline, Column, Schema, agree, scaling

__all__ = ["Baseline", "Column", "Schema", "TableEncoder", "TableInput", "agree", "scaling"]
