"""Blends five scikit-learn models out of fold, and shows what their own rows would have cost.

`python -m benchmarks.quality.blending FOLDER` takes california.npz, adult.npz and letter.npz from a
folder (arrays X_train, y_train, X_test, y_test; `cardinality` where columns are categories). The
models learn on the first 6,000, 8,000 and 6,000 training rows; four folds give the gate its rows;
the first 4,000 test rows score.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from sklearn.ensemble import (
    BaggingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor

import plait
from plait.experts import Frozen
from plait.inspection import best_constant_weights, losses
from plait.training.gate_choice import CANDIDATES

RESULTS = Path(__file__).parents[1] / "results"
ROWS = {"california": 6000, "adult": 8000, "letter": 6000}
TEST_ROWS = 4000
SMALLEST = 1e-6  # what a probability counts as at least where models are combined
NAMES = ("boosting", "forest", "mlp", "linear", "neighbours")


class Table(NamedTuple):
    """Standardised features and targets, of training and of test rows."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def task(self) -> str:
        """`"classification"` or `"regression"`."""
        return "classification" if np.issubdtype(self.y.dtype, np.integer) else "regression"


class Outputs(NamedTuple):
    """What the five models give: out of fold, on the rows they learnt, on the test rows."""

    folds: np.ndarray
    own: np.ndarray
    test: np.ndarray


def load(name: str, folder: Path) -> Table:
    """Returns a table: numbers standardised by the whole training table, categories one-hot."""
    with np.load(folder / f"{name}.npz") as file:
        x, x_test = file["X_train"].astype("float64"), file["X_test"].astype("float64")
        kinds = file["cardinality"] if "cardinality" in file.files else np.zeros(x.shape[1], int)
        y, y_test = file["y_train"], file["y_test"]
    numbers = kinds == 0
    mean, spread = x[:, numbers].mean(axis=0), x[:, numbers].std(axis=0)

    def encoded(part: np.ndarray) -> np.ndarray:
        codes = [np.eye(kinds[j])[part[:, j].astype(int)] for j in np.flatnonzero(kinds)]
        return np.hstack([(part[:, numbers] - mean) / spread, *codes]).astype("float32")

    return Table(
        encoded(x)[: ROWS[name]], y[: ROWS[name]], encoded(x_test)[:TEST_ROWS], y_test[:TEST_ROWS]
    )


def models(task: str, seed: int) -> list[Any]:
    """Returns the five models, in the order of `NAMES`."""
    network = {"hidden_layer_sizes": (64, 64), "early_stopping": True, "max_iter": 300}
    # Chosen by three folds of the training rows: 0.550, where one of (64, 64) has 0.570.
    wide = {
        **network, "hidden_layer_sizes": (128, 128), "learning_rate_init": 2e-3,
        "n_iter_no_change": 20,
    }  # fmt: skip
    if task == "regression":
        return [
            HistGradientBoostingRegressor(random_state=seed),
            RandomForestRegressor(random_state=seed),
            BaggingRegressor(MLPRegressor(**wide), 4, bootstrap=False, random_state=seed),
            Ridge(),
            KNeighborsRegressor(10),
        ]
    return [
        HistGradientBoostingClassifier(random_state=seed),
        RandomForestClassifier(random_state=seed),
        MLPClassifier(**network, random_state=seed),
        LogisticRegression(max_iter=1000),
        KNeighborsClassifier(10),
    ]


def run_models(table: Table, seed: int, kept: Path | None) -> Outputs:
    """Returns the models' outputs, from a file where they were kept."""
    if kept is not None and kept.exists():
        with np.load(kept) as file:
            return Outputs(file["oof"], file["own"], file["test"])
    found = plait.training.cross_fit(models(table.task, seed), table.x, table.y, 4, seed=seed)
    mixture = plait.Mixture(found.experts, "uniform")
    outputs = Outputs(
        found.outputs, mixture.expert_outputs(table.x), mixture.expert_outputs(table.x_test)
    )
    if kept is not None:
        np.savez(kept, oof=outputs.folds, own=outputs.own, test=outputs.test)
    return outputs


def gates(table: Table, outputs: np.ndarray) -> Any:
    """Returns the function that builds a mixture with the gate of a name."""
    count, units = outputs.shape[1:]
    constant = best_constant_weights(outputs, table.y, table.task)
    scores = np.log(0.9 * constant + 0.1 / count)

    def last() -> keras.layers.Layer:
        return keras.layers.Dense(
            count,
            kernel_initializer="zeros",
            bias_initializer=keras.initializers.Constant(scores),
            kernel_regularizer=keras.regularizers.L2(1e-4),
        )

    def build(name: str) -> plait.Mixture:
        experts = [Frozen(lambda x: np.zeros((len(x), units)), units) for _ in range(count)]
        inputs = keras.Input(table.x.shape[1:])
        more: dict[str, Any] = {"router": "softmax"}
        gate: Any
        if name in ("free", "per-class"):
            classes = units if name == "per-class" else None
            gate = plait.layers.ClassWeights(count, classes, start=constant, l2=3e-4)
            more = {"combination": "arithmetic" if units == 1 else "geometric"}
        elif name in ("uniform", "constant"):
            gate, more = ("uniform" if name == "uniform" else [float(w) for w in constant]), {}
        else:
            hidden = [keras.layers.Dense(32, "relu")] if name == "mlp" else []
            gate = keras.Sequential([inputs, *hidden, last()])
        mixture = plait.Mixture(experts, gate, **more)
        loss = "sparse_categorical_crossentropy"
        mixture.compile(
            keras.optimizers.Adam(5e-3), loss if table.task == "classification" else "mse"
        )
        mixture(table.x[:2])
        return mixture

    return build


def measured(table: Table, predictions: np.ndarray) -> dict[str, float]:
    """Returns rmse, or log loss and share of errors."""
    found = losses(predictions, table.y_test, table.task)
    if table.task == "regression":
        return {"rmse": float(np.sqrt(found.mean()))}
    wrong = float((predictions.argmax(axis=-1) != table.y_test).mean())
    return {"log loss": float(found.mean()), "errors": wrong}


def merged(mixture: plait.Mixture, x: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Returns the blend of given outputs."""
    weights, rule = mixture.gate_weights(x), mixture.combination
    found = plait.layers.WeightedMerge(combination=rule)(
        [weights, *np.moveaxis(outputs, 1, 0).astype("float32")]
    )
    return keras.ops.convert_to_numpy(found)


def contest(name: str, table: Table, seed: int, kept: Path | None) -> dict[str, Any]:
    """Returns the measures of single models and of gates fitted out of fold and on own rows."""
    keras.utils.set_random_seed(seed)
    start, outputs = time.time(), run_models(table, seed, kept)
    rows = {n: measured(table, outputs.test[:, i]) for i, n in enumerate(NAMES)}
    rows["plain average"] = measured(table, outputs.test.mean(axis=1))
    candidates = list(CANDIDATES)
    if table.task == "regression":
        candidates.remove("per-class")
    else:  # what a forest or neighbours have not seen is no veto, as in plait.sklearn
        outputs = Outputs(*(np.maximum(part, SMALLEST) for part in outputs))
    facts = {}
    y = table.y if table.task == "classification" else table.y[:, None]
    for label, given in (("out of fold", outputs.folds), ("own rows", outputs.own)):
        constant = best_constant_weights(given, table.y, table.task)
        blend = np.einsum("e,beu->bu", constant, outputs.test)
        rows[f"constant weights, {label}"] = measured(table, blend)
        found = plait.training.choose_gate(
            gates(table, given), table.x, y, candidates, outputs=given, epochs=60, patience=8,
            batch_size=256, seed=seed,
        )  # fmt: skip
        rows[f"gate, {label}"] = measured(table, merged(found.mixture, table.x_test, outputs.test))
        facts[label] = {"chosen": found.name, "held out": found.losses, "errors": found.errors}
    return {"set": name, "seed": seed, "test": rows, "gates": facts, "s": time.time() - start}


def page(results: list[dict[str, Any]]) -> str:
    """Returns the results as Markdown."""
    lines = [
        "# Blending five scikit-learn models",
        "",
        "`python -m benchmarks.quality.blending FOLDER`. Test rows; rmse, or log loss and share of "
        "errors. The gate is chosen by the one-standard-error rule among uniform, constant, free "
        "(weights of any sign and sum: of a logarithmic pool for classes, else of a sum), linear, "
        'per-class (classification) and mlp. "Own rows" fits it on the rows that the models '
        "learnt, which is what out-of-fold outputs are there to avoid. Under learned weights no "
        "probability counts for less than 1e-6.",
    ]
    for result in results:
        chosen = {label: fact["chosen"] for label, fact in result["gates"].items()}
        measures = list(result["test"]["forest"])
        lines += [
            "",
            f"## {result['set']}, seed {result['seed']}",
            "",
            f"| | {' | '.join(measures)} |",
            f"|---|{'---|' * len(measures)}",
        ]
        for name, row in result["test"].items():
            label = name.removeprefix("gate, ")
            shown = f"{name} ({chosen[label]})" if name.startswith("gate") else name
            lines.append(f"| {shown} | {' | '.join(f'{row[m]:.4f}' for m in measures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the sets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the .npz files lie")
    parser.add_argument("--sets", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", type=Path, help="folder for the models' outputs, to run on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    path = arguments.output / "blending.json"
    results = json.loads(path.read_text()) if path.exists() else []
    for name in arguments.sets:
        table = load(name, arguments.folder)
        for seed in arguments.seeds:
            kept = arguments.keep and arguments.keep / f"oof_{name}{seed or ''}.npz"
            found = contest(name, table, seed, kept)
            print(json.dumps(found, indent=1), flush=True)
            others = [r for r in results if (r["set"], r["seed"]) != (name, seed)]
            results = sorted(
                [*others, found], key=lambda r: (list(ROWS).index(r["set"]), r["seed"])
            )
            path.write_text(json.dumps(results, indent=1) + "\n")
            (arguments.output / "blending.md").write_text(page(results))


if __name__ == "__main__":
    main()
