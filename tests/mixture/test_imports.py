"""A mixture imports no backend but the one that runs."""

import os
import subprocess
import sys

import keras
import pytest

PROGRAM = """
import sys
import keras

def loaded():
    return {name for name in ("jax", "tensorflow", "torch") if name in sys.modules}

before = loaded()
import numpy as np
import plait

def net():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])

x = np.ones((2, 4), "float32")
for mixture in (
    plait.Mixture([net(), net()]),
    plait.Mixture([net(), net()], execution="stacked", router=plait.routers.TopK(1)),
    plait.Mixture([net(), net()], copy_experts=True),
    plait.Mixture(net(), num_experts=2),
):
    mixture(x)
    mixture.expert(1)
print(sorted(loaded() - before))
"""


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="Keras looks at TensorFlow last")
def test_building_and_calling_a_mixture_imports_no_other_backend():
    """TensorFlow takes seconds to import, and Keras' serialiser asks for it if nobody is there."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
