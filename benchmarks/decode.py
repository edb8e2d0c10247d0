"""A few rows through top-2 of many experts, over the plainest code that reads the chosen weights.

Experts 256 → 512 → 256 of 64 or 512, 1 and 8 tokens, compiled where the backend compiles; and
`predict_on_batch` of 8 rows, top-2 of 256 experts 128 → 256 → 128. The plain code is NumPy: the
gate's product, the largest scores, two products for each choice.
`KERAS_BACKEND=jax python -m benchmarks.decode`
"""

import keras
import numpy as np
from keras import layers, ops

import plait
from benchmarks.table import Row, options, show
from benchmarks.timing import compile_step, of_model, ratio, tensor

CHOSEN, TARGET = 2, 2
CASES = [(64, 1), (64, 8), (512, 1), (512, 8)]


def mixture(num_experts, units, hidden):
    """Returns a mixture of two-layer experts."""
    expert = [keras.Input((units,)), layers.Dense(hidden, activation="relu"), layers.Dense(units)]
    router = plait.routers.TopK(CHOSEN)
    gate = layers.Dense(num_experts)
    mix = plait.Mixture(keras.Sequential(expert), gate, num_experts=num_experts, router=router)
    mix(ops.zeros((1, units)))
    return mix


def plain(mix):
    """Returns the mixture as a function in NumPy."""
    arrays = [ops.convert_to_numpy(variable.value) for variable in mix.trainable_variables]
    scores, bias = (ops.convert_to_numpy(w) for w in mix.gate.trainable_variables)
    w, b, v, c = (array for array in arrays if array.ndim > 1 and len(array) == mix.num_experts)

    def function(x):
        logits = x @ scores + bias
        chosen = np.argpartition(logits, -CHOSEN, axis=1)[:, -CHOSEN:]
        weights = np.exp(np.take_along_axis(logits, chosen, 1))
        weights /= weights.sum(1, keepdims=True)
        out = np.zeros_like(x)
        for row, experts in enumerate(chosen):
            for weight, expert in zip(weights[row], experts, strict=True):
                hidden = np.maximum(x[row] @ w[expert] + b[expert], 0)
                out[row] += weight * (hidden @ v[expert] + c[expert])
        return out

    return function


def rows(arguments):
    """Yields the table's rows."""
    rng = np.random.default_rng(0)
    for num_experts, tokens in CASES:
        mix = mixture(num_experts, 256, 512)
        x = rng.normal(size=(tokens, 256)).astype("float32")
        limit = plain(mix)
        function, weights = of_model(mix)
        step = compile_step(function, [tensor(x), *weights], False)
        np.testing.assert_allclose(mix.predict_on_batch(x), limit(x), rtol=1e-4, atol=1e-5)
        found = ratio(step, lambda x=x, f=limit: f(x), arguments.repeats)
        what = f"decode, {tokens} tokens, top-2 of {num_experts}, over plain NumPy"
        yield Row.of(what, found, TARGET, digits=2)
    mix = mixture(256, 128, 256)
    x = rng.normal(size=(8, 128)).astype("float32")
    limit = plain(mix)
    dense = keras.Sequential([keras.Input((128,)), layers.Dense(256), layers.Dense(128)])
    for what, model in (("top-2 of 256", mix), ("one dense net alone", dense)):
        step = lambda model=model: model.predict_on_batch(x)  # noqa: E731
        found = ratio(step, lambda: limit(x), arguments.repeats)
        what = f"predict_on_batch of 8 rows, {what}, over plain NumPy"
        yield Row.of(what, found, TARGET if model is mix else None, digits=2)


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=31)))
