"""What a model reads: specs of its inputs, a graph around it, samples."""

import keras
import numpy as np
from keras import tree

from plait.compat import is_functional
from plait.errors import message
from plait.mixture import Mixture
from plait.mixture.specs import specs_of
from plait.typing import Nested, Shapes


def as_graph(model: keras.Model) -> keras.Model:
    """Returns a model itself where it is a graph, else a graph of its one call.

    Raises:
        ValueError: If the shapes of its inputs are not known.
    """
    if is_functional(model):
        return model
    specs = _specs(model)
    leaves = [
        keras.Input(tuple(spec.shape[1:]), dtype=spec.dtype, name=name)
        for name, spec in zip(_names(specs), tree.flatten(specs), strict=True)
    ]
    inputs = tree.pack_sequence_as(specs, leaves)
    return keras.Model(inputs, model(inputs), name=model.name)


def _specs(model: keras.Model) -> Nested:
    """Returns the specs of what a model that is no graph reads."""
    if isinstance(model, keras.Sequential) and model.built:
        return model.inputs[0]
    shapes: Shapes = None
    if model.built:
        shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            message(
                "A model must know the shapes of its inputs before it is exported",
                f"the model {model.name!r}, which was not called",
                "Call it once, or train it",
            )
        )
    dtypes = model.state.input_dtype if isinstance(model, Mixture) else None
    return specs_of(shapes, dtypes)


def _names(specs: Nested) -> list[str]:
    """Returns a name for each leaf: its path in the structure, or "inputs"."""
    paths = ["_".join(str(part) for part in path) for path, _ in tree.flatten_with_path(specs)]
    return [path if path and not path[0].isdigit() else f"inputs{path}" for path in paths]


def sample(model: keras.Model, batch: int) -> Nested:
    """Returns numbers that a graph may read; unknown sizes are 3, integers zero or one."""
    rng = np.random.default_rng(batch)

    def draw(spec: keras.KerasTensor) -> np.ndarray:
        shape = (batch, *(3 if size is None else size for size in spec.shape[1:]))
        dtype = keras.backend.standardize_dtype(spec.dtype)
        if "float" in dtype:
            return rng.normal(size=shape).astype(dtype)
        return rng.integers(0, 2, size=shape).astype(dtype)

    return tree.map_structure(draw, model.input)
