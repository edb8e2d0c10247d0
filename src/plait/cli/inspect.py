"""`plait inspect`: what a model file holds."""

import inspect
import pathlib
from typing import Any

import keras
from rich.console import Console
from rich.table import Table

import plait
from plait.cli.console import out, plain
from plait.errors import message
from plait.tables import Schema, as_table_model, load_keras


def describe(path: pathlib.Path) -> dict[str, Any]:
    """Returns what the file holds, in plain values.

    Raises:
        ValueError: If the file is damaged, or there is no mixture in it.
    """
    model = load_keras(path)
    mixture = _find_mixture(model)
    if mixture is None:
        raise ValueError(
            message(
                "The model must be a plait.Mixture, or a model with one among its layers",
                f"{str(path)!r}, a {type(model).__name__} without",
                "Inspect it with model.summary() in Python",
            )
        )
    table = as_table_model(model)
    schema = table.schema if table else None
    names = schema.baseline.names if schema and schema.baseline else None
    return {
        "model": str(path),
        "parameters": model.count_params(),
        "experts": [
            _expert(mixture.expert(i), names[i] if names else None)
            for i in range(mixture.num_experts)
        ],
        "gate": _part(mixture.gate),
        "router": _router(mixture.router),
        "table": _table(schema) if schema else None,
    }


def show(found: dict[str, Any]) -> None:
    """Prints what `describe` found."""
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(plain(f"{found['model']}: {found['parameters']:,} parameters"))
    if found["table"]:
        table = found["table"]
        console.print(plain(f"task     {table['task']} of {table['target']!r}"))
        if table["classes"]:
            console.print(plain(f"classes  {', '.join(map(str, table['classes']))}"))
        console.print(plain(f"columns  {', '.join(map(_column_text, table['columns']))}"))
    gate = found["gate"]
    console.print(plain(f"gate     {gate['layers']}, {gate['parameters']:,} parameters"))
    console.print(plain(f"router   {found['router']}"))
    experts = Table()
    for i, title in enumerate(("expert", "layers", "in", "out", "parameters")):
        experts.add_column(title, justify="right" if i == 4 else "left")
    for expert in found["experts"]:
        experts.add_row(
            plain(expert["name"]),
            expert["layers"],
            _shape_text(expert["input"]),
            _shape_text(expert["output"]),
            f"{expert['parameters']:,}",
        )
    out().print(experts)


def _find_mixture(model: keras.layers.Layer) -> "plait.Mixture | None":
    """Returns the first mixture in a model, outermost first."""
    level = [model]
    while level:
        for layer in level:
            if isinstance(layer, plait.Mixture):
                return layer
        level = [part for layer in level for part in getattr(layer, "layers", [])]
    return None


def _expert(model: keras.Model, name: str | None) -> dict[str, Any]:
    return {
        **_part(model),
        "name": name or model.name,
        "input": _shape(model, "input_shape"),
        "output": _shape(model, "output_shape"),
    }


def _part(layer: keras.layers.Layer) -> dict[str, Any]:
    return {"layers": _layers(layer), "parameters": layer.count_params()}


def _layers(layer: keras.layers.Layer, most: int = 6) -> str:
    """Returns the kinds of a layer's layers in words, such as `Dense(32), Dense(11)`."""
    kinds = [
        f"{type(part).__name__}({units})"
        if isinstance(units := getattr(part, "units", None), int)
        else type(part).__name__
        for part in getattr(layer, "layers", None) or [layer]
        if not isinstance(part, keras.layers.InputLayer)
    ]
    return ", ".join(kinds[:most]) + (f" and {len(kinds) - most} more" * (len(kinds) > most))


def _shape(model: keras.Model, which: str) -> Any:
    try:
        return getattr(model, which)
    except AttributeError:  # a subclassed model has no symbolic input or output
        return None


def _router(router: Any) -> str:
    if router is None:
        return "none: the gate's output as it is"
    usual = inspect.signature(type(router)).parameters
    config = {
        key: value
        for key, value in router.get_config().items()
        if key in usual.keys() - {"name", "dtype"} and value != usual[key].default
    }
    return f"{type(router).__name__}({', '.join(f'{k}={v}' for k, v in config.items())})"


def _table(schema: Schema) -> dict[str, Any]:
    config = schema.to_config()
    return {key: config[key] for key in ("task", "target", "classes", "columns", "baseline")}


def _column_text(column: dict[str, Any]) -> str:
    if column["categories"] is None:
        return str(column["name"])
    return f"{column['name']} ({len(column['categories'])} categories)"


def _shape_text(shape: Any) -> str:
    return "?" if shape is None else str(shape).replace("None", "b")


__all__ = ["describe", "show"]
