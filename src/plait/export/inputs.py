"""What a model reads and gives: a graph around it, names of inputs and outputs, samples."""

import re
from collections.abc import Sequence

import keras
import numpy as np
from keras import tree

from plait.compat import is_functional
from plait.errors import message
from plait.mixture import Mixture
from plait.mixture.specs import specs_of
from plait.typing import Nested, Shapes


def as_graph(model: keras.Model) -> keras.Model:
    """Returns a graph of a model's one call, with inputs of names that last.

    A key of a dict of inputs is a name, as is what `keras.Input` was called. Else the name is
    "input", or "input_0", "input_1", … of several.

    Raises:
        ValueError: If the shapes of its inputs are not known.
    """
    specs = model.input if is_functional(model) else _specs(model)
    leaves = tree.flatten(specs)
    names = _input_names(specs)
    if is_functional(model) and [leaf.name for leaf in leaves] == names:
        return model
    inputs = tree.pack_sequence_as(
        specs,
        [
            keras.Input(tuple(leaf.shape[1:]), dtype=leaf.dtype, name=name)
            for name, leaf in zip(names, leaves, strict=True)
        ],
    )
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


def _input_names(specs: Nested) -> list[str]:
    paths, names = _paths(specs), [leaf.name for leaf in tree.flatten(specs)]
    given = ["" if _is_automatic(name, "keras_tensor") else name for name in names]
    return _filled([path or name for path, name in zip(paths, given, strict=True)], "input")


def output_names(model: keras.Model) -> list[str]:
    """Returns a name for each output, in the order of `keras.tree.flatten`.

    A key of a dict of outputs is a name, as is what the layer was called that gives an output.
    Else the name is "output", or "output_0", "output_1", … of several.
    """
    paths = _paths(as_graph(model).output)
    layers: list[keras.Operation] = []
    if is_functional(model):
        operations = {operation.name: operation for operation in model.operations}
        layers = [operations[name] for name in model.output_names]
    elif isinstance(model, keras.Sequential):
        layers = [model.layers[-1]] * len(paths)
    given = [layer.name for layer in layers] or [""] * len(paths)
    for place, layer in enumerate(layers):
        if _is_automatic(layer.name, type(layer).__name__):
            given[place] = ""
    return _filled([path or name for path, name in zip(paths, given, strict=True)], "output")


def _paths(structure: Nested) -> list[str]:
    """Returns for each leaf its path of keys, empty where there are none."""
    found = []
    for path, _ in tree.flatten_with_path(structure):
        keyed = any(isinstance(part, str) for part in path)
        found.append("_".join(str(part) for part in path) if keyed else "")
    return found


def _is_automatic(name: str, kind: str) -> bool:
    """Whether Keras made a name of a class and a number, which another process counts otherwise."""
    plain = re.sub(r"_\d+$", "", name)
    return plain.replace("_", "").lower() == kind.replace("_", "").lower()


def _filled(names: Sequence[str], word: str) -> list[str]:
    """Returns names, each once, with a word and a number for those that are empty or double."""
    if list(names) == [""]:
        return [word]
    return [
        f"{word}_{place}" if not name or names.index(name) < place else name
        for place, name in enumerate(names)
    ]


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
