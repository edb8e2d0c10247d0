"""The contest on one split: every method tuned by the same rule, then trained on all rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.quality.measures import merit, row_errors
from benchmarks.quality.networks import (
    ADAPTED,
    BLENDED,
    ENSEMBLE,
    EXPERT_MEAN,
    HALVES,
    LIKELIHOOD,
    NETWORK,
    Trainer,
    expert_outputs,
    predict,
)
from benchmarks.quality.sets import Split
from benchmarks.quality.settings import TREES, Knobs
from plait.inspection import choose

MIXTURE, PAIR = "mixture", "2 mixtures of n/2 averaged"
SINGLE, CONSTANT, STACKING = "best of n networks", "n networks, constant weights", "stacking"
BOOSTED, ORACLE = "boosted trees", "oracle of n networks"
COMBINED = (SINGLE, ENSEMBLE, CONSTANT, STACKING, ORACLE)
OBJECTIVES = (BLENDED, LIKELIHOOD, EXPERT_MEAN)
RIVALS = (NETWORK, HALVES, ENSEMBLE, BOOSTED)
OTHERS = (PAIR, ADAPTED, SINGLE, CONSTANT, STACKING)
METHODS = (MIXTURE, *RIVALS, *OTHERS, *OBJECTIVES, ORACLE)

# By method the errors of the test rows, `(seeds, b)`; "held back" has those of tuning `(b,)`.
Found = dict[str, np.ndarray]


class Contest:
    """Trains and tests all methods on one split.

    Args:
        split: The rows.
        trainer: Trains on them.
        seeds: How many.
        kept: Each method's errors are kept in files whose paths start so, and read from there
            where an earlier run has left them.
    """

    def __init__(self, split: Split, trainer: Trainer, seeds: int, kept: Path | None) -> None:
        self.split, self.trainer, self.seeds, self._kept = split, trainer, seeds, kept

    def run(self) -> tuple[dict[str, np.ndarray], str]:
        """Returns the errors of all methods, `(seeds, b)` each, and the mixture's objective.

        The objective is chosen as the settings are, by the least error on the rows held back for
        tuning.
        """
        # For classes the likelihood of the mixture is the blended loss.
        tried = [m for m in OBJECTIVES if m != LIKELIHOOD or not self.split.classes]
        errors: dict[str, np.ndarray] = {}
        held_back: dict[str, np.ndarray] = {}
        for method in (*tried, NETWORK, HALVES, ADAPTED, ENSEMBLE):
            found = self._stored(method, lambda m=method: self._trained(m))
            held_back[method] = found.pop("held back")
            errors |= found
        best = min(tried, key=lambda method: held_back[method].mean())
        pair = self._stored(f"{PAIR}, {best}", lambda: self._trained(best, pair=True))
        errors[PAIR] = pair[best]
        errors |= self._stored(BOOSTED, lambda: {BOOSTED: self._errors(_boosted(self.split))[None]})
        errors[BOOSTED] = np.repeat(errors[BOOSTED], self.seeds, axis=0)
        return errors | {MIXTURE: errors[best]}, best

    def _stored(self, name: str, make: Callable[[], Found]) -> Found:
        if self._kept is None:
            return make()
        path = self._kept.with_name(f"{self._kept.name} {name.replace('/', ' of ')}.npz")
        if not path.exists():
            np.savez_compressed(path, **make())
        with np.load(path) as file:
            return dict(file)

    def _errors(self, predictions: np.ndarray) -> np.ndarray:
        found = row_errors(predictions, self.split.y_test, self.split.task)
        return (found * self.split.scale**2).astype("float32")

    def _trained(self, method: str, pair: bool = False) -> Found:
        """Returns what a method, or two of half as many experts averaged, gives for all seeds."""
        split, experts = self.split, self.trainer.settings.experts

        def predicted(knobs: Knobs, rows: Any, x: np.ndarray, seed: int) -> np.ndarray:
            train = (method, knobs, split.x[rows], split.y[rows])
            if not pair:
                return predict(self.trainer.train(*train, seed, len(split.x)), x)
            parts = [
                predict(self.trainer.train(*train, s, len(split.x), experts // 2), x)
                for s in (seed, seed + 1000)
            ]
            return np.mean(parts, axis=0)

        y = np.concatenate([split.y[held] for _, held in split.held_back()])
        tried = {}
        for knobs in self.trainer.settings.grid:
            parts = [predicted(knobs, kept, split.x[held], 0) for kept, held in split.held_back()]
            tried[knobs] = np.concatenate(parts)
        best = min(tried, key=lambda knobs: merit(tried[knobs], y, split.task))
        if method == ENSEMBLE:
            runs = [self._combined(best, seed) for seed in range(self.seeds)]
        else:
            runs = [
                {method: predicted(best, slice(None), split.x_test, seed)}
                for seed in range(self.seeds)
            ]
        found = {name: np.stack([self._errors(run[name]) for run in runs]) for name in runs[0]}
        return found | {"held back": row_errors(tried[best], y, split.task)}

    def _combined(self, knobs: Knobs, seed: int) -> dict[str, np.ndarray]:
        """Returns the predictions of everything that is made of n networks trained apart.

        What is chosen or learned is so on held-back rows; networks of one seed start from the same
        weights on each fold and on all rows.
        """
        split, train = self.split, self.trainer.train
        outputs, targets, rows = [], [], len(split.x)
        for kept, held in split.held_back():
            model = train(ENSEMBLE, knobs, split.x[kept], split.y[kept], seed, rows)
            outputs.append(expert_outputs(model, split.x[held]))
            targets.append(split.y[held])
        seen, y = np.concatenate(outputs), np.concatenate(targets)
        reference = choose(seen, y, split.task)
        model = train(ENSEMBLE, knobs, split.x, split.y, seed, rows)
        found = expert_outputs(model, split.x_test)
        return {
            SINGLE: found[:, reference.expert],
            ENSEMBLE: found.mean(axis=1),
            CONSTANT: np.einsum("e,beu->bu", reference.weights, found),
            STACKING: _stacked(seen, y, found, split),
            ORACLE: _nearest(found, split),
        }


def _nearest(outputs: np.ndarray, split: Split) -> np.ndarray:
    """Returns for each test row the output of the expert that is best on it."""
    if split.classes:
        wrong = -outputs[np.arange(len(outputs)), :, split.y_test]
    else:
        wrong = np.abs(outputs[:, :, 0] - split.y_test[:, None])
    return outputs[np.arange(len(outputs)), wrong.argmin(axis=1)]


def _stacked(seen: np.ndarray, y: np.ndarray, found: np.ndarray, split: Split) -> np.ndarray:
    """Returns what scikit-learn's linear model makes of the experts' outputs (Wolpert 1992)."""
    if not split.classes:
        linear = RidgeCV(alphas=np.logspace(-3, 3, 7)).fit(seen[:, :, 0], y)
        return linear.predict(found[:, :, 0])[:, None]
    features = [np.log(np.maximum(part, 1e-6)).reshape(len(part), -1) for part in (seen, found)]
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    linear.fit(features[0], y)
    return _all_classes(linear.predict_proba(features[1]), linear.classes_, split.classes)


def _boosted(split: Split) -> np.ndarray:
    """Returns the predictions of boosted trees, tuned on as many settings as the networks."""
    kind = HistGradientBoostingClassifier if split.classes else HistGradientBoostingRegressor

    def fitted(trees: Any, rows: Any, x: np.ndarray) -> np.ndarray:
        model = kind(**trees._asdict(), early_stopping=False, random_state=0)
        with threadpool_limits(1):  # threads that wait for each other crawl on a busy machine
            model.fit(split.x[rows], split.y[rows])
        if not split.classes:
            return model.predict(x)[:, None]
        return _all_classes(model.predict_proba(x), model.classes_, split.classes)

    def validated(trees: Any) -> tuple[float, float]:
        folds = list(split.held_back())
        parts = [fitted(trees, kept, split.x[held]) for kept, held in folds]
        y = np.concatenate([split.y[held] for _, held in folds])
        return merit(np.concatenate(parts), y, split.task)

    return fitted(min(TREES, key=validated), slice(None), split.x_test)


def _all_classes(probabilities: np.ndarray, known: np.ndarray, classes: int) -> np.ndarray:
    full = np.zeros((len(probabilities), classes))
    full[:, known] = probabilities
    return full
