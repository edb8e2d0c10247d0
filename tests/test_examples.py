"""Every example runs, in a shortened form, and writes its picture."""

import importlib
from pathlib import Path

import keras
import matplotlib
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PICTURES = EXAMPLES.parent / "docs" / "gallery"
PAGE = EXAMPLES.parent / "docs" / "gallery.md"
SHORT = {"steps": 20, "seeds": 1}
WRITES_ONNX = {"jax": "jax2onnx", "torch": "onnxscript", "tensorflow": "tf2onnx"}
# Each example, what makes it short, and the packages beyond plait's test tools that it needs.
TABLE = {
    "two_moons": (SHORT, []),
    "inverse_problem": (SHORT, []),
    "hierarchical": (SHORT, []),
    "forest_and_network": (SHORT, []),
    "missing_view": (SHORT, []),
    "upcycling": (SHORT, []),
    "two_tasks": (SHORT, []),
    "sparsified": ({"experts": (4,), "repeats": 1}, ["keras_hub"]),
    "onnx_without_plait": (SHORT, ["onnxruntime", WRITES_ONNX[keras.config.backend()]]),
}


@pytest.fixture
def example(monkeypatch):
    """Imports an example, as Python does when it is run as a script."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with matplotlib.rc_context():  # the examples set their style
        yield importlib.import_module


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_it_prints_numbers_and_writes_its_picture(name, example, tmp_path, capsys):
    arguments, packages = TABLE[name]
    for package in packages:
        pytest.importorskip(package)
    example(name).main(**arguments, folder=tmp_path)
    assert f"{name}.svg" in capsys.readouterr().out
    assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*hardly used after epoch")  # after so few steps
def test_the_transformer_prints_a_row_for_each_model(example, tmp_path, capsys):
    main = example("char_transformer").main
    main(["--steps", "2", "--folder", str(tmp_path)])
    heading, names, *rows = capsys.readouterr().out.splitlines()
    assert "2 steps" in heading
    assert names.split() == ["feed-forward", "seed", "parameters", "bits/character", "ms/step"]
    rows = [row for row in rows if not row.startswith("picture")]
    assert [row[:14].strip() for row in rows] == ["dense", "top-2 of 8", "dense, wide"]
    assert all(0 < float(row.split()[-2]) < 20 for row in rows)
    assert (tmp_path / "char_transformer.svg").exists()


def test_the_table_above_holds_every_example():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*TABLE, "char_transformer", "gallery"}


def test_the_page_shows_every_picture_and_none_is_large():
    page = PAGE.read_text()
    for name in (*TABLE, "char_transformer"):
        picture = PICTURES / f"{name}.svg"
        assert f"](gallery/{name}.svg)" in page
        assert f"`examples/{name}.py`" in page
        assert picture.stat().st_size < 100_000
