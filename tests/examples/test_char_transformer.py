"""The example runs, in a shortened form."""

import runpy
from pathlib import Path

PATH = Path(__file__).parents[2] / "examples" / "char_transformer.py"


def test_it_prints_a_row_for_each_model(capsys):
    runpy.run_path(str(PATH))["main"](["--steps", "2"])
    heading, names, *rows = capsys.readouterr().out.splitlines()
    assert "2 steps" in heading
    assert names.split() == ["feed-forward", "parameters", "bits/character", "ms/step"]
    assert [row[:14].strip() for row in rows] == ["dense", "top-2 of 8"]
    assert all(0 < float(row.split()[-2]) < 20 for row in rows)
