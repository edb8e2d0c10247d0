"""Several devices, processes and replicas give one device's numbers."""

import contextlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from tests.distribution.recipes import CASES, made
from tests.gradients import value_and_gradients

import plait
from plait.distribution import layout_map
from plait.experts.devices import devices_in_force
from plait.ops import backend
from plait.ops.devices import within_expert
from plait.ops.dispatch import apply_groups

runs_on = keras.config.backend()
jax_only = pytest.mark.skipif(runs_on != "jax", reason="Keras splits variables on JAX alone")
torch_only = pytest.mark.skipif(runs_on != "torch", reason="PyTorch's own way")
tensorflow_only = pytest.mark.skipif(runs_on != "tensorflow", reason="TensorFlow's own way")


def printed(*command, **environment):
    """The last line that a module prints in a process of its own, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "KERAS_BACKEND": runs_on, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


DEVICE_CASES = ["top2", "softmax", "capacity", "expert_choice", "steps", "tasks", "nested"]
DEVICE_CASES += ["shared", "dropout", "batch_norm", "half"]
# Whether the dispatch is spread in training, and in eager calls. Draws of dropout depend on which
# rows are together; batch norm in training runs every expert; nothing dispatches under softmax.
SPREAD = {"softmax": [False, False], "dropout": [False, True], "batch_norm": [False, True]}


@jax_only
@pytest.mark.slow
@pytest.mark.parametrize("case", DEVICE_CASES)
def test_devices_give_the_numbers_of_one(case):
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    found = printed("tests.distribution.devices", case, XLA_FLAGS=flags)
    one = found.pop("one")
    assert one["spread"] == [False, False]
    # Half-precision sums in another order differ in their last bits.
    near = 5e-2 if case == "half" else 1e-5
    assert len(found) > 1
    for way, many in found.items():
        if way == "case":
            continue
        assert many["spread"] == SPREAD.get(case, [True, True])
        held = {"apart": 0.25, "same": 0.25, "both": 0.5}
        assert {*many["shares"]} == ({held[way]} if way in held else set())
        np.testing.assert_allclose(many["losses"], one["losses"], rtol=near)
        for name in ("variables", "outputs"):
            for value, wanted in zip(many[name], one[name], strict=True):
                np.testing.assert_allclose(value, wanted, atol=near)


@jax_only
@pytest.mark.parametrize("experts", [None, "experts", "rows"])
def test_a_dispatch_that_is_spread_gives_the_same_numbers(experts):
    """On a mesh of one device, which runs the same program as one of many."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3)).astype("float32")
    kernels = rng.normal(size=(4, 3, 2)).astype("float32")
    indices = ops.convert_to_tensor([[0, 2], [1, 4], [2, 0], [4, 4], [3, 1], [0, 1]], "int32")
    mesh = keras.distribution.DeviceMesh((1, 1), ["rows", "experts"], ["cpu:0"]).backend_mesh
    devices = backend.Devices(mesh, "rows", experts, 1, 1)

    def loss(devices):
        def of(x, kernels):
            group = backend.Group(lambda w, rows, _: ops.tanh(rows @ w[0]), [kernels], 4)
            outputs = apply_groups([group], x, indices, devices=devices)
            return ops.sum(outputs * ops.cast(ops.arange(2), "float32"))

        return of

    value, gradients = value_and_gradients(loss(devices), [x, kernels], compiled=True)
    wanted, expected = value_and_gradients(loss(None), [x, kernels], compiled=True)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, other, atol=1e-6)


@jax_only
def test_devices_are_those_of_the_distribution_where_numbers_can_be_kept(monkeypatch):
    monkeypatch.setattr(keras.distribution.DeviceMesh, "backend_mesh", "the mesh")
    names = ["cpu:0", "cpu:1", "cpu:2", "cpu:3"]
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "expert"], names)
    moe = plait.Mixture(keras.layers.Dense(3), num_experts=4, router=plait.routers.TopK(2))
    model = keras.Sequential([keras.Input((2,)), moe])
    runners = [runner for _, runner in moe.state.bank.groups(dispatched=True)]

    def found(layouts, rows=8, draws=False):
        distribution = keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
        with distribution.scope():
            return devices_in_force(runners, rows, draws)

    split = layout_map(model, mesh)
    whole = keras.distribution.LayoutMap(mesh)
    assert devices_in_force(runners, 8, False) is None
    assert found(split) == backend.Devices("the mesh", "batch", "expert", 2, 2)
    assert found(whole) == backend.Devices("the mesh", "batch", None, 2, 1)
    assert found(layout_map(model, mesh, "batch")).experts == "batch"
    assert found(split, rows=7) is None
    assert found(split, draws=True) is None
    assert within_expert(lambda: found(split))() is None
    within_units = keras.distribution.LayoutMap(mesh)
    within_units[".*kernel"] = (None, None, "expert")
    assert found(within_units) is None


@torch_only
@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_give_the_numbers_of_one(processes):
    run = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    found = printed(*run, "tests.distribution.processes")
    assert found.keys() == CASES.keys()
    for case in found.values():
        assert case["processes"] == processes
        assert case["moved"] > 1e-3
        assert case["losses"] < 1e-5
        assert case["variables"] < 1e-5


@torch_only
def test_every_parameter_has_a_gradient_where_experts_have_no_rows(tmp_path):
    """`DistributedDataParallel` refuses the second step otherwise."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    with contextlib.ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        model = made("top1_of_32")
        forward = DistributedDataParallel(model)
        for _ in range(2):
            model.zero_grad()
            forward(torch.ones(4, 6)).sum().backward()
        assert all(v.value.grad is not None for v in model.trainable_variables)


@tensorflow_only
@pytest.mark.slow
def test_replicas_give_the_numbers_of_one():
    found = printed("tests.distribution.replicas")
    assert found.pop("replicas") == 2
    assert found.keys() == CASES.keys()
    for case in found.values():
        assert max(case.values()) < 1e-5


@tensorflow_only
def test_a_sparse_mixture_trains_under_a_strategy():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = made("top2")
        model.compile("sgd", "mse")
    history = model.fit(np.ones((4, 6)), np.ones((4, 2)), batch_size=4, epochs=2, verbose=0)
    assert history.history["loss"][1] < history.history["loss"][0]
