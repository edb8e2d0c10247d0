"""The command line: `plait fit`, `blend`, `predict`, `inspect`, `report`."""

import sys


def main() -> None:
    """Runs the command line; what the installed script `plait` calls."""
    try:
        from plait.cli.app import app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"The command line needs {error.name}. Received: no such package. "
            "pip install plait[cli].",
            file=sys.stderr,
        )
        sys.exit(2)
    app(prog_name="plait")


__all__ = ["main"]
