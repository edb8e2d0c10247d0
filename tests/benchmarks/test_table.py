"""The table says what was measured, and whether the target is met."""

import pytest
from benchmarks.table import Row, mark, parse, show

from benchmarks import __main__ as command


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("a step", 1.1, 1.1), True),
        (Row("a step", 1.2, 1.1), False),
        (Row("a speed-up", 6.0, 5.0, at_least=True), True),
        (Row("a speed-up", 4.0, 5.0, at_least=True), False),
        (Row("a fact", 4.0), None),
    ],
)
def test_a_target_is_met_or_not(row, met):
    assert row.met is met
    assert mark(row) == {True: "yes", False: "**no**", None: ""}[met]


def test_rows_travel_between_processes(monkeypatch, capsys):
    row = Row("a step", 1.25, 1.5, "5 / 4 ms")
    monkeypatch.setenv("PLAIT_ROWS", "1")
    show([row])
    assert parse(capsys.readouterr().out.strip()) == row
    assert parse("Epoch 1/2") is None


def test_a_row_is_shown_with_its_target(monkeypatch, capsys):
    monkeypatch.delenv("PLAIT_ROWS", raising=False)
    show([Row("a speed-up", 4.0, 5.0, "8 / 2 ms", at_least=True)])
    assert "a speed-up: 4 (target ≥ 5) **no**  8 / 2 ms" in capsys.readouterr().out


def test_a_row_of_the_file():
    line = command.line(Row("a step", 1.234, 1.5, "5 / 4 ms"), "jax", "sparse")
    assert line == "| a step | jax | ≤ 1.5 | 1.23 | yes | 5 / 4 ms | sparse |"


def test_rows_that_are_not_measured_again_stay(tmp_path):
    path = tmp_path / "table.md"
    ours, theirs = (command.line(Row("a step", 1.0), "jax", name) for name in ("sparse", "stacked"))
    path.write_text("\n".join(["# Benchmarks", "", "| what | backend |", "|---|", ours, theirs]))
    assert command.kept(path, ["sparse"], ["jax"]) == [theirs]
    assert command.kept(path, ["sparse"], ["torch"]) == [ours, theirs]
    assert command.kept(tmp_path / "none.md", ["sparse"], ["jax"]) == []


def test_the_file_names_its_machine():
    assert command.machine("cpu").startswith("cpu-")
