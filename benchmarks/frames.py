"""Python frames of plait in one eager call of a mixture of four small experts, warm.

A frame is a call of a function whose code stands in `src/plait`. Also counted: the distinct
functions, their files, and how often the call goes on in another file than that of the frame
before. `KERAS_BACKEND=torch python -m benchmarks.frames`
"""

import sys
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np

import plait
from benchmarks.lists import models
from benchmarks.table import Row, options, show
from benchmarks.timing import tensor

EXPERTS, ROWS = 4, 32
HOME = str(Path(plait.__file__).parent)
# Three quarters of the frames before calls were reworked, by backend.
TARGETS = {
    "loop": {"jax": 74, "torch": 68, "tensorflow": 68},
    "stacked": {"jax": 56, "torch": 140, "tensorflow": 57},
    "top-2, stacked": {"jax": 117, "torch": 180, "tensorflow": 129},
    "top-2, loop": {"jax": 376, "torch": 285, "tensorflow": 304},
}


def frames(call):
    """Returns the code objects of plait that one call enters, in order."""
    found = []

    def note(frame, event, argument):
        del argument
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            found.append(frame.f_code)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def mixture(name):
    """Returns the mixture of a path through the experts."""
    experts, gate = models(EXPERTS, "small")
    execution = name.split(", ")[-1]
    if name.startswith("top-2"):
        gate = keras.layers.Dense(EXPERTS)
        return plait.Mixture(experts, gate, router=plait.routers.TopK(2), execution=execution)
    return plait.Mixture(experts, gate, execution=execution)


def rows(arguments):
    """Yields the table's rows."""
    x = tensor(np.random.default_rng(0).normal(size=(arguments.rows, 64)))
    for name, targets in TARGETS.items():
        if arguments.only not in name:
            continue
        mix = mixture(name)
        for _ in range(3):
            mix(x)
        found = frames(lambda mix=mix: mix(x))
        files = [code.co_filename for code in found]
        switches = sum(a != b for a, b in pairwise(files))
        yield Row(
            f"frames of plait in one eager call: {name}",
            len(found),
            targets.get(keras.config.backend()),
            f"{len(set(found))} functions, {len(set(files))} files, {switches} switches",
        )


if __name__ == "__main__":
    show(rows(options(__doc__, rows=ROWS)))
