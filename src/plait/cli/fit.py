"""`plait fit`: a mixture of small networks on a table."""

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np

import plait
from plait.cli.console import Result, remarks
from plait.cli.data import as_rows, divide, load_rows, load_training
from plait.cli.learn import batch_size, finish, loss_for, train, with_baseline
from plait.cli.options import check_at_least, check_gate, check_outputs
from plait.inspection import choose
from plait.tables import Schema, assemble, infer


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The options of `plait fit`, in the order of its help."""

    train: pathlib.Path
    target: str
    output: pathlib.Path
    test: pathlib.Path | None
    experts: int
    hidden: int
    gate: str
    task: str
    epochs: int
    seed: int
    ignore: list[str]
    report: pathlib.Path | None

    def check(self) -> None:
        """Raises on what is wrong without a look at the data."""
        check_gate(self.gate)
        check_at_least("--experts", self.experts, 1)
        check_at_least("--hidden", self.hidden, 1)
        check_at_least("--epochs", self.epochs, 1)
        check_at_least("--seed", self.seed, 0)
        check_outputs(self.output, self.report, [self.train, self.test])


def run(options: FitOptions) -> Result:
    """Trains, scores and writes."""
    options.check()
    frame = load_training(options.train, options.target, options.ignore)
    schema = infer(frame, options.target, options.task)
    rows = as_rows(frame, schema)
    test_rows = None if options.test is None else load_rows(options.test, schema)
    parts = divide(rows, test_rows, str(options.test), options.seed)
    remarks.print(_plan(schema, options))

    keras.utils.set_random_seed(options.seed)
    mixture = build(schema, options.experts, options.hidden, options.gate)
    model = assemble(mixture, schema, encode=True)
    mixture.compile(keras.optimizers.Adam(3e-3), loss_for(schema.task))
    train(
        mixture.fit,
        options.epochs,
        "fit",
        x=model.features(parts.train.x),
        y=_scaled(parts.train.y, schema),
        validation_data=(model.features(parts.valid.x), _scaled(parts.valid.y, schema)),
        batch_size=batch_size(len(parts.train.y)),
        verbose=0,
    )

    seen = parts.seen
    reference = choose(model.expert_outputs(seen.x), seen.y, schema.task)
    names = [f"expert {i}" for i in range(mixture.num_experts)]
    model = with_baseline(model, reference, names)
    chosen = {"experts": options.experts, "gate": options.gate, "seed": options.seed}
    return finish(model, parts, options.output, options.report, chosen)


def build(schema: Schema, experts: int, hidden: int, gate: str) -> "plait.Mixture":
    """Returns an untrained mixture of `experts` networks with one hidden layer each.

    Args:
        schema: Says how many features come in, and what goes out.
        experts: How many.
        hidden: Units of the hidden layers.
        gate: `"linear"`, `"mlp"` or `"constant"`.
    """
    classes = len(schema.classes)
    last = keras.layers.Dense(classes, activation="softmax") if classes else keras.layers.Dense(1)
    template = keras.Sequential(
        [keras.Input((schema.width,)), keras.layers.Dense(hidden, activation="relu"), last]
    )
    arguments: dict[str, Any] = {"gate": None}
    if gate == "constant":
        arguments["gate"] = "constant"
    elif gate == "mlp":
        arguments["router"] = plait.routers.Softmax()
        arguments["gate"] = keras.Sequential(
            [
                keras.Input((schema.width,)),
                keras.layers.Dense(hidden, activation="relu"),
                keras.layers.Dense(experts),
            ]
        )
    return plait.Mixture(template, num_experts=experts, **arguments)


def _scaled(y: np.ndarray, schema: Schema) -> np.ndarray:
    """Returns the target as experts see it: standardised, `(b, 1)`, for regression."""
    if schema.task == "classification":
        return y
    return ((y - schema.center) / schema.spread)[:, None].astype("float32")


def _plan(schema: Schema, options: FitOptions) -> str:
    texts = sum(column.categories is not None for column in schema.columns)
    numbers = len(schema.columns) - texts
    what = f"{schema.task} of {schema.target!r}"
    if schema.classes:
        what += f" ({len(schema.classes)} classes)"
    inputs = f"{numbers} number{'s' * (numbers != 1)}"
    if texts:
        inputs += f" and {texts} categor{'ies' if texts != 1 else 'y'}"
    return f"{what} from {inputs}: {options.experts} experts, {options.gate} gate"


__all__ = ["FitOptions", "build", "run"]
