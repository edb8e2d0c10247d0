"""The gates that plait brings: linear, constant, uniform."""

import math
from typing import Any

import keras
from keras import ops, tree

from plait.errors import choose_from, message
from plait.ops.shapes import Shape, shape_leaves


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

    def build(self, input_shape: Any) -> None:
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

    def call(self, inputs: Any) -> Any:
        """Returns the scores."""
        flat = [
            ops.reshape(ops.cast(leaf, self.compute_dtype), (-1, math.prod(leaf.shape[1:])))
            for leaf in tree.flatten(inputs)
        ]
        joined = ops.concatenate(flat, axis=-1) if len(flat) > 1 else flat[0]
        return self.dense(joined)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """Scores of whole examples have no masked steps."""
        del inputs, mask

    def compute_output_shape(self, input_shape: Any) -> Shape:
        """One score per expert."""
        return (shape_leaves(input_shape)[0][0], self.num_experts)

    def get_config(self) -> dict[str, Any]:
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

    def build(self, input_shape: Any) -> None:
        """Creates the scores."""
        del input_shape
        self.scores = self.add_weight(
            shape=(self.num_experts,),
            initializer="zeros",
            trainable=self.learned,
            name="scores",
        )

    def call(self, inputs: Any) -> Any:
        """Returns the scores, repeated for each example."""
        size = ops.shape(tree.flatten(inputs)[0])[0]
        return ops.broadcast_to(self.scores[None], (size, self.num_experts))

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """Scores of whole examples have no masked steps."""
        del inputs, mask

    def compute_output_shape(self, input_shape: Any) -> Shape:
        """One score per expert."""
        return (shape_leaves(input_shape)[0][0], self.num_experts)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "learned": self.learned,
        }


_NAMED = ("constant", "linear", "uniform")


def get(gate: Any, num_experts: int) -> keras.layers.Layer:
    """Returns the gate that `None`, a name or a layer stands for.

    Args:
        gate: `None` or `"linear"`, `"constant"`, `"uniform"`, or a Keras model or layer.
        num_experts: Number of experts, `e`.

    Raises:
        ValueError: If no gate has that name.
        TypeError: If `gate` is none of these.
    """
    if isinstance(gate, keras.layers.Layer):
        return gate
    if gate is None or gate == "linear":
        return LinearGate(num_experts, name="gate")
    if gate in ("constant", "uniform"):
        return ConstantGate(num_experts, learned=gate == "constant", name="gate")
    if isinstance(gate, str):
        raise ValueError(choose_from("gate", gate, _NAMED))
    raise TypeError(
        message(
            "`gate` must be a Keras model or layer, None, 'constant' or 'uniform'",
            f"{gate!r} of type {type(gate).__name__}",
            f"Pass for example keras.layers.Dense({num_experts})",
        )
    )


def ends_in_softmax(gate: keras.layers.Layer) -> bool:
    """Whether a gate visibly ends in a softmax, so that its output is probabilities."""
    last = gate
    while isinstance(last, keras.Model) and last.layers:
        last = last.layers[-1]
    return isinstance(last, keras.layers.Softmax) or (
        getattr(last, "activation", None) is keras.activations.softmax
    )
