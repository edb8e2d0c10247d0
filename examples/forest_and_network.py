"""A forest and a network behind one gate, which learns where each of them is the better.

The target is made: on the left steps along the axes, which trees like, on the right waves across
them, which networks like; four more inputs mean nothing. `cross_fit` gives the experts' outputs on
rows that they have not seen, and the gate is fitted on these.
`KERAS_BACKEND=jax python examples/forest_and_network.py`
"""

import keras
import numpy as np
from gallery import INK, PICTURES, dots, equal_width, fair, figure, save, table
from keras import layers
from sklearn.ensemble import RandomForestRegressor

import plait

INPUTS = 6


def steps_and_waves(count, seed, noise=0.1):
    """Returns inputs `(n, 6)` and targets `(n, 1)`."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=(count, INPUTS)).astype("float32")
    level = np.random.default_rng(0).normal(size=(4, 8))  # of each box on the left
    boxes = level[np.clip(-4 * x[:, 0], 0, 3).astype(int), (4 * x[:, 1] + 4).astype(int) % 8]
    waves = np.sin(6 * x[:, 0] + 5 * x[:, 1])
    y = np.where(x[:, 0] < 0, boxes, waves) + noise * rng.normal(size=count)
    return x, y[:, None].astype("float32")


def network(width):
    """Returns a network of two hidden layers."""
    hidden = [layers.Dense(width, activation="relu") for _ in "ab"]
    return keras.Sequential([keras.Input((INPUTS,)), *hidden, layers.Dense(1)])


def gate():
    """Returns the gate: a small network over the two experts."""
    hidden, last = layers.Dense(16, activation="tanh"), layers.Dense(2, activation="softmax")
    return keras.Sequential([keras.Input((INPUTS,)), hidden, last])


def error(model, test):
    """Returns the root mean squared error."""
    return float(np.sqrt(np.mean((model.predict(test[0], verbose=0) - test[1]) ** 2)))


def adam(steps, rate=0.01):
    """Returns how a model is compiled."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    return {"optimizer": keras.optimizers.Adam(schedule), "loss": "mse"}


def woven(train, steps, rate, seed):
    """Returns the mixture of a forest and a network, fitted on rows that they had not seen."""
    keras.utils.set_random_seed(seed)
    x, y = train
    epochs, gate_epochs = 1 + steps * 64 // len(x), 30
    found = plait.training.cross_fit(
        [RandomForestRegressor(50, min_samples_leaf=2, random_state=seed), network(64)],
        x,
        y[:, 0],
        folds=3,
        compile=adam(steps, rate),
        fit={"epochs": epochs, "batch_size": 64, "verbose": 0},
        seed=seed,
    )
    mix = plait.Mixture(found.experts, gate())
    mix.compile(**adam(gate_epochs * len(x) // 64))
    epochs = gate_epochs if steps >= 100 else 1
    mix.fit_gate(x, y, outputs=found.outputs, epochs=epochs, batch_size=64, verbose=0)
    return mix


def draw(mix, found, folder):
    """Draws the forest's weight over the two inputs that matter, and the errors."""
    across, up = np.meshgrid(np.linspace(-1, 1, 100), np.linspace(-1, 1, 100))
    x = np.zeros((across.size, INPUTS), "float32")
    x[:, 0], x[:, 1] = across.ravel(), up.ravel()
    made, axes = figure(2, height=2.9, width_ratios=[1, 1.1])
    weight = mix.gate_weights(x)[:, 0].reshape(across.shape)
    image = axes[0].imshow(
        weight, origin="lower", extent=(-1, 1, -1, 1), cmap="BrBG", vmin=0, vmax=1, aspect="auto"
    )
    axes[0].axvline(0, color=INK, linestyle=":")
    axes[0].set_title("steps | waves")
    axes[0].set_xlabel("first input")
    axes[0].set_ylabel("second input")
    made.colorbar(image, ax=axes[0], label="weight of the forest")
    dots(axes[1], found, "root mean squared error")
    save(made, "forest_and_network", folder)


def main(steps=600, seeds=2, folder=PICTURES):
    """Fits all, prints their errors, draws the picture."""
    train, validation = steps_and_waves(2000, 1), steps_and_waves(1000, 2)
    test = steps_and_waves(5000, 3, noise=0.0)
    size = network(64).count_params() + gate().count_params()
    width = equal_width(network, size)
    plain, rate = fair(
        lambda: network(width), train, validation, "mse", steps, rates=(0.01, 0.03), seeds=seeds
    )
    mixtures = [woven(train, steps, rate, seed) for seed in range(seeds)]
    forests, networks = ([mix.expert(place) for mix in mixtures] for place in (0, 1))
    averages = [plait.Mixture(mix.experts, gate="uniform") for mix in mixtures]
    found = {
        "mixture": mixtures,
        "plain average": averages,
        "forest alone": forests,
        "network alone": networks,
        f"network, width {width}": plain,
    }
    print(f"rate {rate}; {size} parameters of network and gate, {plain[0].count_params()} plain")
    found = {
        name: [error(plait.Mixture([m], gate="uniform"), test) for m in models]
        for name, models in found.items()
    }
    table(found, "error")
    draw(mixtures[0], found, folder)


if __name__ == "__main__":
    main()
