import json
import pathlib

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from plait.cli.app import app

VOWEL = pathlib.Path(__file__).parents[2] / "data" / "vowel"


@pytest.fixture(scope="session")
def plait():
    """Runs a command line in this process."""

    def run(*arguments, stdin=None):
        return CliRunner().invoke(app, [str(part) for part in arguments], input=stdin)

    return run


@pytest.fixture(scope="session")
def refused(plait):
    """Runs a command line that must fail as a user's mistake; returns its one line of error."""

    def run(*arguments, stdin=None):
        result = plait(*arguments, stdin=stdin)
        assert result.exit_code == 2, result.output
        lines = result.stderr.strip().splitlines()
        assert "Traceback" not in result.output
        return lines[-1]

    return run


@pytest.fixture(scope="session")
def mixed():
    """A table of numbers and categories: two classes, and a number that follows from them."""
    rng = np.random.default_rng(5)
    b = 240
    frame = pd.DataFrame({"x": rng.normal(50, 10, b), "colour": rng.choice(["blue", "red"], b)})
    sign = np.where(frame["colour"] == "red", 1.0, -1.0)
    frame["price"] = 1000 + 20 * (frame["x"] - 50) + 100 * sign + rng.normal(0, 5, b)
    frame["kind"] = np.where(frame["price"] > 1000, "dear", "cheap")
    return frame


@pytest.fixture(scope="session")
def fitted(plait, mixed, tmp_path_factory):
    """A folder with tables, and a model for each task."""
    folder = tmp_path_factory.mktemp("fitted")
    mixed.to_csv(folder / "t.csv", index=False)
    for task, other in (("kind", "price"), ("price", "kind")):
        result = plait(
            "fit", folder / "t.csv", "--target", task, "--ignore", other,
            "--model", "mixture", "--gate", "mlp", "--experts", 3,
            "--hidden", 8, "--epochs", 4, "-o", folder / f"{task}.keras", "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        (folder / f"{task}.json").write_text(result.stdout)
    return folder


@pytest.fixture(scope="session")
def printed(fitted):
    """What `plait fit --json` printed for each task."""
    return {task: json.loads((fitted / f"{task}.json").read_text()) for task in ("kind", "price")}
