"""Which gate: the simplest that held-out rows do not speak against."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops, tree

from plait.errors import message
from plait.losses import ExpertMean
from plait.mixture import Mixture
from plait.ops.merging import merge_stacked
from plait.training.comparison import compare, simplest
from plait.training.folds import fold_numbers
from plait.training.gate import fit_gate
from plait.typing import Nested

CANDIDATES = ("uniform", "constant", "free", "linear", "per-class", "mlp")


class GateChoice(NamedTuple):
    """What `choose_gate` found.

    Attributes:
        name: The gate that was chosen.
        mixture: The mixture with it, fitted on all rows.
        losses: Mean loss of each candidate on rows that its fit has not seen.
        errors: Standard error of its difference to the best candidate's, row by row, or group by
            group where rows of one are held out together.
    """

    name: str
    mixture: Mixture
    losses: dict[str, float]
    errors: dict[str, float]


def choose_gate(
    build: Callable[[str], Mixture],
    x: Nested,
    y: np.ndarray,
    candidates: Sequence[str] = CANDIDATES,
    *,
    outputs: np.ndarray | None = None,
    held_out: float = 0.2,
    groups: np.ndarray | None = None,
    epochs: int = 200,
    patience: int = 20,
    batch_size: int = 128,
    seed: int = 0,
) -> GateChoice:
    """Fits gates from the simplest to the richest and chooses by the one-standard-error rule.

    The rows are cut into folds. Each gate is fitted by `fit_gate` once for every fold, with early
    stopping on the next fold, and compared on this one: rows that chose when to stop say too much
    good of a rich gate. Chosen is the first whose mean loss over all rows is above the best one's
    by no more than one standard error (Breiman et al. 1984): of their difference, which is paired
    row by row. What is hard for both is no noise, as it would be in the error of the best one's own
    mean loss. The chosen gate is then fitted on all rows, for as many epochs as were best in the
    median.

    Args:
        build: Makes a compiled mixture with the gate of a given name over the same experts. One
            without trainable gate is not fitted.
        x: Array or structure of arrays, `n` rows.
        y: Target array.
        candidates: Names, from the simplest gate to the richest.
        outputs: The experts' outputs `(n, e, …)`, best out of fold (see `cross_fit`); `None`
            runs the experts once.
        held_out: Share of the rows in a fold.
        groups: `(n,)`, or `None`: rows of one group are held out together, and count as one where
            gates are compared.
        epochs: At most.
        patience: Epochs without improvement after which a fit stops.
        batch_size: As in Keras.
        seed: Of the folds.

    Returns:
        `GateChoice`.

    Raises:
        ValueError: If there is no candidate, the share leaves no row, or no loss is finite.

    Example:
    >>> import keras, numpy as np, plait
    >>> x = np.linspace(-1.0, 1.0, 40, dtype="float32")[:, None]
    >>> experts = [keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]) for _ in "ab"]
    >>> def build(gate):
    ...     mix = plait.Mixture(experts, gate)
    ...     mix.compile("adam", "mse")
    ...     return mix
    >>> found = plait.training.choose_gate(build, x, 2 * x, ("uniform", "linear"), epochs=2)
    >>> found.name in ("uniform", "linear")
    True

    References:
        Breiman, Friedman, Olshen, Stone (1984), Classification and regression trees, section 3.4.3.
    """
    names = list(candidates)
    folds = round(1.0 / held_out) if held_out > 0.0 else 0
    if not names or folds < 3:
        raise ValueError(
            message(
                "`choose_gate` needs a candidate, and a share of rows up to a third to compare on",
                f"candidates={names}, held_out={held_out}",
                "Use candidates=('uniform', 'linear'), held_out=0.2",
            )
        )
    numbers = fold_numbers(y, folds, groups, seed)
    folds = int(numbers.max()) + 1
    if outputs is None:
        first = build(names[0])
        outputs = np.moveaxis(first.expert_outputs(x), len(first.weights_shape() or (0, 0)) - 1, 1)
    found: dict[str, np.ndarray] = {}
    lengths: dict[str, int] = {}
    for name in names:
        found[name], stops = np.empty(len(y), "float32"), []
        for fold in range(folds):
            mixture, stop = build(name), (fold + 1) % folds
            seen = np.flatnonzero((numbers != fold) & (numbers != stop))
            last, apart = np.flatnonzero(numbers == stop), np.flatnonzero(numbers == fold)
            stops.append(_fit(mixture, x, y, outputs, seen, last, epochs, patience, batch_size))
            found[name][apart] = _losses(mixture, _take(x, apart), y[apart], outputs[apart])
        lengths[name] = round(float(np.median(stops)))
    held = compare(found, groups)
    losses = {name: each.loss for name, each in held.items()}
    if not np.isfinite(list(losses.values())).any():
        raise ValueError(
            message(
                "`choose_gate` compares losses on held-out rows, of which one must be finite",
                f"{losses}",
                "Remove rows with NaN or infinity from `x`, `y` and `outputs`",
            )
        )
    chosen = simplest(held, names)
    mixture = build(chosen)
    if lengths[chosen]:
        fit_gate(
            mixture, x, y, outputs=outputs, epochs=lengths[chosen], batch_size=batch_size, verbose=0
        )
    return GateChoice(chosen, mixture, losses, {name: each.error for name, each in held.items()})


def _fit(
    mixture: Mixture,
    x: Nested,
    y: np.ndarray,
    outputs: np.ndarray,
    seen: np.ndarray,
    held: np.ndarray,
    epochs: int,
    patience: int,
    batch_size: int,
) -> int:
    """Fits a gate on some rows with early stopping on others; returns how many epochs were best."""
    if not mixture.built:
        mixture(_take(x, seen[:1]))
    if not mixture.gate.trainable_variables:
        return 0
    order = np.concatenate([seen, held])
    stop = keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)
    start = float(_losses(mixture, _take(x, held), y[held], outputs[held]).mean())
    before = mixture.gate.get_weights()
    history = fit_gate(
        mixture, _take(x, order), y[order], outputs=outputs[order], epochs=epochs,
        validation_split=len(held) / len(order), callbacks=[stop], batch_size=batch_size, verbose=0,
    )  # fmt: skip
    after = float(_losses(mixture, _take(x, held), y[held], outputs[held]).mean())
    if not after < start:  # fitting did not help: the gate stays as it was made
        mixture.gate.set_weights(before)
        return 0
    return int(np.argmin(history.history["val_loss"])) + 1


def _losses(mixture: Mixture, x: Nested, y: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Returns the loss of each row, of experts' outputs that are given."""
    weights = mixture.gate_weights(x)
    stacked = ops.cast(ops.moveaxis(ops.convert_to_tensor(outputs), 1, 0), "float32")
    merged = merge_stacked(weights, stacked, "float32", mixture.combination)
    ones = np.ones((len(y), 1), "float32")
    rows = ExpertMean(mixture.loss).per_example(y, ones, ops.expand_dims(merged, 0))
    return ops.convert_to_numpy(rows)


def _take(x: Nested, rows: np.ndarray) -> Nested:
    return tree.map_structure(lambda leaf: leaf[rows], x)


__all__ = ["CANDIDATES", "GateChoice", "choose_gate"]
