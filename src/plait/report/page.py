"""The report: one HTML file with everything inside it."""

from typing import Any, NamedTuple

import numpy as np

from plait import __version__, plots
from plait.errors import message
from plait.inspection import Score, expert_confusion, weights_along, weights_per_class, worst
from plait.report.facts import Facts

_WORST = 10
_MOST_COLUMNS = 12


class Picture(NamedTuple):
    """A section of the page.

    Attributes:
        title: Its heading.
        text: One or two sentences that say how to read it.
        svg: The picture.
    """

    title: str
    text: str
    svg: str


def render(facts: Facts, model_name: str, data_name: str) -> str:
    """Returns the page.

    It needs nothing beside itself: pictures are SVG inside it, styles too, and there are no
    scripts, fonts or addresses to load.

    Args:
        facts: From `gather`.
        model_name: What to call the model.
        data_name: What to call the table it was scored on, with its number of rows.
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
        score_rows=[score_cells(row) for row in facts.scores],
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


def _summary(facts: Facts) -> str:
    mixture, single, uniform, constant, _ = facts.scores
    classified = mixture.accuracy is not None
    if classified:
        have, best = mixture.loss, min(single.loss, uniform.loss, constant.loss)
        what = "log loss"
    else:
        assert mixture.rmse is not None
        have = mixture.rmse
        best = min(row.rmse for row in (single, uniform, constant) if row.rmse is not None)
        what = "RMSE"
    change = f"{what} {have:.4g}, against {best:.4g} for the best that needs no gate"
    if have < best:
        return f"The gate is worth it here: {change}."
    return f"The gate is not worth it here: {change}."


def _pictures(facts: Facts) -> list[Picture]:
    names, use, schema = list(facts.names), facts.usage, facts.schema
    idle = [name for name, share in zip(names, use.share, strict=True) if share < 0.1 / len(names)]
    used = f"The mean weights are spread as over {use.effective:.1f} of {len(names)} experts."
    if idle:
        used += f" Hardly used: {', '.join(idle)}."
    pictures = [
        Picture("Scores", "", plots.to_svg(plots.plot_scores, facts.scores, label="Scores")),
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
    confusion = expert_confusion(facts.weights, facts.outputs, facts.y)
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
        Picture(
            "Experts and classes",
            "Share of the examples of each true class that each expert alone gets right.",
            plots.to_svg(
                plots.plot_confusion, confusion, names, schema.classes, label="Experts and classes"
            ),
        ),
    ]


def _worst(facts: Facts) -> dict[str, Any]:
    """Returns the table of the examples with the highest loss."""
    columns = facts.schema.names[:_MOST_COLUMNS]
    head = ["row", facts.schema.target, "predicted", "loss", "led by", *columns]
    rows = []
    for i in worst(facts.losses, _WORST):
        if facts.schema.task == "classification":
            classes, p = facts.schema.classes, facts.predictions[i]
            guess = int(np.argmax(p))
            truth, said = str(classes[int(facts.y[i])]), f"{classes[guess]} ({p[guess]:.0%})"
        else:
            truth, said = f"{facts.y[i]:.5g}", f"{facts.predictions[i, 0]:.5g}"
        lead = int(np.argmax(facts.weights[i]))
        led = f"{facts.names[lead]} ({facts.weights[i, lead]:.0%})"
        row = facts.frame.iloc[int(i)]
        number = int(facts.frame.index[int(i)]) + 1
        rows.append(
            [str(number), truth, said, f"{facts.losses[i]:.4g}", led]
            + [_cell(row[name]) for name in columns]
        )
    return {"head": head, "rows": rows, "left_out": len(facts.schema.names) - len(columns)}


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)


__all__ = ["Picture", "render", "score_cells", "score_head"]
