"""`plait export`: a model of tables for another runtime, and its schema."""

import json
import pathlib

from plait.cli.options import check_not_input
from plait.export import export
from plait.tables import load, replacing


def run(
    model_path: pathlib.Path,
    output: pathlib.Path,
    format: str | None,
    batch_size: int | None,
    verify: bool,
) -> list[pathlib.Path]:
    """Exports a model with its preprocessing, and writes the schema as JSON beside it.

    Args:
        model_path: A file of plait fit or plait blend.
        output: Where to write.
        format: See `plait.export`.
        batch_size: See `plait.export`.
        verify: See `plait.export`.

    Returns:
        What was written: the model, and the schema.
    """
    check_not_input(output, model_path)
    model = load(model_path)
    try:
        written = export(model.model, output, format, batch_size=batch_size, verify=verify)
    except (RuntimeError, ImportError) as error:  # a mistake of the user's choice, in one line
        raise ValueError(str(error)) from error
    schema = output.with_name(f"{output.name}.schema.json")
    with replacing(schema) as beside:
        beside.write_text(json.dumps(model.schema.to_config(), ensure_ascii=False, indent=1))
    return [written, schema]


__all__ = ["run"]
