"""Who wins on a table: candidates beside simple models and boosted trees, with intervals."""

import importlib.util
import warnings
from typing import Any, NamedTuple

import numpy as np

from plait.cli.candidates import CANDIDATES, TITLES
from plait.encoding import Schema
from plait.inspection import Interval, Score, bootstrap, losses, score


class Entry(NamedTuple):
    """One line of the contest.

    Attributes:
        name: Who predicted.
        score: How well.
        gap: The chosen candidate's loss less this one's, paired by rows: below zero the chosen one
            is better. `None` for the chosen one itself.
    """

    name: str
    score: Score
    gap: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the line in JSON values."""
        found = {**self.score.to_dict(), "name": self.name}
        if self.gap is not None:
            found["chosen_less_this"] = dict(self.gap._asdict())
            found["noise"] = self.gap.noise
        return found

    @property
    def verdict(self) -> str:
        """What the interval says of the chosen candidate beside this one."""
        if self.gap is None:
            return "chosen"
        if self.gap.noise:
            return "within noise"
        return "worse than chosen" if self.gap.high < 0 else "better than chosen"


def contest(
    predictions: dict[str, np.ndarray],
    chosen: str,
    y: np.ndarray,
    task: str,
    groups: np.ndarray | None,
) -> list[Entry]:
    """Scores predictions `(b, u)`, each beside the chosen one on the same rows.

    Args:
        predictions: By name.
        chosen: Which of them was chosen, elsewhere.
        y: Class codes `(b,)`, or values `(b,)`.
        task: `"classification"` or `"regression"`.
        groups: Which rows belong together `(b,)`, or `None`.
    """
    each = {name: losses(found, y, task) for name, found in predictions.items()}
    root = task == "regression"
    return [
        Entry(
            name,
            score(name, found, y, task),
            None
            if name == chosen
            else bootstrap(np.stack([each[chosen], each[name]], axis=1), groups, root),
        )
        for name, found in predictions.items()
    ]


def choose(held_out: dict[str, np.ndarray]) -> str:
    """Returns the simplest candidate within one standard error of the best (Breiman et al. 1984).

    The standard error is that of the paired difference to the best over the rows.

    Args:
        held_out: Losses `(b,)` on held-out rows, by candidate.

    Example:
    >>> import numpy as np
    >>> from plait.cli.contest import choose
    >>> noise = np.array([0.3, -0.3, 0.3, -0.3])
    >>> choose({"network": np.ones(4), "average": 0.9 + noise, "mixture": np.ones(4)})
    'network'
    >>> choose({"network": np.ones(4), "average": np.ones(4) / 2, "mixture": np.ones(4)})
    'average'
    """
    best = min(held_out, key=lambda name: float(held_out[name].mean()))
    for name in CANDIDATES:
        if name in held_out:
            worse = held_out[name] - held_out[best]
            if worse.mean() <= worse.std() / np.sqrt(len(worse)):
                return name
    return best


def verdict(entries: list[Entry]) -> str:
    """Returns what the contest says about gating, in one sentence with its interval."""
    by_name = {entry.name: entry for entry in entries}
    chosen = next(entry for entry in entries if entry.gap is None)
    rivals = [by_name[name] for name in TITLES.values() if name in by_name]
    beaten = [e.name for e in rivals if e.gap is not None and e.verdict == "worse than chosen"]
    level = [e.name for e in rivals if e.gap is not None and e.gap.noise]
    ahead = [e.name for e in rivals if e.gap is not None and e.verdict == "better than chosen"]
    text = [f"Chosen on held-out rows: {chosen.name}."]
    for names, what in (
        (beaten, "It beats {} on the scored rows."),
        (level, "Its difference to {} is within noise."),
        (ahead, "On the scored rows {} did better."),
    ):
        if names:
            text.append(what.format(" and ".join(names)))
    return " ".join(text)


def rivals(
    schema: Schema,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None,
    x_test: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Returns what models without a network predict for the scored rows, by name.

    The majority class, as probabilities, or the mean; and, where scikit-learn is installed, a
    linear model and boosted trees.

    Args:
        schema: Says whether classes or values are predicted.
        x: Features `(b, d)`.
        y: Class codes `(b,)`, or values `(b,)`.
        weight: Weight of each row, or `None`.
        x_test: Features of the scored rows.
        seed: Of the trees.
    """
    classes = len(schema.classes)
    if classes:
        shares = np.bincount(y, weight, minlength=classes) + 0.5
        constant = np.tile(shares / shares.sum(), (len(x_test), 1))
        found = {"majority class": constant}
    else:
        found = {"mean": np.full((len(x_test), 1), np.average(y, weights=weight))}
    if not importlib.util.find_spec("sklearn"):
        return found
    from sklearn import ensemble, linear_model

    if classes:
        linear: Any = linear_model.LogisticRegression(max_iter=1000)
        trees: Any = ensemble.HistGradientBoostingClassifier(random_state=seed)
    else:
        linear = linear_model.RidgeCV()
        trees = ensemble.HistGradientBoostingRegressor(random_state=seed)
    found["linear model"] = _fitted(linear, x, y, weight, x_test, classes)
    found["boosted trees"] = _fitted(trees, x, y, weight, x_test, classes)
    return found


def _fitted(
    model: Any,
    x: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None,
    x_test: np.ndarray,
    classes: int,
) -> np.ndarray:
    import threadpoolctl  # comes with scikit-learn

    # Threads that wait for each other crawl on a busy machine.
    with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():
        # That it has not converged in a thousand steps is no news about the table.
        warnings.simplefilter("ignore")
        model.fit(x, y, sample_weight=weight)
    if not classes:
        return model.predict(x_test)[:, None]
    full = np.zeros((len(x_test), classes))
    full[:, model.classes_] = model.predict_proba(x_test)
    return full


__all__ = ["Entry", "choose", "contest", "rivals", "verdict"]
