"""What `plait fit` chooses, beside the best of its own candidates.

`KERAS_BACKEND=jax python -m benchmarks.quality.fitting FOLDER` writes the training and test rows of
each data set to CSV, runs `plait fit` on them with its defaults and another seed each time, and
keeps what it chose and how every candidate did on the test rows.
"""

import argparse
import csv
import json
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.quality import sets
from benchmarks.quality.settings import SETTINGS
from plait.cli.candidates import TITLES
from plait.cli.fit import FitOptions, run

RESULTS = pathlib.Path(__file__).parents[1] / "results"


def write(path: pathlib.Path, x: np.ndarray, y: np.ndarray, groups: np.ndarray | None) -> None:
    """Writes rows as CSV: features, the group where there are groups, the target."""
    labels = [f"class {code}" for code in y] if np.issubdtype(y.dtype, np.integer) else y
    sides = [] if groups is None else [groups]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        head = [f"x{i + 1}" for i in range(x.shape[1])]
        writer.writerow([*head, *["group"][: len(sides)], "target"])
        writer.writerows(zip(*x.T, *sides, labels, strict=True))


def fitted(split: sets.Split, seed: int) -> dict[str, Any]:
    """Returns what `plait fit` chose, and how its candidates and their rivals did on test rows."""
    start, group = time.time(), None if split.groups is None else "group"
    with tempfile.TemporaryDirectory() as folder:
        train, test, model = (pathlib.Path(folder) / n for n in ("a.csv", "b.csv", "model.keras"))
        write(train, split.x, split.y, split.groups)
        write(test, split.x_test, split.y_test, split.test_groups)
        found = run(
            FitOptions(
                train, "target", model, test, "auto", experts=8, hidden=32, gate="mlp",
                task=split.task, epochs=200, seed=seed, ignore=[], group=group, weight=None,
                report=None,
            )
        )  # fmt: skip
    entries = {entry.name: entry for entry in found.entries}
    scores = {}
    for name, entry in entries.items():
        row = entry.score.to_dict()
        wrong = {} if row.get("accuracy") is None else {"errors": 1 - row["accuracy"]}
        rmse = {} if row.get("rmse") is None else {"rmse": row["rmse"] * split.scale}
        scores[name] = {"loss": row["loss"], **wrong, **rmse, "verdict": entry.verdict}
    return {
        "seed": seed,
        "chosen": TITLES[found.facts["chosen"]],
        "held out": found.facts["held_out"],
        "scores": scores,
        "s": round(time.time() - start),
    }


def main() -> None:
    """Runs the sets that are asked for; what is there of a set, split and seed is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="where the sets that plait does not ship lie")
    parser.add_argument("--sets", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    path = arguments.output / "fitting.json"
    results: dict[str, list[Any]] = json.loads(path.read_text()) if path.exists() else {}
    for name in arguments.sets:
        splits = sets.load(name, arguments.folder)
        # Five folds have a seed each.
        plan = [(0, s) for s in range(arguments.seeds)] if len(splits) == 1 else None
        for i, seed in plan or [(i, i) for i in range(len(splits))]:
            done = results.setdefault(name, [])
            if any((r["split"], r["seed"]) == (i, seed) for r in done):
                continue
            done.append({"split": i, **fitted(splits[i], seed)})
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(name, i, seed, done[-1]["chosen"], done[-1]["s"], "s", flush=True)


if __name__ == "__main__":
    main()
