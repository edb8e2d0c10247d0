"""Measures whether gating pays, and writes the tables.

`KERAS_BACKEND=jax python -m benchmarks.quality FOLDER` takes letter.npz, kin8nm.npz and
2dplanes.npz (arrays X_train, y_train, X_test, y_test) from a folder; the other sets come with plait
or with scikit-learn. What is measured for a set replaces what was there of it, so that sets may be
run one by one.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.quality import sets
from benchmarks.quality.contest import METHODS, contest
from benchmarks.quality.networks import Trainer
from benchmarks.quality.planes import two_planes
from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.tables import page
from benchmarks.quality.upcycling import upcycling

RESULTS = Path(__file__).parents[1] / "results"
UPCYCLED = ("letter", "kin8nm")


def measured(name: str, folder: str | None, seeds: int) -> dict[str, Any]:
    """Returns what is found on one data set."""
    splits = sets.load(name, folder)
    trainer = Trainer(splits[0].x.shape[1], splits[0].classes, SETTINGS[name])
    outcomes = [contest(split, trainer, seeds) for split in splits]
    best = [outcome.objective() for outcome in outcomes]

    def over_splits(chosen: list[str]) -> list[float]:
        pairs = list(zip(outcomes, chosen, strict=True))
        return [statistics.mean(o.test[m][seed] for o, m in pairs) for seed in range(seeds)]

    result: dict[str, Any] = {
        "test": {method: over_splits([method] * len(splits)) for method in METHODS},
        "chosen": over_splits(best),
    }
    if name == "2dplanes":
        planes = [two_planes(splits[0], seed) for seed in range(seeds)]
        result["planes"] = [found.rmse for found in planes]
        result["feature"] = ", ".join(sorted({str(found.feature + 1) for found in planes}))
    if name in UPCYCLED:
        runs = [upcycling(splits[0], SETTINGS[name], seed) for seed in range(seeds)]
        result["upcycling"] = {key: [run[key] for run in runs] for key in runs[0]}
    return result


def main() -> None:
    """Runs the sets that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("folder", nargs="?", help="where letter, kin8nm and 2dplanes lie")
    parser.add_argument("--sets", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / "quality.json"
    for name in arguments.sets:
        if arguments.folder is None and name in sets.IN_FOLDER:
            print(f"{name}: left out, no folder given")
            continue
        start = time.time()
        found = measured(name, arguments.folder, arguments.seeds)
        found["command"] = f"python -m benchmarks.quality FOLDER --seeds {arguments.seeds}"
        results = json.loads(kept.read_text()) if kept.exists() else {}
        results = {
            key: {**results, name: found}[key] for key in SETTINGS if key in {*results, name}
        }
        kept.write_text(json.dumps(results, indent=1) + "\n")
        (arguments.output / "quality.md").write_text(page(results))
        print(f"{name}: {time.time() - start:.0f} s", flush=True)


main()
