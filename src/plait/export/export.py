"""Writes a model for another runtime, and compares what was written with the model."""

import contextlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from plait.compat import flat_layers
from plait.errors import choose_from, message
from plait.export.inputs import as_graph, output_names, sample
from plait.export.naming import name_onnx, name_openvino
from plait.export.runtimes import FORMATS, is_installed
from plait.mixture import Mixture
from plait.ops.backend import export_options, export_tracings, format_on_the_way
from plait.ops.tracing import Tracing, traced

__all__ = ["FORMATS", "export"]

TOLERANCE = 1e-4


def export(
    model: keras.Model,
    path: os.PathLike[str] | str,
    format: str | None = None,
    *,
    batch_size: int | None = None,
    verify: bool = True,
) -> Path:
    """Writes a model for another runtime, and raises unless it gives the same numbers there.

    The model may hold mixtures at any depth. In a SavedModel that TensorFlow writes, experts run on
    the rows that chose them; in every other file all experts run on all rows, and weights of zero
    select: the same numbers at the cost of every expert. A row's neighbours decide what a capacity
    drops, as they do in the model.

    Args:
        model: A Keras model that knows the shapes of its inputs.
        path: Where to write. A file or folder there is replaced once the new one is verified.
        format: "tf_saved_model", "onnx", "litert", "openvino" or "torch", of which a backend offers
            some. `None` follows from the suffix of the path: `.onnx`, `.tflite`, `.xml`, `.pt2`, or
            none for a SavedModel.
        batch_size: A fixed batch size; `None` is a batch of any size.
        verify: Whether what was written is loaded in its own runtime and compared with the model
            at two batch sizes (at the fixed one, where there is one). Floats must agree within
            1e-4 of the largest output.

    Returns:
        The path.

    Raises:
        ValueError: If the format is unknown, or the suffix does not fit it.
        ImportError: If the runtime that must verify is not installed.
        RuntimeError: If the backend cannot write the model, or what was written fails or gives
            other numbers. Nothing is left behind, and what was at the path stays.

    Example:
    ```python
    plait.export(model, "model.onnx")
    ```
    """
    path = Path(path)
    format = _format_of(path, format)
    if verify and not is_installed(FORMATS[format].package):
        raise ImportError(
            message(
                f"`verify=True` runs a file of the format {format!r} in its runtime",
                f"no package {FORMATS[format].package!r}",
                "Install plait[export], or pass verify=False",
            )
        )
    graph = for_format(as_graph(model), format)
    outputs = output_names(model)
    failures: list[tuple[Tracing, Exception]] = []
    for how in _tracings(model, format):
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / f"model{FORMATS[format].suffix}"
            try:
                _write(graph, written, format, batch_size, how, outputs)
                if verify:
                    _verify(graph, written, format, batch_size)
            except Exception as error:
                failures.append((how, error))
                continue
            _move(written, path)
            return path
    first = failures[-1][1]
    reasons = "; ".join(f"{how}: {_line_of(error)}" for how, error in failures)
    raise RuntimeError(
        message(
            f"A file of the format {format!r} must run and give the model's numbers",
            f"the model {model.name!r} ({reasons})",
            "Use another format or backend, or pass a batch_size",
        )
    ) from first


def _format_of(path: Path, format: str | None) -> str:
    """Returns the format, found by the path's suffix where it is not given."""
    suffixes = {entry.suffix: name for name, entry in FORMATS.items()}
    if format is None:
        if path.suffix not in suffixes:
            raise ValueError(choose_from("path", path.suffix, suffixes))
        return suffixes[path.suffix]
    if format not in FORMATS:
        raise ValueError(choose_from("format", format, FORMATS))
    if path.suffix != FORMATS[format].suffix and FORMATS[format].suffix:
        raise ValueError(
            message(
                f"A file of the format {format!r} must end in {FORMATS[format].suffix!r}",
                f"path={str(path)!r}",
                f"Use {path.with_suffix(FORMATS[format].suffix).name!r}",
            )
        )
    return format


def _tracings(model: keras.Model, format: str) -> list[Tracing]:
    """Returns how a graph may be traced, the best first; only mixtures make a difference."""
    if not any(isinstance(layer, Mixture) for layer in flat_layers(model)):
        return ["as it is"]
    return export_tracings(format)


def for_format(graph: keras.Model, format: str) -> keras.Model:
    """Returns a graph with a list of outputs where a format knows no structure of them."""
    if format not in ("onnx", "openvino"):
        return graph
    return keras.Model(graph.input, tree.flatten(graph.output), name=graph.name)


def _write(
    graph: keras.Model,
    path: Path,
    format: str,
    batch_size: int | None,
    how: Tracing,
    outputs: Sequence[str],
) -> None:
    """Writes a file by Keras, quietly, and names what it reads and gives."""
    graph(tree.map_structure(ops.convert_to_tensor, sample(graph, 2)), training=False)
    options: dict[str, Any] = dict(export_options(format, graph.input, batch_size))
    if batch_size is not None:
        options["input_signature"] = [
            tree.map_structure(
                lambda spec: keras.InputSpec(
                    shape=(batch_size, *spec.shape[1:]), dtype=spec.dtype, name=spec.name
                ),
                graph.input,
            )
        ]
    inputs = [spec.name for spec in tree.flatten(graph.input)]
    with tempfile.TemporaryDirectory() as folder, traced(how), _quietly():
        first = format_on_the_way(format) or format
        between = Path(folder) / f"model{FORMATS[first].suffix}" if format == "openvino" else path
        keras.Model.export(graph, str(between), format=first, verbose=False, **options)
        if format == "onnx":
            name_onnx(path, inputs, outputs)
        elif format == "openvino":
            name_openvino(between, path, inputs, outputs)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps converters' remarks from the caller, who is told whether the file is right.

    PyTorch prints its whole graph where a conversion fails.
    """
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _verify(graph: keras.Model, path: Path, format: str, batch_size: int | None) -> None:
    """Runs a file in its runtime.

    Raises:
        RuntimeError: If an output differs.
    """
    batches = (3, 1) if batch_size is None else (batch_size,)
    for batch, gap in zip(batches, compare(graph, path, format, batches), strict=True):
        if not gap <= TOLERANCE:
            raise RuntimeError(f"at batch size {batch} outputs differ by {gap:.2g}")


def compare(graph: keras.Model, path: Path, format: str, batch_sizes: Sequence[int]) -> list[float]:
    """Returns by how much a file in its runtime differs from the model, at each batch size.

    The difference is relative to the largest output where that is above one.
    """
    specs = graph.input
    names = [spec.name for spec in tree.flatten(specs)]
    named = isinstance(specs, dict)
    if named and format in ("tf_saved_model", "torch"):  # these take the structure itself
        names = [str(keys[-1]) for keys, _ in tree.flatten_with_path(specs)]
    with _quietly():
        run = FORMATS[format].load(path, names, named)
    gaps = []
    for batch in batch_sizes:
        given = sample(graph, batch)
        outputs = graph(tree.map_structure(ops.convert_to_tensor, given), training=False)
        wanted = [ops.convert_to_numpy(leaf) for leaf in tree.flatten(outputs)]
        gaps.append(_difference(wanted, run([np.asarray(leaf) for leaf in tree.flatten(given)])))
    return gaps


def _difference(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Returns the largest difference of an output, relative to its largest number."""
    if len(wanted) != len(found):
        return np.inf
    return max(_gap(target, other) for target, other in zip(wanted, found, strict=True))


def _gap(target: np.ndarray, other: np.ndarray) -> float:
    if target.shape != other.shape:
        return np.inf
    if target.size == 0:
        return 0.0
    scale = max(1.0, float(np.abs(target).max()))
    gap = float(np.abs(target.astype("float64") - other.astype("float64")).max()) / scale
    return gap if np.isfinite(gap) else np.inf


def _move(written: Path, path: Path) -> None:
    """Moves what was written, with the file of weights that OpenVINO writes beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for source in sorted(written.parent.iterdir()):
        target = path if source == written else path.with_suffix(source.suffix)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        shutil.move(str(source), str(target))


def _line_of(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
