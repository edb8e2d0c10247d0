"""A mixture as an ONNX file, run by a program that has neither plait nor Keras.

Ten digits, eight experts. Keras writes ONNX on PyTorch and TensorFlow.
`KERAS_BACKEND=torch python examples/onnx_without_plait.py`
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from gallery import EXPERTS, INK, PICTURES, equal_width, fair, figure, save
from keras import layers
from sklearn.datasets import load_digits

import plait

# What the other program is: it blocks what it must not need.
PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(["plait", "keras", "jax", "torch", "tensorflow"]))
import json, time
import numpy as np
import onnxruntime

file, rows, answers = sys.argv[1:]
session = onnxruntime.InferenceSession(file)
x = np.load(rows)
name = session.get_inputs()[0].name
np.save(answers, session.run(None, {name: x})[0])
start = time.perf_counter()
for _ in range(200):
    session.run(None, {name: x[:1]})
seconds = (time.perf_counter() - start) / 200
print(json.dumps({"ms": 1000 * seconds, "modules": [m for m, one in sys.modules.items() if one]}))
"""


def digits():
    """Returns training, validation and test rows."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] / 16).astype("float32"), y[order]
    return [(x[rows], y[rows]) for rows in (slice(1000), slice(1000, 1300), slice(1300, None))]


def mixture():
    """Returns eight linear experts under a linear gate."""
    expert = keras.Sequential([keras.Input((64,)), layers.Dense(10, activation="softmax")])
    return plait.Mixture(expert, num_experts=8)


def network(width):
    """Returns a network of one hidden layer."""
    hidden, last = layers.Dense(width, activation="relu"), layers.Dense(10, activation="softmax")
    return keras.Sequential([keras.Input((64,)), hidden, last])


def elsewhere(model, x, folder):
    """Exports a model and runs it in the other program; returns its answers and what it says."""
    file, rows, answers = (Path(folder) / name for name in ("m.onnx", "x.npy", "y.npy"))
    plait.export(model, file)
    np.save(rows, x)
    command = [sys.executable, "-c", PROGRAM, str(file), str(rows), str(answers)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return np.load(answers), {**json.loads(said), "kB": file.stat().st_size / 1000}


def draw(here, there, folder):
    """Draws the probabilities of both programs against each other, and how far they differ."""
    made, axes = figure(2, height=2.9)
    shown = slice(0, 60)
    axes[0].plot([0, 1], [0, 1], color=EXPERTS[1], linewidth=1)
    axes[0].plot(here[shown].ravel(), there[shown].ravel(), ".", color=INK, markersize=3)
    axes[0].set_xlabel("probability, Keras and plait")
    axes[0].set_ylabel("probability, ONNX Runtime alone")
    gap = np.abs(here - there).ravel()
    axes[1].hist(np.log10(gap + 1e-12), bins=30, color=EXPERTS[0])
    axes[1].set_xlabel("log₁₀ of the difference")
    axes[1].set_ylabel("probabilities")
    save(made, "onnx_without_plait", folder)


def main(steps=300, seeds=2, folder=PICTURES):
    """Trains and exports, prints what the other program found, draws the picture."""
    train, validation, (x, y) = digits()
    width = equal_width(network, mixture().count_params())
    found = {}
    for name, make in (("mixture of 8", mixture), ("network", lambda: network(width))):
        loss = "sparse_categorical_crossentropy"
        models, rate = fair(make, train, validation, loss, steps, rates=(0.01, 0.03), seeds=seeds)
        here = [model.predict(x, verbose=0) for model in models]
        with tempfile.TemporaryDirectory() as place:
            there, facts = elsewhere(models[0], x, place)
        assert not {"plait", "keras"} & set(facts["modules"])
        right = [100 * np.mean(one.argmax(-1) == y) for one in here]
        print(
            f"{name}: {models[0].count_params()} parameters, rate {rate}, "
            f"accuracy {np.mean(right):.1f} ± {np.std(right):.1f} %, file {facts['kB']:.0f} kB, "
            f"{facts['ms']:.3f} ms a row, largest difference {np.abs(here[0] - there).max():.1g}"
        )
        found[name] = here[0], there
    draw(*found["mixture of 8"], folder)


if __name__ == "__main__":
    main()
