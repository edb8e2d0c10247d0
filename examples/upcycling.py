"""Upcycling: a trained network's hidden layer becomes eight experts, and training goes on.

The network reads eight characters and predicts the next (Python's own reference, as it ships with
Python). From the same point on, it is trained as it is, and upcycled; a network as large as the
upcycled one is trained from the start, for as many steps in all.
`KERAS_BACKEND=jax python examples/upcycling.py`
"""

import math
from pydoc_data.topics import topics

import keras
import numpy as np
from gallery import EXPERTS, GREY, INK, PICTURES, equal_width, figure, save, table
from keras import layers

import plait

CONTEXT, BATCH, PARTS = 8, 128, 6


def characters():
    """Returns training and validation rows `(n, 8)` with the next character, and the alphabet."""
    text = "\n\n".join(topics[name] for name in sorted(topics))[:300_000]
    alphabet = sorted(set(text))
    codes = np.array([alphabet.index(c) for c in text], "int32")
    rows = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT + 1)
    cut = int(0.9 * len(rows))
    x, y = rows[:, :-1], rows[:, -1]
    return (x[:cut], y[:cut]), (x[cut::10], y[cut::10]), len(alphabet)


def network(alphabet, width):
    """Returns embeddings, one hidden layer, scores."""
    return keras.Sequential(
        [
            keras.Input((CONTEXT,), dtype="int32"),
            layers.Embedding(alphabet, 16),
            layers.Flatten(),
            layers.Dense(width, activation="relu", name="hidden"),
            layers.Dense(64, activation="relu"),
            layers.Dense(alphabet),
        ]
    )


def compiled(model):
    """Returns the model, ready for training."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    return model


def train(model, data, validation, steps, seed):
    """Trains a model; returns its bits per character on validation rows after each part."""
    each = max(1, steps // PARTS) * BATCH
    rows = np.random.default_rng(seed).integers(0, len(data[1]), PARTS * each)
    bits = []
    for part in range(PARTS):
        now = rows[part * each : (part + 1) * each]
        model.fit(data[0][now], data[1][now], batch_size=BATCH, shuffle=False, verbose=0)
        bits.append(model.evaluate(*validation, batch_size=1024, verbose=0) / math.log(2))
    return bits


def contest(data, validation, alphabet, steps, seed):
    """Returns the curves of one seed, the sizes of the models, and what upcycling changed."""
    keras.utils.set_random_seed(seed)
    base = compiled(network(alphabet, 64))
    before = train(base, data, validation, steps, seed)
    router = plait.routers.TopK(2, load_balance=0.01)
    new, difference = plait.training.upcycle(
        base, "hidden", 8, router, noise=0.02, seed=seed, x=validation[0][:256]
    )
    width = equal_width(lambda width: network(alphabet, width), new.count_params())
    keras.utils.set_random_seed(seed)
    large = compiled(network(alphabet, width))
    later = seed + 100  # other rows, the same for all
    curves = {
        "upcycled, trained on": before + train(compiled(new), data, validation, steps, later),
        "network, trained on": before + train(base, data, validation, steps, later),
        "large network, from the start": train(large, data, validation, steps, seed)
        + train(large, data, validation, steps, later),
    }
    sizes = [new.count_params(), base.count_params(), large.count_params()]
    return curves, sizes, difference


def draw(curves, steps, folder):
    """Draws bits per character along the steps, mean and range over the seeds."""
    made, (axes,) = figure(1, width=5.2, height=3.0)
    along = np.arange(1, 2 * PARTS + 1) * max(1, steps // PARTS)
    for (name, found), color in zip(curves.items(), (EXPERTS[0], INK, GREY), strict=True):
        axes.plot(along[1:], np.mean(found, 0)[1:], color=color, label=name)
        axes.fill_between(
            along[1:], np.min(found, 0)[1:], np.max(found, 0)[1:], color=color, alpha=0.15
        )
    axes.axvline(along[PARTS - 1], color=GREY, linestyle=":")
    axes.annotate(
        "upcycled", (along[PARTS - 1], axes.get_ylim()[1]), (3, -9), textcoords="offset points"
    )
    axes.set_xlabel("steps")
    axes.set_ylabel("bits per character")
    axes.legend()
    save(made, "upcycling", folder)


def main(steps=600, seeds=2, folder=PICTURES):
    """Trains all, prints bits per character, draws the curves."""
    data, validation, alphabet = characters()
    found = [contest(data, validation, alphabet, steps, seed) for seed in range(seeds)]
    print(f"largest change of an output by upcycling: {max(one[2] for one in found):.2g}")
    curves = {name: [one[0][name] for one in found] for name in found[0][0]}
    for (name, values), size in zip(curves.items(), found[0][1], strict=True):
        table({f"{name}, {size} parameters": [v[-1] for v in values]}, "bits")
    draw(curves, steps, folder)


if __name__ == "__main__":
    main()
