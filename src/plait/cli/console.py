"""What commands say: results on standard output, progress and remarks on standard error."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from plait.cli import interrupts
from plait.cli.text import plain
from plait.inspection import Score
from plait.report import finite, score_cells, score_head


class Remarks:
    """Prints to standard error, names from tables as they stand: no markup, no escapes."""

    def console(self) -> Console:
        """Returns a console on what standard error is now."""
        return Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, text: object) -> None:
        """Prints one line."""
        self.console().print(plain(text))


remarks = Remarks()


def out() -> Console:
    """Returns a console on standard output that takes every text as it stands."""
    return Console(highlight=False, markup=False, emoji=False)


def dumps(value: Any) -> str:
    """Returns JSON, with `null` for numbers that JSON does not have.

    Example:
    >>> from plait.cli.console import dumps
    >>> dumps({"r2": float("nan"), "rows": (1, 2)})
    '{"r2": null, "rows": [1, 2]}'
    """
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)


class Result(NamedTuple):
    """The end of a command that scores a mixture.

    Attributes:
        scores: The honest table.
        scored_on: What it was scored on, in words.
        facts: What else machines want to know.
        written: The files written.
    """

    scores: list[Score]
    scored_on: str
    facts: dict[str, Any]
    written: list[str]

    def show(self, as_json: bool) -> None:
        """Prints the table, or the same as JSON."""
        if as_json:
            rows = [row.to_dict() for row in self.scores]
            found = {"scores": rows, **self.facts, "written": self.written}
            print(dumps(found))
            return
        head = score_head(self.scores)
        table = Table(title=plain(f"Scored on {self.scored_on}"), title_justify="left")
        for i, title in enumerate(head):
            table.add_column(title, justify="right" if i else "left")
        for row in self.scores:
            cells = map(plain, score_cells(row))
            table.add_row(*cells, style="bold" if row.name == "mixture" else None)
        out().print(table)
        for path in self.written:
            remarks.print(f"Wrote {path}")


class EpochBar(keras.callbacks.Callback):
    """Moves a progress bar on with every epoch, and shows the losses beside it."""

    def __init__(self, progress: Progress, epochs: int, what: str) -> None:
        super().__init__()
        self._progress = progress
        self._what = what
        self._bar = progress.add_task(what, total=epochs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Advances by one epoch, unless an interrupt was asked for."""
        interrupts.check()
        shown = {key: float((logs or {}).get(key, float("nan"))) for key in ("loss", "val_loss")}
        text = f"{self._what}  loss {shown['loss']:.4f}  held out {shown['val_loss']:.4f}"
        self._progress.update(self._bar, advance=1, description=text)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Gives a progress bar on standard error that vanishes when done."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=remarks.console(),
        transient=True,
    ) as bar:
        yield bar


__all__ = ["EpochBar", "Remarks", "Result", "dumps", "out", "plain", "progress", "remarks"]
