"""Two tasks of one input: shared bottom, one gate, a gate a task, CGC, and a network a task.

    KERAS_BACKEND=torch python -m benchmarks.quality.multitask --out benchmarks/results/multitask.md

The data are those of Ma et al. (2018), section 3.3: two regressions whose targets are sums of sines
of two projections of the input, and whose projections have a given cosine. Every model has the same
number of parameters to within three percent. All train alike; the rate of learning is picked for
each model and each cosine on validation rows, and the errors are those of test rows at the epoch
that is best on validation rows.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

import plait

TASKS = ("first", "second")
COSINES = (1.0, 0.5, 0.0)
RATES = (0.003, 0.01, 0.03)
SIZE, EXPERTS, UNITS, TOWER = 100, 8, 16, 8


class Rows(NamedTuple):
    """Inputs `(b, d)`, and a target `(b, 1)` for each task, without noise where it is tested."""

    x: np.ndarray
    y: dict[str, np.ndarray]


def sines(rng: np.random.Generator, cosine: float) -> Callable[[int, float], Rows]:
    """Returns a function that draws rows: Ma et al. (2018), section 3.3, steps 1 to 4.

    Args:
        rng: Draws the projections and the waves.
        cosine: Between the projections of the two tasks.
    """
    basis, _ = np.linalg.qr(rng.normal(size=(SIZE, 2)))
    first = basis[:, 0]
    weights = {
        TASKS[0]: first,
        TASKS[1]: cosine * first + np.sqrt(1 - cosine**2) * basis[:, 1],
    }
    # Not scaled down: inputs of unit variance give projections of unit variance.
    frequency = rng.uniform(0.5, 2.5, size=6)
    phase = rng.uniform(0, 2 * np.pi, size=6)

    def draw(count: int, noise: float) -> Rows:
        x = rng.normal(size=(count, SIZE)).astype("float32")
        targets = {}
        for task, weight in weights.items():
            z = x @ weight
            waves = np.sin(np.outer(z, frequency) + phase).sum(axis=1)
            clean = z + waves
            targets[task] = (clean + noise * rng.normal(size=count))[:, None].astype("float32")
        return Rows(x, targets)

    return draw


def _hidden(units: int) -> keras.layers.Layer:
    return keras.layers.Dense(units, activation="relu")


def _tower() -> keras.Sequential:
    return keras.Sequential([_hidden(TOWER), keras.layers.Dense(1)])


def shared_bottom(width: int) -> keras.Model:
    """One hidden layer that both towers read."""
    inputs = keras.Input((SIZE,))
    bottom = _hidden(width)(inputs)
    return keras.Model(inputs, {task: _tower()(bottom) for task in TASKS})


def single_task(width: int) -> keras.Model:
    """A network of its own for each task."""
    inputs = keras.Input((SIZE,))
    return keras.Model(inputs, {task: _tower()(_hidden(width)(inputs)) for task in TASKS})


def one_gate(width: int) -> keras.Model:
    """Experts under one gate, whose blend both towers read (OMoE)."""
    inputs = keras.Input((SIZE,))
    blend = plait.Mixture(_hidden(width), num_experts=EXPERTS)(inputs)
    return keras.Model(inputs, {task: _tower()(blend) for task in TASKS})


def multi_gate(width: int) -> keras.Model:
    """Experts under a gate for each task (MMoE)."""
    inputs = keras.Input((SIZE,))
    mix = plait.MultiGateMixture(
        _hidden(width), num_experts=EXPERTS, tasks={task: _tower() for task in TASKS}
    )
    return keras.Model(inputs, mix(inputs))


def private(width: int) -> keras.Model:
    """Half of the experts shared, a quarter for each task alone (CGC)."""
    inputs = keras.Input((SIZE,))
    mix = plait.MultiGateMixture(
        _hidden(width),
        num_experts=EXPERTS // 2,
        private_experts=EXPERTS // 4,
        tasks={task: _tower() for task in TASKS},
    )
    return keras.Model(inputs, mix(inputs))


MODELS: dict[str, Callable[[int], keras.Model]] = {
    "a network a task": single_task,
    "shared bottom": shared_bottom,
    "one gate (OMoE)": one_gate,
    "a gate a task (MMoE)": multi_gate,
    "MMoE, private experts (CGC)": private,
}


def equal_widths() -> dict[str, int]:
    """Returns for each model the width that brings it nearest to the parameters of MMoE."""
    wanted = multi_gate(UNITS).count_params()
    found = {}
    for name, make in MODELS.items():
        low, high = make(1).count_params(), make(2).count_params()
        found[name] = max(1, round((wanted - low) / (high - low)) + 1)
    return found


def test_error(
    make: Callable[[int], keras.Model], width: int, rate: float, rows: list[Rows], epochs: int
) -> tuple[float, float]:
    """Returns the mean squared error of both tasks on validation and on test rows."""
    train, validation, test = rows
    model = make(width)
    model.compile(keras.optimizers.Adam(rate), loss=dict.fromkeys(TASKS, "mse"))

    def error(part: Rows) -> float:
        found = model.predict(part.x, batch_size=4096, verbose=0)
        return float(np.mean([np.mean((found[task] - part.y[task]) ** 2) for task in TASKS]))

    best = (np.inf, np.inf)
    for _ in range(epochs):
        model.fit(train.x, train.y, batch_size=256, verbose=0)
        best = min(best, (error(validation), error(test)))
    return best


def contest(seeds: int, count: int, epochs: int) -> dict[str, dict[float, list[float]]]:
    """Returns the test errors of every model by cosine, one for each seed."""
    widths = equal_widths()
    found: dict[str, dict[float, list[float]]] = {name: {} for name in MODELS}
    for cosine, (name, make) in itertools.product(COSINES, MODELS.items()):
        rates = {}
        for rate in RATES:
            outcomes = []
            for seed in range(seeds):
                draw = sines(np.random.default_rng(seed), cosine)
                rows = [draw(count, 0.1), draw(count // 4, 0.1), draw(count, 0.0)]
                keras.utils.set_random_seed(seed)
                outcomes.append(test_error(make, widths[name], rate, rows, epochs))
            rates[rate] = np.array(outcomes)
        best = min(rates, key=lambda rate: rates[rate][:, 0].mean())
        found[name][cosine] = list(rates[best][:, 1])
        print(f"{name}, {cosine}: rate {best}, {np.round(found[name][cosine], 4)}", flush=True)
    return found


def table(found: dict[str, dict[float, list[float]]]) -> str:
    """Returns the errors as Markdown."""
    widths = equal_widths()
    head = " | ".join(f"cosine {cosine:g}" for cosine in COSINES)
    lines = [f"| | parameters | {head} |", "|---" * (len(COSINES) + 2) + "|"]
    for name, by_cosine in found.items():
        cells = [
            f"{np.mean(errors):.4f} ± {np.std(errors, ddof=1):.4f}" for errors in by_cosine.values()
        ]
        size = MODELS[name](widths[name]).count_params()
        lines.append(f"| {name} | {size:,} | {' | '.join(cells)} |")
    lines += [
        "",
        "Paired differences to the shared bottom, mean ± standard error over the seeds:",
        "",
    ]
    lines += [f"| | {head} |", "|---" * (len(COSINES) + 1) + "|"]
    for name, by_cosine in found.items():
        if name == "shared bottom":
            continue
        cells = []
        for cosine, errors in by_cosine.items():
            gaps = np.subtract(errors, found["shared bottom"][cosine])
            cells.append(f"{gaps.mean():+.4f} ± {gaps.std(ddof=1) / len(gaps) ** 0.5:.4f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    text = table(contest(options.seeds, options.rows, options.epochs))
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
