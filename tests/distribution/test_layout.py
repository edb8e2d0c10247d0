"""The layout of a mixture's experts over a mesh, and what it refuses."""

import keras
import numpy as np
import pytest

import plait
from plait.distribution import distribute, layout_map


def mesh(experts=2):
    return keras.distribution.DeviceMesh(
        (1, experts), ["batch", "expert"], [f"cpu:{n}" for n in range(experts)]
    )


def model(num_experts=4, name="moe", **arguments):
    moe = plait.Mixture(keras.layers.Dense(3), num_experts=num_experts, name=name, **arguments)
    return keras.Sequential([keras.Input((3,)), keras.Sequential([moe])])


def test_stacked_experts_are_split_and_nothing_else():
    """At any depth, also where a mixture has several gates."""
    tasks = plait.MultiGateMixture(
        keras.layers.Dense(1), num_experts=2, private_experts=1, tasks=["a", "b"]
    )
    inputs = keras.Input((3,))
    whole = keras.Model(inputs, tasks(model()(inputs)))
    layouts = layout_map(whole, mesh())
    split = {v.path: layouts[v.path].axes for v in whole.variables if layouts[v.path] is not None}
    assert split == {
        v.path: ("expert", *[None] * (len(v.shape) - 1))
        for moe in (whole.layers[1].layers[0].layers[0], tasks)
        for v in moe.owned_experts[0].variables
    }
    assert len(split) == 4


def test_rules_may_be_added():
    whole = model()
    layouts = layout_map(whole, mesh())
    layouts[".*scores/kernel"] = (None, "batch")
    gate = next(v for v in whole.variables if "scores/kernel" in v.path)
    assert layouts[gate.path].axes == (None, "batch")


def test_what_cannot_be_split_is_named():
    with pytest.raises(ValueError, match=r"`expert_axis` must be one of.*'experts'.*Use 'expert'"):
        layout_map(model(), mesh(), "experts")
    with pytest.raises(ValueError, match=r"The 3 devices along 'expert'.*4 experts in 'moe'"):
        layout_map(model(), mesh(3))
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)], name="plain")
    with pytest.raises(ValueError, match="the model 'plain', which has none"):
        layout_map(plain, mesh())
    shared = keras.Sequential([keras.Input((2,)), plait.Mixture([keras.layers.Dense(2)] * 2)])
    with pytest.raises(ValueError, match="stacked experts"):
        layout_map(shared, mesh())


def test_a_map_of_another_model_is_refused():
    with pytest.raises(ValueError, match="does not hold"):
        distribute(model(), layout_map(model(), mesh(1)))


def test_stacks_of_one_path_are_both_split():
    """Two mixtures of one name, whose variables have one path and one layout."""
    inputs = keras.Input((3,))
    whole = keras.Model(inputs, model()(model()(inputs)))
    layouts = layout_map(whole, mesh())
    assert len(layouts.expert_variables) == 4
    assert np.unique([layouts[v.path].axes[0] for v in layouts.expert_variables]) == ["expert"]
