"""The gates that plait brings: linear, constant, uniform, fixed."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops, tree

from plait.errors import choose_from, message
from plait.ops.shapes import shape_leaves
from plait.typing import Config, Nested, Shape, Shapes, Tensor

GateSpec: TypeAlias = keras.layers.Layer | str | Sequence[float] | np.ndarray | None
"""What the argument `gate` of a mixture may be."""


@keras.saving.register_keras_serializable("plait")
class LinearGate(keras.layers.Layer):
    """Scores experts by a linear map of the flattened features: `s = W · flatten(x) + b`.

    One set of scores per example, whatever the rank of the input; several inputs are flattened
    and joined.

    Args:
        num_experts: Number of experts, `e`.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        inputs: Tensor of shape `(b, …)`, or a structure of such tensors.

    Returns:
        Scores of shape `(b, e)`.
    """

    def __init__(self, num_experts: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_experts = num_experts
        self.supports_masking = True

    def build(self, input_shape: Shapes) -> None:
        """Creates the linear map; every feature size must be known."""
        size = 0
        for shape in shape_leaves(input_shape):
            if None in shape[1:]:
                raise ValueError(
                    message(
                        "The default gate needs to know every size of its input but the batch",
                        f"input shape {shape}",
                        "Give the input its full shape, or pass a gate such as "
                        f"keras.layers.Dense({self.num_experts}) to weigh each step",
                    )
                )
            size += math.prod(axis for axis in shape[1:] if axis is not None)
        self.dense = keras.layers.Dense(self.num_experts, name="scores", dtype=self.dtype_policy)
        self.dense.build((None, size))

    def call(self, inputs: Nested) -> Tensor:
        """Returns the scores."""
        flat = [
            ops.reshape(ops.cast(leaf, self.compute_dtype), (-1, math.prod(leaf.shape[1:])))
            for leaf in tree.flatten(inputs)
        ]
        joined = ops.concatenate(flat, axis=-1) if len(flat) > 1 else flat[0]
        return self.dense(joined)

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """Scores of whole examples have no masked steps."""
        del inputs, mask

    def compute_output_shape(self, input_shape: Shapes) -> Shape:
        """One score per expert."""
        return (shape_leaves(input_shape)[0][0], self.num_experts)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_experts": self.num_experts}


@keras.saving.register_keras_serializable("plait")
class ConstantGate(keras.layers.Layer):
    """Gives every example the same scores: one learned number per expert.

    Args:
        num_experts: Number of experts, `e`.
        learned: Whether the scores are learned; if not they stay zero, the plain average.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        inputs: Tensor of shape `(b, …)`, or a structure of such tensors; only `b` is read.

    Returns:
        Scores of shape `(b, e)`.
    """

    def __init__(self, num_experts: int, learned: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_experts = num_experts
        self.learned = learned
        self.supports_masking = True

    def build(self, input_shape: Shapes) -> None:
        """Creates the scores."""
        del input_shape
        self.scores = self.add_weight(
            shape=(self.num_experts,),
            initializer="zeros",
            trainable=self.learned,
            name="scores",
        )

    def call(self, inputs: Nested) -> Tensor:
        """Returns the scores, repeated for each example."""
        size = ops.shape(tree.flatten(inputs)[0])[0]
        return ops.broadcast_to(self.scores[None], (size, self.num_experts))

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """Scores of whole examples have no masked steps."""
        del inputs, mask

    def compute_output_shape(self, input_shape: Shapes) -> Shape:
        """One score per expert."""
        return (shape_leaves(input_shape)[0][0], self.num_experts)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "learned": self.learned,
        }


@keras.saving.register_keras_serializable("plait")
class FixedWeights(keras.layers.Layer):
    """Gives the same weights to every example: numbers that are set, not learned.

    Args:
        weights: A number for each expert, used as they are.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        inputs: Tensor of shape `(b, …)`, or a structure of such tensors; only `b` is read.

    Returns:
        Weights of shape `(b, e)`, in float32.
    """

    def __init__(self, weights: Sequence[float], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.fixed = [float(weight) for weight in weights]
        self.supports_masking = True
        self.built = True

    def call(self, inputs: Nested) -> Tensor:
        """Returns the weights, repeated for each example."""
        size = ops.shape(tree.flatten(inputs)[0])[0]
        weights = ops.convert_to_tensor([self.fixed], dtype="float32")
        return ops.broadcast_to(weights, (size, len(self.fixed)))

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """Weights of whole examples have no masked steps."""
        del inputs, mask

    def compute_output_spec(self, inputs: Nested) -> keras.KerasTensor:
        """One weight per expert."""
        return keras.KerasTensor((tree.flatten(inputs)[0].shape[0], len(self.fixed)), "float32")

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "weights": list(self.fixed)}


_NAMED = ("constant", "linear", "uniform")


def get(gate: GateSpec, num_experts: int, name: str = "gate") -> keras.layers.Layer:
    """Returns the gate that `None`, a name, numbers or a layer stand for.

    Args:
        gate: `None` or `"linear"`, `"constant"`, `"uniform"`; a number for each expert; or a Keras
            model or layer.
        num_experts: Number of experts, `e`.
        name: Name of a gate that is made.

    Raises:
        ValueError: If no gate has that name, or the numbers do not count the experts.
        TypeError: If `gate` is none of these.
    """
    if isinstance(gate, keras.layers.Layer):
        return gate
    if gate is None or (isinstance(gate, str) and gate == "linear"):
        return LinearGate(num_experts, name=name)
    if isinstance(gate, str):
        if gate in ("constant", "uniform"):
            return ConstantGate(num_experts, learned=gate == "constant", name=name)
        raise ValueError(choose_from("gate", gate, _NAMED))
    if isinstance(gate, (list, tuple, np.ndarray)):
        return FixedWeights(_checked(gate, num_experts), name=name)
    raise TypeError(
        message(
            "`gate` must be a Keras model or layer, None, 'linear', 'constant', 'uniform', or a "
            "number for each expert",
            f"{gate!r} of type {type(gate).__name__}",
            f"Pass for example keras.layers.Dense({num_experts}, activation='softmax')",
        )
    )


def _checked(numbers: Sequence[float] | np.ndarray, num_experts: int) -> list[float]:
    """Returns the numbers when there is a finite one for each expert."""
    try:
        weights = np.asarray(numbers, "float64")
    except (TypeError, ValueError):
        weights = np.zeros(0)
    if weights.shape != (num_experts,) or not np.isfinite(weights).all():
        raise ValueError(
            message(
                f"Fixed weights must be a finite number for each of the {num_experts} experts",
                f"gate={numbers!r}",
                f"Use for example gate={[round(1 / num_experts, 3)] * num_experts}",
            )
        )
    return [float(weight) for weight in weights]


def is_learned(gate: keras.layers.Layer) -> bool:
    """Whether a gate is one of plait's that gives scores, for a softmax to make weights of."""
    return isinstance(gate, (LinearGate, ConstantGate))


def last_layer(gate: keras.layers.Layer) -> keras.layers.Layer:
    """Returns the layer that a model ends in, or the layer itself."""
    last = gate
    while isinstance(last, keras.Model) and last.layers:
        last = last.layers[-1]
    return last


def ends_in_softmax(gate: keras.layers.Layer) -> bool:
    """Whether a gate visibly ends in a softmax, so that its output is probabilities."""
    last = last_layer(gate)
    return isinstance(last, keras.layers.Softmax) or (
        getattr(last, "activation", None) is keras.activations.softmax
    )


def ends_in_raw_scores(gate: keras.layers.Layer) -> bool:
    """Whether a gate visibly ends in numbers of any sign, which are no weights."""
    return getattr(last_layer(gate), "activation", None) is keras.activations.linear
