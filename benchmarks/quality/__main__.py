"""Measures whether gating pays, and writes the tables.

`KERAS_BACKEND=jax python -m benchmarks.quality FOLDER` takes letter.npz, kin8nm.npz, 2dplanes.npz,
california.npz and adult.npz (arrays X_train, y_train, X_test, y_test; `cardinality` where columns
are categories) from a folder; the other sets come with plait or with scikit-learn. What is measured
for a set replaces what was there of it, so that sets may be run one by one. With `--keep` an
interrupted run goes on where it ended.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import sets
from benchmarks.quality.contest import Contest
from benchmarks.quality.intervals import gaps, measures
from benchmarks.quality.networks import Trainer
from benchmarks.quality.planes import two_planes
from benchmarks.quality.settings import SETTINGS
from benchmarks.quality.tables import page
from benchmarks.quality.upcycling import upcycling

RESULTS = Path(__file__).parents[1] / "results"
UPCYCLED = ("letter", "kin8nm")


def measured(name: str, folder: str | None, seeds: int, keep: Path | None) -> dict[str, Any]:
    """Returns what is found on one data set."""
    splits = sets.load(name, folder)
    trainer = Trainer(splits[0].x.shape[1], splits[0].classes, SETTINGS[name])
    runs = [
        Contest(split, trainer, seeds, keep and keep / f"{name} {i}").run()
        for i, split in enumerate(splits)
    ]
    root = not splits[0].classes
    errors = {m: np.concatenate([found[m] for found, _ in runs], axis=1) for m in runs[0][0]}
    result: dict[str, Any] = {
        "rows": [len(splits[0].x), errors["mixture"].shape[1]],
        "test": {method: measures(found, root).tolist() for method, found in errors.items()},
        "gaps": gaps(errors, "mixture", root, splits[0].test_groups),
        "objectives": [objective for _, objective in runs],
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
    parser.add_argument("folder", nargs="?", help="where the sets that plait does not ship lie")
    parser.add_argument("--sets", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="folder for what is done, to run on from")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for path in filter(None, (arguments.output, arguments.keep)):
        path.mkdir(parents=True, exist_ok=True)
    kept, fits = arguments.output / "quality.json", arguments.output / "fitting.json"
    for name in arguments.sets:
        if arguments.folder is None and name in sets.IN_FOLDER:
            print(f"{name}: left out, no folder given")
            continue
        start = time.time()
        found = measured(name, arguments.folder, arguments.seeds, arguments.keep)
        found["command"] = f"python -m benchmarks.quality FOLDER --seeds {arguments.seeds}"
        results = json.loads(kept.read_text()) if kept.exists() else {}
        results = {
            key: {**results, name: found}[key] for key in SETTINGS if key in {*results, name}
        }
        kept.write_text(json.dumps(results, indent=1) + "\n")
        chosen = json.loads(fits.read_text()) if fits.exists() else {}
        (arguments.output / "quality.md").write_text(page(results, chosen))
        print(f"{name}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
