"""The rows of the table: what was measured, against which target.

Keras is imported inside functions: who only reads rows runs no backend.
"""

import argparse
import json
import os
from typing import NamedTuple

PREFIX = "row: "


class Row(NamedTuple):
    """One figure.

    Attributes:
        what: What was measured, over what.
        measured: The ratio of wall time; or what `what` says.
        target: What it should be at most (a speed-up: at least), or `None` for a bare fact.
        detail: The figures behind the ratio.
        at_least: Whether larger is better.
        cpu: The ratio of CPU time, where `measured` is one of wall time.
    """

    what: str
    measured: float
    target: float | None = None
    detail: str = ""
    at_least: bool = False
    cpu: float | None = None

    @classmethod
    def of(cls, what, found, target=None, *, digits=1, note="", at_least=False):
        """Returns the row of a `benchmarks.timing.Comparison`."""
        detail = f"{found.ours:.{digits}f} / {found.theirs:.{digits}f} ms{note}"
        return cls(what, found.wall, target, detail, at_least, found.cpu)

    @property
    def met(self):
        """Whether wall and CPU time meet the target; `None` without one."""
        if self.target is None:
            return None
        ratios = [self.measured] if self.cpu is None else [self.measured, self.cpu]
        return min(ratios) >= self.target if self.at_least else max(ratios) <= self.target


def options(description, **defaults):
    """Returns the command line's arguments, and applies device and dtype."""
    import keras

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", default="", help="run the cases whose name has this in it")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    arguments = parser.parse_args()
    keras.config.set_dtype_policy(arguments.dtype)
    if arguments.device == "gpu" and not on_gpu():
        raise SystemExit(
            f"--device gpu needs a GPU. Received: none that {keras.config.backend()} sees. "
            "Install the backend's GPU build."
        )
    return arguments


def hide_gpu(environment):
    """Returns an environment in which no backend sees a GPU."""
    return environment | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}


def on_gpu():
    """Whether the backend's first device is a GPU."""
    import keras

    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.default_backend() == "gpu"
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    import torch

    return torch.cuda.is_available()


def show(rows):
    """Prints rows as they come; where `PLAIT_ROWS` is set, in a form that `parse` reads."""
    import keras

    for row in rows:
        if os.environ.get("PLAIT_ROWS"):
            print(PREFIX + json.dumps(row), flush=True)
            continue
        sign = "≥" if row.at_least else "≤"
        goal = "" if row.target is None else f" (target {sign} {row.target:g}) {mark(row)}"
        cpu = "" if row.cpu is None else f", CPU {row.cpu:.3g}"
        print(f"{keras.config.backend()}: {row.what}: {row.measured:.3g}{cpu}{goal}  {row.detail}")


def mark(row):
    """Returns yes, no, or nothing where there is no target."""
    return {None: "", True: "yes", False: "**no**"}[row.met]


def parse(line):
    """Returns the row in a line that `show` printed, or `None`."""
    return Row(*json.loads(line.removeprefix(PREFIX))) if line.startswith(PREFIX) else None
