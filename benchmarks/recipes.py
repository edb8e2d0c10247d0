"""One mixture in three spellings: plait's, the recipe that users paste, and einsum by hand."""

import keras
from keras import layers, ops

import plait

FEATURES, HIDDEN, CLASSES = 64, 64, 10


def expert():
    """Returns a two-layer expert."""
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Dense(HIDDEN, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def gate(num_experts):
    """Returns a linear gate that ends in softmax."""
    return keras.Sequential(
        [keras.Input((FEATURES,)), layers.Dense(num_experts, activation="softmax")]
    )


def woven(num_experts):
    """Returns plait's mixture of one template."""
    return plait.Mixture(expert(), gate(num_experts), num_experts=num_experts)


def recipe(num_experts):
    """Returns what users paste: every expert a branch; Concatenate, Reshape, Dot."""
    x = keras.Input((FEATURES,))
    outputs = [expert()(x) for _ in range(num_experts)]
    joined = layers.Concatenate()(outputs) if num_experts > 1 else outputs[0]
    joined = layers.Reshape((num_experts, CLASSES))(joined)
    return keras.Model(x, layers.Dot(axes=1)([gate(num_experts)(x), joined]))


class EinsumExperts(layers.Layer):
    """The same experts, stacked by hand.

    Args:
        num_experts: `e`.
    """

    def __init__(self, num_experts):
        super().__init__()
        e = num_experts
        self.kernels = [
            self.add_weight(shape=shape, initializer="glorot_uniform")
            for shape in ((e, FEATURES, HIDDEN), (e, HIDDEN, CLASSES))
        ]
        self.biases = [
            self.add_weight(shape=(e, 1, units), initializer="zeros") for units in (HIDDEN, CLASSES)
        ]

    def call(self, x, weights):
        """Returns `Σ_l w_l · f_l(x)` of shape `(b, u)`."""
        hidden = ops.relu(ops.einsum("bd,edh->ebh", x, self.kernels[0]) + self.biases[0])
        outputs = ops.einsum("ebh,ehu->ebu", hidden, self.kernels[1]) + self.biases[1]
        return ops.einsum("be,ebu->bu", weights, ops.softmax(outputs))


def by_hand(num_experts):
    """Returns the mixture with a layer of einsums."""
    x = keras.Input((FEATURES,))
    return keras.Model(x, EinsumExperts(num_experts)(x, gate(num_experts)(x)))
