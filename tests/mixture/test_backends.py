"""A compiled model in a file, written on one backend, trains on as it would have on another."""

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from tests.mixture.portable import BACKENDS, OPTIMIZERS, around, cases, mixture

INSTALLED = [backend for backend in BACKENDS if importlib.util.find_spec(backend)]
once = pytest.mark.skipif(keras.config.backend() != "torch", reason="once: all pairs of backends")


def run(backend, *arguments):
    """Starts a process of a backend."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.mixture.portable", *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(processes):
    """The processes end well."""
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each backend read: `(reader, name, writer)` and the differences, or the error."""
    folder = tmp_path_factory.mktemp("files")
    wait_for([run(backend, "write", folder) for backend in INSTALLED])
    wait_for([run(backend, "read", folder) for backend in INSTALLED])
    return {
        (reader, *name.rsplit("-", 1)): outcome
        for reader in INSTALLED
        for name, outcome in json.loads((folder / f"read_by_{reader}.json").read_text()).items()
    }


@once
@pytest.mark.slow
def test_every_pair_of_backends_reads_every_optimizer(found):
    pairs = {(reader, writer) for reader, _, writer in found}
    assert pairs == {(a, b) for a in INSTALLED for b in INSTALLED}
    assert len(found) == len(pairs) * len(list(cases()))
    assert {key: outcome for key, outcome in found.items() if isinstance(outcome, str)} == {}


@once
@pytest.mark.slow
def test_a_model_read_on_another_backend_gives_the_same_numbers_and_trains_on(found):
    wrong = {key: values for key, values in found.items() if not values[0] < 1e-5}
    assert wrong == {}
    # Keras' ScheduleFreeAdamW updates otherwise on each backend, also without a file.
    wrong = {
        key: values
        for key, values in found.items()
        if not (values[1] < 1e-4 or key[1].startswith("ScheduleFree"))
    }
    assert wrong == {}


def test_every_optimizer_of_keras_is_among_them():
    """Muon is one that decides by itself; `MultiOptimizer` has no public map to be saved with."""
    known = {type(make()).__name__ for make in OPTIMIZERS.values()} | {"MultiOptimizer"}
    public = {
        name
        for name, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    }
    assert public - {"Optimizer"} <= known


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_config_of_a_compiled_mixture_names_no_backend(name):
    model = mixture()
    model.compile(OPTIMIZERS[name](), "mse")
    assert f".{keras.config.backend()}." not in json.dumps(model.get_compile_config())


def test_a_config_that_names_another_backend_compiles_as_it_was():
    """Earlier versions wrote such files on PyTorch."""
    model = mixture()
    model.compile(keras.optimizers.SGD(0.25), "mse")
    config = model.get_compile_config()
    config["optimizer"]["module"] = "keras.private.backend.other.optimizers.other_sgd"
    config["optimizer"]["registered_name"] = "SGD"
    other = mixture()
    other.compile_from_config(config)
    assert isinstance(other.optimizer, keras.optimizers.SGD)
    assert float(other.optimizer.learning_rate) == 0.25


def test_a_model_around_a_mixture_names_its_optimizer_for_every_backend():
    """PyTorch's classes have no public name: they are registered with one of plait's."""
    model = around(mixture())
    model.compile(keras.optimizers.SGD(0.25), "mse")
    config = keras.saving.serialize_keras_object(model)["compile_config"]["optimizer"]
    assert config["registered_name"] in (None, "plait>SGD")
    revived = keras.saving.deserialize_keras_object({**config, "registered_name": "plait>SGD"})
    assert isinstance(revived, keras.optimizers.SGD)
    np.testing.assert_allclose(float(revived.learning_rate), 0.25)
