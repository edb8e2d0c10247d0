"""Draws the pictures of these pages with what they show: `python docs/pictures.py`.

Every curve is computed by plait; nothing is drawn by hand. Files go to `docs/pictures/`.
"""

import json
from pathlib import Path

import keras
import matplotlib
import numpy as np
from matplotlib.figure import Figure

import plait

FOLDER = Path(__file__).parent / "pictures"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
COLORS = ["#2f6f8f", "#b5523b", "#5b8c4a", "#8a6d9c"]
INK, PAPER = "#222222", "#fbfaf7"
STYLE = {
    "axes.edgecolor": "#888888",
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "font.size": 9.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "plait",
    "xtick.color": INK,
    "ytick.color": INK,
}


def weights_of(router, scores, training=False):
    """Returns the weights that a router makes of scores, `(b, e)`."""
    return keras.ops.convert_to_numpy(router(scores, training=training))


def routers():
    """Weights of four experts over one input, whose scores are straight lines."""
    x = np.linspace(-3.0, 3.0, 241)
    scores = np.stack([-1.6 * x - 1.2, -0.5 * x, 0.6 * x + 0.1, 1.7 * x - 1.2], axis=1)
    rules = {
        "Softmax()": plait.routers.Softmax(),
        "Softmax(0.3)": plait.routers.Softmax(temperature=0.3),
        "Entmax15()": plait.routers.Entmax15(),
        "Sparsemax()": plait.routers.Sparsemax(),
        "TopK(2)": plait.routers.TopK(2),
        "TopK(1)": plait.routers.TopK(1),
        "ExpertChoice(1.0)": plait.routers.ExpertChoice(1.0),
        "Gumbel()": plait.routers.Gumbel(seed=0),
    }
    figure = Figure((4.3, 7.2), layout="constrained")
    for place, (name, router) in enumerate(rules.items(), start=1):
        axes = figure.add_subplot(4, 2, place)
        axes.set_title(name, fontsize=9.0, family="monospace", color=INK)
        for expert, column in enumerate(weights_of(router, scores).T):
            axes.plot(x, column, color=COLORS[expert], linewidth=1.8, label=f"expert {expert}")
        axes.set(ylim=(-0.04, 1.04), yticks=[0.0, 0.5, 1.0], xticks=[-3, 0, 3])
        if place > 6:
            axes.set_xlabel("x")
        if place % 2:
            axes.set_ylabel("weight")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        *(handles, labels),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )
    return figure


def two_branches():
    """Returns inputs and targets: each target lies on one of two crossing lines."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, (240, 1)).astype("float32")
    side = np.where(rng.random((240, 1)) < 0.5, 1.0, -1.0)
    y = side * (0.25 + 1.2 * x) + 0.07 * rng.normal(size=(240, 1))
    return x, y.astype("float32")


def mixture(gate=None):
    """Returns two linear experts under a gate, linear by default."""
    keras.utils.set_random_seed(1)
    return plait.Mixture(keras.layers.Dense(1), gate, num_experts=2)


def trained(loss, gate=None):
    """Returns the mixture, trained by gradient steps."""
    x, y = two_branches()
    mix = mixture(gate)
    mix.compile(keras.optimizers.Adam(0.03), loss)
    mix.fit(x, y, epochs=120, batch_size=60, verbose=0)
    return mix


def fitted_by_em():
    """Returns the mixture, fitted by EM."""
    mix = mixture()
    mix.fit_em(*two_branches(), restarts=3, seed=0, verbose=0)
    return mix


def lines(mix):
    """Draws the data, what each expert says, and the blend."""
    x, y = two_branches()
    grid = np.linspace(-1.0, 1.0, 101, dtype="float32")[:, None]
    outputs = mix.expert_outputs(grid)[:, :, 0]
    figure = Figure((4.3, 2.3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(x[:, 0], y[:, 0], ".", color="#b9b6ae", markersize=3)
    for expert in range(outputs.shape[1]):
        axes.plot(grid, outputs[:, expert], color=COLORS[expert], label=f"expert {expert}")
    axes.plot(grid, mix.predict(grid, verbose=0), "--", color=INK, label="blend")
    axes.set(xlabel="x", ylabel="y", ylim=(-1.9, 1.9), xticks=[-1, -0.5, 0, 0.5, 1])
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def worth_it():
    """Errors beside the plain average of as many networks, from `benchmarks/results`."""
    results = json.loads((RESULTS / "quality.json").read_text())
    figure = Figure((4.3, 2.8), layout="constrained")
    axes = figure.add_subplot()
    names = list(results)
    for marker, color, label in (("o", COLORS[1], "mixture"), ("s", COLORS[0], "one network")):
        ratios = []
        for name in names:
            errors = results[name]["test"]
            ratios.append(np.mean(errors[label]) / np.mean(errors["n networks averaged"]))
        axes.plot(ratios, names, marker, color=color, label=label)
    axes.axvline(1.0, color=INK, linewidth=1.0)
    axes.invert_yaxis()
    axes.set_xlabel("error over that of the plain average (less is better)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


PICTURES = {
    "routers": routers,
    "worth-it": worth_it,
    "objective-blended": lambda: lines(trained("mse")),
    "objective-nll": lambda: lines(trained(plait.losses.MixtureNLL("gaussian"))),
    "objective-expert-mean": lambda: lines(
        trained(plait.losses.ExpertMean("mean_squared_error"), gate="uniform")
    ),
    "objective-em": lambda: lines(fitted_by_em()),
}


def main():
    """Writes every picture."""
    with matplotlib.rc_context(STYLE):
        for name, draw in PICTURES.items():
            path = FOLDER / f"{name}.svg"
            draw().savefig(path, metadata={"Date": None})
            text = "\n".join(line.rstrip() for line in path.read_text().splitlines())
            path.write_text(text.replace("DejaVu Sans Mono", "monospace") + "\n")
            print(path)


if __name__ == "__main__":
    main()
