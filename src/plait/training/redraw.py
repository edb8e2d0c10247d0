"""New first values for experts and gates, and snapshots of values."""

import contextlib
import random
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from plait.compat import flat_layers, without_other_backends
from plait.errors import message
from plait.mixture.specs import output_specs, specs_of
from plait.mixture.state import MixtureState
from plait.typing import Nested, Tensor

# What a layer's `get_config` and `from_config` raise where a config does not make the layer.
_NO_COPY = (NotImplementedError, TypeError, ValueError, AttributeError, KeyError)


def redrawn(
    layer: keras.layers.Layer,
    present: Sequence[Tensor],
    inputs: Nested,
    generator: np.random.Generator,
) -> list[Tensor]:
    """Returns first values for the variables of a built layer, drawn by the generator alone.

    Neither Keras' global seed nor the integer seed of an initialiser has an effect. Variables of
    frozen layers and the statistics of `Normalization`, which training does not find again, keep
    their values.

    Args:
        layer: The layer, which is left as it is.
        present: The present values of its variables.
        inputs: Symbolic inputs that it reads.
        generator: Of random numbers.

    Raises:
        ValueError: If the layer's config does not make a new layer.
    """
    if not present:
        return []
    try:
        with without_other_backends(), _seeded_python(generator):
            copy = type(layer).from_config(_seeded(layer.get_config(), generator))
            output_specs(copy, inputs)
    except _NO_COPY as error:
        raise ValueError(
            message(
                "A restart of fit_em needs experts and a gate that their configs can make anew",
                f"{type(layer).__name__} {layer.name!r}, whose copy failed with "
                f"{type(error).__name__}: {error}",
                "Implement `get_config`, or use restarts=1",
            )
        ) from error
    kept = {
        id(variable)
        for inner in flat_layers(layer)
        if not inner.trainable or isinstance(inner, keras.layers.Normalization)
        for variable in inner.variables
    }
    return [
        value if id(own) in kept else new.value
        for own, new, value in zip(layer.variables, copy.variables, present, strict=True)
    ]


def input_specs(state: MixtureState) -> Nested:
    """Returns symbolic inputs of a built mixture."""
    assert state.input_shape is not None  # it is built
    return specs_of(state.input_shape, state.input_dtype)


def snapshot(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Returns copies of the variables' values; on PyTorch an array may share their memory."""
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def restore(variables: Sequence[keras.Variable], values: Sequence[Tensor]) -> None:
    """Sets variables to what `snapshot` returned."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _seeded(config: Nested, generator: np.random.Generator, key: str = "") -> Nested:
    """Returns a config with new integer seeds, in initialisers also where there was none."""
    if isinstance(config, dict):
        inside = key if key.endswith("_initializer") else ""
        changed = {
            name: _seeded(value, generator, inside or str(name)) for name, value in config.items()
        }
        seed = config.get("seed", "none")
        if type(seed) is int or (seed is None and inside):
            changed["seed"] = int(generator.integers(2**31 - 1))
        return changed
    if isinstance(config, (list, tuple)):
        return type(config)(_seeded(value, generator, key) for value in config)
    return config


@contextlib.contextmanager
def _seeded_python(generator: np.random.Generator) -> Iterator[None]:
    """Seeds Python's `random` for the block, from which Keras takes seeds that are not given."""
    state = random.getstate()
    random.seed(int(generator.integers(2**31 - 1)))
    try:
        yield
    finally:
        random.setstate(state)
