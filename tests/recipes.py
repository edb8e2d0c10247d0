"""What a mixture must equal, in Keras alone: the formula written out; and helpers of tests."""

import warnings

import keras
import numpy as np
from keras import ops
from tests.gradients import value_and_gradients

import plait

__all__ = [
    "as_numpy",
    "gate_weights",
    "gradients",
    "merged",
    "mixture_gradients",
    "randomize",
    "recipe",
    "top_1",
]


def as_numpy(structure):
    """The structure with NumPy arrays in place of tensors."""
    return keras.tree.map_structure(ops.convert_to_numpy, structure)


def randomize(layer, rng):
    """Gives every floating weight of a layer a value that is not the initial one; returns it."""
    for variable in layer.variables:
        if "float" in variable.dtype:
            size = rng.normal(size=variable.shape)
            positive = "variance" in variable.name
            variable.assign(1 + 0.3 * np.abs(size) if positive else 0.3 * size)
    return layer


def gate_weights(scores, k=None):
    """Softmax over the last axis; of the `k` largest scores where `k` is given."""
    scores = ops.cast(scores, "float32")
    if k is not None:
        largest = ops.max(ops.top_k(scores, k)[0][..., -1:], axis=-1, keepdims=True)
        scores = ops.where(scores >= largest, scores, ops.full_like(scores, -1e9))
    return ops.softmax(scores, axis=-1)


def top_1(**options):
    """A router that keeps one expert with weight one; that its gate learns nothing is warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plait.routers.TopK(1, renormalize=True, **options)


def merged(weights, outputs):
    """`Σ_l w_l · f_l`: weights `(b, …, e)`, a list of `e` outputs `(b, …, u)`."""
    total = 0.0
    for number, output in enumerate(outputs):
        weight = weights[..., number]
        missing = len(output.shape) - len(weight.shape)
        total = total + ops.reshape(weight, (*weight.shape, *(1,) * missing)) * output
    return total


def recipe(experts, gate, x, *, k=None, training=False):
    """The mixture of experts by a gate that gives logits, one Keras model called after another."""
    weights = gate_weights(gate(x, training=training), k)
    return merged(weights, [expert(x, training=training) for expert in experts])


def gradients(function, variables, arrays=(), *, compiled=False):
    """Value of `function(*arrays)` and its gradients to Keras variables and to arrays.

    Returns:
        A triple of NumPy: the value, a list for the variables, a list for the arrays.
    """
    variables = list(variables)
    count = len(variables)

    def stateless(*tensors):
        mapping = list(zip(variables, tensors[:count], strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*tensors[count:])

    points = [ops.convert_to_numpy(variable.value) for variable in variables]
    value, found = value_and_gradients(stateless, [*points, *arrays], compiled=compiled)
    return value, found[:count], found[count:]


def mixture_gradients(mixture, function, arrays=(), *, compiled=False):
    """Gradients of `function(*arrays)` to what a mixture holds, whichever way its experts run.

    The gradients take the places of the trainable weights, so that `expert(i)` gives those of an
    expert as it gives its weights. The mixture is spent afterwards.

    Returns:
        A triple of lists of NumPy arrays: for each expert the list of its gradients, those of the
        gate, and those of the arrays.
    """
    _, found, to_arrays = gradients(
        function, mixture.trainable_variables, arrays, compiled=compiled
    )
    for variable, gradient in zip(mixture.trainable_variables, found, strict=True):
        variable.assign(gradient)
    to_experts = [
        [ops.convert_to_numpy(v.value) for v in mixture.expert(i).trainable_variables]
        for i in range(mixture.num_experts)
    ]
    to_gate = [ops.convert_to_numpy(v.value) for v in mixture.gate.trainable_variables]
    return to_experts, to_gate, to_arrays
