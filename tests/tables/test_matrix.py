import dataclasses

import numpy as np
import pandas as pd
import pytest

from plait.tables import Column, infer, matrix, target

FRAME = pd.DataFrame(
    {"age": [40, 50, 60, 50], "sex": ["f", "m", "f", "m"], "vowel": ["o", "a", "o", "e"]}
)


@pytest.fixture
def schema():
    return infer(FRAME, "vowel")


def test_a_training_table_says_what_its_columns_are(schema):
    scale = float(np.std([40, 50, 60, 50]))
    assert schema.columns == (
        Column("age", None, 50.0, scale, fill=50.0),
        Column("sex", ("f", "m")),
    )
    assert schema.task == "classification"
    assert schema.classes == ("a", "e", "o")
    assert schema.width == 3
    assert schema.texts == ["sex", "vowel"]


def test_the_matrix_holds_numbers_and_codes_in_the_order_of_training(schema):
    frame = FRAME[["vowel", "sex", "age"]].assign(more=1)
    assert matrix(frame, schema).tolist() == [[40, 0], [50, 1], [60, 0], [50, 1]]
    assert target(frame, schema).tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b"], "classification"),
        ([True, False], "classification"),
        ([0, 1], "classification"),
        ([0.5, 1.0], "regression"),
        (list(range(21)), "regression"),
    ],
)
def test_the_target_says_the_task(values, task):
    frame = pd.DataFrame({"x": np.arange(len(values)), "y": values})
    assert infer(frame, "y").task == task


def test_a_regression_target_is_kept_in_its_units():
    schema = infer(pd.DataFrame({"x": [1, 2], "y": [10.0, 30.0]}), "y", "regression")
    assert (schema.center, schema.spread, schema.classes) == (20.0, 10.0, ())
    assert target(pd.DataFrame({"y": [5.0]}), schema).tolist() == [5.0]


def test_integer_labels_survive_beside_texts(schema):
    numbers = dataclasses.replace(schema, classes=(3, 5))
    assert target(pd.DataFrame({"vowel": ["5", "3"]}), numbers).tolist() == [1, 0]
    texts = dataclasses.replace(schema, classes=("3", "a"))
    assert target(pd.DataFrame({"vowel": [3, 3]}), texts).tolist() == [0, 0]


def test_categories_of_pandas_are_texts():
    frame = FRAME.astype({"sex": "category"})
    assert infer(frame, "vowel").columns[1].categories == ("f", "m")


def with_cell(column, value, row=1):
    values = FRAME[column].tolist()
    values[row] = value
    return FRAME.assign(**{column: values})


READING = [
    (FRAME.drop(columns="age"), r"must have the column 'age'\. Received: the columns 'sex'"),
    (FRAME.drop(columns=["age", "sex"]), r"must have the columns 'age', 'sex'"),
    (pd.DataFrame({"age;sex": ["1;f"]}), r"Separate the cells by commas"),
    (with_cell("age", np.nan), r"'age' must hold a value.*an empty cell in row 2"),
    (with_cell("age", np.inf), r"'age' must hold a finite value.*infinity in row 2 \(1 such"),
    (
        with_cell("age", "old"),
        r"'age' must hold numbers\. Received: 'old' in row 2 \(1 such row of 4\)",
    ),
    (with_cell("sex", "x"), r"'sex' must hold one of the 2 categories.*Received: 'x' in row 2"),
    (with_cell("sex", None), r"'sex' must hold one of the 2 categories.*an empty cell in row 2"),
]


@pytest.mark.parametrize(("frame", "match"), READING)
def test_a_table_unlike_the_training_table_is_refused(schema, frame, match):
    with pytest.raises(ValueError, match=match):
        matrix(frame, schema)


def test_an_unknown_label_is_refused(schema):
    with pytest.raises(ValueError, match=r"one of the model's 3 classes .* Received: 'u' in row 2"):
        target(with_cell("vowel", "u"), schema)


def test_rows_are_counted_through_the_batches(schema):
    late = with_cell("sex", "x", row=2)
    late.index = range(100, 104)
    with pytest.raises(ValueError, match=r"'x' in row 103"):
        matrix(late, schema)


TRAINING = [
    (FRAME, "tone", "auto", r"must have the column 'tone'"),
    (FRAME, "vowel", "guess", r"`task` must be one of .*Received: 'guess'"),
    (FRAME[["vowel"]], "vowel", "auto", r"needs a feature beside the target"),
    (FRAME.assign(vowel="o"), "vowel", "auto", r"at least two classes\. Received: 'o' in all 4"),
    (FRAME.assign(y=3.0), "y", "regression", r"A target must vary\. Received: 3 in all 4"),
    (with_cell("age", np.nan), "age", "regression", r"'age' must hold a value"),
    (with_cell("age", np.inf), "age", "auto", r"infinity in row 2"),
    (with_cell("vowel", None), "vowel", "auto", r"'vowel' must hold a value"),
    (FRAME.assign(y=[0.5, 1, 2, 3]), "y", "classification", r"texts or integers\. Received: 0.5"),
    (FRAME, "vowel", "regression", r"'vowel' must hold numbers\. Received: 'o' in row 1"),
    (
        FRAME.assign(t=1.7e9 + np.arange(4)),
        "vowel",
        "auto",
        r"'t' must vary enough for 32-bit numbers\. Received: values around 1.7e\+09|1700000001",
    ),
]


@pytest.mark.parametrize(("frame", "name", "task", "match"), TRAINING)
def test_what_cannot_be_learned_is_refused(frame, name, task, match):
    with pytest.raises(ValueError, match=match):
        infer(frame, name, task)


def test_a_column_of_identifiers_is_refused():
    frame = pd.DataFrame({"id": [f"n{i}" for i in range(1200)], "y": [0, 1] * 600})
    with pytest.raises(
        ValueError, match=r"1,200 in the 1,200 rows of 'id' in row 1 .*Leave it out"
    ):
        infer(frame, "y")


def test_numbers_with_a_few_words_among_them_are_refused():
    cells = [str(i) for i in range(1200)]
    cells[7] = "n.a."
    with pytest.raises(
        ValueError, match=r"mostly numbers, but also 'n\.a\.' in row 8 .*Mend these cells"
    ):
        infer(pd.DataFrame({"x": cells, "y": [0, 1] * 600}), "y")


def test_a_column_that_never_varies_is_harmless():
    schema = infer(pd.DataFrame({"x": [5e6, 5e6], "y": ["a", "b"]}), "y")
    assert schema.columns == (Column("x", None, 5e6, 1.0, fill=5e6),)
