import dataclasses
import json

import pytest

from plait.encoding import Baseline, Column, Schema, agree

COLUMNS = (Column("age", mean=40.0, scale=10.0), Column("sex", ("f", "m")))
SCHEMA = Schema(
    COLUMNS, "vowel", "classification", ("a", 3), baseline=Baseline(1, (0.25, 0.75), ("p", "q"))
)


@pytest.mark.parametrize("schema", [SCHEMA, Schema(COLUMNS, "y", "regression", center=1.5)])
def test_a_schema_survives_json(schema):
    assert Schema.from_config(json.loads(json.dumps(schema.to_config()))) == schema


def test_schemas_that_differ_in_scaling_alone_agree():
    other = dataclasses.replace(SCHEMA, columns=(Column("age"), COLUMNS[1]))
    assert other != SCHEMA
    agree([SCHEMA, other], ["p", "q"])  # raises if they do not


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"task": "regression"}, r"the same tasks\. Received: p with 'classification', q with"),
        ({"target": "tone"}, r"the same targets"),
        ({"classes": ("a",)}, r"the same class labels.*p with \['a', 3\], q with \['a'\]"),
        ({"columns": COLUMNS[:1]}, r"the same columns"),
        ({"columns": (COLUMNS[0], Column("sex", ("f",)))}, r"the same categories of 'sex'"),
    ],
)
def test_schemas_that_differ_are_named(change, match):
    with pytest.raises(ValueError, match=match):
        agree([SCHEMA, dataclasses.replace(SCHEMA, **change)], ["p", "q"])
