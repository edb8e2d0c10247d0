import numpy as np
import pytest

from plait import plots
from plait.inspection import Score, expert_confusion, usage, weights_along

WEIGHTS = np.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
NAMES = ["net & <co>", "$5 _x"]
OUTPUTS = np.full((3, 2, 2), 0.5)
Y = np.array([0, 1, 1])

FIGURES = [
    (
        plots.plot_scores,
        [[Score("mixture", 0.5, accuracy=0.9), Score("oracle", 0.1, accuracy=1.0)]],
    ),
    (plots.plot_scores, [[Score("mixture", 0.5, rmse=0.7, r2=0.9)]]),
    (plots.plot_usage, [usage(WEIGHTS), NAMES]),
    (plots.plot_entropy, [usage(WEIGHTS)]),
    (plots.plot_weights_per_class, [WEIGHTS[:2], NAMES, ["a", 3]]),
    (plots.plot_weights_along, [weights_along(WEIGHTS, np.array([1.0, 2.0, 9.0])), NAMES, "y"]),
    (plots.plot_confusion, [expert_confusion(WEIGHTS, OUTPUTS, Y), NAMES, ["a" * 30, "b"]]),
    (plots.plot_weights_per_class, [np.full((20, 16), np.nan), ["e"] * 16, list(range(20))]),
]


@pytest.mark.parametrize(("plot", "arguments"), FIGURES)
def test_every_picture_is_drawn_as_text_that_stands_alone(plot, arguments):
    svg = plots.to_svg(plot, *arguments, label="A <picture>")
    assert svg.startswith('<svg role="img" aria-label="A &lt;picture&gt;"')
    assert "currentColor" in svg
    assert "<script" not in svg
    assert "<metadata" not in svg


def test_the_same_numbers_give_the_same_picture():
    first, second = (plots.to_svg(plots.plot_entropy, usage(WEIGHTS), label="E") for _ in range(2))
    assert first == second


def test_names_are_shown_as_they_are():
    svg = plots.to_svg(plots.plot_usage, usage(WEIGHTS), NAMES, label="U")
    assert "net &amp; &lt;co&gt;" in svg
    assert "$5 _x" in svg


def test_identifiers_of_two_pictures_differ():
    a, b = (plots.to_svg(plots.plot_entropy, usage(WEIGHTS), label=name) for name in "AB")
    assert 'id="A-' in a
    assert 'id="B-' in b
    assert 'id="A-' not in b
