"""Where Python and not arithmetic is what costs: small mixtures, eager calls, deep networks.

A template of three small experts (64 → 64 → 10), stacked and under top-2, over the recipe of three
such experts, of which all run: an eager call of 32 rows, a training step by `train_on_batch` of 32
rows, and `predict_on_batch` of one row. And the first training step of twelve layers of eight
sparse experts over twelve dense ones, bare and as what follows attention in the blocks of a
transformer. `KERAS_BACKEND=jax python -m benchmarks.small`
"""

import keras
import numpy as np
from keras import layers

import plait
from benchmarks.recipes import CLASSES, FEATURES, expert, gate, recipe
from benchmarks.table import Row, options, show
from benchmarks.timing import clocks, compared, ratio, tensor, training_step

EXPERTS, BATCH = 3, 32
DEPTH, WIDTH = 12, 64


def mixture(name):
    """Returns a mixture of three experts, which all run or of which two do."""
    if name == "stacked":
        return plait.Mixture(expert(), gate(EXPERTS), num_experts=EXPERTS)
    router = plait.routers.TopK(2, from_logits=False)
    return plait.Mixture(expert(), gate(EXPERTS), num_experts=EXPERTS, router=router)


def over_recipe(name, arguments):
    """Yields the rows of one mixture over the recipe."""
    rng = np.random.default_rng(0)
    x, one = (tensor(rng.normal(size=(rows, FEATURES))) for rows in (BATCH, 1))
    y = tensor(np.eye(CLASSES)[rng.integers(0, CLASSES, BATCH)])
    pair = mixture(name), recipe(EXPERTS)
    for model in pair:
        model.compile("sgd", "categorical_crossentropy")
    calls = {
        "an eager call": ([lambda model=model: wait(model(x)) for model in pair], 1.5),
        "training step": ([training_step(model, x, y) for model in pair], 1.2),
        "predict one row": (
            [lambda model=model: model.predict_on_batch(one) for model in pair],
            1.2,
        ),
    }
    for what, ((ours, theirs), target) in calls.items():
        found = ratio(ours, theirs, arguments.repeats)
        yield Row.of(f"3 small experts, {name}, over the recipe: {what}", found, target, digits=2)


def wait(value):
    """Waits until a value is there."""
    return value.block_until_ready() if keras.config.backend() == "jax" else value


def block():
    """Returns the feed-forward network of one layer."""
    return keras.Sequential([layers.Dense(2 * WIDTH, activation="relu"), layers.Dense(WIDTH)])


def attend(x):
    """Returns what the first half of a transformer's block adds."""
    x = layers.LayerNormalization()(x)
    return layers.MultiHeadAttention(4, WIDTH // 4)(x, x, use_causal_mask=True)


def first_step(sparse, shape):
    """Builds twelve layers, compiles and takes one step, on rows or on sequences with attention."""
    x = inputs = keras.Input(shape[1:])
    for _ in range(DEPTH):
        fed = x
        if len(shape) > 2:
            x = x + attend(x)
            fed = layers.LayerNormalization()(x)
        router = plait.routers.TopK(2)
        layer = plait.Mixture(block(), layers.Dense(8), num_experts=8, router=router)
        x = x + (layer(fed) if sparse else block()(fed))
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    model.train_on_batch(np.zeros(shape), np.zeros(shape))


def rows(arguments):
    """Yields the table's rows."""
    for name in ("stacked", "top-2"):
        yield from over_recipe(name, arguments)
    for where, shape in (("layers", (BATCH, WIDTH)), ("transformer blocks", (8, BATCH, WIDTH))):
        first_step(False, shape)  # wakes the backend
        sides = [lambda sparse=sparse, shape=shape: first_step(sparse, shape) for sparse in (1, 0)]
        turns = [[clocks(side) for side in sides] for _ in range(3)]
        what = f"build and first training step, {DEPTH} {where} of 8 sparse experts over dense ones"
        yield Row.of(what, compared(turns), 1.3, digits=0)


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=101)))
