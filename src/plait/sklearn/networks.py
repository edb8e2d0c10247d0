"""The gate over given outputs, as a Keras model: `out = Σ_l w_l(x) · o_l`."""

import keras
import numpy as np

from plait.layers import WeightedMerge
from plait.mixture.gates import ConstantGate

GATES = ("constant", "linear", "mlp", "per-class", "uniform")
WEIGHTS = "weights"


def gate_network(
    gate: str,
    features: int,
    num_experts: int,
    units: int,
    *,
    pooled: bool = False,
    alpha: float = 0.0,
    log_precisions: np.ndarray | None = None,
) -> keras.Model:
    """Returns a model of `[x, o_1, …, o_L]`, which starts from equal weights.

    Args:
        gate: One of `GATES`.
        features: Columns of `x`.
        num_experts: `L`.
        units: Columns of each output `o_l`.
        pooled: Whether the outputs are log-probabilities, whose weighted sum goes through a
            softmax (a logarithmic opinion pool).
        alpha: Weight of the squared coefficients in the loss.
        log_precisions: `None`, or numbers that are added to the scores: then the weights are
            proportional to precisions.
    """
    layers = keras.layers
    x = keras.Input((features,), name="x")
    outputs = [keras.Input((units,), name=f"output_{i}") for i in range(num_experts)]
    penalty = {"kernel_regularizer": keras.regularizers.L2(alpha)} if alpha else {}
    last = {"kernel_initializer": "zeros", "name": "scores", **penalty}
    if gate == "per-class":
        scores = ConstantGate(num_experts * units, name="scores")(x)
        scores = layers.Reshape((units, num_experts))(scores)
    elif gate in ("constant", "uniform"):
        scores = ConstantGate(num_experts, learned=gate == "constant", name="scores")(x)
    else:
        hidden = x
        if gate == "mlp":
            hidden = layers.Dense(16, activation="relu", name="hidden", **penalty)(x)
        scores = layers.Dense(num_experts, **last)(hidden)
    if log_precisions is not None:
        scores = layers.Rescaling(1.0, [float(v) for v in log_precisions])(scores)
    weights = layers.Softmax(name=WEIGHTS)(scores)
    merged = WeightedMerge()([weights, *outputs])
    if pooled:
        merged = layers.Softmax(name="pool")(merged)
    return keras.Model([x, *outputs], merged)


def weights_network(model: keras.Model) -> keras.Model:
    """Returns the weights inside a model of `gate_network`, as a model of the same inputs."""
    return keras.Model(model.inputs, model.get_layer(WEIGHTS).output)
