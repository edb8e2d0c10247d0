"""The tables, from what was measured."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.contest import METHODS, MIXTURE, OTHERS, RIVALS
from benchmarks.quality.settings import SETTINGS

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
CANDIDATES = ("one network", "networks averaged", "blended mixture")
WITHIN = 1.02  # of the best candidate's loss


def page(results: dict[str, Any], fits: dict[str, list[Any]]) -> str:
    """Returns the page in Markdown.

    Args:
        results: By data set, what `python -m benchmarks.quality` measured.
        fits: By data set, what `python -m benchmarks.quality.fitting` measured.
    """
    commands = sorted({result["command"] for result in results.values()})
    return (
        (Path(__file__).parent / "page.md")
        .read_text()
        .format(
            sizes=_sizes(results),
            contest=_contest(results),
            gaps=_gaps(results),
            verdicts=_verdicts(results),
            fits=_fits(fits),
            published=_published(results),
            upcycling=_upcycling(results),
            commands="`, `".join(commands),
        )
    )


def _sizes(results: dict[str, Any]) -> str:
    rows = []
    for name, found in results.items():
        settings, (train, test) = SETTINGS[name], found["rows"]
        hidden = " + ".join(map(str, settings.hidden))
        chosen = ", ".join(sorted({o.split(", ")[1] for o in found["objectives"]}))
        rows.append(
            [name, f"{train:,}", f"{test:,}", f"{settings.experts}", hidden,
             f"{settings.epochs}", chosen]
        )  # fmt: skip
    head = ["data", "training rows", "test rows", "n", "hidden units of one", "epochs", "objective"]
    return _table(head, rows)


def _contest(results: dict[str, Any]) -> str:
    rows = []
    for method in METHODS:
        tests = [found["test"] for found in results.values()]
        rows.append([method, *(_spread(t[method]) if method in t else "" for t in tests)])
    return _table(["", *map(_titled, results.items())], rows)


def _titled(item: tuple[str, dict[str, Any]]) -> str:
    name, found = item
    return f"{name} ({len(found['test'][MIXTURE])} seeds)"


def _gaps(results: dict[str, Any]) -> str:
    rows = [
        [name, *(_gap(found["gaps"].get(rival)) for rival in (*RIVALS, *OTHERS[:2]))]
        for name, found in results.items()
    ]
    return _table(["mixture less …", *RIVALS, *OTHERS[:2]], rows)


def _gap(gap: Sequence[float] | None) -> str:
    if gap is None:
        return ""
    value, low, high = gap
    text = f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
    return text if low <= 0 <= high else f"**{text}**"


def _verdicts(results: dict[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {_verdict(found)}" for name, found in results.items())


def _verdict(found: dict[str, Any]) -> str:
    means = {method: statistics.mean(values) for method, values in found["test"].items()}
    sides: dict[str, list[str]] = {"better than": [], "level with": [], "worse than": []}
    for rival in (rival for rival in RIVALS if rival in found["gaps"]):
        _, low, high = found["gaps"][rival]
        side = "better than" if high < 0 else "worse than" if low > 0 else "level with"
        sides[side].append(rival)
    said = "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)
    best = min((m for m in (*RIVALS, *OTHERS) if m in means), key=means.__getitem__)
    return (
        f"the mixture ({means[MIXTURE]:.4f}) is {said}. Best of all others: {best} "
        f"({means[best]:.4f})."
    )


def _fits(fits: dict[str, list[Any]]) -> str:
    rows = []
    for name, runs in fits.items():
        picked = [run["chosen"] for run in runs]
        mean = {c: statistics.mean(r["scores"][c]["loss"] for r in runs) for c in CANDIDATES}
        mine = statistics.mean(run["scores"][run["chosen"]]["loss"] for run in runs)
        best = min(mean, key=mean.__getitem__)
        verdicts = [run["scores"]["one network"]["verdict"] for run in runs]
        worse = sum(verdict == "better than chosen" for verdict in verdicts)
        over = f"{100 * (mine / mean[best] - 1):+.1f} %"
        over += " **(over 2)**" if mine > WITHIN * mean[best] else ""
        counted = [f"{c} {picked.count(c)}" for c in CANDIDATES if c in picked]
        rows.append(
            [name, ", ".join(counted), *(f"{mean[c]:.4f}" for c in CANDIDATES), f"{mine:.4f}",
             over, f"{worse} of {len(runs)}"]
        )  # fmt: skip
    head = ["data", "chosen, how often", *CANDIDATES, "the chosen", "over the best candidate",
            "worse than one network beyond noise"]  # fmt: skip
    return _table(head, rows)


def _published(results: dict[str, Any]) -> str:
    rows = []
    for name, (what, figure, smaller) in FIGURES.items():
        if name not in results:
            continue
        found = results[name]
        values = found.get("planes", found["test"][MIXTURE])
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
