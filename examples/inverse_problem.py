"""An inverse problem: one input has three right answers, and a mixture density gives all three.

The data are those of Bishop (1994), Mixture density networks: t ~ U(0, 1) gives
x = t + 0.3 sin(2πt) + U(-0.1, 0.1), and the model is asked for t, given x.
`KERAS_BACKEND=jax python examples/inverse_problem.py`
"""

import keras
import numpy as np
from gallery import EXPERTS, INK, PICTURES, equal_width, fair, figure, save, table
from keras import layers

import plait


def inverse(count, seed):
    """Returns x `(n, 1)` and t `(n, 1)`."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(size=(count, 1))
    x = t + 0.3 * np.sin(2 * np.pi * t) + rng.uniform(-0.1, 0.1, size=(count, 1))
    return x.astype("float32"), t.astype("float32")


def network(width, units=2):
    """Returns a network whose two outputs are a mean and a number that gives the scale."""
    hidden = layers.Dense(width, activation="tanh")
    return keras.Sequential([keras.Input((1,)), hidden, layers.Dense(units)])


def mixture():
    """Returns three such networks, and a network as the gate."""
    return plait.Mixture(network(8), network(8, 3), num_experts=3, router="softmax")


def one_gaussian(width):
    """Returns one network, as a mixture of one, so that it has the same loss."""
    return plait.Mixture([network(width)], gate="uniform")


def likelihood():
    """Returns the loss: each expert predicts a mean and a scale."""
    return plait.losses.MixtureNLL(plait.losses.families.Gaussian(scale="predicted"))


def density(model, x, t):
    """Returns p(t | x), `(t, x)`."""
    weights, outputs = model.gate_weights(x), model.expert_outputs(x)
    mean, scale = outputs[..., 0], np.logaddexp(0, outputs[..., 1]) + 1e-6
    bell = np.exp(-0.5 * ((t[:, None, None] - mean) / scale) ** 2) / scale / np.sqrt(2 * np.pi)
    return (weights * bell).sum(-1)


def draw(models, points, folder):
    """Draws the density of each model, the points, and where the experts' means lie."""
    x, t = np.linspace(0, 1, 160, dtype="float32")[:, None], np.linspace(-0.1, 1.1, 160)
    made, axes = figure(2, height=3.1, sharey=True)
    for place, (name, model) in zip(axes, models.items(), strict=True):
        shade = np.minimum(density(model, x, t), 6.0)
        extent = (0, 1, -0.1, 1.1)
        place.imshow(shade, origin="lower", extent=extent, aspect="auto", cmap="Greys", vmax=9.0)
        place.scatter(*(part[:150, 0] for part in points), s=4, c="#7d8791")
        weights, means = model.gate_weights(x), model.expert_outputs(x)[..., 0]
        for number in range(weights.shape[1]):
            shown = np.where(weights[:, number] > 0.1, means[:, number], np.nan)
            place.plot(x[:, 0], shown, color=EXPERTS[number], linewidth=2)
        place.plot(x[:, 0], model.predict(x, verbose=0)[:, 0], color=INK, linestyle=":")
        place.set_xlim(0, 1)
        place.set_title(name)
        place.set_xlabel("x")
    axes[0].set_ylabel("t")
    save(made, "inverse_problem", folder)


def main(steps=2000, seeds=3, folder=PICTURES):
    """Trains both, prints their likelihood, draws the picture."""
    train, validation, test = inverse(1000, 1), inverse(1000, 2), inverse(5000, 3)
    size = mixture().count_params()
    width = equal_width(one_gaussian, size)
    found = {}
    for name, make in (
        ("mixture of three Gaussians", mixture),
        ("one Gaussian", lambda: one_gaussian(width)),
    ):
        models, rate = fair(make, train, validation, likelihood, steps, seeds=seeds)
        print(f"{name}: {models[0].count_params()} parameters, rate {rate}")
        table({name: [m.evaluate(*test, batch_size=1024, verbose=0) for m in models]}, "nats")
        found[name] = models[0]
    draw(found, train, folder)


if __name__ == "__main__":
    main()
