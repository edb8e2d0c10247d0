"""The commands and their options; what they do is imported when they run."""

import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import typer

from plait.cli.start import expected_errors

app = typer.Typer(
    help="Weave parallel Keras models into one: out = w1(x) f1(x) + w2(x) f2(x) + …",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _one_of(help_text: str, *choices: str) -> Any:
    """Returns an option whose help and completion show what it may be; the command checks it."""

    def complete(start: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(start)]

    completion: Callable[[str], list[str]] = complete
    return typer.Option(help=help_text, metavar=f"[{'|'.join(choices)}]", autocompletion=completion)


def _version(asked: bool) -> None:
    if asked:
        from plait import __version__

        typer.echo(f"plait {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    del version


Data = Annotated[
    pathlib.Path,
    typer.Argument(
        help="Table: .csv, .tsv, .jsonl (also .gz), .parquet, .npz, or a folder of .parquet."
    ),
]
Target = Annotated[str, typer.Option(help="Column to predict.")]
Test = Annotated[
    pathlib.Path | None,
    typer.Option(help="Table to score on; without it part of the rows is held out."),
]
Model = Annotated[pathlib.Path, typer.Argument(help="A .keras file of plait fit or plait blend.")]
Seed = Annotated[int, typer.Option(help="The same seed repeats the run exactly.")]
Gate = Annotated[str, _one_of("How the mixture weighs its experts.", "linear", "mlp", "constant")]
BlendingGate = Annotated[
    str,
    _one_of(
        "How the models are weighed; auto takes the simplest that held-out rows do not speak "
        "against.",
        *("linear", "mlp", "constant", "uniform", "free", "per-class", "auto"),
    ),
]
Hidden = Annotated[int, typer.Option(help="Units in each hidden layer of an expert or mlp gate.")]
Epochs = Annotated[int, typer.Option(help="At most; training stops early when it stops helping.")]
Ignore = Annotated[
    list[str] | None, typer.Option(help="Column to leave out; may be given several times.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Output = Annotated[pathlib.Path, typer.Option("--output", "-o", help="Where to write the model.")]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse categories and empty cells that training had not."),
]
Report = Annotated[pathlib.Path | None, typer.Option(help="Write an HTML report there as well.")]


@app.command()
@expected_errors
def fit(
    train: Data,
    target: Target,
    output: Output,
    test: Test = None,
    model: Annotated[
        str,
        _one_of(
            "Which candidate to write; auto lets held-out rows choose.",
            *("auto", "network", "average", "mixture"),
        ),
    ] = "auto",
    experts: Annotated[int, typer.Option(help="How many networks to average or to gate.")] = 8,
    hidden: Hidden = 32,
    gate: Gate = "mlp",
    task: Annotated[
        str, _one_of("What the target is.", "auto", "classification", "regression")
    ] = "auto",
    epochs: Annotated[int, typer.Option(help="At most; large tables take fewer.")] = 200,
    seed: Seed = 0,
    ignore: Ignore = None,
    group: Annotated[
        str | None,
        typer.Option(help="Column of speakers, patients, …: held out whole, never a feature."),
    ] = None,
    weight: Annotated[
        str | None, typer.Option(help="Column with the weight of each row in training.")
    ] = None,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Does gating pay on this table? One network, several averaged, a gated mixture.

    The three have equally many parameters and are trained apart with the same care; held-out rows
    choose one, the simpler where they cannot tell. Scaling, categories and class labels travel
    inside the one .keras file.
    """
    from plait.cli.fit import FitOptions, run

    options = FitOptions(
        *(train, target, output, test, model, experts, hidden, gate, task, epochs, seed),
        *(ignore or [], group, weight, report),
    )
    run(options).show(as_json)


@app.command()
@expected_errors
def blend(
    models: Annotated[list[pathlib.Path], typer.Argument(help="Trained .keras files.")],
    data: Annotated[pathlib.Path, typer.Option(help="Table to learn the gate on.")],
    target: Target,
    output: Output,
    test: Test = None,
    gate: BlendingGate = "linear",
    hidden: Hidden = 32,
    epochs: Epochs = 200,
    seed: Seed = 0,
    ignore: Ignore = None,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Learn a gate over trained models, which stay as they are.

    Classifiers end in a softmax, regressors in one unit. They read the table's columns in order,
    as they stand, or are files of plait fit. Rows the models were not trained on make the better
    gate.
    """
    from plait.cli.blend import BlendOptions, run

    options = BlendOptions(
        models, data, target, output, test, gate, hidden, epochs, seed, ignore or [], report
    )
    run(options).show(as_json)


@app.command()
@expected_errors
def predict(
    model: Model,
    data: Annotated[str, typer.Argument(help="Table, or - for CSV on standard input.")],
    output: Annotated[
        pathlib.Path | None,
        typer.Option("--output", "-o", help="A .csv or .parquet file; standard output without."),
    ] = None,
    strict: Strict = False,
) -> None:
    """Write labels and probabilities, or values, one row per row of the table.

    Works in batches: memory does not grow with the length of the table.
    """
    from plait.cli.predict import run

    run(model, data, output, strict)


@app.command()
@expected_errors
def inspect(
    model: Annotated[pathlib.Path, typer.Argument(help="A .keras file that holds a mixture.")],
    as_json: Json = False,
) -> None:
    """Show what is inside: experts, shapes, parameters, gate, router, columns."""
    from plait.cli.inspect import describe, show

    found = describe(model)
    if as_json:
        from plait.cli.console import dumps

        typer.echo(dumps(found))
    else:
        show(found)


@app.command()
@expected_errors
def report(
    model: Model,
    data: Data,
    output: Annotated[
        pathlib.Path, typer.Option("--output", "-o", help="Where to write the HTML file.")
    ],
    target: Annotated[
        str | None, typer.Option(help="Column with the truth; by default the model's target.")
    ] = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Score a mixture on a table and write one HTML file that opens offline."""
    from plait.cli.report import run

    run(model, data, target, output, strict).show(as_json)


@app.command()
@expected_errors
def export(
    model: Model,
    output: Annotated[
        pathlib.Path,
        typer.Option("--output", "-o", help="model.onnx, .tflite, .xml, .pt2, or a new folder."),
    ],
    format: Annotated[
        str | None,
        typer.Option(help="tf_saved_model, onnx, litert, openvino or torch; else by the suffix."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="A fixed batch size.")] = None,
    verify: Annotated[
        bool, typer.Option(help="Run the file in its runtime and compare it with the model.")
    ] = True,
) -> None:
    """Write a model for another runtime, with its preprocessing inside, and its schema beside it.

    The file reads the columns as a matrix of numbers; the schema says which number a category is.
    """
    from plait.cli.export import run

    for path in run(model, output, format, batch_size, verify):
        typer.echo(f"Wrote {path}")


__all__ = ["app"]
