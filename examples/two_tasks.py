"""Two tasks of one input: shared experts, and a gate for each task.

The data are those of Ma et al. (2018), section 3.3: two regressions on sums of sines of two
projections of the input, whose cosine is given. `KERAS_BACKEND=jax python examples/two_tasks.py`
"""

import keras
import numpy as np
from gallery import PICTURES, dots, equal_width, fair, figure, save, table
from keras import layers

import plait

TASKS, SIZE, NUM_EXPERTS = ("first", "second"), 100, 8


def sines(seed, cosine=0.5):
    """Returns a function that draws rows `(b, 100)` and a target `(b, 1)` for each task."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(SIZE, 2)))
    weights = [basis[:, 0], basis @ [cosine, np.sqrt(1 - cosine**2)]]
    frequency, phase = rng.uniform(0.5, 2.5, 6), rng.uniform(0, 2 * np.pi, 6)

    def draw(count, noise=0.1):
        x = rng.normal(size=(count, SIZE)).astype("float32")
        y = {}
        for task, weight in zip(TASKS, weights, strict=True):
            z = x @ weight
            clean = z + np.sin(np.outer(z, frequency) + phase).sum(1)
            y[task] = (clean + noise * rng.normal(size=count))[:, None].astype("float32")
        return x, y

    return draw


def tower():
    """Returns what makes a task's output of what it reads."""
    return keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(1)])


def multi_gate(width=16):
    """Returns eight shared experts, and a gate for each task (MMoE)."""
    inputs = keras.Input((SIZE,))
    expert = layers.Dense(width, activation="relu")
    mix = plait.MultiGateMixture(
        expert, num_experts=NUM_EXPERTS, tasks={task: tower() for task in TASKS}, name="mix"
    )
    return keras.Model(inputs, mix(inputs))


def shared_bottom(width):
    """Returns one hidden layer that both towers read."""
    inputs = keras.Input((SIZE,))
    bottom = layers.Dense(width, activation="relu")(inputs)
    return keras.Model(inputs, {task: tower()(bottom) for task in TASKS})


def apart(width):
    """Returns a network for each task."""
    inputs = keras.Input((SIZE,))
    hidden = [layers.Dense(width, activation="relu")(inputs) for _ in TASKS]
    return keras.Model(
        inputs, {task: tower()(one) for task, one in zip(TASKS, hidden, strict=True)}
    )


def error(model, test):
    """Returns the mean squared error, averaged over the tasks."""
    found = model.predict(test[0], batch_size=1024, verbose=0)
    return float(np.mean([np.mean((found[task] - test[1][task]) ** 2) for task in TASKS]))


def draw(weights, found, folder):
    """Draws each gate's mean weights, and the errors."""
    made, axes = figure(2, height=2.6, width_ratios=[1, 1])
    image = axes[0].imshow(weights, cmap="Blues", aspect="auto", vmin=0)
    axes[0].set_yticks(range(len(TASKS)), [f"{task} task" for task in TASKS])
    axes[0].set_xticks(range(NUM_EXPERTS), range(1, NUM_EXPERTS + 1))
    axes[0].set_xlabel("expert")
    made.colorbar(image, ax=axes[0], label="mean weight")
    dots(axes[1], found, "mean squared error")
    save(made, "two_tasks", folder)


def main(steps=500, seeds=3, folder=PICTURES):
    """Trains the three, prints their errors, draws the picture."""
    rows = sines(0)
    train, validation, test = rows(10_000), rows(2500), rows(10_000, noise=0.0)
    size = multi_gate().count_params()
    shared_width, width = equal_width(shared_bottom, size), equal_width(apart, size)
    makers = {
        "mixture, a gate a task": multi_gate,
        "shared layer": lambda: shared_bottom(shared_width),
        "a network a task": lambda: apart(width),
    }
    found, first = {}, None
    for name, make in makers.items():
        models, rate = fair(
            make,
            train,
            validation,
            dict.fromkeys(TASKS, "mse"),
            steps,
            batch=256,
            rates=(0.01, 0.03),
            seeds=seeds,
        )
        first = first or models[0]
        print(f"{name}: {models[0].count_params()} parameters, rate {rate}")
        found[name] = [error(model, test) for model in models]
    table(found, "error")
    draw(first.get_layer("mix").gate_weights(test[0]).mean(0), found, folder)


if __name__ == "__main__":
    main()
