"""A mixture of mixtures: a gate between two groups, and in each a gate between three experts.

Vowels of speakers who were not heard in training (`data/vowel`). Each expert is linear.
`KERAS_BACKEND=jax python examples/hierarchical.py`
"""

from pathlib import Path

import keras
import numpy as np
from gallery import EXPERTS, PICTURES, equal_width, fair, figure, save, table
from keras import layers

import plait

DATA = Path(__file__).parents[1] / "data" / "vowel"
VOWELS = ["heed", "hid", "head", "had", "hard", "hud", "hod", "hoard", "hood", "who'd", "heard"]
GROUPS, EACH = 2, 3


def read(name):
    """Returns speakers `(n,)`, features `(n, 10)` and vowels `(n,)` as class numbers."""
    rows = np.genfromtxt(DATA / name, delimiter=",", dtype=str, skip_header=1)
    vowels = np.array([VOWELS.index(word) for word in rows[:, -1]])
    return rows[:, 0].astype(int), rows[:, 1:-1].astype("float32"), vowels


def flat(experts=GROUPS * EACH):
    """Returns a mixture of linear experts under a linear gate."""
    expert = keras.Sequential([keras.Input((10,)), layers.Dense(11, activation="softmax")])
    return plait.Mixture(expert, num_experts=experts)


def hierarchy():
    """Returns a mixture whose experts are mixtures."""
    tree = plait.Mixture([flat(EACH) for _ in range(GROUPS)])
    tree.build((None, 10))
    return tree


def likelihood():
    """Returns the loss of the mixtures."""
    return plait.losses.MixtureNLL("categorical")


def network(width):
    """Returns a network of one hidden layer."""
    hidden, last = layers.Dense(width, activation="tanh"), layers.Dense(11, activation="softmax")
    return keras.Sequential([keras.Input((10,)), hidden, last])


def leaves(tree, x):
    """Returns the weight of every expert of every group, `(b, groups, each)`."""
    inner = np.stack([group.gate_weights(x) for group in tree.experts], axis=1)
    return tree.gate_weights(x)[:, :, None] * inner


def draw(tree, speakers, x, vowels, folder):
    """Draws the first group's weight by speaker, and all weights by vowel."""
    weights = leaves(tree, x)
    made, axes = figure(2, height=3.4, width_ratios=[1, 1.5])
    names = np.unique(speakers)
    share = [weights[speakers == one, 0].sum(-1).mean() for one in names]
    colors = [EXPERTS[0] if one <= 12 else EXPERTS[1] for one in names]
    axes[0].barh([f"{'man' if one <= 12 else 'woman'} {one}" for one in names], share, color=colors)
    axes[0].invert_yaxis()
    axes[0].set_xlim(0, 1)
    axes[0].set_xlabel("weight of group A")
    by_vowel = np.stack([weights[vowels == k].mean(0).ravel() for k in range(len(VOWELS))])
    image = axes[1].imshow(by_vowel, cmap="Blues", aspect="auto", vmin=0)
    axes[1].set_yticks(range(len(VOWELS)), VOWELS)
    axes[1].set_xticks(range(GROUPS * EACH), [f"{g}{e}" for g in "AB" for e in range(1, EACH + 1)])
    axes[1].axvline(EACH - 0.5, color="#6b7480")
    axes[1].set_xlabel("group and expert")
    made.colorbar(image, ax=axes[1], label="mean weight")
    save(made, "hierarchical", folder)


def main(steps=500, seeds=3, folder=PICTURES):
    """Trains the three, prints their accuracy on new speakers, draws the picture."""
    speakers, x, y = read("train.csv")
    held = np.isin(speakers, (4, 8))  # a man and a woman pick the rate
    mean, scale = x[~held].mean(0), x[~held].std(0)
    train, validation = [((x[rows] - mean) / scale, y[rows]) for rows in (~held, held)]
    new_speakers, x, y = read("test.csv")
    x = (x - mean) / scale
    width = equal_width(network, hierarchy().count_params())
    tree = None
    for name, make, loss in (
        ("mixture of mixtures, 2 of 3", hierarchy, likelihood),
        ("flat mixture of 6", flat, likelihood),
        (
            f"network, width {width}",
            lambda: network(width),
            "sparse_categorical_crossentropy",
        ),
    ):
        models, rate = fair(make, train, validation, loss, steps, rates=(0.003, 0.01), seeds=seeds)
        tree = tree or models[0]
        right = [np.mean(m.predict(x, verbose=0).argmax(-1) == y) for m in models]
        table({f"{name}, {models[0].count_params()} parameters": right}, f"rate {rate}, accuracy")
    share = leaves(tree, x)[:, 0].sum(-1)
    for name, rows in (("men", new_speakers <= 12), ("women", new_speakers > 12)):
        print(f"weight of group A for {name}: {share[rows].mean():.2f}")
    draw(tree, new_speakers, x, y, folder)


if __name__ == "__main__":
    main()
