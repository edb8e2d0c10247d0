import dataclasses
import html.parser
import json
import re

import numpy as np
import pandas as pd
import pytest

from plait.inspection import choose, losses, scores, usage
from plait.report import Facts, render, score_cells, score_head
from plait.tables import infer, target

NAMES = ["net <1>", "net 2", "net 3"]


def facts(task, b=40):
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"x": rng.normal(size=b), "colour": rng.choice(["r & b", "g"], b)})
    frame["y"] = rng.normal(size=b) if task == "regression" else rng.choice(["a", "<b>"], b)
    schema = infer(frame, "y", task)
    y = target(frame, schema)
    u = max(1, len(schema.classes))
    outputs = rng.random((b, 3, u))
    if task == "classification":
        outputs /= outputs.sum(-1, keepdims=True)
    weights = rng.dirichlet([0.001, 1, 1], b)
    predictions = np.einsum("be,beu->bu", weights, outputs)
    table = scores(predictions, outputs, y, task, choose(outputs, y, task), NAMES)
    each = losses(predictions, y, task)
    return Facts(
        schema, tuple(NAMES), predictions, weights, outputs, y, each, table, usage(weights), frame
    )


@pytest.fixture(params=["classification", "regression"])
def page(request):
    return render(facts(request.param), "my <model>.keras", "t.csv")


def test_the_page_needs_nothing_beside_itself(page):
    assert not re.search(
        r'(src|href)="(?!#|data:)|url\((?!#)|@import|<script(?! type="application/json")', page
    )


def test_every_tag_is_closed(page):
    class Parser(html.parser.HTMLParser):
        void = ("meta", "br", "!doctype")

        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in self.void:
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Parser()
    parser.feed(page)
    assert parser.open == []


def test_names_from_outside_are_texts_not_markup(page):
    assert "my &lt;model&gt;.keras" in page
    assert "net &lt;1&gt;" in page
    assert "<1>" not in page
    assert "<b>" not in page.replace("<b>y</b>", "")


def test_the_page_has_its_sections():
    page = render(facts("classification"), "m", "t.csv")
    for heading in (
        "The honest table",
        "Use of the experts",
        "Gate entropy",
        "Weights per class",
        "Experts and classes",
        "The worst examples",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "Hardly used: net &lt;1&gt;." in page
    assert "Weights along the target" in render(facts("regression"), "m", "t.csv")


def test_weights_that_are_the_same_everywhere_are_not_drawn():
    found = facts("classification")
    even = np.full_like(found.weights, 1.0 / found.weights.shape[1])
    page = render(dataclasses.replace(found, weights=even), "m", "t.csv")
    for heading in ("Use of the experts", "Gate entropy", "Weights per class", "Who leads where"):
        assert heading not in page
    assert "<h2>Experts and classes</h2>" in page


def test_the_worst_examples_come_first_and_are_counted_from_one():
    found = facts("regression")
    page = render(found, "m", "t.csv")
    row = int(np.argmax(found.losses))
    rest = page[page.index("The worst examples") :]
    cells = re.findall(r"<td>(.*?)</td>", rest)
    assert cells[0] == str(row + 1)
    assert cells[1] == f"{found.y[row]:.5g}"


def test_the_numbers_of_the_page_are_json(page):
    text = re.search(r'id="plait-numbers">(.*?)</script>', page, re.DOTALL).group(1)
    assert len(json.loads(text)["scores"]) == 5


def test_the_page_says_what_is_noise_and_that_pieces_are_pieces():
    entry = {"name": "one network", "loss": 0.5, "accuracy": 0.75, "noise": True}
    entry["chosen_less_this"] = {"value": -0.1, "low": -0.3, "high": 0.1}
    record = {"chosen": "mixture", "verdict": "V.", "contest": [entry], "scored_on": "t"}
    found = facts("classification")
    schema = dataclasses.replace(found.schema, record=record)
    page = render(dataclasses.replace(found, schema=schema), "m", "t.csv")
    assert "+0.1 [-0.1, +0.3], within noise" in page
    assert "the same experts without the gate" in page
    assert "the same experts without the gate" not in render(found, "m", "t.csv")


def test_scores_are_written_with_their_units():
    assert score_head(facts("regression").scores) == ["", "RMSE", "R²"]
    row = facts("classification").scores[0]._replace(loss=0.5, accuracy=0.875)
    assert score_cells(row) == ["mixture", "0.5000", "87.5 %"]
