"""`plait fit`: does gating pay on this table? Three candidates, an honest table, one model."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
from rich.table import Table

from plait.cli import interrupts
from plait.cli.candidates import CANDIDATES, MIXTURE, TITLES, Plan, Trainer, plan_for
from plait.cli.console import EpochBar, dumps, out, plain, progress, remarks
from plait.cli.contest import Entry, choose, contest, rivals, verdict
from plait.cli.data import Rows, as_rows, hold_out, load_rows, load_training
from plait.cli.learn import with_baseline
from plait.cli.options import check_at_least, check_gate, check_outputs
from plait.encoding import Schema, TableEncoder
from plait.errors import choose_from, message
from plait.inspection import choose as choose_reference
from plait.inspection import losses
from plait.report import gather, render, score_cells, score_head
from plait.tables import TableModel, assemble, doubts, finished, infer, replacing, save
from plait.tables.cells import numbers, texts
from plait.tables.matrix import few


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """The options of `plait fit`, in the order of its help."""

    train: pathlib.Path
    target: str
    output: pathlib.Path
    test: pathlib.Path | None
    model: str
    experts: int
    hidden: int
    gate: str
    task: str
    epochs: int
    seed: int
    ignore: list[str]
    group: str | None
    weight: str | None
    report: pathlib.Path | None

    def check(self) -> None:
        """Raises on what is wrong without a look at the data."""
        check_gate(self.gate)
        if self.model not in ("auto", *CANDIDATES):
            raise ValueError(choose_from("--model", self.model, ("auto", *CANDIDATES)))
        check_at_least("--experts", self.experts, 1)
        check_at_least("--hidden", self.hidden, 1)
        check_at_least("--epochs", self.epochs, 1)
        check_at_least("--seed", self.seed, 0)
        check_outputs(self.output, self.report, [self.train, self.test])


class FitResult(NamedTuple):
    """The end of `plait fit`.

    Attributes:
        entries: The contest.
        chosen: Which candidate was written.
        scored_on: The scored rows, in words.
        facts: What else machines want to know.
        written: The files written.
    """

    entries: list[Entry]
    chosen: str
    scored_on: str
    facts: dict[str, Any]
    written: list[str]

    def show(self, as_json: bool) -> None:
        """Prints the table, or the same as JSON."""
        if as_json:
            scores = [entry.to_dict() for entry in self.entries]
            print(dumps({"scores": scores, **self.facts, "written": self.written}))
            return
        table = Table(title=plain(f"Scored on {self.scored_on}"), title_justify="left")
        for i, title in enumerate(
            [*score_head([e.score for e in self.entries]), "beside the chosen"]
        ):
            table.add_column(title, justify="right" if i else "left")
        for entry in self.entries:
            style = "bold" if entry.gap is None else None
            table.add_row(*score_cells(entry.score), beside(entry), style=style)
        out().print(table)
        out().print(verdict(self.entries), soft_wrap=True)
        for path in self.written:
            remarks.print(f"Wrote {path}")


def beside(entry: Entry) -> str:
    """Returns the difference to the chosen candidate's loss with its interval, in words."""
    if entry.gap is None:
        return "chosen"
    gap = entry.gap
    return f"{-gap.value:+.4g} [{-gap.high:+.3g}, {-gap.low:+.3g}]" + " noise" * gap.noise


class Sides(NamedTuple):
    """Columns that are no features.

    Attributes:
        groups: Which rows belong together `(b,)`, or `None`.
        weight: Weight of each row `(b,)`, or `None`.
    """

    groups: np.ndarray | None
    weight: np.ndarray | None

    def take(self, rows: np.ndarray) -> "Sides":
        """Returns some of the rows."""
        return Sides(*(None if part is None else part[rows] for part in self))


def run(options: FitOptions) -> FitResult:
    """Trains, chooses, scores and writes."""
    options.check()
    aside = tuple(name for name in (options.group, options.weight) if name)
    frame = load_training(options.train, options.target, options.ignore, aside)
    sides = _sides(frame, options)
    frame = frame.drop(columns=list(dict.fromkeys(aside)))
    schema = infer(frame, options.target, options.task)
    for doubt in doubts(frame, schema):
        remarks.print(doubt)
    rows = as_rows(frame, schema)
    learn, learn_sides, scored, scored_groups, name = _scored(rows, sides, schema, options)
    plan = plan_for(
        schema, options.experts, options.hidden, options.gate, options.epochs, len(rows.y)
    )
    remarks.print(_plan(schema, options))
    bench = _Bench(plan, schema, options)

    held = hold_out(learn, schema.task, learn_sides.groups, options.seed)
    kept, out_rows = np.flatnonzero(~held), np.flatnonzero(held)
    names = list(CANDIDATES)
    each = {}
    for candidate in names:
        bench.train(candidate, learn.take(kept), learn_sides.take(kept).weight, "choosing")
        each[candidate] = losses(
            bench.predict(candidate, learn.x[out_rows]), learn.y[out_rows], schema.task
        )
    chosen = choose(each) if options.model == "auto" else options.model
    # The chosen one last, so that what is written is at hand.
    predictions = {}
    for candidate in sorted(names, key=lambda name: name == chosen):
        curve = bench.train(candidate, learn, learn_sides.weight, "scoring")
        predictions[candidate] = bench.predict(candidate, scored.x)
    shown = {TITLES[candidate]: predictions[candidate] for candidate in names}
    encode = bench.features
    shown |= rivals(
        schema, encode(learn.x), learn.y, learn_sides.weight, encode(scored.x), options.seed
    )
    entries = contest(shown, TITLES[chosen], scored.y, schema.task, scored_groups)
    facts = {
        "task": schema.task,
        "target": schema.target,
        "rows": {"train": len(learn.y), "held_out": len(out_rows), "scored": len(scored.y)},
        "chosen": chosen,
        "forced": options.model != "auto",
        "held_out_losses": {name: float(values.mean()) for name, values in each.items()},
        "experts": options.experts,
        "hidden": options.hidden,
        "gate": options.gate,
        "epochs": plan.epochs,
        "batch": plan.batch,
        "noise": plan.noise,
        "seed": options.seed,
    }
    record = {
        **facts,
        "versions": _versions(),
        "contest": [entry.to_dict() for entry in entries],
        "verdict": verdict(entries),
        "curve": curve,
        "scored_on": name,
    }
    schema = dataclasses.replace(schema, record=record)
    model = bench.whole(chosen, schema, learn)
    page = None
    if options.report is not None:
        page = render(gather(model, scored.x, scored.y, scored.frame), options.output.name, name)
    if options.test is None:  # nothing is left out of what is written
        bench.train(chosen, rows, sides.weight, "all rows")
        model = bench.whole(chosen, schema, rows)
    return FitResult(entries, chosen, name, facts, _write(model, page, options))


class _Bench:
    """Trains candidates, and keeps the last of each."""

    def __init__(self, plan: Plan, schema: Schema, options: FitOptions) -> None:
        self.schema = schema
        self.seed = options.seed
        self.trainer = Trainer(plan)
        self.models: dict[str, Any] = {}
        self._encoder = TableEncoder(schema)

    def features(self, x: np.ndarray) -> np.ndarray:
        """Returns what networks read, `(b, d)`."""
        return keras.ops.convert_to_numpy(self._encoder(x))

    def train(self, name: str, rows: Rows, weight: np.ndarray | None, what: str) -> list[float]:
        """Trains a candidate under a progress bar; returns its loss per epoch."""
        interrupts.check()
        with progress() as bar:
            show = EpochBar(bar, self.trainer.plan.epochs, f"{what}: {TITLES[name]}")
            x, y = self.features(rows.x), _scaled(rows.y, self.schema)
            self.models[name], curve = self.trainer.train(name, x, y, weight, self.seed, [show])
        return curve

    def predict(self, name: str, x: np.ndarray) -> np.ndarray:
        """Returns predictions `(b, u)` in the target's units."""
        found = self.models[name].predict(self.features(x), batch_size=1024, verbose=0)
        return found if self.schema.classes else found * self.schema.spread + self.schema.center

    def whole(self, name: str, schema: Schema, rows: Rows) -> TableModel:
        """Returns a candidate behind its encoder, with what its training rows say of its parts."""
        mixture = self.models[name]
        model = assemble(mixture, schema, encode=True)
        reference = choose_reference(model.expert_outputs(rows.x), rows.y, schema.task)
        what = "expert" if name == MIXTURE else "network"
        names = [f"{what} {i}" for i in range(mixture.num_experts)]
        return with_baseline(model, reference, names)


def _scored(
    rows: Rows, sides: Sides, schema: Schema, options: FitOptions
) -> tuple[Rows, Sides, Rows, np.ndarray | None, str]:
    """Returns the rows to learn from and the rows to score on, each with their groups."""
    if options.test is None:
        held = hold_out(rows, schema.task, sides.groups, options.seed + 1)
        learn, scored = np.flatnonzero(~held), np.flatnonzero(held)
        name = f"a fifth held out of the table ({len(scored):,} rows)"
        groups = sides.take(scored).groups
        return rows.take(learn), sides.take(learn), rows.take(scored), groups, name
    texts_too = (options.group,) if options.group else ()
    test = load_rows(options.test, schema, strict=False, texts=texts_too)
    groups = None
    if options.group and options.group in test.frame.columns:
        groups = texts(test.frame[options.group]).astype(str)
    return rows, sides, test, groups, f"{options.test} ({len(test.y):,} rows)"


def _sides(frame: Any, options: FitOptions) -> Sides:
    """Takes the columns of groups and weights out of a table."""
    for option, name in (("--group", options.group), ("--weight", options.weight)):
        if name and (name not in frame.columns or name == options.target):
            raise ValueError(
                message(
                    f"`{option}` names a column beside the target",
                    repr(name),
                    f"Choose among {few([c for c in frame.columns if c != options.target])}",
                )
            )
    groups = texts(frame[options.group]).astype(str) if options.group else None
    if not options.weight:
        return Sides(groups, None)
    weight, _ = numbers(frame[options.weight])
    wrong = ~(np.isfinite(weight) & (weight >= 0))
    if wrong.any() or not weight.sum() > 0:
        row = int(np.argmax(wrong))
        raise ValueError(
            message(
                f"Weights in {options.weight!r} must be numbers of at least 0, not all 0",
                f"{frame[options.weight].iloc[row]!r} in row {row + 1}",
                "Mend the column, or leave --weight out",
            )
        )
    return Sides(groups, (weight / weight.mean()).astype("float32"))


def _write(model: TableModel, page: str | None, options: FitOptions) -> list[str]:
    """Writes the model and its report: both, or neither."""
    interrupts.check()
    whole = finished(model)
    if page is None or options.report is None:
        save(whole, options.output)
        return [str(options.output)]
    with replacing(options.report) as beside_it:
        beside_it.write_text(page, encoding="utf-8")
        save(whole, options.output)
    return [str(options.output), str(options.report)]


def _versions() -> dict[str, str]:
    import plait

    return {"plait": plait.__version__, "keras": keras.__version__, "numpy": np.__version__}


def _scaled(y: np.ndarray, schema: Schema) -> np.ndarray:
    """Returns the target as networks see it: standardised, `(b, 1)`, for regression."""
    if schema.classes:
        return y
    return ((y - schema.center) / schema.spread)[:, None].astype("float32")


def _plan(schema: Schema, options: FitOptions) -> str:
    categories = sum(column.categories is not None for column in schema.columns)
    count = len(schema.columns) - categories
    what = f"{schema.task} of {schema.target!r}"
    if schema.classes:
        what += f" ({len(schema.classes)} classes)"
    inputs = f"{count} number{'s' * (count != 1)}"
    if categories:
        inputs += f" and {categories} categor{'ies' if categories != 1 else 'y'}"
    n = options.experts
    return f"{what} from {inputs}: one network, {n} averaged, {n} under a {options.gate} gate"


__all__ = ["FitOptions", "FitResult", "beside", "run"]
