"""What the examples share: one style of picture, networks of equal size, training of equal care."""

from pathlib import Path

import keras
import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#6b7480",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.hashsalt": "plait",  # the same numbers make the same file
    }
)

PICTURES = Path(__file__).parents[1] / "docs" / "gallery"
INK = "#2b3440"
GREY = "#9aa5b1"  # the plain network, in every picture
EXPERTS = ["#4878a8", "#d98e48", "#6a9f6a", "#a9668c", "#8c7ab8", "#c2b04e"]


def figure(columns=1, width=7.0, height=2.9, **options):
    """Returns a figure and its axes, side by side."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(1, columns, squeeze=False, **options)[0]


def save(made, name, folder=PICTURES):
    """Writes the picture as SVG, and says where."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.svg"
    made.savefig(path, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.05)
    print(f"picture: {path} ({path.stat().st_size / 1000:.0f} kB)")


def dots(axes, groups, label):
    """Draws one row for each group: a dot for each seed, and a bar of the mean."""
    for place, (name, values) in enumerate(groups.items()):
        color = EXPERTS[0] if "mixture" in name.lower() else GREY
        axes.barh(place, np.mean(values), 0.55, color=color, alpha=0.45)
        axes.plot(values, [place] * len(values), "o", color=INK, markersize=3.5)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set_xlabel(label)


def table(groups, label, digits=3):
    """Prints mean and standard deviation over the seeds of each group."""
    for name, values in groups.items():
        print(f"{name:<52} {label} {np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}")


def equal_width(make, parameters):
    """Returns the width at which `make(width)` comes nearest to a number of parameters."""
    low, high = 1, 2
    while make(high).count_params() < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if make(middle).count_params() < parameters else (low, middle)
    return min((low, high), key=lambda width: abs(make(width).count_params() - parameters))


def trained(make, data, loss, steps, batch=64, rate=0.01, seed=0):
    """Returns a model after `steps` steps of Adam, whose rate falls to zero along a cosine."""
    keras.utils.set_random_seed(seed)
    model = make()
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(schedule), loss() if callable(loss) else loss)
    count = len(keras.tree.flatten(data)[0])
    rows = np.random.default_rng(seed).integers(0, count, steps * batch)
    x, y = keras.tree.map_structure(lambda leaf: leaf[rows], data)
    model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
    return model


def fair(make, train, validation, loss, steps, batch=64, rates=(0.003, 0.01, 0.03), seeds=3):
    """Trains one model for each seed, at the rate of learning that is best on validation rows.

    Args:
        make: Makes a model.
        train: `(x, y)`; batches are drawn from it at random, the same for every model of a seed.
        validation: `(x, y)`; the loss of the first seed on it picks the rate.
        loss: As in `compile`, or a function that makes it: one with state is one model's own.
        steps: Steps of Adam.
        batch: Rows of one step.
        rates: Rates to pick from.
        seeds: How many models.

    Returns:
        The models, one for each seed, and the rate.
    """
    first = {rate: trained(make, train, loss, steps, batch, rate) for rate in rates}
    losses = {r: m.evaluate(*validation, batch_size=1024, verbose=0) for r, m in first.items()}
    best = min(losses, key=losses.get)
    others = [trained(make, train, loss, steps, batch, best, seed) for seed in range(1, seeds)]
    return [first[best], *others], best
