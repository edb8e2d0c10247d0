"""Functions of rows and variables as grouped products on JAX, against one expert at a time."""

from itertools import pairwise

import keras
import numpy as np
import pytest

jax = pytest.importorskip("jax")
if keras.config.backend() != "jax":
    pytest.skip("of JAX alone", allow_module_level=True)

import jax.numpy as jnp  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from keras import layers  # noqa: E402

import plait  # noqa: E402
from plait.ops.backend import jax as native  # noqa: E402
from plait.ops.backend.common import NotLoweredError  # noqa: E402
from plait.ops.backend.jax_lowering import Runs, lowered  # noqa: E402
from plait.ops.dispatch import apply_experts  # noqa: E402

float64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
BOUNDS = [0, 2, 2, 5, 7]  # the second expert has no rows
E, R, D = len(BOUNDS) - 1, BOUNDS[-1], 3

STEPS = {
    "product": lambda x, w, b, g: x @ w,
    "bias": lambda x, w, b, g: x + b,
    "scale": lambda x, w, b, g: g * x,
    "difference": lambda x, w, b, g: g - x,
    "of variables": lambda x, w, b, g: x * jnp.tanh(g * 0.5 + b),
    "pointwise": lambda x, w, b, g: jax.nn.gelu(x),
    "gated": lambda x, w, b, g: jax.nn.silu(x @ w) * x,
    "norm": lambda x, w, b, g: (x - x.mean(-1, keepdims=True)) * g,
    "second reader": lambda x, w, b, g: (lambda y: y + (y + b))(x @ w),
    "softmax": lambda x, w, b, g: jax.nn.softmax(x, axis=-1) + b,
    "product with itself": lambda x, w, b, g: jnp.tanh(jnp.sum(x * (x @ w), -1, keepdims=True)) + x,
    "transposed": lambda x, w, b, g: x @ (w.T * 0.5),
    "largest": lambda x, w, b, g: jnp.where(x > x.max(-1, keepdims=True) * 0.5, x, b),
    "halves": lambda x, w, b, g: jnp.concatenate([x[..., 1:], x[..., :1]], -1) @ w,
    "a constant": lambda x, w, b, g: x @ jnp.eye(D)[::-1] + 1.0,
}


def one_by_one(function, variables, x):
    parts = [
        function([v[i] for v in variables], [x[a:b]])[0]
        for i, (a, b) in enumerate(pairwise(BOUNDS))
        if a < b
    ]
    return jnp.concatenate(parts)


def runs():
    return Runs.of(jnp.array(BOUNDS, "int32"), R)


def values(rng, *shape):
    return jnp.array(rng.normal(size=shape))


@settings(max_examples=25, deadline=None)
@given(
    chain=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    inner=st.sampled_from([(), (2,), (2, 2)]),
    seed=st.integers(0, 99),
)
def test_chains_of_products_additions_and_pointwise_functions(chain, inner, seed):
    """Outputs and gradients, in float64: chains amplify what rounding leaves."""
    with float64(True):
        check_chain(chain, inner, seed)


def check_chain(chain, inner, seed):
    rng = np.random.default_rng(seed)
    variables = [values(rng, E, D, D), values(rng, E, D), values(rng, E, D)]
    x = values(rng, R, *inner, D)

    def function(own, rows):
        x = rows[0]
        for step in chain:
            x = STEPS[step](x, *own)
        return [x]

    def found(run, variables, x):
        y = run(variables, x)
        return jnp.sum(jnp.sin(y) * jnp.linspace(-1, 1, y.size).reshape(y.shape)), y

    grouped = lambda variables, x: lowered(function, variables, [x], runs())[0]  # noqa: E731
    single = lambda variables, x: one_by_one(function, variables, x)  # noqa: E731
    got, want = (
        jax.grad(found, argnums=(1, 2), has_aux=True)(run, variables, x)
        for run in (grouped, single)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * (1 + float(jnp.abs(b).max())))


SCALARS = {
    "where": lambda x, s: jnp.where(s > 0, x, -x),
    "select": lambda x, s: jax.lax.select(s > 0, x, -x),
    "clamp": lambda x, s: jax.lax.clamp(-jnp.abs(s), x, jnp.abs(s)),
    "scale": lambda x, s: s - x / s,
}


@pytest.mark.parametrize("inner", [(), (2,)])
@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_variable_meets_rows(rng, name, inner):
    function = lambda own, rows: [SCALARS[name](rows[0], own[0])]  # noqa: E731
    s, x = values(rng, E), values(rng, R, *inner, D)
    found, wanted = lowered(function, [s], [x], runs())[0], one_by_one(function, [s], x)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_a_small_dtype_are_summed_over_many_rows(dtype):
    """In float32: sums of ones in bfloat16 stay at 256."""
    r = 8192
    function = lambda own, rows: [rows[0] + own[0]]  # noqa: E731
    parts, x = Runs.of(jnp.array([0, r // 2, r], "int32"), r), jnp.ones((r, 1), dtype)

    def total(b):
        return lowered(function, [b], [x], parts)[0].astype("float32").sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros((2, 1), dtype)), r // 2)


@pytest.mark.parametrize(
    ("equation", "units"), [("ab,bc->ac", (4,)), ("abc,cd->abd", (4,)), ("abc,cde->abde", (4, 2))]
)
def test_einsum_over_the_last_axis(rng, equation, units):
    w = values(rng, E, D, *units)
    x = values(rng, R, *(2,) * (equation.index(",") - 2), D)
    function = lambda own, rows: [jnp.einsum(equation, rows[0], own[0])]  # noqa: E731
    found, wanted = lowered(function, [w], [x], runs())[0], one_by_one(function, [w], x)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


BAD = {
    "over the rows": lambda w, x: x - x.mean(0),
    "over all": lambda w, x: x / jnp.abs(x).sum(),
    "rows moved": lambda w, x: x[::-1],
    "rows transposed": lambda w, x: (x.T @ x) @ jnp.ones((D, R)),
    "a variable's values": lambda w, x: jnp.ones((R, D)) * w.sum(),
    "product from the left": lambda w, x: jnp.ones((R, R)) @ x,
    "a product of rows": lambda w, x: (x @ w) @ x.T @ x,
    "no rows": lambda w, x: jnp.ones((R, D)),
    "indexed": lambda w, x: x[jnp.array([1, 0, 2, 3, 4, 5, 6])],
    "rolled": lambda w, x: jnp.roll(x, 1, 0),
    "cumulated": lambda w, x: jnp.cumsum(x, 0),
    "softmax over rows": lambda w, x: jax.nn.softmax(x, axis=0),
    "numbers of rows": lambda w, x: x + jnp.arange(R, dtype="float32")[:, None],
    "a triangle": lambda w, x: x * jnp.tril(jnp.ones((R, D))),
    "numbers of rows, transposed": lambda w, x: x * jax.lax.broadcasted_iota("int32", (D, R), 1).T,
    "numbers of rows, counted": lambda w, x: x * jnp.cumsum(jnp.ones((R, 1)), 0),
    "a table of the rows": lambda w, x: x * np.linspace(0, 1, R, dtype="float32")[:, None],
    "random": lambda w, x: x * jax.random.uniform(jax.random.key(w[0, 0].astype("int32")), x.shape),
    "sorted": lambda w, x: jnp.sort(x, 0),
    "a loop": lambda w, x: jax.lax.fori_loop(0, 2, lambda i, y: y @ w, x),
}


@pytest.mark.parametrize("what", BAD)
def test_what_mixes_rows_is_not_lowered(rng, what):
    with pytest.raises(NotLoweredError):
        lowered(
            lambda own, rows: [BAD[what](own[0], rows[0])],
            [values(rng, E, D, D)],
            [values(rng, R, D)],
            runs(),
        )


def test_a_variable_as_long_as_there_are_rows_is_not_taken_for_them(rng):
    function = lambda own, rows: [rows[0] @ own[0]]  # noqa: E731
    with pytest.raises(NotLoweredError, match="as long as"):
        lowered(function, [values(rng, E, D, R)], [values(rng, R, D)], runs())


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("e", [3, 6])  # of six experts, the last three are never chosen
def test_experts_run_as_grouped_products(rng, monkeypatch, e, empty):
    n, k, d = 9, 2, 4
    indices = np.argsort(rng.random((n, 3)), axis=1)[:, :k].astype("int32")
    if empty:
        indices[3:5, 1], indices[7] = e, e
    x, w = values(rng, n, d), values(rng, e, d, d)

    def found():
        function = lambda own, rows, segment: jnp.sqrt(1 + (rows @ own[0]) ** 2)  # noqa: E731
        run = lambda x, w: apply_experts(function, [w], x, indices, num_experts=e)  # noqa: E731
        return [run(x, w), *jax.grad(lambda *given: (run(*given) ** 2).sum(), (0, 1))(x, w)]

    wanted = found()
    monkeypatch.setattr(native, "GROUPED_PRODUCTS", True)
    monkeypatch.delattr(native, "map_segments")
    for a, b in zip(found(), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def template(name):
    """Returns a template that is lowered."""
    rows = keras.Input((4,))
    if name == "gated":
        hidden = layers.Dense(6, activation="silu")(rows) * layers.Dense(6)(rows)
        return keras.Model(rows, layers.Dense(4)(hidden))
    if name == "residual":
        hidden = layers.Dense(6, activation="gelu")(layers.LayerNormalization()(rows))
        return keras.Model(rows, rows + layers.Dense(4)(hidden))
    return keras.Sequential(
        [rows, layers.EinsumDense("ab,bc->ac", 5, bias_axes="c"), layers.Dense(4)]
    )


@pytest.mark.parametrize("name", ["gated", "residual", "einsum"])
def test_a_mixture_trains_to_the_same_weights(rng, monkeypatch, name):
    x = rng.normal(size=(30, 4)).astype("float32")
    found = []
    for grouped in (False, True):
        monkeypatch.setattr(native, "GROUPED_PRODUCTS", grouped)
        keras.utils.set_random_seed(0)
        mix = plait.Mixture(template(name), num_experts=5, router=plait.routers.TopK(2))
        mix.compile(keras.optimizers.SGD(0.1), "mse")
        if grouped:
            monkeypatch.delattr(native, "map_segments")
        mix.fit(x, x[:, ::-1], epochs=4, batch_size=10, shuffle=False, verbose=0)
        found.append(mix.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
