"""The contest on one split: every method tuned by the same rule, then trained on all rows."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.quality.measures import measure, merit, row_errors
from benchmarks.quality.networks import (
    BLENDED,
    ENSEMBLE,
    EXPERT_MEAN,
    LIKELIHOOD,
    TRAINED,
    Trainer,
    expert_outputs,
    predict,
)
from benchmarks.quality.sets import Split
from benchmarks.quality.settings import TREES, Knobs
from plait.inspection import choose

SINGLE, UNIFORM, CONSTANT = "best single expert", "uniform average", "best constant weights"
STACKING, TREES_NAME, ORACLE = "stacking", "boosted trees", "oracle"
MIXTURES = (BLENDED, LIKELIHOOD, EXPERT_MEAN)
METHODS = (*TRAINED[:-1], SINGLE, UNIFORM, CONSTANT, STACKING, TREES_NAME, ORACLE)


class Outcome(NamedTuple):
    """What one split gives.

    Attributes:
        test: By method, the measure on the test rows, one for each seed.
        held_back: By trained method, the errors `(b,)` on the rows that tuning held back.
    """

    test: dict[str, list[float]]
    held_back: dict[str, np.ndarray]

    def objective(self) -> str:
        """Returns the mixture that held-back rows speak for.

        The blended loss, unless another is better by more than one standard error (Breiman et al.
        1984): few rows tell noise.
        """
        best = min(MIXTURES, key=lambda method: self.held_back[method].mean())
        gains = self.held_back[MIXTURES[0]] - self.held_back[best]
        return best if gains.mean() > gains.std() / np.sqrt(len(gains)) else MIXTURES[0]


def contest(split: Split, trainer: Trainer, seeds: int) -> Outcome:
    """Tunes every method on held-back training rows, then trains and tests it with each seed."""
    test: dict[str, list[float]] = {method: [] for method in METHODS}
    held_back: dict[str, np.ndarray] = {}
    for method in TRAINED:
        knobs, held_back[method] = _tuned(split, trainer, method)
        for seed in range(seeds):
            if method == ENSEMBLE:
                found = _combined(split, trainer, knobs, seed)
            else:
                model = trainer.train(method, knobs, split.x, split.y, seed, len(split.x))
                found = {method: predict(model, split.x_test)}
            for name, predictions in found.items():
                test[name].append(_on_test(split, predictions))
    test[TREES_NAME] = [_on_test(split, _boosted(split))] * seeds
    return Outcome(test, held_back)


def _on_test(split: Split, predictions: np.ndarray) -> float:
    return measure(predictions, split.y_test, split.task, split.scale)


def _tuned(split: Split, trainer: Trainer, method: str) -> tuple[Knobs, np.ndarray]:
    """Returns the knobs that do best on the held-back rows, and their errors there."""
    y = np.concatenate([split.y[held] for _, held in split.held_back()])
    found = {}
    for knobs in trainer.settings.grid:
        parts = []
        for kept, held in split.held_back():
            model = trainer.train(method, knobs, split.x[kept], split.y[kept], 0, len(split.x))
            parts.append(predict(model, split.x[held]))
        found[knobs] = np.concatenate(parts)
    best = min(found, key=lambda knobs: merit(found[knobs], y, split.task))
    return best, row_errors(found[best], y, split.task)


def _combined(split: Split, trainer: Trainer, knobs: Knobs, seed: int) -> dict[str, np.ndarray]:
    """Returns the predictions of everything that is made of independently trained networks.

    What is chosen or learned is so on held-back rows; networks of one seed start from the same
    weights on each fold and on all rows.
    """
    outputs, targets, rows = [], [], len(split.x)
    for kept, held in split.held_back():
        model = trainer.train(ENSEMBLE, knobs, split.x[kept], split.y[kept], seed, rows)
        outputs.append(expert_outputs(model, split.x[held]))
        targets.append(split.y[held])
    seen, y = np.concatenate(outputs), np.concatenate(targets)
    reference = choose(seen, y, split.task)
    model = trainer.train(ENSEMBLE, knobs, split.x, split.y, seed, len(split.x))
    found = expert_outputs(model, split.x_test)
    return {
        SINGLE: found[:, reference.expert],
        UNIFORM: found.mean(axis=1),
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
