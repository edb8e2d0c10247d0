"""What is exported runs in its own runtime, with the model's numbers, without plait."""

import importlib
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from benchmarks.export import KINDS, OFFERED, by_row, cell, net, plain, scores, several_inputs

import plait
from plait.export.runtimes import FORMATS, is_installed
from plait.ops.tracing import traced

BACKEND = keras.config.backend()
CELLS = [(format, kind) for format in OFFERED.get(BACKEND, []) for kind in KINDS]
# At a capacity these runtimes sort or count otherwise; `export` says so and writes nothing.
REFUSED = {("tensorflow", "onnx"), ("torch", "onnx"), ("torch", "openvino")}


def needs(format):
    """Skips where a runtime is not installed."""
    if not is_installed(FORMATS[format].package):
        pytest.skip(f"the runtime {FORMATS[format].package} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(("format", "kind"), CELLS, ids=str)
def test_every_kind_of_mixture_runs_where_plain_keras_runs(format, kind, tmp_path):
    needs(format)
    if kind == "TopK with a capacity" and (BACKEND, format) in REFUSED:
        try:
            found = cell(kind, format, tmp_path)
        except RuntimeError:
            assert list(tmp_path.iterdir()) == []
            return
    else:
        found = cell(kind, format, tmp_path)
    assert max(found) < 1e-5


FIRST = OFFERED.get(BACKEND, ["onnx"])[0]


def test_a_file_that_gives_other_numbers_is_refused_and_what_was_there_stays(tmp_path, monkeypatch):
    path = tmp_path / f"model{FORMATS[FIRST].suffix or '.folder'}"
    path.write_text("before")
    wrong = FORMATS[FIRST]._replace(
        package="keras", load=lambda *_: lambda arrays: [np.zeros((len(arrays[0]), 3))]
    )
    monkeypatch.setitem(FORMATS, FIRST, wrong)
    module = importlib.import_module("plait.export.export")  # its package is named as a function
    monkeypatch.setattr(module, "_write", lambda graph, path, *_: path.write_text("x"))
    with pytest.raises(RuntimeError, match="at batch size 3 outputs differ by"):
        plait.export(plain(), path, FIRST)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_the_suffix_tells_the_format_and_must_fit_it(tmp_path):
    with pytest.raises(ValueError, match=r"Received: '\.onx'\. Use '\.onnx'"):
        plait.export(plain(), tmp_path / "model.onx")
    with pytest.raises(ValueError, match=r"'onnx' must end in '\.onnx'.*Use 'model\.onnx'"):
        plait.export(plain(), tmp_path / "model.tflite", "onnx")
    with pytest.raises(ValueError, match="`format` must be one of"):
        plait.export(plain(), tmp_path / "model", "onx")


def test_a_missing_runtime_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "onnx", FORMATS["onnx"]._replace(package="no_such_runtime"))
    with pytest.raises(ImportError, match="no package 'no_such_runtime'"):
        plait.export(plain(), tmp_path / "model.onnx")


def test_a_model_that_was_never_called_is_told_to_be(tmp_path):
    model = plait.Mixture([keras.layers.Dense(2)], "uniform")
    with pytest.raises(ValueError, match="must know the shapes of its inputs"):
        model.export(tmp_path / "model", verify=False)


WITHOUT = """
import sys, numpy as np
sys.modules["plait"] = None
sys.modules["keras"] = None
path, folder = sys.argv[1:]
given = dict(np.load(folder + "/given.npz"))
if path.endswith(".onnx"):
    import onnxruntime
    found = onnxruntime.InferenceSession(path).run(None, given)[0]
else:
    import tensorflow as tf
    loaded = tf.saved_model.load(path)  # its variables live as long as it does
    found = loaded.serve({k: tf.constant(v) for k, v in given.items()}).numpy()
np.save(folder + "/found.npy", found)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "format", [f for f in ("tf_saved_model", "onnx") if f in OFFERED.get(BACKEND, [])]
)
def test_a_process_without_plait_runs_what_was_exported(format, tmp_path, rng):
    needs(format)
    model = several_inputs()
    path = plait.export(model, tmp_path / f"model{FORMATS[format].suffix}", format)
    widths = {"image": 4, "text": 2, "meta": 3}
    given = {name: rng.normal(size=(5, w)).astype("float32") for name, w in widths.items()}
    np.savez(tmp_path / "given.npz", **given)
    subprocess.run(
        [sys.executable, "-c", WITHOUT, str(path), str(tmp_path)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    expected = model.predict(given, verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-5)


@pytest.mark.slow
def test_a_fixed_batch_size_and_a_mixture_by_its_own_method(tmp_path):
    needs(FIRST)
    mixture = by_row()
    path = mixture.export(tmp_path / f"fixed{FORMATS[FIRST].suffix}", FIRST, batch_size=6)
    assert path.exists()


def test_every_expert_on_every_row_gives_what_the_chosen_ones_give(rng):
    x = rng.normal(size=(9, 4)).astype("float32")
    for router in (plait.routers.TopK(2), plait.routers.TopK(2, capacity_factor=0.5)):
        mixture = plait.Mixture(net(), scores(4), num_experts=4, router=router)
        expected = keras.ops.convert_to_numpy(mixture(x))
        for how in ("every expert", "one by one"):
            with traced(how):
                found = keras.ops.convert_to_numpy(mixture(x))
            np.testing.assert_allclose(found, expected, atol=1e-6)
