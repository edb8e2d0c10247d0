"""Which mixtures a backend exports to which runtime: the largest difference at three batch sizes.

`KERAS_BACKEND=torch python -m benchmarks.export [FILE]`, one backend a process; prints a table, and
puts it into the file in place of that backend's last one.
"""

import sys
import tempfile
from pathlib import Path

import keras
from keras import layers

import plait
from plait.export.export import compare, for_format
from plait.export.inputs import as_graph
from plait.export.runtimes import FORMATS, is_installed

BATCHES = (4, 7, 1)
OFFERED = {
    "jax": ["tf_saved_model"],
    "tensorflow": ["tf_saved_model", "onnx", "litert", "openvino"],
    "torch": ["onnx", "openvino", "torch"],
}


def net(units=3, width=4):
    hidden = layers.Dense(5, "tanh")
    return keras.Sequential([keras.Input((width,)), hidden, layers.Dense(units, "softmax")])


def scores(experts, width=4):
    return keras.Sequential([keras.Input((width,)), layers.Dense(experts)])


def plain():
    return as_graph(net())


def unlike():
    x = keras.Input((4,))
    wide = keras.Model(x, layers.Dense(3)(layers.Concatenate()([x, layers.Dense(2)(x)])))
    steps = [layers.Dense(6), layers.BatchNormalization(), layers.Dense(3)]
    normed = keras.Sequential([keras.Input((4,)), *steps])
    return plait.Mixture([net(), wide, normed], scores(3), router="sparsemax")


def stacked():
    return plait.Mixture(net(), scores(4), num_experts=4, router="softmax")


def several_inputs():
    mixture = plait.Mixture(
        [net(3, 4), net(3, 2)],
        scores(2, 3),
        router="softmax",
        expert_inputs=["image", "text"],
        gate_inputs="meta",
    )
    widths = {"image": 4, "text": 2, "meta": 3}
    inputs = {name: keras.Input((width,), name=name) for name, width in widths.items()}
    return keras.Model(inputs, mixture(inputs))


def by_row():
    return plait.Mixture(net(), scores(4), num_experts=4, router=plait.routers.TopK(2))


def by_token():
    x = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(11, 8)(x)
    expert = keras.Sequential([layers.Dense(8, "relu"), layers.Dense(8)])
    router = plait.routers.TopK(2)
    mixture = plait.Mixture(expert, layers.Dense(4), num_experts=4, router=router)
    return keras.Model(x, layers.Dense(11)(hidden + mixture(hidden)))


def with_capacity():
    router = plait.routers.TopK(2, capacity_factor=1.25)
    return plait.Mixture(net(), scores(4), num_experts=4, router=router)


def expert_choice():
    router = plait.routers.ExpertChoice(1.0)
    return plait.Mixture(net(), scores(4), num_experts=4, router=router)


KINDS = {
    "plain Keras": plain,
    "unlike experts": unlike,
    "stacked": stacked,
    "several inputs": several_inputs,
    "TopK by row": by_row,
    "TopK by token": by_token,
    "TopK with a capacity": with_capacity,
    "ExpertChoice": expert_choice,
}


def cell(kind, format, folder):
    """The largest difference between runtime and model at each batch size.

    Raises:
        RuntimeError: If the model cannot be exported.
    """
    keras.utils.set_random_seed(0)
    graph = for_format(as_graph(KINDS[kind]()), format)
    path = Path(folder) / f"{format}-{kind.replace(' ', '_')}{FORMATS[format].suffix}"
    plait.export(graph, path, format)
    return compare(graph, path, format, BATCHES)


def main():
    name = keras.config.backend()
    formats = OFFERED[name]
    rows = [[name, *formats], ["---"] * (len(formats) + 1)]
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            row = [kind]
            for format in formats:
                if not is_installed(FORMATS[format].package):
                    row.append("no runtime")
                    continue
                try:
                    row.append(" / ".join(f"{gap:.0e}" for gap in cell(kind, format, folder)))
                except RuntimeError:
                    row.append("refused")
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    print(table)
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        blocks = path.read_text().strip().split("\n\n") if path.exists() else []
        kept = [block for block in blocks if not block.startswith(f"| {name} |")]
        path.write_text("\n\n".join([*kept, table]) + "\n")


if __name__ == "__main__":
    main()
