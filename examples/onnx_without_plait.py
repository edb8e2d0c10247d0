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
from gallery import EXPERTS, INK, PICTURES, equal_width, fair, figure, save, table
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
    shown = slice(0, 25)
    axes[0].plot([0, 1], [0, 1], color=EXPERTS[1], linewidth=1)
    axes[0].plot(here[shown].ravel(), there[shown].ravel(), ".", color=INK, markersize=3)
    axes[0].set_xlabel("probability, Keras and plait")
    axes[0].set_ylabel("probability, ONNX Runtime alone")
    gap = np.abs(here - there).ravel()
    axes[1].hist(np.log10(gap + 1e-12), bins=30, color=EXPERTS[0])
    axes[1].set_xlabel("log₁₀ of the difference")
    axes[1].set_ylabel("probabilities")
    save(made, "onnx_without_plait", folder)


def main(steps=100, seeds=2, folder=PICTURES):
    """Trains and exports, prints what the other program found, draws the picture."""
    train, validation, (x, y) = digits()
    width = equal_width(network, mixture().count_params())
    mixes = None
    for name, make in (("mixture of 8", mixture), ("network", lambda: network(width))):
        loss, rates = "sparse_categorical_crossentropy", (0.01, 0.03)
        models, rate = fair(make, train, validation, loss, steps, rates=rates, seeds=seeds)
        mixes = mixes or models
        right = [np.mean(m.predict(x, verbose=0).argmax(-1) == y) for m in models]
        table({f"{name}, {models[0].count_params()} parameters": right}, f"rate {rate}, accuracy")
    here = mixes[0].predict(x, verbose=0)
    with tempfile.TemporaryDirectory() as place:
        there, facts = elsewhere(mixes[0], x, place)
    assert not {"plait", "keras"} & set(facts["modules"])
    print(f"{len(facts['modules'])} modules in the other program, neither plait nor Keras")
    print(f"file {facts['kB']:.0f} kB, {facts['ms']:.3f} ms a row")
    print(f"largest difference of a probability {np.abs(here - there).max():.1g}")
    draw(here, there, folder)


if __name__ == "__main__":
    main()
