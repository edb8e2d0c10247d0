"""`plait report`: one HTML file about a mixture on a table."""

import dataclasses
import pathlib

from plait.cli.console import Result
from plait.cli.data import load_rows, named
from plait.cli.options import check_not_input
from plait.report import gather, render
from plait.tables import check_output, load, replacing


def run(
    model_path: pathlib.Path,
    data: pathlib.Path,
    target: str | None,
    output: pathlib.Path,
    strict: bool = False,
) -> Result:
    """Scores the model on the rows of the table, or a draw of them, and writes the page."""
    check_output(output, ".html")
    for given in (model_path, data):
        check_not_input(output, given)
    model = load(model_path)
    schema = dataclasses.replace(model.schema, target=target or model.schema.target)
    rows = load_rows(data, schema, strict)
    scored = rows.drawn()
    found = gather(model._replace(schema=schema), scored.x, scored.y, scored.frame())
    name = named(str(data), len(scored.y), len(rows.y))
    with replacing(output) as beside:
        beside.write_text(render(found, model_path.name, name), encoding="utf-8")
    facts = {"task": schema.task, "target": schema.target, "rows": {"scored": len(scored.y)}}
    return Result(found.scores, name, facts, [str(output)])


__all__ = ["run"]
