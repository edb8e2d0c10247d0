"""`plait blend`: a gate over trained models."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np

import plait
from plait.cli import interrupts
from plait.cli.console import Result, remarks
from plait.cli.data import Parts, Rows, as_rows, divide, load_rows, load_training
from plait.cli.learn import batch_size, finish, loss_for, train, with_baseline
from plait.cli.options import BLENDING_GATES, check_at_least, check_gate, check_outputs
from plait.errors import message
from plait.inspection import choose, losses
from plait.tables import (
    Schema,
    Table,
    TableEncoder,
    TableModel,
    agree,
    as_table_model,
    assemble,
    infer,
    load_keras,
)
from plait.training.gate_choice import CANDIDATES, choose_gate
from plait.training.seen import seen_in_training

_EVEN = 0.1  # part of the gate's start that is shared evenly
_TINY = 1e-6  # what a constant weight of 0 becomes as a score


@dataclasses.dataclass(frozen=True)
class BlendOptions:
    """The options of `plait blend`, in the order of its help."""

    models: list[pathlib.Path]
    data: pathlib.Path
    target: str
    output: pathlib.Path
    test: pathlib.Path | None
    gate: str
    hidden: int
    epochs: int
    seed: int
    ignore: list[str]
    report: pathlib.Path | None

    def check(self) -> None:
        """Raises on what is wrong without a look at the data."""
        check_gate(self.gate, BLENDING_GATES)
        check_at_least("--hidden", self.hidden, 1)
        check_at_least("--epochs", self.epochs, 1)
        check_at_least("--seed", self.seed, 0)
        if len(self.models) < 2:
            raise ValueError(
                message(
                    "A blend needs at least two models",
                    f"{len(self.models)}",
                    "Name the .keras files one after another",
                )
            )
        check_outputs(self.output, self.report, [self.data, self.test, *self.models])


class Expert(NamedTuple):
    """A trained model.

    Attributes:
        name: What to call it.
        model: As it was loaded.
        schema: What it says about its columns, if it says anything.
    """

    name: str
    model: keras.Model
    schema: Schema | None


def run(options: BlendOptions) -> Result:
    """Loads, learns a gate, scores and writes."""
    options.check()
    table = load_training(options.data, options.target, options.ignore)
    experts = [
        _load(path, name) for path, name in zip(options.models, _names(options.models), strict=True)
    ]
    schema = _schema(experts, table, options.target)
    if options.gate == "per-class" and schema.task == "regression":
        raise ValueError(
            message(
                "`--gate per-class` weighs the classes of a classification",
                f"the regression of {schema.target!r}",
                "Use --gate linear, or --gate auto",
            )
        )
    rows = as_rows(table, schema)
    for expert in experts:
        _check_expert(expert, schema, rows.x[:32])
    test_rows = None if options.test is None else load_rows(options.test, schema)
    parts = divide(rows, test_rows, str(options.test), options.seed)
    remarks.print(f"{schema.task} of {schema.target!r}: {len(experts)} models, {options.gate} gate")

    keras.utils.set_random_seed(options.seed)
    models = [expert.model for expert in experts]
    model = assemble(plait.Mixture(models, "uniform"), schema, encode=False)
    seen = parts.seen(options.seed)
    if test_rows is not None:
        _warn_of_seen_rows(model, experts, seen, parts.score)
    outputs = model.expert_outputs(seen.x)
    reference = choose(outputs, seen.y, schema.task)
    blend = Blend(models, schema, reference.weights, options.hidden)
    if options.gate == "auto":
        gate, mixture = _choose(blend, seen, outputs, options)
    else:
        gate, mixture = options.gate, blend.mixture(options.gate)
        if gate not in ("constant", "uniform") and not _learn(mixture, blend, parts, options):
            remarks.print("No gate beat the best constant weights on held-out rows: these it is.")

    names = [expert.name for expert in experts]
    model = with_baseline(assemble(mixture, schema, encode=False), reference, names)
    chosen = {"experts": names, "gate": gate, "seed": options.seed}
    return finish(model, parts, options.output, options.report, chosen)


def _warn_of_seen_rows(model: TableModel, experts: list[Expert], seen: Rows, test: Rows) -> None:
    """Says in one line which models do clearly better on the gate's rows than on the test table."""
    on_gate, on_new = (
        losses(model.expert_outputs(rows.x), rows.y, model.schema.task) for rows in (seen, test)
    )
    remedy = "Pass rows that no model was trained on as --data"
    text = seen_in_training([expert.name for expert in experts], on_gate, on_new, remedy)
    if text is not None:
        remarks.print(text)


class Blend(NamedTuple):
    """What gates are made for.

    Attributes:
        models: The experts.
        schema: What their columns and outputs mean.
        constant: The best constant weights, `(e,)`.
        hidden: Units of the hidden layer of an mlp gate.
    """

    models: list[keras.Model]
    schema: Schema
    constant: np.ndarray
    hidden: int

    def mixture(self, gate: str, even: float = 0.0) -> plait.Mixture:
        """Returns a compiled mixture whose gate gives the best constant weights everywhere.

        Args:
            gate: One of `plait.cli.options.BLENDING_GATES`, but `"auto"`. Of classes `"free"` and
                `"per-class"` pool the logarithms of probabilities.
            even: Part of these weights that is shared evenly: a weight of 0 could never grow.
        """
        constant = (1.0 - even) * self.constant + even / len(self.models)
        if gate == "uniform":
            mixture = plait.Mixture(self.models, "uniform")
        elif gate in ("free", "per-class"):
            classes = self.schema.classes
            weights = plait.layers.ClassWeights(
                len(self.models),
                len(classes) if gate == "per-class" else None,
                start=constant.tolist(),
            )
            rule = "geometric" if classes else "arithmetic"
            mixture = plait.Mixture(self.models, weights, combination=rule)
        else:
            made = self._gate(gate, np.log(np.maximum(constant, _TINY)))
            mixture = plait.Mixture(self.models, made, router=plait.routers.Softmax())
        mixture.compile(keras.optimizers.Adam(3e-3), loss_for(self.schema.task))
        return mixture

    def _gate(self, gate: str, scores: np.ndarray) -> keras.Model:
        """Returns a gate of the raw matrix that gives these scores everywhere."""
        last = keras.layers.Dense(
            len(scores),
            kernel_initializer="zeros",
            kernel_regularizer=keras.regularizers.L2(1e-4),
            name="scores",
        )
        layers: list[Any] = [keras.Input((len(self.schema.columns),)), TableEncoder(self.schema)]
        if gate == "mlp":
            layers.append(keras.layers.Dense(self.hidden, activation="relu"))
        model = keras.Sequential([*layers, last])
        # A constant gate is a linear one whose kernel stays at zero.
        last.set_weights([last.get_weights()[0], scores])
        last.trainable = gate != "constant"
        return model


def _choose(
    blend: Blend, seen: Rows, outputs: np.ndarray, options: BlendOptions
) -> tuple[str, plait.Mixture]:
    """Returns the simplest gate that held-out rows do not speak against, and its mixture."""
    task = blend.schema.task
    candidates = [name for name in CANDIDATES if task == "classification" or name != "per-class"]

    def build(gate: str) -> plait.Mixture:
        interrupts.check()
        return blend.mixture(gate, _EVEN if gate != "constant" else 0.0)

    found = choose_gate(
        build,
        seen.x,
        _column(seen.y, task),
        candidates,
        outputs=outputs,
        epochs=options.epochs,
        batch_size=batch_size(len(seen.y)),
        seed=options.seed,
    )
    best = min(found.losses, key=found.losses.__getitem__)
    told = ", ".join(f"{name} {loss:.4g}" for name, loss in found.losses.items())
    why = "the best" if found.name == best else f"within one standard error of {best}"
    remarks.print(f"Loss on held-out rows: {told}. Chosen: {found.name}, {why}.")
    return found.name, found.mixture


def _learn(mixture: plait.Mixture, blend: Blend, parts: Parts, options: BlendOptions) -> bool:
    """Trains the gate from near the best constant weights on; returns whether it got any better.

    If it did not, on the rows held out for early stopping, the constant weights stay.
    """
    task, y = blend.schema.task, parts.rows.y[parts.train]
    spread = 1.0 if task == "classification" else float(np.std(y)) or 1.0
    before = mixture.get_weights()

    def held_out() -> float:
        found = mixture.predict(parts.valid.x, batch_size=1024, verbose=0)
        return float(losses(found, parts.valid.y, task).mean()) / spread**2

    start = held_out()
    mixture.set_weights(blend.mixture(options.gate, _EVEN).get_weights())
    train(
        mixture.fit_gate,
        options.epochs,
        "gate",
        x=parts.x_train(),
        y=_column(y, task),
        validation_data=(parts.valid.x, _column(parts.valid.y, task)),
        batch_size=batch_size(len(y)),
        verbose=0,
    )
    if held_out() < start:
        return True
    mixture.set_weights(before)
    return False


def _column(y: np.ndarray, task: str) -> np.ndarray:
    return y if task == "classification" else y[:, None].astype("float32")


def _names(paths: list[pathlib.Path]) -> list[str]:
    """Returns file names without ending, or whole paths where these are not all different."""
    names = [path.stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _load(path: pathlib.Path, name: str) -> Expert:
    model = load_keras(path)
    found = as_table_model(model)
    return Expert(name, model, found.schema if found else None)


def _schema(experts: list[Expert], table: Table, target: str) -> Schema:
    """Returns the columns and classes all models share."""
    known = [(expert.schema, expert.name) for expert in experts if expert.schema is not None]
    if known:
        agree([schema for schema, _ in known], [name for _, name in known])
        schema = dataclasses.replace(known[0][0], target=target)
        return dataclasses.replace(schema, baseline=None, record=None)  # of their own training
    units = _units(experts[0])
    schema = infer(table, target, "regression" if units == 1 else "classification", plain=True)
    texts = [column.name for column in schema.columns if column.categories is not None]
    if texts:
        raise ValueError(
            message(
                "Models that are not files of plait fit read numbers only",
                f"texts in {', '.join(map(repr, texts))}",
                f"Leave columns out with --ignore {texts[0]}, or write the texts as numbers",
            )
        )
    counted = all(isinstance(label, int) and 0 <= label < units for label in schema.classes)
    if schema.task == "classification" and counted:
        # Integers from 0 are the codes themselves; some of them may be missing from this table.
        schema = dataclasses.replace(schema, classes=tuple(range(units)))
    return schema


def _units(expert: Expert) -> int:
    shape = getattr(expert.model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or not isinstance(shape[1], int):
        raise ValueError(
            message(
                "A model to blend must have one output of shape (b, units)",
                f"{expert.name} with {shape}",
                "Cut the model down to that output",
            )
        )
    return shape[1]


def _check_expert(expert: Expert, schema: Schema, x: np.ndarray) -> None:
    """Raises unless a model reads these columns and predicts these classes."""
    units, expected = _units(expert), max(1, len(schema.classes))
    if units != expected:
        kind = f"{expected} classes" if schema.classes else "one value"
        raise ValueError(
            message(
                f"A model to blend must end in {expected} unit{'s' * (expected > 1)} for {kind}",
                f"{expert.name} with {units}",
                "Blend models of one target, classifiers with a softmax over all its classes",
            )
        )
    shape = getattr(expert.model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] not in (None, x.shape[1]):
        raise ValueError(
            message(
                f"A model to blend must read the table's {x.shape[1]} feature columns",
                f"{expert.name} with input shape {shape}",
                "Leave other columns out with --ignore, in the order the model was trained on",
            )
        )
    if schema.task == "regression":
        return
    found = keras.ops.convert_to_numpy(expert.model(x))
    if (found < 0).any() or np.abs(found.sum(axis=1) - 1.0).max() > 1e-3:
        raise ValueError(
            message(
                "A classifier to blend must end in a softmax: probabilities that sum to one",
                f"{expert.name}, whose first outputs sum to {found[0].sum():.4g}",
                "Add keras.layers.Softmax() at its end and save it again",
            )
        )


__all__ = ["Blend", "BlendOptions", "Expert", "run"]
