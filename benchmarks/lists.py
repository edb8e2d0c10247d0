"""Mixtures of a list of models, which stay the caller's, over the recipe of the same models.

Two-layer experts, small (64 → 64 → 10) and large (256 → 512 → 256): a training step by
`train_on_batch` at batch 32, `predict_on_batch` of one row, and what it takes to build and take the
first step. `KERAS_BACKEND=jax python -m benchmarks.lists`
"""

import keras
import numpy as np
from keras import layers

import plait
from benchmarks.table import Row, options, show
from benchmarks.timing import ratio, seconds, tensor, training_step

SIZES = {"small": (64, 64, 10), "large": (256, 512, 256)}
NUMBERS = (3, 8, 64)
BATCH = 32
TARGET = 1.1


def models(num_experts, size):
    """Returns experts and a gate."""
    features, hidden, units = SIZES[size]
    experts = [
        keras.Sequential(
            [keras.Input((features,)), layers.Dense(hidden, activation="relu"), layers.Dense(units)]
        )
        for _ in range(num_experts)
    ]
    gate = [keras.Input((features,)), layers.Dense(num_experts, activation="softmax")]
    return experts, keras.Sequential(gate)


def recipe(experts, gate):
    """Returns what users paste: every expert a branch; Concatenate, Reshape, Dot."""
    x = keras.Input(experts[0].input_shape[1:])
    units = experts[0].output_shape[-1]
    joined = layers.Concatenate()([expert(x) for expert in experts])
    joined = layers.Reshape((len(experts), units))(joined)
    return keras.Model(x, layers.Dot(axes=1)([gate(x), joined]))


def data(size, rows):
    """Returns inputs and targets on the device."""
    features, _, units = SIZES[size]
    rng = np.random.default_rng(0)
    return tensor(rng.normal(size=(rows, features))), tensor(rng.normal(size=(rows, units)))


def first_step(build, num_experts, size):
    """Makes models, builds, compiles and takes one step."""
    model = build(*models(num_experts, size))
    model.compile("sgd", "mse")
    model.train_on_batch(*data(size, BATCH))


def woven(experts, gate, execution="auto"):
    """Returns plait's mixture of the models."""
    return plait.Mixture(experts, gate, execution=execution)


def rows(arguments):
    """Yields the table's rows."""
    first_step(recipe, 2, "small")  # wakes the backend
    for size in SIZES:
        for number in NUMBERS:
            experts, gate = models(number, size)
            pair = woven(experts, gate), recipe(experts, gate)
            for model in pair:
                model.compile("sgd", "mse")
            what = f"a list of {number} {size} experts over the recipe"
            steps = [training_step(model, *data(size, BATCH)) for model in pair]
            yield Row.of(f"{what}: training step", ratio(*steps, arguments.repeats), TARGET)
            x, _ = data(size, 1)
            steps = [lambda model=model, x=x: model.predict_on_batch(x) for model in pair]
            found = ratio(*steps, arguments.repeats)
            yield Row.of(f"{what}: predict one row", found, TARGET, digits=2)
    for number in NUMBERS:
        ours, theirs = (
            seconds(lambda build=build, number=number: first_step(build, number, "small"))
            for build in (woven, recipe)
        )
        yield Row(
            f"a list of {number} small experts over the recipe: build and first step",
            ours / theirs,
            TARGET,
            f"{ours:.2f} / {theirs:.2f} s",
        )


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=31)))
