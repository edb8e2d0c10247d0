"""The table says what was measured, and whether the target is met."""

import pytest
from benchmarks.table import Row, mark, parse, show
from benchmarks.timing import Comparison, compared

from benchmarks import __main__ as command


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row("a step", 1.1, 1.1), True),
        (Row("a step", 1.2, 1.1), False),
        (Row("a speed-up", 6.0, 5.0, at_least=True), True),
        (Row("a speed-up", 4.0, 5.0, at_least=True), False),
        (Row("a fact", 4.0), None),
        (Row("a step", 1.0, 1.1, cpu=1.05), True),
        (Row("a step", 1.0, 1.1, cpu=1.2), False),
        (Row("a speed-up", 6.0, 5.0, at_least=True, cpu=4.0), False),
    ],
)
def test_a_target_is_met_or_not(row, met):
    assert row.met is met
    assert mark(row) == {True: "yes", False: "**no**", None: ""}[met]


def test_rows_travel_between_processes(monkeypatch, capsys):
    row = Row("a step", 1.25, 1.5, "5 / 4 ms", cpu=1.5)
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
    assert line == "| a step | jax | ≤ 1.5 | 1.23 |  | yes | 5 / 4 ms | sparse |"
    row = Row.of("a step", Comparison(1.234, 1.345, 5, 4), 1.3)
    line = command.line(row, "jax", "sparse")
    assert line == "| a step | jax | ≤ 1.3 | 1.23 | 1.34 | **no** | 5.0 / 4.0 ms | sparse |"


def test_a_comparison_is_the_median_of_paired_turns():
    turns = [((2.0, 3.0), (1.0, 1.0)), ((9.0, 9.0), (3.0, 1.0)), ((1.0, 2.0), (1.0, 1.0))]
    assert compared(turns) == Comparison(wall=2.0, cpu=3.0, ours=2000.0, theirs=1000.0)


def test_rows_that_are_not_measured_again_stay(tmp_path):
    path = tmp_path / "table.md"
    ours, theirs = (command.line(Row("a step", 1.0), "jax", name) for name in ("sparse", "stacked"))
    path.write_text("\n".join(["# Benchmarks", "", "| what | backend |", "|---|", ours, theirs]))
    assert command.kept(path, ["sparse"], ["jax"]) == [theirs]
    assert command.kept(path, ["sparse"], ["torch"]) == [ours, theirs]
    assert command.kept(tmp_path / "none.md", ["sparse"], ["jax"]) == []


def test_the_file_names_its_machine():
    assert command.machine("cpu").startswith("cpu-")
