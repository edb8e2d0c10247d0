"""An epoch of `fit_gate` over training the same gate alone on arrays.

`KERAS_BACKEND=jax python -m benchmarks.gate`

The limit knows the experts' outputs from the start: a functional model of the gate and
`WeightedMerge` on arrays. The epochs are those after the first, which compiles and, for `fit_gate`,
runs the experts.
"""

import statistics
import time

import keras
import numpy as np

import plait
from benchmarks.table import Row, options, show

ROWS, FEATURES, CLASSES, EXPERTS, EPOCHS = 8192, 32, 10, 8, 6


class _Clock(keras.callbacks.Callback):
    """Notes how long each epoch takes."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def epoch(train):
    """Returns the median seconds of an epoch after the first."""
    clock = _Clock()
    train(epochs=EPOCHS, batch_size=128, verbose=0, callbacks=[clock])
    return statistics.median(clock.seconds[1:])


def rows(arguments):
    """Yields the table's row."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, FEATURES)).astype("float32")
    y = generator.integers(0, CLASSES, ROWS)
    expert = keras.Sequential(
        [keras.layers.Dense(256, "relu"), keras.layers.Dense(CLASSES, "softmax")]
    )
    gate = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(EXPERTS)])
    mixture = plait.Mixture(expert, gate=gate, num_experts=EXPERTS, router="softmax")
    mixture.build((None, FEATURES))
    mixture.compile("adam", "sparse_categorical_crossentropy")
    outputs = [np.ascontiguousarray(o) for o in np.moveaxis(mixture.expert_outputs(x), 1, 0)]

    inputs = keras.Input((FEATURES,))
    given = [keras.Input((CLASSES,)) for _ in range(EXPERTS)]
    weights = keras.layers.Softmax()(keras.models.clone_model(gate)(inputs))
    alone = keras.Model([inputs, *given], plait.layers.WeightedMerge()([weights, *given]))
    alone.compile("adam", "sparse_categorical_crossentropy")

    pairs = [
        (
            epoch(lambda **how: mixture.fit_gate(x, y, **how)),
            epoch(lambda **how: alone.fit([x, *outputs], y, **how)),
        )
        for _ in range(arguments.repeats)
    ]
    ours, theirs = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    yield Row(
        "an epoch of `fit_gate` over training the gate alone on arrays",
        statistics.median(a / b for a, b in pairs),
        1.3,
        f"{ours:.0f} / {theirs:.0f} ms",
    )


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=3)))
