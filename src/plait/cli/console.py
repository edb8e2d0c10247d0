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
from plait.inspection import Score
from plait.report import score_cells, score_head

remarks = Console(stderr=True, highlight=False, soft_wrap=True)


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
            print(json.dumps(found, ensure_ascii=False))
            return
        head = score_head(self.scores)
        table = Table(title=f"Scored on {self.scored_on}", title_justify="left")
        for i, title in enumerate(head):
            table.add_column(title, justify="right" if i else "left")
        for row in self.scores:
            table.add_row(*score_cells(row), style="bold" if row.name == "mixture" else None)
        Console(highlight=False).print(table)
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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=remarks,
        transient=True,
    ) as bar:
        yield bar


__all__ = ["EpochBar", "Result", "progress", "remarks"]
