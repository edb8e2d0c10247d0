"""Four devices give one device's numbers: data parallel, and experts split over them."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

jax_only = pytest.mark.skipif(keras.config.backend() != "jax", reason="Keras splits on JAX alone")


def trained(way, router):
    """What `devices.py` prints, in a process of its own with four virtual devices."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-m", "tests.distribution.devices", way, router],
        env={**os.environ, "KERAS_BACKEND": "jax", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@jax_only
@pytest.mark.slow
@pytest.mark.parametrize("router", ["softmax", "top2"])
def test_devices_give_the_numbers_of_one(router):
    one = trained("one", router)
    for way, share in (("data", 1.0), ("experts", 0.25)):
        many = trained(way, router)
        assert many["stacks"] >= 12  # four variables, and two moments of each
        assert many["share"] == share
        np.testing.assert_allclose(many["losses"], one["losses"], rtol=1e-5)
        np.testing.assert_allclose(many["kernel"], one["kernel"], atol=1e-5)
        np.testing.assert_allclose(many["output"], one["output"], atol=1e-5)
