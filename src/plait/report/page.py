"""The report as one self-contained HTML file."""

import json
from typing import Any, NamedTuple

import numpy as np

from plait import __version__, plots
from plait.errors import message
from plait.inspection import (
    Score,
    calibration,
    expert_confusion,
    weights_along,
    weights_per_class,
    worst,
)
from plait.report.facts import Facts
from plait.report.numbers import finite

_WORST = 10
_MOST_COLUMNS = 12


class Picture(NamedTuple):
    """A section of the page.

    Attributes:
        title: Its heading.
        text: One or two sentences that say how to read it.
        svg: The figure, as SVG text.
    """

    title: str
    text: str
    svg: str


def render(facts: Facts, model_name: str, data_name: str) -> str:
    """Returns the page.

    The page is self-contained: figures are inline SVG, styles are inline, and no scripts, fonts or
    external addresses are loaded.

    Args:
        facts: From `gather`.
        model_name: Name of the model in the text.
        data_name: Name of the scored table in the text, with its number of rows.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            message("Reports need Jinja2", "no such package", "pip install plait[cli]")
        ) from error

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("plait.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        facts=facts,
        model_name=model_name,
        data_name=data_name,
        version=__version__,
        summary=_summary(facts),
        score_head=score_head(facts.scores),
        table_text=_table_text(facts),
        contest=_contest(facts),
        territories=_territories(facts) if _gated(facts) else [],
        facts_list=_facts(facts),
        numbers=_numbers(facts),
        score_rows=[score_cells(row) for row in _rows(facts)],
        pictures=_pictures(facts),
        worst=_worst(facts),
    )


def score_head(rows: list[Score]) -> list[str]:
    """Returns the column titles of the score table."""
    return ["", "log loss", "accuracy"] if rows[0].rmse is None else ["", "RMSE", "R²"]


def score_cells(row: Score) -> list[str]:
    """Returns one row of the score table as texts.

    Example:
    >>> from plait.inspection import Score
    >>> from plait.report import score_cells
    >>> score_cells(Score("mixture", 0.5, accuracy=0.875))
    ['mixture', '0.5000', '87.5 %']
    """
    if row.accuracy is not None:
        return [row.name, f"{row.loss:.4f}", f"{row.accuracy:.1%}".replace("%", " %")]
    return [row.name, f"{row.rmse:.5g}", f"{row.r2:.4f}"]


def _rows(facts: Facts) -> list[Score]:
    """Returns the rows of the score table; with one expert only the first."""
    return facts.scores if len(facts.names) > 1 else facts.scores[:1]


def _summary(facts: Facts) -> str:
    """Returns intervals, the conclusion that `plait fit` recorded, and a note on overconfidence."""
    parts = [
        f"{name} {value:.4g} (95 % of resampled rows: {low:.4g} to {high:.4g})"
        for name, (value, low, high) in facts.intervals.items()
    ]
    text = "; ".join(parts)
    text = f"{text[:1].upper()}{text[1:]}." if text else ""
    record = facts.schema.record
    if record:
        text += f" {record['verdict']}"
    if facts.schema.task == "classification":
        excess = calibration(facts.predictions, facts.y).excess
        if excess > 0.05:
            text += (
                f" Overconfident: it claims {excess:.0%} more than it gets right, which costs log "
                "loss but not accuracy."
            )
    return text.strip()


def _table_text(facts: Facts) -> str:
    """Returns the note on what the rows of the score table are."""
    record = facts.schema.record
    if record and record["chosen"] == "mixture":
        return (
            "Below the mixture stand pieces of it, the same experts without the gate. They look "
            "poor because they were trained together and never learned to stand alone; what as "
            "many networks trained apart would do stands in the contest."
        )
    return "The models below the first row were trained apart from the gate and stand alone."


def _contest(facts: Facts) -> list[list[str]]:
    """Returns the rows of the comparison of candidates, if `plait fit` recorded one."""
    rows = []
    for entry in (facts.schema.record or {}).get("contest", []):
        known = {
            key: entry[key] for key in Score._fields if key in entry and entry[key] is not None
        }
        gap = entry.get("chosen_less_this")
        text = "chosen"
        if gap is not None:
            text = f"{-gap['value']:+.3g} [{-gap['high']:+.3g}, {-gap['low']:+.3g}]"
            text += ", within noise" if entry["noise"] else ""
        rows.append([*score_cells(Score(**known)), text])
    return rows


def _territories(facts: Facts) -> list[list[str]]:
    """Returns for each expert the share of rows where it weighs most, and how these rows differ."""
    lead = np.argmax(facts.weights, axis=1)
    rows = []
    for expert, name in enumerate(facts.names):
        led = lead == expert
        if not led.any():
            rows.append([name, "0", "none"])
            continue
        found = []
        for column in facts.schema.columns:
            if column.part:
                continue
            values = facts.frame[column.table_name]
            if column.categories is None:
                number = np.asarray(values, "float64")
                here, all_of = np.nanmedian(number[led]), np.nanmedian(number)
                found.append(
                    (
                        abs(here - all_of) / column.scale,
                        f"{column.name} {here:.3g} (all: {all_of:.3g})",
                    )
                )
            else:
                texts = values.astype(str)
                top = texts[led].mode().iloc[0]
                here, all_of = (texts[led] == top).mean(), (texts == top).mean()
                found.append(
                    (2 * abs(here - all_of), f"{column.name} {top} {here:.0%} (all: {all_of:.0%})")
                )
        found.sort(key=lambda pair: -pair[0])
        rows.append([name, f"{led.mean():.0%}", "; ".join(text for _, text in found[:3])])
    return rows


def _facts(facts: Facts) -> dict[str, str]:
    """Returns options, seed, versions and a summary of the data, as texts."""
    schema = facts.schema
    empty = sum(int(facts.frame[name].isna().sum()) for name in schema.names)
    categories = sum(column.categories is not None for column in schema.columns)
    found = {
        "rows scored": f"{len(facts.y):,}",
        "columns": f"{len(schema.names)}, of which {categories} categories",
        "empty cells": f"{empty:,}",
    }
    record = schema.record or {}
    for key, value in record.items():
        if key in ("contest", "verdict", "curve", "task", "target"):
            continue
        if isinstance(value, dict):
            value = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()
            )
        found[key.replace("_", " ")] = str(value)
    return found


def _numbers(facts: Facts) -> str:
    """Returns the page's numbers as JSON, escaped for HTML."""
    found: dict[str, Any] = {
        "scores": [row.to_dict() for row in facts.scores],
        "intervals": {key: value._asdict() for key, value in facts.intervals.items()},
        "usage": {"share": facts.usage.share, "first": facts.usage.first},
        "record": facts.schema.record,
    }
    if facts.importance is not None:
        found["importance"] = {"columns": facts.schema.names, **facts.importance._asdict()}
    return json.dumps(finite(found), allow_nan=False).replace("<", "\\u003c")


def _pictures(facts: Facts) -> list[Picture]:
    names, use, schema = list(facts.names), facts.usage, facts.schema
    idle = [name for name, share in zip(names, use.share, strict=True) if share < 0.1 / len(names)]
    used = f"The mean weights are spread as over {use.effective:.1f} of {len(names)} experts."
    if idle:
        used += f" Hardly used: {', '.join(idle)}."
    pictures = _drivers(facts)
    if len(names) == 1:
        return pictures
    if not _gated(facts):
        return pictures + _alone(facts)
    pictures += [
        Picture(
            "Use of the experts",
            used,
            plots.to_svg(plots.plot_usage, use, names, label="Use of the experts"),
        ),
        Picture(
            "Gate entropy",
            "0: one expert has all the weight; 1: all experts have the same. "
            f"The mean is {use.entropy.mean():.2f}.",
            plots.to_svg(plots.plot_entropy, use, label="Gate entropy"),
        ),
    ]
    if schema.task == "regression":
        along = weights_along(facts.weights, facts.y)
        svg = plots.to_svg(
            plots.plot_weights_along, along, names, schema.target, label="Weights along the target"
        )
        text = "Mean weights in bins of equally many examples."
        return [*pictures, Picture("Weights along the target", text, svg)]
    per_class = weights_per_class(facts.weights, facts.y, len(schema.classes))
    return [
        *pictures,
        Picture(
            "Weights per class",
            "Mean weight of each expert over the examples of each true class.",
            plots.to_svg(
                plots.plot_weights_per_class,
                per_class,
                names,
                schema.classes,
                label="Weights per class",
            ),
        ),
        *_alone(facts),
    ]


def _gated(facts: Facts) -> bool:
    """Returns whether any weight depends on the row."""
    return len(facts.names) > 1 and bool(np.ptp(facts.weights, axis=0).max() > 1e-5)


def _alone(facts: Facts) -> list[Picture]:
    """Returns what each expert gets right by itself, for classes."""
    if facts.schema.task == "regression":
        return []
    confusion = expert_confusion(facts.weights, facts.outputs, facts.y)
    return [
        Picture(
            "Experts and classes",
            "Share of the examples of each true class that each expert alone gets right.",
            plots.to_svg(
                plots.plot_confusion,
                confusion,
                list(facts.names),
                facts.schema.classes,
                label="Experts and classes",
            ),
        ),
    ]


def _drivers(facts: Facts) -> list[Picture]:
    """Returns the figures of any model: importance, confusion, calibration, learning curve."""
    schema, found = facts.schema, []
    classified = schema.task == "classification"
    if facts.importance is not None:
        unit = "log loss" if classified else "squared error"
        svg = plots.to_svg(
            plots.plot_importance,
            facts.importance,
            schema.names,
            unit,
            label="Which columns matter",
        )
        text = "What shuffling one column among the rows does to the loss"
        if _gated(facts):
            text += ", and to the gate (the share of the weight that moves to other experts)"
        text += "."
        found.append(Picture("Which columns matter", text, svg))
    if classified:
        k = len(schema.classes)
        counts = np.zeros((k, k))
        np.add.at(counts, (facts.y, np.argmax(facts.predictions, axis=1)), 1)
        total = counts.sum(axis=1, keepdims=True)
        shares = np.where(total > 0, counts / np.maximum(total, 1), np.nan)
        svg = plots.to_svg(plots.plot_class_confusion, shares, schema.classes, label="Confusion")
        found.append(Picture("Confusion", "True classes in rows, predicted ones in columns.", svg))
        seen = calibration(facts.predictions, facts.y)
        svg = plots.to_svg(plots.plot_calibration, seen, label="Calibration")
        text = (
            f"Expected calibration error {seen.error:.3f}. Points below the line are overconfident."
        )
        found.append(Picture("Calibration", text, svg))
    curve = (schema.record or {}).get("curve")
    if curve:
        svg = plots.to_svg(plots.plot_curve, curve, label="Learning curve")
        found.append(Picture("Learning curve", "Loss on the training rows, with noise.", svg))
    return found


def _worst(facts: Facts) -> dict[str, Any]:
    """Returns the table of the examples with the highest loss."""
    columns = facts.schema.names[:_MOST_COLUMNS]
    error = "log loss" if facts.schema.task == "classification" else "error"
    gated = _gated(facts)
    head = ["row", facts.schema.target, "predicted", error, *["led by"] * gated, *columns]
    rows = []
    for i in worst(facts.losses, _WORST):
        if facts.schema.task == "classification":
            classes, p = facts.schema.classes, facts.predictions[i]
            guess = int(np.argmax(p))
            truth, said = str(classes[int(facts.y[i])]), f"{classes[guess]} ({p[guess]:.0%})"
        else:
            truth, said = f"{facts.y[i]:.5g}", f"{facts.predictions[i, 0]:.5g}"
        off = facts.losses[i] if facts.schema.task == "classification" else facts.losses[i] ** 0.5
        lead = int(np.argmax(facts.weights[i]))
        led = f"{facts.names[lead]} ({facts.weights[i, lead]:.0%})"
        row = facts.frame.iloc[int(i)]
        number = int(facts.frame.index[int(i)]) + 1
        cells = [_cell(row[name]) for name in columns]
        rows.append([str(number), truth, said, f"{off:.4g}", *[led] * gated, *cells])
    return {"head": head, "rows": rows, "left_out": len(facts.schema.names) - len(columns)}


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)


__all__ = ["Picture", "render", "score_cells", "score_head"]
