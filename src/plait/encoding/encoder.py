"""Layers that carry a schema inside a `.keras` file."""

import math
from typing import Any

import keras
from keras import ops

from plait.encoding.schema import Column, Schema
from plait.errors import message
from plait.typing import Tensor


@keras.saving.register_keras_serializable("plait")
class TableInput(keras.layers.Layer):
    """Passes the raw matrix of a table through, and keeps the schema that explains it.

    The first layer of every model that the command line writes: whoever opens the file finds the
    columns, the categories and the class labels in this layer's config.

    Args:
        schema: A `plait.tables.Schema` or its config.
        **kwargs: `name` of a Keras layer.

    Call arguments:
        inputs: Matrix `(b, c)`, one column per `schema.columns`: numbers as they are, categories
            as integer codes, counted from 0.

    Returns:
        The same matrix in float32, `(b, c)`.

    Raises:
        ValueError: If the matrix has another number of columns.

    Example:
    >>> import numpy as np
    >>> from plait.encoding import Column, Schema, TableInput
    >>> schema = Schema((Column("age"), Column("height")), "weight", "regression")
    >>> tuple(TableInput(schema)(np.ones((3, 2))).shape)
    (3, 2)
    """

    def __init__(self, schema: Schema | dict[str, Any], **kwargs: Any) -> None:
        # Codes and raw numbers must not pass through half precision: no autocast.
        kwargs = {**kwargs, "dtype": "float32", "autocast": False}
        super().__init__(**kwargs)
        self.schema = schema if isinstance(schema, Schema) else Schema.from_config(schema)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Checks the number of columns."""
        expected = len(self.schema.columns)
        if len(input_shape) != 2 or input_shape[-1] != expected:
            raise ValueError(
                message(
                    f"{type(self).__name__} reads a matrix (b, {expected}), one column per feature",
                    f"shape {tuple(input_shape)}",
                    f"Pass these columns, in this order: {', '.join(self.schema.names)}",
                )
            )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns the matrix in float32."""
        return ops.cast(inputs, "float32")

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the input's shape."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Returns the schema as plain values."""
        config = super().get_config()
        config.pop("dtype", None)
        return {**config, "schema": self.schema.to_config()}


@keras.saving.register_keras_serializable("plait")
class TableEncoder(TableInput):
    """Turns the raw matrix of a table into features: numbers standardised, categories one-hot.

    A number becomes `(x - mean) / scale`, with NaN taken as `fill`; if it may be missing, a second
    feature is 1 where it is NaN. A category with `n` texts becomes `n` features of which one is 1;
    a code outside `0 … n - 1` gives zeros. All of it happens inside the graph, so a model
    that begins with this layer needs nothing beside its file.

    Args:
        schema: A `plait.tables.Schema` or its config.
        **kwargs: `name` of a Keras layer.

    Call arguments:
        inputs: Matrix `(b, c)`: numbers as they are, categories as integer codes.

    Returns:
        Features `(b, d)` in float32, where `d = schema.width`.

    Example:
    >>> import numpy as np
    >>> from plait.encoding import Column, Schema, TableEncoder
    >>> columns = (Column("age", mean=40.0, scale=10.0), Column("sex", categories=("f", "m")))
    >>> features = TableEncoder(Schema(columns, "weight", "regression"))(np.array([[50.0, 1.0]]))
    >>> [round(float(value), 4) for value in features[0]]
    [1.0, 0.0, 1.0]
    """

    def call(self, inputs: Any) -> Any:
        """Returns the features, in the order of `schema.features`."""
        x = ops.cast(inputs, "float32")
        parts = []
        for columns, start in self.schema.runs:
            block = x[:, start : start + len(columns)]
            categories = columns[0].categories
            if categories is None:
                parts.extend(_numbers(block, columns))
            else:
                codes = ops.arange(len(categories), dtype="float32")
                parts.append(ops.cast(ops.equal(block, codes), "float32"))
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns `(b, d)`."""
        return (input_shape[0], self.schema.width)


def _numbers(block: Tensor, columns: tuple[Column, ...]) -> list[Tensor]:
    """Returns a block of numbers `(b, n)` standardised, and the indicators of missing ones."""
    missing = ops.isnan(block)
    fill = [math.nan if column.fill is None else column.fill for column in columns]
    block = ops.where(missing, ops.convert_to_tensor(fill, "float32"), block)
    mean = ops.convert_to_tensor([column.mean for column in columns], "float32")
    scale = ops.convert_to_tensor([column.scale for column in columns], "float32")
    parts = [(block - mean) / scale]
    optional = [i for i, column in enumerate(columns) if column.optional]
    if optional:
        parts.append(ops.cast(ops.take(missing, optional, axis=1), "float32"))
    return parts


__all__ = ["TableEncoder", "TableInput"]
