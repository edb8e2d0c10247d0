"""Who wins on a table: candidates beside simple models and boosted trees, with intervals."""

import importlib.util
import warnings
from typing import Any, NamedTuple

import numpy as np

from plait.cli.candidates import TITLES
from plait.encoding import Schema
from plait.inspection import Interval, Score, bootstrap, losses, score
from plait.training.comparison import Held


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


def reason(held: dict[str, Held], chosen: str, how: str, free: bool) -> str:
    """Returns how each candidate did on held-out rows, in one sentence.

    Args:
        held: From `plait.training.comparison.compare`.
        chosen: Which was chosen.
        how: What the rows were held out for.
        free: Whether they chose; otherwise the user did.

    Example:
    >>> from plait.cli.contest import reason
    >>> from plait.training.comparison import Held
    >>> held = {"network": Held(1.3, 0.3, 0.1), "average": Held(1.0, 0.0, 0.0)}
    >>> reason(held, "average", "5-fold cross-validation", True)
    'Chosen by 5-fold cross-validation: networks averaged (mean loss 1; one network +0.3 ± 0.1).'
    """
    best = next(name for name in held if held[name].behind == 0)
    parts = [f"mean loss {held[best].loss:.4g}" + f" of {TITLES[best]}" * (best != chosen)]
    for name, found in held.items():
        if name != best:
            parts.append(f"{TITLES[name]} +{found.behind:.2g} ± {found.error:.2g}")
    verb = f"Chosen by {how}" if free else f"Asked for; compared by {how}"
    return f"{verb}: {TITLES[chosen]} ({parts[0]}; {', '.join(parts[1:])})."


def verdict(entries: list[Entry]) -> str:
    """Returns what the scored rows say of the chosen candidate beside the others."""
    by_name = {entry.name: entry for entry in entries}
    rivals = [by_name[name] for name in TITLES.values() if name in by_name]
    beaten = [e.name for e in rivals if e.gap is not None and e.verdict == "worse than chosen"]
    level = [e.name for e in rivals if e.gap is not None and e.gap.noise]
    ahead = [e.name for e in rivals if e.gap is not None and e.verdict == "better than chosen"]
    text = []
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


__all__ = ["Entry", "contest", "reason", "rivals", "verdict"]
