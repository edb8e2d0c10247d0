"""The tables, from what was measured."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.contest import METHODS, MIXTURES, ORACLE, UNIFORM

# Data set: what is published, and whether smaller is better.
FIGURES = {
    "2dplanes": ("2 linear experts, linear gate: test RMSE", 1.01, True),
    "iris": ("mixture of small networks: 5-fold accuracy", 0.904, False),
    "wine": ("mixture of small networks: 5-fold accuracy", 0.979, False),
    "breast cancer": ("mixture of small networks: 5-fold accuracy", 0.977, False),
    "kin8nm": ("mixture of small networks: test RMSE", 0.075, True),
    "letter": ("mixture of small networks: test error", 0.035, True),
    "vowel": ("mixture, tuned on training speakers only: test error", 0.42, True),
}


def page(results: dict[str, Any]) -> str:
    """Returns the page in Markdown.

    Args:
        results: By data set, what `python -m benchmarks.quality` measured.
    """
    commands = sorted({result["command"] for result in results.values()})
    return (
        (Path(__file__).parent / "page.md")
        .read_text()
        .format(
            contest=_contest(results),
            verdicts=_verdicts(results),
            published=_published(results),
            upcycling=_upcycling(results),
            commands="`, `".join(commands),
        )
    )


def _contest(results: dict[str, Any]) -> str:
    rows = [[method, *(_spread(r["test"][method]) for r in results.values())] for method in METHODS]
    return _table(["", *results], rows)


def _verdicts(results: dict[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {_verdict(found['test'])}" for name, found in results.items())


def _verdict(test: dict[str, list[float]]) -> str:
    means = {method: statistics.mean(values) for method, values in test.items()}
    others = [method for method in METHODS if method not in (*MIXTURES, ORACLE)]
    mixture, other = min(MIXTURES, key=means.__getitem__), min(others, key=means.__getitem__)
    verb = "beats" if means[mixture] < means[UNIFORM] else "does not beat"
    return (
        f"the best mixture ({mixture.split(', ')[1]}, {means[mixture]:.4f}) {verb} the uniform "
        f"average of as many networks ({means[UNIFORM]:.4f}); "
        f"best of the others: {other} ({means[other]:.4f})."
    )


def _published(results: dict[str, Any]) -> str:
    rows = []
    for name, (what, figure, smaller) in FIGURES.items():
        if name not in results:
            continue
        found = results[name]
        values = found.get("planes", found["chosen"])
        values = values if smaller else [1.0 - value for value in values]
        mean = statistics.mean(values)
        ours = _spread(values)
        if "feature" in found:
            ours += f"; largest gate coefficient on feature {found['feature']}"
        reached = "yes" if (mean <= figure if smaller else mean >= figure) else "**no**"
        rows.append([name, what, f"{'≤' if smaller else '≥'} {figure}", ours, reached])
    return _table(["data", "model", "published", "ours", "reached"], rows)


def _upcycling(results: dict[str, Any]) -> str:
    found = {name: r["upcycling"] for name, r in results.items() if "upcycling" in r}
    columns = list(next(iter(found.values()), {}))
    rows = [[name, *(_spread(run[column]) for column in columns)] for name, run in found.items()]
    return _table(["data", *columns], rows)


def _spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
