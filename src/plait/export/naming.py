"""Names of inputs and outputs in files whose converters number them."""

import importlib
from collections.abc import Sequence
from pathlib import Path


def name_onnx(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Names the inputs and outputs of an ONNX file.

    Args:
        path: The file, which is written anew.
        inputs: A name for each input.
        outputs: A name for each output, in the file's order.
    """
    onnx_ir = importlib.import_module("onnx_ir")
    model = onnx_ir.load(path)
    graph = model.graph
    for place, value in enumerate(graph.outputs):
        if value.producer() is None or any(value is other for other in graph.outputs[:place]):
            node = onnx_ir.node("Identity", [value])  # an input, or an output that is given twice
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
    inputs = _kept([value.name for value in graph.inputs], inputs)
    named = dict(zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True))
    for node in graph:
        for value in node.outputs:
            if value not in named and value.name in named.values():
                value.name = f"{value.name}_inside"
    for value, name in named.items():
        value.name = name
    onnx_ir.save(model, path)


def name_openvino(source: Path, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Writes an OpenVINO file with names of inputs and outputs.

    Args:
        source: Another OpenVINO file, or a SavedModel.
        path: Where to write.
        inputs: A name for each input.
        outputs: A name for each output, in the model's order.
    """
    openvino = importlib.import_module("openvino")
    if source.is_dir():
        model = openvino.convert_model(str(source))
        left = list(model.outputs)
        ports = [
            left.pop(next(i for i, port in enumerate(left) if f"output_{place}" in port.names))
            for place in range(len(outputs))
        ]
        model = openvino.Model([port.node for port in ports], model.get_parameters())
    else:
        model = openvino.Core().read_model(str(source))
    inputs = _kept([port.node.friendly_name for port in model.inputs], inputs)
    for port, name in zip([*model.outputs, *model.inputs], [*outputs, *inputs], strict=True):
        port.tensor.set_names({name})
        port.node.set_friendly_name(name)
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _kept(found: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """Returns the names that were found where they are the right ones, in any order.

    Converters may leave out an input that nothing reads.
    """
    return found if set(found) <= set(names) else names
