"""Two views of a digit, its upper and its lower half, of which one is missing at times.

The expert whose view is missing gets no weight, and the other has it all. Where both are there,
the geometric combination multiplies what they say.
`KERAS_BACKEND=jax python examples/missing_view.py`
"""

import keras
import numpy as np
from gallery import EXPERTS, GREY, PICTURES, equal_width, fair, figure, save, table
from keras import layers
from sklearn.datasets import load_digits

import plait

PATTERNS = {"both halves": (1, 1), "upper half": (1, 0), "lower half": (0, 1)}
COPIES = 4


def halves(images, present):
    """Returns the views, with zeros for what is missing, and which are there."""
    present = np.broadcast_to(np.asarray(present, "float32"), (len(images), 2))
    return {
        "upper": images[:, :32] * present[:, :1],
        "lower": images[:, 32:] * present[:, 1:],
        "present": present.copy(),
    }


def digits():
    """Returns training and validation rows with views missing, and whole test images."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    images, labels = (images[order] / 16).astype("float32"), labels[order]
    parts = [(images[rows], labels[rows]) for rows in (slice(1000), slice(1000, 1300))]
    patterns = np.array([(1, 1), (1, 1), (1, 0), (0, 1)], "float32")  # a quarter lacks each half
    found = []
    for x, y in parts:
        x, y = np.repeat(x, COPIES, axis=0), np.repeat(y, COPIES)
        found.append((halves(x, patterns[np.arange(len(x)) % COPIES]), y))
    return *found, (images[1300:], labels[1300:])


def mixture(combination):
    """Returns an expert for each half, and a gate that reads both."""
    experts = [
        keras.Sequential(
            [layers.Dense(24, activation="relu"), layers.Dense(10, activation="softmax")]
        )
        for _ in range(2)
    ]
    mix = plait.Mixture(
        experts,
        expert_inputs=["upper", "lower"],
        gate_inputs=["upper", "lower"],
        present="present",
        combination=combination,
    )
    mix.build({"upper": (None, 32), "lower": (None, 32), "present": (None, 2)})
    return mix


def network(width):
    """Returns a network that reads both halves, zeros where one is missing, and which are there."""
    inputs = {
        name: keras.Input((size,), name=name)
        for name, size in {"upper": 32, "lower": 32, "present": 2}.items()
    }
    x = layers.Concatenate()(list(inputs.values()))
    x = layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def draw(found, image, folder):
    """Draws a digit in its three states, and the errors in each."""
    made, axes = figure(4, height=2.5, width_ratios=[0.5, 0.5, 0.5, 2.2])
    for place, (name, present) in zip(axes, PATTERNS.items(), strict=False):
        seen = np.concatenate([image[:32] * present[0], image[32:] * present[1]])
        place.imshow(seen.reshape(8, 8), cmap="Greys", vmin=0, vmax=1)
        place.axhline(3.5, color=GREY, linewidth=0.6)
        place.set_xticks([])
        place.set_yticks([])
        place.spines[:].set_visible(True)
        place.set_title(name)
    last = axes[-1]
    for number, (name, by_state) in enumerate(found.items()):
        height = np.arange(len(PATTERNS)) + 0.26 * (number - 1)
        color = [EXPERTS[0], EXPERTS[1], GREY][number]
        last.barh(
            height, [100 * np.mean(v) for v in by_state.values()], 0.24, color=color, label=name
        )
        for y, values in zip(height, by_state.values(), strict=True):
            last.plot(100 * np.array(values), [y] * len(values), ".", color="#2b3440", markersize=4)
    last.set_yticks(range(len(PATTERNS)), PATTERNS)
    last.invert_yaxis()
    last.set_xlabel("errors on test digits, %")
    last.legend()
    save(made, "missing_view", folder)


def main(steps=500, seeds=3, folder=PICTURES):
    """Trains the three, prints their errors by what is there, draws the picture."""
    train, validation, (images, labels) = digits()
    width = equal_width(network, mixture("geometric").count_params())
    makers = {
        "geometric mixture": lambda: mixture("geometric"),
        "arithmetic mixture": lambda: mixture("arithmetic"),
        "network": lambda: network(width),
    }
    found = {}
    for name, make in makers.items():
        loss = "sparse_categorical_crossentropy"
        models, rate = fair(
            make, train, validation, loss, steps, batch=128, rates=(0.01, 0.03), seeds=seeds
        )
        print(f"{name}: {models[0].count_params()} parameters, rate {rate}")
        found[name] = {
            state: [
                np.mean(
                    m.predict(halves(images, present), batch_size=512, verbose=0).argmax(-1)
                    != labels
                )
                for m in models
            ]
            for state, present in PATTERNS.items()
        }
        table({f"  {state}": values for state, values in found[name].items()}, "errors")
    draw(found, images[0], folder)


if __name__ == "__main__":
    main()
