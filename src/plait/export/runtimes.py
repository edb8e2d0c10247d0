"""The runtimes that read what was written: each loads a file and returns a function of arrays."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""Maps the inputs, flat and in order, to the outputs, flat and in order."""


class Format(NamedTuple):
    """A format of files.

    Attributes:
        suffix: How the name of a file ends; empty for a folder.
        package: The package of its runtime.
        load: Reads a file; its arguments are the path, the names of the inputs, and whether the
            inputs are a dict.
    """

    suffix: str
    package: str
    load: Callable[[Path, Sequence[str], bool], Run]


def is_installed(package: str) -> bool:
    """Whether a package, such as "onnxruntime", can be imported."""
    return importlib.util.find_spec(package) is not None


def _flat(outputs: Any) -> list[np.ndarray]:
    import keras

    return [np.asarray(leaf) for leaf in keras.tree.flatten(outputs)]


def _load_saved_model(path: Path, names: Sequence[str], named: bool) -> Run:
    tensorflow = importlib.import_module("tensorflow")
    model = tensorflow.saved_model.load(str(path))

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with tensorflow.device("CPU"):
            tensors = [tensorflow.constant(array) for array in arrays]
            if named:
                return _flat(model.serve(dict(zip(names, tensors, strict=True))))
            return _flat(model.serve(tensors[0] if len(tensors) == 1 else tensors))

    return run


def _load_onnx(path: Path, names: Sequence[str], named: bool) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    order = _order([entry.name for entry in session.get_inputs()], names)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return session.run(None, {name: arrays[place] for name, place in order})

    return run


def _load_litert(path: Path, names: Sequence[str], named: bool) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_path=str(path)).get_signature_runner()
    order = _order(list(signature.get_input_details()), names)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = signature(**{name: arrays[place] for name, place in order})
        return [found[name] for name in sorted(found, key=_numbered)]

    return run


def _load_openvino(path: Path, names: Sequence[str], named: bool) -> Run:
    import openvino

    core = openvino.Core()
    # Else some processors compute in bfloat16.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
    order = _order([entry.node.friendly_name for entry in compiled.inputs], names)

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = compiled([arrays[place] for _, place in order])
        return [np.array(found[output]) for output in compiled.outputs]  # not views of its memory

    return run


def _load_torch(path: Path, names: Sequence[str], named: bool) -> Run:
    torch = importlib.import_module("torch")
    program = torch.export.load(str(path)).module()

    def run(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = [torch.tensor(array) for array in arrays]
        with torch.no_grad():
            if named:
                return _flat(program(dict(zip(names, tensors, strict=True))))
            return _flat(program(tensors[0] if len(tensors) == 1 else tensors))

    return run


def _numbered(name: str) -> tuple[int, str]:
    """Sorts keys as `keras.tree.flatten` does, but "output_10" of a list after "output_9"."""
    return (len(name) if name.startswith("output_") else 0, name)


def _order(found: Sequence[str], names: Sequence[str]) -> list[tuple[str, int]]:
    """Returns for each input of a runtime which of the model's inputs it is.

    A runtime may add words to a name, as in "serving_default_image:0". Where names do not tell, the
    order does.
    """
    places: list[int] = []
    for name in found:
        fitting = [place for place, given in enumerate(names) if given in name]
        exact = [place for place in fitting if names[place] == name]
        best = exact or sorted(fitting, key=lambda place: -len(names[place]))
        places.append(best[0] if best else -1)
    if sorted(places) != list(range(len(names))):
        places = list(range(len(found)))
    return list(zip(found, places, strict=True))


FORMATS = {
    "tf_saved_model": Format("", "tensorflow", _load_saved_model),
    "onnx": Format(".onnx", "onnxruntime", _load_onnx),
    "litert": Format(".tflite", "ai_edge_litert", _load_litert),
    "openvino": Format(".xml", "openvino", _load_openvino),
    "torch": Format(".pt2", "torch", _load_torch),
}
