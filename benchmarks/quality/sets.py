"""The data sets: rows to train on, rows to test on, and how to hold some back for tuning."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, ShuffleSplit, StratifiedKFold

from sklearn import datasets

VOWEL = Path(__file__).parents[2] / "data" / "vowel"
SHIPPED = ("vowel", "iris", "wine", "breast cancer")
IN_FOLDER = ("letter", "kin8nm", "2dplanes", "california", "adult")
# Of the sets named here only the first rows are used: to train on, and to test on.
FIRST = {"california": (8000, 4000), "adult": (8000, 4000)}
_LOADERS = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
}


class Split(NamedTuple):
    """Training and test rows, standardised by the mean and deviation of the training rows.

    Attributes:
        x: Features `(b, d)`.
        y: Class codes `(b,)`; or values `(b,)`, standardised as well.
        x_test: Features of the test rows.
        y_test: Their targets.
        groups: `(b,)`, who spoke each training row, or `None`: tuning holds back whole groups.
        classes: Number of classes; 0 for regression.
        scale: What a standardised target is multiplied with; 1 for classification.
        test_groups: As `groups`, of the test rows.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    groups: np.ndarray | None
    classes: int
    scale: float
    test_groups: np.ndarray | None = None

    @property
    def task(self) -> str:
        """`"classification"` or `"regression"`."""
        return "classification" if self.classes else "regression"

    def held_back(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields rows to train on and rows to validate on, all of them training rows.

        Four folds of whole groups; without groups three folds of small data, or a tenth of large
        data once.
        """
        if self.groups is not None:
            yield from GroupKFold(4).split(self.x, groups=self.groups)
        elif len(self.x) < 1000:
            yield from KFold(3, shuffle=True, random_state=0).split(self.x)
        else:
            yield from ShuffleSplit(1, test_size=0.1, random_state=0).split(self.x)


def load(name: str, folder: str | None) -> list[Split]:
    """Returns the splits of a set: one where the data come with a test set, else five folds.

    Args:
        name: One of `SHIPPED` and `IN_FOLDER`.
        folder: Where `<name>.npz` lies, with X_train, y_train, X_test and y_test; and `cardinality`
            where columns are categories, 0 for numbers.
    """
    if name == "vowel":
        codes: dict[str, int] = {}
        x, y = _read_vowel(VOWEL / "train.csv", codes)
        x_test, y_test = _read_vowel(VOWEL / "test.csv", codes)
        speakers, others = np.arange(len(y)) // 66, np.arange(len(y_test)) // 66
        return [_split(x, y, x_test, y_test, speakers)._replace(test_groups=others)]
    if name in _LOADERS:
        x, y = _LOADERS[name](return_X_y=True)
        folds = StratifiedKFold(5, shuffle=True, random_state=0).split(x, y)
        return [_split(x[train], y[train], x[test], y[test]) for train, test in folds]
    if folder is None:
        raise SystemExit(f"{name} is read from a folder. Received: none. Give the folder first.")
    with np.load(Path(folder) / f"{name}.npz") as file:
        x, y, x_test, y_test = (file[k] for k in ("X_train", "y_train", "X_test", "y_test"))
        kinds = file["cardinality"] if "cardinality" in file.files else np.zeros(x.shape[1], int)
    rows, test_rows = FIRST.get(name, (len(x), len(x_test)))
    x, y, x_test, y_test = x[:rows], y[:rows], x_test[:test_rows], y_test[:test_rows]
    split = _split(x[:, kinds == 0], y, x_test[:, kinds == 0], y_test)
    return [
        split._replace(
            x=_with_codes(split.x, x, kinds), x_test=_with_codes(split.x_test, x_test, kinds)
        )
    ]


def _with_codes(numbers: np.ndarray, x: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Returns numbers, and beside them the columns that are categories, one-hot."""
    codes = [np.eye(kinds[j], dtype="float32")[x[:, j].astype(int)] for j in np.flatnonzero(kinds)]
    return np.hstack([numbers, *codes])


def _read_vowel(path: Path, codes: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    with open(path, newline="") as file:
        rows = list(csv.reader(file))[1:]
    y = [codes.setdefault(row[-1], len(codes)) for row in rows]
    return np.array([row[1:-1] for row in rows], "float64"), np.array(y)


def _split(
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    groups: np.ndarray | None = None,
) -> Split:
    mean, spread = x.mean(axis=0), x.std(axis=0)
    x, x_test = (((part - mean) / spread).astype("float32") for part in (x, x_test))
    if np.issubdtype(y.dtype, np.integer):
        return Split(x, y, x_test, y_test, groups, int(y.max()) + 1, 1.0)
    centre, scale = float(y.mean()), float(y.std())
    y, y_test = (((part - centre) / scale).astype("float32") for part in (y, y_test))
    return Split(x, y, x_test, y_test, groups, 0, scale)
