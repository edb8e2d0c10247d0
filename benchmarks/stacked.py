"""A training step of 64 stacked experts, over einsum by hand and over the recipe.

Two-layer experts 64 → 64 → 10, batches of 32 and 256, SGD, by `train_on_batch`; and
`predict_on_batch` of one row.
`KERAS_BACKEND=jax python -m benchmarks.stacked`
"""

import keras
import numpy as np
from keras import ops

from benchmarks.recipes import CLASSES, FEATURES, by_hand, recipe, woven
from benchmarks.table import Row, options, show
from benchmarks.timing import ratio, tensor, training_step

EXPERTS, BATCHES = 64, (32, 256)


def rows(arguments):
    """Yields the table's rows."""
    rng = np.random.default_rng(0)
    models = [build(EXPERTS) for build in (woven, by_hand, recipe)]
    goal = 0.45 if keras.config.backend() == "torch" else 0.8
    for batch in BATCHES:
        x = tensor(rng.normal(size=(batch, FEATURES)))
        y = ops.one_hot(rng.integers(0, CLASSES, batch), CLASSES)
        steps = []
        for model in models:
            model.compile("sgd", "categorical_crossentropy")
            steps.append(training_step(model, x, y))
        for what, other, target in (
            ("a hand-written einsum layer", steps[1], 1.1),
            ("the recipe", steps[2], goal),
        ):
            found = ratio(steps[0], other, arguments.repeats)
            what = f"stacked training step, L = {EXPERTS}, batch {batch}, over {what}"
            yield Row.of(what, found, target)
    x = tensor(rng.normal(size=(1, FEATURES)))
    ours, hand, _ = (lambda model=model: model.predict_on_batch(x) for model in models)
    what = f"predict one row, L = {EXPERTS}, over a hand-written einsum layer"
    yield Row.of(what, ratio(ours, hand, arguments.repeats), 1.5, digits=2)


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=31)))
