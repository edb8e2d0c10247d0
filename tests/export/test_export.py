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
from plait.export.inputs import as_graph, output_names
from plait.export.runtimes import FORMATS, is_installed
from plait.ops.tracing import traced

BACKEND = keras.config.backend()
CELLS = [(format, kind) for format in OFFERED.get(BACKEND, []) for kind in KINDS]


def needs(format):
    """Skips where a runtime is not installed."""
    if not is_installed(FORMATS[format].package):
        pytest.skip(f"the runtime {FORMATS[format].package} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize(("format", "kind"), CELLS, ids=str)
def test_every_kind_of_mixture_runs_where_plain_keras_runs(format, kind, tmp_path):
    needs(format)
    assert max(cell(kind, format, tmp_path)) < 1e-5


def parts():
    """A model of two inputs and a dict of outputs."""
    x, other = keras.Input((4,)), keras.Input((2,), name="other")
    mixture = by_row()
    mixture(x)
    return keras.Model([x, other], {**mixture.with_parts()(x), "z": keras.layers.Dense(1)(other)})


def listed():
    """A model of a list of outputs, some of whose layers have names of their own."""
    x = keras.Input((4,))
    named = keras.layers.Dense(2, name="price")
    rest = [keras.layers.Dense(2)(x) for _ in range(10)]
    return keras.Model(x, [keras.layers.Dense(3)(x), named(x), *rest, named(x)])


NAMES = {
    by_row: (["input"], ["output"]),
    several_inputs: (["image", "meta", "text"], ["output"]),
    parts: (["input_0", "other"], ["experts", "output", "weights", "z"]),
    listed: (["input"], ["output_0", "price", *(f"output_{i}" for i in range(2, 13))]),
}


@pytest.mark.parametrize("make", NAMES)
def test_names_last_from_one_process_to_another(make):
    """None is a number that Keras counted, such as that of `dense_7` or `keras_tensor_12`."""
    keras.layers.Dense(1)  # which moves the count on
    model = make()
    assert [leaf.name for leaf in keras.tree.flatten(as_graph(model).input)] == NAMES[make][0]
    assert output_names(model) == NAMES[make][1]


def test_a_sequential_ends_in_the_name_of_its_last_layer():
    layers = [keras.Input((4,)), keras.layers.Dense(2, name="price")]
    assert output_names(keras.Sequential(layers)) == ["price"]
    assert output_names(net()) == ["output"]


def names_in(path, format):
    """Names of inputs and of outputs, as a runtime gives them."""
    if format == "onnx":
        file = importlib.import_module("onnxruntime").InferenceSession(path)
        return [
            [entry.name for entry in entries] for entries in (file.get_inputs(), file.get_outputs())
        ]
    if format == "openvino":
        file = importlib.import_module("openvino").Core().read_model(path)
        return [[port.get_any_name() for port in ports] for ports in (file.inputs, file.outputs)]
    file = importlib.import_module("tensorflow").saved_model.load(str(path))
    signature = file.signatures["serving_default"]
    return [signature.structured_input_signature[1], signature.structured_outputs]


@pytest.mark.slow
@pytest.mark.parametrize("make", NAMES)
@pytest.mark.parametrize(
    "format", [f for f in OFFERED.get(BACKEND, []) if f in ("onnx", "openvino", "tf_saved_model")]
)
def test_the_files_have_these_names(make, format, tmp_path):
    needs(format)
    path = plait.export(make(), tmp_path / f"model{FORMATS[format].suffix}", format)
    inputs, outputs = names_in(path, format)
    if format == "tf_saved_model":  # whose signature numbers all outputs that have no key
        assert sorted(inputs) == NAMES[make][0]
        keyed = make is parts
        wanted = NAMES[make][1] if keyed else [f"output_{i}" for i in range(len(outputs))]
        assert sorted(outputs) == sorted(wanted)
    else:
        assert sorted(inputs) == NAMES[make][0]
        assert outputs == NAMES[make][1]


@pytest.mark.slow
@pytest.mark.skipif("onnx" not in OFFERED.get(BACKEND, []), reason="writes no ONNX")
def test_an_input_that_is_an_output_and_an_output_given_twice_have_names_of_their_own(tmp_path):
    needs("onnx")
    x, unused = keras.Input((4,)), keras.Input((2,), name="unused")
    y = keras.layers.Dense(2)(x)
    path = plait.export(keras.Model([x, unused], [y, x, y]), tmp_path / "model.onnx")
    inputs, outputs = names_in(path, "onnx")
    assert inputs[0] == "input_0"
    assert outputs == ["output_0", "output_1", "output_2"]


def test_outputs_in_another_order_are_refused():
    """Two outputs of one shape that changed places are two wrong numbers."""
    module = importlib.import_module("plait.export.export")
    left, right = np.zeros((2, 3)), np.ones((2, 3))
    assert module._difference([left, right], [left, right]) == 0
    assert module._difference([left, right], [right, left]) == 1


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
