"""Names for the types in signatures: they say what an argument is where Python cannot check it.

A tensor has no base class that the three backends share, and functions also take what their backend
converts: arrays, numbers, lists of numbers. `Tensor` is therefore `Any` to a type checker, and a
word to its reader.
"""

from typing import Any, TypeAlias

import keras

Tensor: TypeAlias = Any
"""A tensor of the running backend, a `keras.KerasTensor`, or an array that becomes a tensor."""

Mask: TypeAlias = Tensor | None
"""A tensor of bool, true where a row or step counts; `None` where all do."""

Nested: TypeAlias = Any
"""A tensor, or a dict, list or tuple of them, to any depth."""

Shape: TypeAlias = tuple[int | None, ...]
"""The shape of one tensor; `None` is an axis whose size is known at run time only."""

Dtype: TypeAlias = str | keras.DTypePolicy
"""What Keras takes as the dtype of a layer: a name, such as `"mixed_float16"`, or a policy."""

Count: TypeAlias = int | Tensor
"""An integer, or an integer tensor where it is known at run time only."""

Shapes: TypeAlias = Any
"""A shape, or a dict, list or tuple of them, to any depth."""

Config: TypeAlias = dict[str, Any]
"""What `get_config` returns and `from_config` takes."""
