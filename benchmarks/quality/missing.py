"""Six views of handwritten digits, some of them missing: weighted sum and geometric pool.

`python -m benchmarks.quality.missing FOLDER` takes mfeat.npz from a folder (X_train, y_train,
X_test, y_test, view_names, view_offsets). A network per view learns on all views; the plain average
of those that are there predicts test rows, of which a share of the views is missing, never all.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np

import plait

RESULTS = Path(__file__).parents[1] / "results"
SHARES = (0.0, 0.3, 0.6)

Views = dict[str, np.ndarray]


def load(folder: Path) -> tuple[Views, np.ndarray, Views, np.ndarray]:
    """Returns training and test rows, standardised, by view."""
    with np.load(folder / "mfeat.npz") as file:
        x, x_test = file["X_train"].astype("float64"), file["X_test"].astype("float64")
        offsets, names = file["view_offsets"], [str(name) for name in file["view_names"]]
        y, y_test = file["y_train"], file["y_test"]
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1.0

    def views(part: np.ndarray) -> Views:
        scaled = ((part - mean) / spread).astype("float32")
        return {name: scaled[:, offsets[i] : offsets[i + 1]] for i, name in enumerate(names)}

    return views(x), y, views(x_test), y_test


def with_missing(views: Views, share: float, rng: np.random.Generator) -> Views:
    """Returns views with rows of NaN, each with a given probability, but never all of a row."""
    rows = len(next(iter(views.values())))
    there = rng.uniform(size=(rows, len(views))) >= share
    empty = np.flatnonzero(~there.any(axis=1))
    there[empty, rng.integers(0, len(views), len(empty))] = True
    return {
        name: np.where(there[:, i, None], part, np.nan).astype("float32")
        for i, (name, part) in enumerate(views.items())
    }


def mixture(views: Views, combination: str, experts: list[keras.Model] | None) -> plait.Mixture:
    """Returns the plain average of a network for each view, as deep ensembles are trained."""
    experts = experts or [
        keras.Sequential(
            [
                keras.Input(part.shape[1:]),
                keras.layers.GaussianNoise(0.3),
                keras.layers.Dense(128, "relu"),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(10, "softmax"),
            ]
        )
        for part in views.values()
    ]
    mix = plait.Mixture(
        experts, "uniform", expert_inputs=list(views), present="not_nan", combination=combination
    )
    loss = plait.losses.ExpertMean("sparse_categorical_crossentropy")
    mix.compile(keras.optimizers.Adam(3e-3), loss)
    return mix


def main() -> None:
    """Runs the seeds that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where mfeat.npz lies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    views, y, test, y_test = load(arguments.folder)
    results = []
    for seed in arguments.seeds:
        keras.utils.set_random_seed(seed)
        geometric = mixture(views, "geometric", None)
        geometric.fit(views, y[:, None], epochs=arguments.epochs, batch_size=100, verbose=0)
        both = {
            "geometric": geometric,
            "arithmetic": mixture(views, "arithmetic", geometric.experts),
        }
        for share in SHARES:
            rows = with_missing(test, share, np.random.default_rng(100 + seed))
            for name, mix in both.items():
                predicted = mix.predict(rows, batch_size=500, verbose=0).argmax(axis=-1)
                error = float((predicted != y_test).mean())
                results.append({"seed": seed, "missing": share, "rule": name, "error": error})
                print(results[-1], flush=True)
        (arguments.output / "missing.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
