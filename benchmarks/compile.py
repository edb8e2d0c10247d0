"""What it takes to build a mixture and take its first training step, as experts multiply.

Two-layer experts, batch 32; the median of some builds in one process, after another model has
woken the backend. `KERAS_BACKEND=jax python -m benchmarks.compile`
"""

import statistics

import keras
import numpy as np

from benchmarks.recipes import CLASSES, FEATURES, recipe, woven
from benchmarks.table import Row, options, show
from benchmarks.timing import seconds

TARGETS = {64: 1.7, 1024: 3.0}
COMPILING = ("jax", "tensorflow")  # PyTorch runs eagerly: there the targets say nothing


def first_step(build, num_experts):
    """Builds, compiles and takes one step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, FEATURES)).astype("float32")
    y = np.eye(CLASSES, dtype="float32")[rng.integers(0, CLASSES, 32)]
    model = build(num_experts)
    model.compile("sgd", "categorical_crossentropy")
    model.train_on_batch(x, y)


def rows(arguments):
    """Yields the table's rows."""
    first_step(woven, 2)
    first_step(recipe, 2)
    for name, build, numbers in (("plait", woven, (64, 1024)), ("the recipe", recipe, (64,))):
        base = timed(build, 1, arguments.repeats)
        for number in numbers:
            # The recipe is slow, and no slower by chance.
            repeats = arguments.repeats if build is woven else 1
            value = timed(build, number, repeats)
            target = TARGETS[number] if build is woven else None
            yield Row(
                f"build and first training step, L = {number:,} over L = 1: {name}",
                value / base,
                target if keras.config.backend() in COMPILING else None,
                f"{value:.2f} / {base:.2f} s",
            )


def timed(build, number, repeats):
    """Returns the median seconds."""
    return statistics.median(seconds(lambda: first_step(build, number)) for _ in range(repeats))


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=3)))
