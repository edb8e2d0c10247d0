"""Two moons: what the gate does between four experts that can only draw straight lines.

`KERAS_BACKEND=jax python examples/two_moons.py`
"""

import keras
import numpy as np
from gallery import EXPERTS, GREY, INK, PICTURES, equal_width, fair, figure, save, table
from keras import layers
from sklearn.datasets import make_moons

import plait


def moons(count, seed):
    """Returns points `(n, 2)` and their moon `(n, 1)`."""
    x, y = make_moons(count, noise=0.2, random_state=seed)
    return x.astype("float32"), y[:, None].astype("float32")


def mixture():
    """Returns four logistic regressions under a linear gate."""
    expert = keras.Sequential([keras.Input((2,)), layers.Dense(1, activation="sigmoid")])
    return plait.Mixture(expert, num_experts=4)


def likelihood():
    """Returns the loss of the mixture."""
    return plait.losses.MixtureNLL("bernoulli")


def network(width):
    """Returns a network of one hidden layer."""
    hidden = layers.Dense(width, activation="tanh")
    return keras.Sequential([keras.Input((2,)), hidden, layers.Dense(1, activation="sigmoid")])


def draw(mix, plain, points, folder):
    """Draws the gate's weights, and the network's probability, behind the points."""
    across, up = np.meshgrid(np.linspace(-1.8, 2.8, 160), np.linspace(-1.3, 1.8, 120))
    grid = np.stack([across.ravel(), up.ravel()], 1).astype("float32")
    colors = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in EXPERTS[:4]])
    made, axes = figure(2, height=3.0, sharey=True)
    behind = [mix.gate_weights(grid) @ colors, 1 - 0.6 * plain.predict(grid, verbose=0) * [1, 1, 1]]
    titles = ["mixture: a color for each expert's weight", "network: dark is moon 1"]
    for place, model, picture, title in zip(axes, (mix, plain), behind, titles, strict=True):
        extent = (-1.8, 2.8, -1.3, 1.8)
        shade = 0.55 * picture.reshape(*across.shape, 3) + 0.45
        place.imshow(shade, origin="lower", extent=extent, aspect="auto")
        moon = model.predict(grid, verbose=0).reshape(across.shape)
        place.contour(across, up, moon, levels=[0.5], colors=INK, linewidths=1.6)
        x, y = points
        for label, color in ((0, "white"), (1, INK)):
            chosen = x[y[:, 0] == label]
            place.scatter(*chosen.T, s=9, c=color, edgecolors=GREY, linewidths=0.4)
        place.set_title(title)
    save(made, "two_moons", folder)


def main(steps=1000, seeds=3, folder=PICTURES):
    """Trains both, prints their accuracy, draws the picture."""
    train, validation, (x, y) = moons(400, 1), moons(400, 2), moons(5000, 3)
    width = equal_width(network, mixture().count_params())
    mixtures, rate = fair(mixture, train, validation, likelihood, steps, seeds=seeds)
    plain, plain_rate = fair(
        lambda: network(width), train, validation, "binary_crossentropy", steps, seeds=seeds
    )
    print(f"rates: mixture {rate}, network {plain_rate}")
    for name, models in (("mixture of 4 lines", mixtures), (f"network, width {width}", plain)):
        right = [np.mean((m.predict(x, verbose=0) > 0.5) == y) for m in models]
        table({f"{name}, {models[0].count_params()} parameters": right}, "accuracy")
    draw(mixtures[0], plain[0], [part[:120] for part in train], folder)


if __name__ == "__main__":
    main()
