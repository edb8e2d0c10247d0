"""What fit and blend share: gates, training with a held-out part, the end of both commands."""

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np

from plait.cli import interrupts
from plait.cli.console import EpochBar, Result, progress
from plait.cli.data import Parts
from plait.inspection import Reference
from plait.report import gather, render
from plait.tables import Baseline, TableModel, finished, replacing, save

_PATIENCE = 20


def batch_size(rows: int) -> int:
    """Returns a power of two near a hundredth of the rows, from 32 to 512."""
    return int(min(512, max(32, 2 ** round(np.log2(max(rows, 1) / 100)))))


def loss_for(task: str) -> str:
    """Returns the Keras loss that the scores are counted in."""
    return "sparse_categorical_crossentropy" if task == "classification" else "mean_squared_error"


def train(run: Any, epochs: int, what: str, **arguments: Any) -> None:
    """Runs a `fit` with a progress bar, and keeps the weights that did best on the held-out part.

    Args:
        run: A method with the signature of `keras.Model.fit`.
        epochs: At most so many.
        what: What to write before the bar.
        **arguments: For `run`.
    """
    with progress() as bar:
        run(
            **arguments,
            epochs=epochs,
            callbacks=[
                keras.callbacks.EarlyStopping(patience=_PATIENCE, restore_best_weights=True),
                EpochBar(bar, epochs, what),
            ],
        )


def with_baseline(model: TableModel, reference: Reference, names: list[str]) -> TableModel:
    """Returns the model with what the training data chose in its schema."""
    weights = tuple(float(weight) for weight in reference.weights)
    baseline = Baseline(reference.expert, weights, tuple(names))
    return model._replace(schema=dataclasses.replace(model.schema, baseline=baseline))


def finish(
    model: TableModel,
    parts: Parts,
    output: pathlib.Path,
    report: pathlib.Path | None,
    facts: dict[str, Any],
) -> Result:
    """Scores a model, then writes it and its report: both, or neither."""
    interrupts.check()
    scored = parts.score
    found = gather(model, scored.x, scored.y, scored.frame())
    whole = finished(model)
    written = [str(output)]
    if report is None:
        save(whole, output)
    else:
        page = render(found, output.name, parts.name)
        with replacing(report) as beside:
            beside.write_text(page, encoding="utf-8")
            save(whole, output)
        written.append(str(report))
    rows = {
        "train": len(parts.train),
        "early_stopping": len(parts.valid.y),
        "scored": len(scored.y),
    }
    schema = model.schema
    return Result(
        found.scores,
        parts.name,
        {"task": schema.task, "target": schema.target, "rows": rows, **facts},
        written,
    )


__all__ = ["batch_size", "finish", "loss_for", "train", "with_baseline"]
