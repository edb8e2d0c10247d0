"""Symbolic shapes and dtypes of what the experts and the gate will give, and their checks."""

from typing import Any

import keras
from keras import tree

from plait.compat import is_functional
from plait.errors import message
from plait.experts.initialization import copy_of
from plait.ops.backend import SHAPE_ERRORS
from plait.ops.shapes import agree, follows_rank_rule, map_shapes, merge
from plait.typing import Nested, Shape, Shapes

KerasTensor: type[Any] = keras.KerasTensor


def specs_of(shapes: Shapes, dtypes: Nested = None) -> Nested:
    """Returns symbolic tensors for a structure of shapes, and of dtypes where they are known."""
    if dtypes is None:
        return map_shapes(KerasTensor, shapes)
    names = iter(tree.flatten(dtypes))
    return tree.map_structure(
        lambda spec: KerasTensor(spec.shape, _as_keras_converts(next(names))),
        map_shapes(KerasTensor, shapes),
    )


def first_of(tensors: Nested, shapes: Shapes) -> Nested:
    """Returns as many of the first tensors as there are shapes, in the structure of these."""
    specs, leaves = specs_of(shapes), tree.flatten(tensors)
    size = len(tree.flatten(specs))
    return tree.pack_sequence_as(specs, leaves[:size]) if len(leaves) >= size else tensors


def _as_keras_converts(dtype: str) -> str:
    """Inputs of float64 are cast to Keras' float type."""
    return keras.config.floatx() if dtype == "float64" else dtype


def output_specs(layer: keras.layers.Layer, inputs: Nested) -> Nested:
    """Returns what a layer gives for symbolic inputs, and builds it if it is not built.

    Raises:
        ValueError: If a model of named inputs is given a list: Keras would pair them as sorted.
    """
    check_names(layer, inputs)
    if not layer.built:
        return layer(inputs)
    return layer.compute_output_spec(inputs)


def check_names(layer: keras.layers.Layer, inputs: Nested) -> None:
    """Checks that a model whose inputs are a dict is not given a list of several.

    Raises:
        ValueError: If it is.
    """
    if not is_functional(layer) or not isinstance(layer.input, dict):
        return
    if isinstance(inputs, (list, tuple)) and len(inputs) > 1:
        names = sorted(layer.input)
        as_dict = "{" + ", ".join(f"{name!r}: …" for name in names) + "}"
        raise ValueError(
            message(
                f"The model {layer.name!r} reads a dict with the keys {names}",
                f"a list of {len(inputs)} inputs",
                f"Name the part that each key reads, as in gate_inputs={as_dict} or in an entry of "
                "expert_inputs, or leave the argument out where the mixture's input has these keys",
            )
        )


def input_names(layer: keras.layers.Layer) -> list[str] | None:
    """Returns the names of a model's several inputs, in its order; `None` of other layers."""
    if not is_functional(layer) or not isinstance(layer.input, (dict, list, tuple)):
        return None
    return [spec.name for spec in tree.flatten(layer.input)]


def takes_single_rows(layer: keras.layers.Layer, row: Nested) -> bool:
    """Whether a layer takes one row, as dispatched experts are given: a step of a sequence, say.

    Args:
        layer: A layer; one that is not built stays so.
        row: Symbolic input of rows.
    """
    try:
        output_specs(layer if layer.built else copy_of(layer), row)
    except SHAPE_ERRORS:
        return False
    return True


def as_rows(specs: Nested, routed_rank: int) -> Nested:
    """Returns specs in which the routed axes are one axis of rows."""
    return tree.map_structure(
        lambda spec: KerasTensor((None, *spec.shape[routed_rank:]), spec.dtype), specs
    )


def check_gate(scores: Nested, gate: keras.layers.Layer, num_experts: int) -> keras.KerasTensor:
    """Returns the gate's output spec when it scores each expert with a floating number.

    Raises:
        ValueError: If it is a structure, or its last axis does not count the experts.
        TypeError: If it has integers.
    """
    rule = f"The gate must end in one score for each of the {num_experts} experts, on the last axis"
    remedy = f"End the gate in keras.layers.Dense({num_experts})"
    if not isinstance(scores, KerasTensor):
        given = tree.map_structure(lambda spec: tuple(spec.shape), scores)
        raise ValueError(message(rule, f"{gate.name!r} with outputs {given}", remedy))
    if not scores.shape or scores.shape[-1] != num_experts:
        received = f"{gate.name!r} with output shape {tuple(scores.shape)}"
        raise ValueError(message(rule, received, remedy))
    if "float" not in scores.dtype:
        raise TypeError(message(rule, f"{gate.name!r} with dtype {scores.dtype}", remedy))
    return scores


def check_agreement(outputs: list[tuple[int, str, Nested]]) -> Nested:
    """Returns the experts' common output specs, with every size that is known from any of them.

    Args:
        outputs: Position, name and output specs of experts; alike ones need only one entry.

    Raises:
        ValueError: If structure or shape differ between experts.
        TypeError: If an output has integers.
    """
    first_position, first_name, first = outputs[0]
    for position, name, specs in outputs:
        for spec in tree.flatten(specs):
            if "float" not in spec.dtype:
                raise TypeError(
                    message(
                        f"Expert {position} ({name!r}) must return floating-point numbers, "
                        "which can be weighed",
                        f"dtype {spec.dtype}",
                        "Let it return probabilities or values, not labels or ids",
                    )
                )
        shapes = [tuple(spec.shape) for spec in tree.flatten(specs)]
        first_shapes = [tuple(spec.shape) for spec in tree.flatten(first)]
        same_structure = _structure(specs) == _structure(first)
        if not same_structure or not all(map(agree, shapes, first_shapes)):
            raise ValueError(
                f"Expert {position} ({name!r}) returns shape {_shown(specs)}, but expert "
                f"{first_position} ({first_name!r}) returns {_shown(first)}. "
                "Experts of one mixture must agree in shape."
            )
    merged = first
    for _, _, specs in outputs[1:]:
        merged = tree.map_structure(
            lambda a, b: KerasTensor(merge(tuple(a.shape), tuple(b.shape)), a.dtype),
            merged,
            specs,
        )
    return merged


def check_rank_rule(weights: Shape, outputs: Nested) -> None:
    """Checks that the weights' leading axes are a prefix of every output's shape.

    Raises:
        ValueError: If they are not.
    """
    for spec in tree.flatten(outputs):
        shape = tuple(spec.shape)
        if not follows_rank_rule(weights, shape):
            raise ValueError(
                message(
                    "The leading axes of the gate's output must be a prefix of the experts' "
                    "output shape",
                    f"weights of shape {weights} over outputs of shape {shape}",
                    f"Let the gate return shape {(shape[0], weights[-1])} to weigh per example",
                )
            )


def _structure(specs: Nested) -> Nested:
    return tree.map_structure(lambda _: 0, specs)


def _shown(specs: Nested) -> Nested:
    return (
        tree.map_structure(lambda spec: str(tuple(spec.shape)), specs)
        if not isinstance(specs, KerasTensor)
        else tuple(specs.shape)
    )
