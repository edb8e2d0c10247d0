"""Every mistake a user can make: exit code 2, one line that helps, no traceback, no output."""

import os
import re
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
from tests.cli.conftest import VOWEL

FIT = ["--target", "kind", "--ignore", "price", "--epochs", 1]


def with_cell(frame, column, value):
    values = frame[column].tolist()
    values[6] = value
    return frame.assign(**{column: values})


OPTIONS = [
    (["--gate", "linar"], r"`--gate` must be one of .*Received: 'linar'\. Use 'linear'"),
    (["--task", "clasification"], r"`task` must be one of .*Use 'classification'"),
    (["--experts", 0], r"`--experts` must be at least 1\. Received: 0\. Use --experts 1 or more"),
    (["--hidden", 0], r"`--hidden` must be at least 1\. Received: 0"),
    (["--epochs", 0], r"`--epochs` must be at least 1\. Received: 0"),
    (["--seed", -1], r"`--seed` must be at least 0\. Received: -1"),
    (["--target", "sort"], r"must have the column 'sort'\. Received: the columns 'x', 'colour'"),
    (["--ignore", "weight"], r"`--ignore` names feature columns.*Received: 'weight'"),
    (["--ignore", "kind"], r"`--ignore` names feature columns.*Received: 'kind'"),
    (["--test", "gone.csv"], r"A table must exist\. Received: 'gone\.csv'"),
    (["-o", "m.h5"], r"ends in \.keras\. Received: 'm\.h5'\. Write m\.keras"),
    (["-o", "gone/m.keras"], r"folder of an output must exist.*Make it first: mkdir -p gone"),
    (["-o", "/proc/m.keras"], r"must be writable\. Received: '/proc/m\.keras'"),
    (["--report", "gone/r.html"], r"folder of an output must exist"),
    (["--report", "r.pdf"], r"ends in \.html\. Received: 'r\.pdf'"),
]


@pytest.mark.parametrize(("options", "match"), OPTIONS)
def test_options_of_fit(refused, fitted, tmp_path, monkeypatch, options, match):
    monkeypatch.chdir(tmp_path)
    found = refused("fit", fitted / "t.csv", *FIT, "-o", "m.keras", *options)
    assert re.search(match, found), found
    assert not list(tmp_path.iterdir())


TABLES = [
    ("kind", "dear", r"at least two classes\. Received: 'dear' in all 240 rows of 'kind'"),
    ("x", [7, np.inf], r"'x' must hold a finite value.*infinity in row 7 \(1 such"),
    ("kind", [7, None], r"'kind' must hold a value.*an empty cell in row 7"),
    ("price", [7, np.nan], r"'price' must hold a value"),
    ("price", [7, np.inf], r"'price' must hold a finite value of 32 bits\. Received: infinity"),
]


@pytest.mark.parametrize(("column", "change", "match"), TABLES)
def test_tables_to_train_on(refused, mixed, tmp_path, column, change, match):
    table = tmp_path / "t.csv"
    if isinstance(change, str):
        mixed.assign(**{column: change}).to_csv(table, index=False)
    else:
        with_cell(mixed, column, change[1]).to_csv(table, index=False)
    target = "price" if column == "price" else "kind"
    found = refused("fit", table, "--target", target, "-o", tmp_path / "m.keras")
    assert re.search(match, found), found
    assert list(tmp_path.iterdir()) == [table]


FILES = [
    ("t.csv", b"", r"needs a header and at least one row"),
    ("t.csv", b"x,colour,kind\n", r"needs a header and at least one row"),
    ("t.csv", b"PAR1\x15\x04", r"ends in \.csv must hold CSV data.*begins like a Parquet file"),
    ("t.parquet", b"x,kind\n1,a\n", r"ends in \.parquet must hold PARQUET data"),
    ("t.npz", b"x,kind\n1,a\n", r"ends in \.npz must hold NPZ data"),
    ("t.txt", b"x,kind\n1,a\n", r"A table is a file that ends in \.csv"),
    ("t.csv", b"x,kind\n1,a\n2,b\n", r"at least 10 rows\. Received: 2 in"),
    ("t.csv", b"x;kind\n" + b"1;a\n" * 12, r"Separate the cells by commas"),
]


@pytest.mark.parametrize(("name", "content", "match"), FILES)
def test_files_that_are_no_tables(refused, tmp_path, name, content, match):
    table = tmp_path / name
    table.write_bytes(content)
    found = refused("fit", table, "--target", "kind", "-o", tmp_path / "m.keras")
    assert re.search(match, found), found
    assert list(tmp_path.iterdir()) == [table]


ROWS = [
    ("colour\nred\n", r"must have the column 'x'\. Received: the columns 'colour'"),
    ("x,colour\ntall,red\n", r"'x' must hold numbers\. Received: 'tall' in row 1"),
    ("x,colour\n1,red\ninf,red\n", r"infinity in row 2"),
    ("x,colour\n1,red,3\n1,red\n", r"as many cells as the header"),
    ("", r"needs a header and at least one row\. Received: standard input"),
]


@pytest.mark.parametrize(("text", "match"), ROWS)
def test_rows_to_predict_on(refused, fitted, tmp_path, text, match):
    out = tmp_path / "p.csv"
    found = refused("predict", fitted / "kind.keras", "-", "-o", out, stdin=text)
    assert re.search(match, found), found
    assert not out.exists()


@pytest.fixture(scope="session")
def models(fitted, tmp_path_factory):
    """Files that are no mixtures, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("models")
    whole = (fitted / "kind.keras").read_bytes()
    (folder / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "text.keras").write_text("not a model")
    (folder / "m.h5").write_text("not a model")
    with zipfile.ZipFile(folder / "zip.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax")])
    plain.save(folder / "plain.keras")
    return folder


MODELS = [
    ("gone.keras", r"A model must exist\. Received: .*gone\.keras"),
    ("m.h5", r"A model is a \.keras file\. Received: .*m\.h5"),
    ("cut.keras", r"must be a \.keras file that Keras can load.*Write it again"),
    ("text.keras", r"must be a \.keras file that Keras can load"),
    ("zip.keras", r"must be a \.keras file that Keras can load"),
    ("plain.keras", r"must be a (plait\.Mixture|mixture that reads tables).*Received: .*plain"),
]


@pytest.mark.parametrize(("name", "match"), MODELS)
@pytest.mark.parametrize("command", ["predict", "inspect", "report"])
def test_models_that_are_damaged_or_no_mixtures(
    refused, fitted, models, tmp_path, command, name, match
):
    more = {
        "predict": [fitted / "t.csv"],
        "inspect": [],
        "report": [fitted / "t.csv", "-o", tmp_path / "r.html"],
    }
    found = refused(command, models / name, *more[command])
    assert re.search(match, found), found
    assert not list(tmp_path.iterdir())


OUTPUTS = [
    ("predict", "p.txt", r"written to a \.csv or \.parquet file\. Received: .*p\.txt"),
    ("predict", "gone/p.csv", r"folder of an output must exist"),
    ("report", "r.txt", r"ends in \.html"),
    ("report", "gone/r.html", r"folder of an output must exist"),
]


@pytest.mark.parametrize(("command", "out", "match"), OUTPUTS)
def test_outputs_that_cannot_be_written(refused, fitted, tmp_path, command, out, match):
    found = refused(command, fitted / "kind.keras", fitted / "t.csv", "-o", tmp_path / out)
    assert re.search(match, found), found


def test_an_output_never_overwrites_an_input(refused, fitted):
    found = refused("predict", fitted / "kind.keras", fitted / "t.csv", "-o", fitted / "t.csv")
    assert re.search(r"must not overwrite an input\. Received: .*t\.csv", found)


def test_an_unknown_label_in_a_table_to_report_on(refused, fitted, mixed, tmp_path):
    with_cell(mixed, "kind", "odd").to_csv(tmp_path / "t.csv", index=False)
    found = refused("report", fitted / "kind.keras", tmp_path / "t.csv", "-o", tmp_path / "r.html")
    assert re.search(r"one of the model's 2 classes.*Received: 'odd' in row 7", found)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_an_interrupt_during_training_leaves_the_old_output_alone(tmp_path, number):
    """A real process, a real Ctrl-C: exit code 130, nothing half-written."""
    out = tmp_path / "m.keras"
    out.write_text("before")
    command = [
        *(sys.executable, "-m", "plait.cli", "fit", VOWEL / "train.csv"),
        *("--target", "vowel", "--epochs", "1000000", "-o", out),
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as process:
        # The plan is printed when the work begins, after every check.
        while "mlp gate" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(3)  # into the training itself
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Interrupted: no output was written." in errors
    assert "Traceback" not in errors
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_help_and_unknown_commands_need_no_model(plait, refused):
    for command in ("fit", "blend", "predict", "inspect", "report"):
        assert plait(command, "--help").exit_code == 0
    assert plait("weave").exit_code == 2
