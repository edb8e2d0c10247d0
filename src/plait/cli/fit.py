"""`plait fit`: does gating pay on this table? Three candidates, an honest table, one model."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
from rich.table import Table as Lines

from plait.cli import interrupts
from plait.cli.candidates import CANDIDATES, MIXTURE, TITLES, Plan, Trained, plan_for
from plait.cli.console import EpochBar, dumps, out, plain, progress, remarks
from plait.cli.contest import Entry, contest, reason, rivals, verdict
from plait.cli.data import (
    AllRows,
    Encoded,
    Rows,
    as_rows,
    check_groups,
    draw,
    features,
    folds_of,
    group_codes,
    held_out_name,
    hold_out,
    load_rows,
    load_training,
    measured,
    named,
)
from plait.cli.learn import with_baseline
from plait.cli.options import check_at_least, check_gate, check_outputs
from plait.encoding import Schema, TableEncoder
from plait.errors import choose_from, message
from plait.inspection import choose as choose_reference
from plait.inspection import losses
from plait.report import gather, render, score_cells, score_head
from plait.tables import Table, TableModel, assemble, doubts, finished, infer, replacing, save
from plait.tables.cells import numbers
from plait.tables.matrix import few
from plait.training.comparison import compare, simplest

MOST_FITTED = 100_000  # rows that models which need them in memory learn from
_PIECE = 2**16  # rows


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
        said: What it says about gating.
        scored_on: The scored rows, in words.
        facts: What else machines want to know.
        written: The files written.
    """

    entries: list[Entry]
    said: str
    scored_on: str
    facts: dict[str, Any]
    written: list[str]

    def show(self, as_json: bool) -> None:
        """Prints the table, or the same as JSON."""
        if as_json:
            scores = [entry.to_dict() for entry in self.entries]
            print(dumps({"scores": scores, **self.facts, "written": self.written}))
            return
        table = Lines(title=plain(f"Scored on {self.scored_on}"), title_justify="left")
        for i, title in enumerate(
            [*score_head([e.score for e in self.entries]), "beside the chosen"]
        ):
            table.add_column(title, justify="right" if i else "left")
        for entry in self.entries:
            style = "bold" if entry.gap is None else None
            table.add_row(*score_cells(entry.score), beside(entry), style=style)
        out().print(table)
        out().print(plain(self.said), soft_wrap=True)
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
    table = load_training(options.train, options.target, options.ignore, aside)
    sides = _sides(table, options)
    table = table.without(aside)
    schema = infer(table, options.target, options.task)
    for doubt in doubts(table, schema):
        remarks.print(doubt)
    rows = as_rows(table, schema)
    division = _divide(rows, sides, schema, options)
    plan = plan_for(
        schema, options.experts, options.hidden, options.gate, options.epochs, len(rows.y)
    )
    remarks.print(_plan(schema, options))
    bench = _Bench(plan, schema, division, options.seed)

    each, predictions = {}, {}
    for name in CANDIDATES:
        each[name], predictions[name] = bench.train(name)
    held = compare(each, None if division.groups is None else division.groups[division.held])
    chosen = simplest(held, CANDIDATES) if options.model == "auto" else options.model
    entries = contest(
        {TITLES[name]: found for name, found in predictions.items()} | bench.rivals(),
        TITLES[chosen],
        division.scored.y,
        schema.task,
        division.scored_groups,
    )
    how = (
        f"{division.num_folds}-fold cross-validation" if division.num_folds > 1 else "held-out rows"
    )
    said = f"{reason(held, chosen, how, options.model == 'auto')} {verdict(entries)}".strip()
    facts = {
        "task": schema.task,
        "target": schema.target,
        "rows": {
            "train": int(division.learn.sum()),
            "held_out": len(division.held),
            "scored": len(division.scored.y),
        },
        "chosen": chosen,
        "forced": options.model != "auto",
        "folds": division.num_folds,
        "held_out": {name: found._asdict() for name, found in held.items()},
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
        "verdict": said,
        "curve": bench.trained[chosen].curve,
        "scored_on": division.name,
    }
    schema = dataclasses.replace(schema, record=record)
    page = None
    if options.report is not None:
        scored = division.scored
        facts_of = gather(bench.whole(chosen, schema, False), scored.x, scored.y, scored.frame())
        page = render(facts_of, options.output.name, division.name)
    model = bench.whole(chosen, schema, True)  # nothing is left out of what is written
    return FitResult(entries, said, division.name, facts, _write(model, page, options))


class Division(NamedTuple):
    """A table, and which of its rows serve what.

    Attributes:
        rows: All of its rows.
        learn: Which are learned from before anything is scored, `(b,)`.
        folds: Which fold holds a row out, `(b,)`; -1 for none.
        held: Which rows of the folds are measured on.
        groups: Which rows belong together `(b,)`, or `None`.
        weight: Weight of each row `(b,)`.
        scored: The rows to score on, of this table or of another.
        scored_groups: Which of those belong together, or `None`.
        name: What the scored rows are, in words.
    """

    rows: AllRows
    learn: np.ndarray
    folds: np.ndarray
    held: np.ndarray
    groups: np.ndarray | None
    weight: np.ndarray
    scored: Rows
    scored_groups: np.ndarray | None
    name: str

    @property
    def num_folds(self) -> int:
        """How many folds there are."""
        return int(self.folds.max()) + 1


class Copies:
    """What each row counts in each training, `(b, copies)`, worked out as rows are taken.

    One copy for each fold held out, one on all rows to learn from, and one on the whole table where
    that is more. The mean of each is 1.

    Raises:
        ValueError: If nothing counts in one.
    """

    def __init__(self, table: Division) -> None:
        self._table, self._whole = table, not table.learn.all()
        self.shape = (len(table.learn), table.num_folds + 1 + self._whole)
        total = np.zeros(self.shape[1])
        for start in range(0, len(table.learn), _PIECE):
            total += self._counts(slice(start, start + _PIECE)).sum(axis=0, dtype="float64")
        if not total.all():
            raise ValueError(
                message(
                    "Weights must leave some weight outside of every part that is held out",
                    f"all of it in {int((table.weight > 0).sum())} rows held out together",
                    "Weigh more rows, or leave --weight out",
                )
            )
        self._mean = (total / len(table.learn)).astype("float32")

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self._counts(rows) / self._mean

    def _counts(self, rows: Any) -> np.ndarray:
        learn, folds = self._table.learn[rows], self._table.folds[rows]
        kept = [learn & (folds != fold) for fold in range(self._table.num_folds)]
        kept += [learn, np.ones_like(learn)][: 1 + self._whole]
        return np.stack(kept, axis=1) * self._table.weight[rows][:, None]


class _Bench:
    """Trains candidates, and keeps them."""

    def __init__(self, plan: Plan, schema: Schema, table: Division, seed: int) -> None:
        self.plan, self.schema, self.table, self.seed = plan, schema, table, seed
        self.trained: dict[str, Trained] = {}
        encoder = TableEncoder(schema)
        self._x = features(table.rows.x, encoder)
        self._x_scored = Encoded(table.scored.x, encoder)[:]
        self._copies = Copies(table)

    def train(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Trains a candidate under a progress bar.

        Returns:
            Its losses on held-out rows, by the copy that has not seen them, and what it predicts
            for the scored rows.
        """
        interrupts.check()
        table, schema = self.table, self.schema
        y = table.rows.y if schema.classes else (table.rows.y - schema.center) / schema.spread
        with progress() as bar:
            show = EpochBar(bar, self.plan.epochs, TITLES[name])
            trained = Trained(name, self.plan, self._x, y, self._copies, self.seed, [show])
        self.trained[name] = trained
        held = table.held
        unseen = trained.predict(self._x[held])[table.folds[held], np.arange(len(held))]
        scored = trained.predict(self._x_scored)[table.num_folds]
        return losses(self._units(unseen), table.rows.y[held], schema.task), self._units(scored)

    def rivals(self) -> dict[str, np.ndarray]:
        """Returns what models without a network predict for the scored rows, by name.

        They need their rows in memory: of many they get some, and the name says so.
        """
        learn = np.flatnonzero(self.table.learn)
        rows = draw(learn, MOST_FITTED, self.seed)
        y, weight = self.table.rows.y[rows], self.table.weight[rows]
        found = rivals(self.schema, self._x[rows], y, weight, self._x_scored, self.seed)
        note = f" of {len(rows):,} rows" if len(rows) < len(learn) else ""
        return {name + note: predictions for name, predictions in found.items()}

    def _units(self, found: np.ndarray) -> np.ndarray:
        """Returns predictions `(b, u)` in the target's units."""
        return found if self.schema.classes else found * self.schema.spread + self.schema.center

    def whole(self, name: str, schema: Schema, everything: bool) -> TableModel:
        """Returns a candidate behind its encoder, with what its training rows say of its parts.

        Args:
            name: One of `CANDIDATES`.
            schema: What to keep in the model.
            everything: Whether scored rows of the table were learned from too.
        """
        trained = self.trained[name]
        mixture = trained.copy(trained.copies - 1 if everything else self.table.num_folds)
        known = np.flatnonzero(self.table.learn | everything)
        rows = self.table.rows.take(measured(known, self.seed))
        model = assemble(mixture, schema, encode=True)
        reference = choose_reference(model.expert_outputs(rows.x), rows.y, schema.task)
        what = "expert" if name == MIXTURE else "network"
        names = [f"{what} {i}" for i in range(mixture.num_experts)]
        return with_baseline(model, reference, names)


def _divide(rows: AllRows, sides: Sides, schema: Schema, options: FitOptions) -> Division:
    """Decides which rows train, hold out and score; reads the test table where there is one."""
    b = len(rows.y)
    weight = np.ones(b, "float32") if sides.weight is None else sides.weight
    if options.test is None:
        apart = hold_out(rows, schema.task, sides.groups, options.seed + 1)
        held = np.flatnonzero(apart)
        scored = rows.take(measured(held, options.seed))
        scored_groups = None if sides.groups is None else sides.groups[scored.numbers]
        what = held_out_name(b if sides.groups is None else 0)
        name = named(what, len(scored.y), len(held))
    else:
        apart = np.zeros(b, bool)
        more = (options.group,) if options.group else ()
        whole = load_rows(options.test, schema, strict=False, texts=more)
        scored, scored_groups = whole.drawn(options.seed), None
        if options.group and options.group in whole.table.columns:
            scored_groups = group_codes(whole.table, options.group)[scored.numbers]
        name = named(str(options.test), len(scored.y), len(whole.y))
    folds = np.full(b, -1, "int8")
    folds[~apart] = folds_of(rows.y[~apart], sides.take(~apart).groups, options.seed)
    held = measured(np.flatnonzero(folds >= 0), options.seed)
    return Division(rows, ~apart, folds, held, sides.groups, weight, scored, scored_groups, name)


def _sides(table: Table, options: FitOptions) -> Sides:
    """Takes the columns of groups and weights out of a table."""
    for option, name in (("--group", options.group), ("--weight", options.weight)):
        if name and (name not in table.columns or name == options.target):
            raise ValueError(
                message(
                    f"`{option}` names a column beside the target",
                    repr(name),
                    f"Choose among {few([c for c in table.columns if c != options.target])}",
                )
            )
    groups = None
    if options.group:
        groups = group_codes(table, options.group)
        check_groups(groups)
    return Sides(groups, _weights(table, options.weight) if options.weight else None)


def _weights(table: Table, column: str) -> np.ndarray:
    """Returns the weight of each row `(b,)`, in the mean 1."""
    found, fault = [], ""
    for frame in table.batches():
        weight, _ = numbers(frame[column])
        wrong = ~(np.isfinite(weight) & (weight >= 0))
        if not fault and wrong.any():
            place = int(np.argmax(wrong))
            fault = f"{frame[column].iloc[place]!r} in row {frame.index[place] + 1}"
        found.append(weight)
    weight = np.concatenate(found)
    if fault or not weight.sum() > 0:
        raise ValueError(
            message(
                f"Weights in {column!r} must be numbers of at least 0, not all 0",
                fault or "0 in every row",
                "Mend the column, or leave --weight out",
            )
        )
    return (weight / weight.mean()).astype("float32")


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
